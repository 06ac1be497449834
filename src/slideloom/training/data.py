"""Batches of stored patches over many slides, made ready in the background."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom.decoders.cellvit import expand_blocks
from slideloom.errors import SlideloomError
from slideloom.training.stored import Arrays, StoredSlide

__all__ = ["Batch", "PatchData", "batches_in_order", "derangement", "epoch_order", "prefetched"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Patches as the decoder and the losses take them.

    Attributes
    ----------
    tokens : list of Tensor
        z1 … z4, each (n, d, h, w), channels last in memory.
    image : Tensor or None
        (n, c, p, p) float32, normalised, channels last in memory.
    targets : dict of str to Tensor
        For :func:`slideloom.training.terms.total_loss`; ``valid`` among them.
    """

    tokens: list[Tensor]
    image: Tensor | None
    targets: dict[str, Tensor]

    @property
    def n(self) -> int:
        """Number of patches."""
        return int(self.targets["valid"].shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the patches, pixels."""
        height, width = self.targets["valid"].shape[-2:]
        return int(height), int(width)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, its tokens as float32; a repeated token map stays one tensor."""
        moved = {id(token): token for token in self.tokens}
        moved = {key: token.to(device, non_blocking=True).float() for key, token in moved.items()}
        return Batch(
            tokens=[moved[id(token)] for token in self.tokens],
            image=None if self.image is None else self.image.to(device, non_blocking=True),
            targets={name: values.to(device, non_blocking=True) for name, values in self.targets.items()},
        )


class PatchData:
    """Patches of many slides under one numbering.

    Parameters
    ----------
    slides : sequence of StoredSlide
        All of one tile size, token width and number of image channels.
    shuffle_seed : int, optional
        Give every patch the targets of another, always the same, drawn from this seed: a control. A pixel then counts
        only where both patches lie on their slides.

    Raises
    ------
    SlideloomError
        ``mixed_slides``: the slides are not of one kind. ``too_few_patches``: one patch cannot be shuffled.
    """

    def __init__(self, slides: Sequence[StoredSlide], shuffle_seed: int | None = None) -> None:
        self.slides = list(slides)
        _check_one_kind(self.slides)
        self._starts = np.cumsum([0, *(slide.n for slide in self.slides)])
        self.n = int(self._starts[-1])
        self._target_of = None if shuffle_seed is None else derangement(self.n, shuffle_seed)

    def hold(self, budget_bytes: int) -> int:
        """Keep slides in memory, in order, as long as they fit.

        Parameters
        ----------
        budget_bytes : int
            Bytes that may be taken.

        Returns
        -------
        int
            Bytes that were taken.
        """
        taken, count = 0, 0
        for slide in self.slides:
            if taken + slide.n * slide.patch_bytes <= budget_bytes:
                taken += slide.hold()
                count += 1
        _LOG.info("%d of %d slides held in memory, %.2f GB", count, len(self.slides), taken / 1e9)
        return taken

    def class_pixels(self) -> NDArray[np.int64]:
        """Pixels of each class over all slides, background first."""
        counts: NDArray[np.int64] = np.sum([slide.class_pixels() for slide in self.slides], axis=0)
        return counts

    def batch(self, indices: NDArray[np.intp]) -> Batch:
        """Read some patches.

        Parameters
        ----------
        indices : (k,) int array
            Patches, numbered over all slides.
        """
        inputs = self._gather(indices, "inputs")
        if self._target_of is None:
            targets = self._gather(indices, "targets")
        else:
            targets = self._gather(self._target_of[indices], "targets")
            targets["valid"] = targets["valid"] & inputs["valid"]
        names = sorted((name for name in inputs if name.startswith("tokens_")), key=lambda name: int(name[7:]))
        image = inputs.get("image")
        return Batch(
            tokens=expand_blocks([torch.from_numpy(inputs[name]).permute(0, 3, 1, 2) for name in names]),
            image=None if image is None else torch.from_numpy(image).permute(0, 3, 1, 2),
            targets={name: torch.from_numpy(values) for name, values in targets.items()},
        )

    def _gather(self, indices: NDArray[np.intp], what: str) -> Arrays:
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        out: Arrays = {}
        for number in np.unique(owner):
            here = np.flatnonzero(owner == number)
            slide = self.slides[number]
            part: Arrays = getattr(slide, what)(indices[here] - self._starts[number])
            if here.size == indices.size:
                return part
            for name, values in part.items():
                if name not in out:
                    out[name] = np.empty((indices.size, *values.shape[1:]), values.dtype)
                out[name][here] = values
        return out


def _check_one_kind(slides: Sequence[StoredSlide]) -> None:
    if not slides:
        return
    first = slides[0]
    for slide in slides[1:]:
        for what in ("tile_px", "blocks", "encoder"):
            ours, theirs = (_without_notes(getattr(one, what)) for one in (first, slide))
            if ours != theirs:
                raise SlideloomError(
                    f"{what} is {theirs}, but {ours} in {first.slide_id}",
                    where=slide.slide_id,
                    expected="slides of one kind in an experiment",
                    hint="Make the patches and embeddings of all slides with one config",
                    code="mixed_slides",
                )


def _without_notes(value: object) -> object:
    """Notes may be of one slide: that it is off the encoder's resolution, say."""
    if isinstance(value, dict):
        return {name: _without_notes(part) for name, part in value.items() if name != "notes"}
    return [_without_notes(part) for part in value] if isinstance(value, list) else value


def derangement(count: int, seed: int) -> NDArray[np.intp]:
    """A permutation without a fixed point, drawn from a seed: one cycle through all.

    Raises
    ------
    SlideloomError
        ``too_few_patches``: ``count`` is 1.
    """
    if count == 1:
        raise SlideloomError("one patch has no other to take targets from", code="too_few_patches")
    order = np.random.default_rng([seed, 0x5F]).permutation(count)
    target_of = np.empty(count, np.intp)
    target_of[order] = np.roll(order, 1)
    return target_of


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.intp]]:
    """Patches of each training step of an epoch, every patch once.

    Parameters
    ----------
    count, batch_size : int
        Patches in all and a step.
    seed, epoch : int
        Decide the order.

    Returns
    -------
    list of (k,) int array
        A last batch of one patch joins the one before: batch normalisation needs company.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return _cut(order, batch_size, join_last=True)


def batches_in_order(count: int, batch_size: int) -> list[NDArray[np.intp]]:
    """Patches of each validation step, first to last."""
    return _cut(np.arange(count), batch_size, join_last=False)


def _cut(order: NDArray[np.intp], batch_size: int, *, join_last: bool) -> list[NDArray[np.intp]]:
    cuts = list(range(batch_size, order.size, batch_size))
    if join_last and cuts and order.size - cuts[-1] == 1:
        cuts.pop()
    return np.split(order, cuts)


def prefetched(
    data: PatchData, order: Iterable[NDArray[np.intp]], device: torch.device, *, workers: int = 1, ahead: int = 2
) -> Iterator[Batch]:
    """Batches in order, read in the background while the caller works.

    Parameters
    ----------
    data : PatchData
        Where they come from.
    order : iterable of (k,) int array
        Patches of each batch.
    device : torch.device
        Where they go; on the way to a GPU through pinned memory.
    workers : int
        Threads that read.
    ahead : int
        Batches that wait ready, at most, besides those being read.

    Yields
    ------
    Batch
        On the device. An error while reading is raised here.
    """

    def make(indices: NDArray[np.intp]) -> Batch:
        batch = data.batch(indices)
        return _pinned(batch) if device.type == "cuda" else batch

    waiting: deque[Future[Batch]] = deque()
    rest = iter(order)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="batches") as pool:
        try:
            for indices in rest:
                waiting.append(pool.submit(make, indices))
                if len(waiting) >= workers + ahead:
                    yield waiting.popleft().result().to(device)
            while waiting:
                yield waiting.popleft().result().to(device)
        finally:
            for job in waiting:
                job.cancel()


def _pinned(batch: Batch) -> Batch:
    seen = {id(token): token for token in batch.tokens}
    seen = {key: token.pin_memory() for key, token in seen.items()}
    return Batch(
        tokens=[seen[id(token)] for token in batch.tokens],
        image=None if batch.image is None else batch.image.pin_memory(),
        targets={name: values.pin_memory() for name, values in batch.targets.items()},
    )

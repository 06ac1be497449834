"""Batches of stored patches over many slides, made ready in the background."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from slideloom.decoders.cellvit import expand_blocks
from slideloom.errors import SlideloomError
from slideloom.training.annotated import AnnotatedSlide, Arrays
from slideloom.training.batch import Batch
from slideloom.training.stored import StoredSlide
from slideloom.training.symmetry import transform_batch, transform_targets

__all__ = ["PatchData", "batches_in_order", "derangement", "epoch_order", "prefetched"]

_LOG = logging.getLogger(__name__)
_KIND = ("input", "tile_px", "blocks", "encoder")


class PatchData:
    """Patches of many slides under one numbering.

    Parameters
    ----------
    slides : sequence of AnnotatedSlide
        All of one tile size, token width and number of image channels, and all stored or all raw.
    shuffle_seed : int, optional
        Give every patch the targets of another, always the same, drawn from this seed: a control. A pixel then counts
        only where both patches lie on their slides.

    Raises
    ------
    SlideloomError
        ``mixed_slides``: the slides are not of one kind. ``too_few_patches``: one patch cannot be shuffled.
    """

    def __init__(self, slides: Sequence[AnnotatedSlide], shuffle_seed: int | None = None) -> None:
        self.slides = list(slides)
        _check_one_kind(self.slides)
        self._starts = np.cumsum([0, *(slide.n for slide in self.slides)])
        self.n = int(self._starts[-1])
        self._target_of = None if shuffle_seed is None else derangement(self.n, shuffle_seed)
        self._counted: tuple[NDArray[np.bool_], int] | None = None

    def hold(self, budget_bytes: int, symmetries: bool = False) -> int:
        """Keep slides in memory, in order, as long as they fit.

        Parameters
        ----------
        budget_bytes : int
            Bytes that may be taken.
        symmetries : bool
            Keep the tokens of all flips and turns, too, of slides that have them and as long as they fit.

        Returns
        -------
        int
            Bytes that were taken.
        """
        taken, count = 0, 0
        for slide in self.slides:
            for every in (True, False) if symmetries and slide.has_symmetries else (False,):
                if taken + slide.n * slide.bytes_each(every) <= budget_bytes:
                    taken += slide.hold(every)
                    count += 1
                    break
        _LOG.info("%d of %d slides held in memory, %.2f GB", count, len(self.slides), taken / 1e9)
        return taken

    def class_pixels(self) -> NDArray[np.int64]:
        """Pixels of each class over all slides, background first."""
        counts: NDArray[np.int64] = np.sum([slide.class_pixels() for slide in self.slides], axis=0)
        return counts

    def class_presence(self) -> NDArray[np.bool_]:
        """Which classes each patch shows: (n, n_classes - 1), whether a pixel of a nucleus of class 1, 2, … is there.

        With shuffled targets, of those that it was given.
        """
        presence = self._census()[0]
        return presence if self._target_of is None else presence[self._target_of]

    def n_nuclei(self) -> int:
        """Nuclei of all slides that the patches show; one in several patches counts once."""
        return self._census()[1]

    def _census(self) -> tuple[NDArray[np.bool_], int]:
        if self._counted is None:
            parts = [slide.census() for slide in self.slides]
            self._counted = np.concatenate([part[0] for part in parts]), sum(part[1] for part in parts)
        return self._counted

    def batch(self, indices: NDArray[np.intp], symmetries: NDArray[np.uint8] | None = None) -> Batch:
        """Read some patches.

        Parameters
        ----------
        indices : (k,) int array
            Patches, numbered over all slides.
        symmetries : (k,) uint8 array, optional
            Flip and turn each patch so, see :mod:`slideloom.training.symmetry`: tokens are those stored of the flipped
            and turned patch, all else moves.

        Returns
        -------
        Batch
            Of raw slides, with ``pixels`` and without tokens and image.
        """
        if symmetries is not None and not symmetries.any():
            symmetries = None
        inputs = self._gather(indices, "inputs", symmetries)
        if self._target_of is None:
            targets = self._gather(indices, "targets")
        else:
            targets = self._gather(self._target_of[indices], "targets")
            targets["valid"] = targets["valid"] & inputs["valid"]
        names = sorted((name for name in inputs if name.startswith("tokens_")), key=lambda name: int(name[7:]))
        image, pixels = inputs.get("image"), inputs.get("pixels")
        batch = Batch(
            tokens=expand_blocks([torch.from_numpy(inputs[name]).permute(0, 3, 1, 2) for name in names])
            if names
            else [],
            image=None if image is None else torch.from_numpy(image).permute(0, 3, 1, 2),
            targets={name: torch.from_numpy(values) for name, values in targets.items()},
            pixels=None if pixels is None else torch.from_numpy(pixels),
            owners=None if pixels is None else self._owners(indices),
        )
        return batch if symmetries is None else _turned(batch, symmetries)

    def _owners(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        owners: NDArray[np.intp] = np.searchsorted(self._starts, indices, side="right") - 1
        return owners

    def _gather(
        self, indices: NDArray[np.intp], what: Literal["inputs", "targets"], symmetries: NDArray[np.uint8] | None = None
    ) -> Arrays:
        owner = self._owners(indices)
        out: Arrays = {}
        for number in np.unique(owner):
            here = np.flatnonzero(owner == number)
            slide, places = self.slides[int(number)], indices[here] - self._starts[number]
            if what == "targets":
                part = slide.targets(places)
            else:
                part = slide.inputs(places, None if symmetries is None else symmetries[here])
            if here.size == indices.size:
                return part
            for name, values in part.items():
                if name not in out:
                    out[name] = self._room(name, values, owner)
                if name == "pixels":
                    out[name][here, : values.shape[1]] = values
                else:
                    out[name][here] = values
        return out

    def _room(self, name: str, values: NDArray[Any], owner: NDArray[np.intp]) -> NDArray[Any]:
        """An array for what several slides give; pixels have the channels of the largest panel, 0 where there is none.

        Panels and types differ only before an adapter; float32 holds all of their values.
        """
        if name != "pixels":
            return np.empty((owner.size, *values.shape[1:]), values.dtype)
        slides = [self.slides[number] for number in np.unique(owner).tolist()]
        kinds = {slide.patches.dtype for slide in slides}
        most = max(len(slide.channels) for slide in slides)
        kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
        return np.zeros((owner.size, most, *values.shape[2:]), kind)


def _turned(batch: Batch, symmetries: NDArray[np.uint8]) -> Batch:
    """Pixels and targets of a batch flipped and turned; its tokens are of such patches already."""
    return replace(
        batch,
        image=None if batch.image is None else transform_batch(batch.image, symmetries),
        targets=transform_targets(batch.targets, symmetries),
        pixels=None if batch.pixels is None else transform_batch(batch.pixels, symmetries),
    )


def _check_one_kind(slides: Sequence[AnnotatedSlide]) -> None:
    if not slides:
        return
    first = slides[0]
    for slide in slides[1:]:
        for what, ours, theirs in zip(_KIND, _kind(first), _kind(slide), strict=True):
            if ours != theirs:
                path, one, other = _difference(ours, theirs)
                raise SlideloomError(
                    f"{' '.join((what, *path))} is {other}, but {one} in {first.slide_id}",
                    where=slide.slide_id,
                    expected="slides of one kind in an experiment",
                    hint="Make the patches and embeddings of all slides with one config",
                    code="mixed_slides",
                )


def _difference(ours: object, theirs: object) -> tuple[tuple[str, ...], object, object]:
    """Where two values first differ, and what stands there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                path, one, other = _difference(ours.get(name), theirs.get(name))
                return (str(name), *path), one, other
    return (), ours, theirs


def _kind(slide: AnnotatedSlide) -> tuple[Any, ...]:
    """What all slides must have in common; of raw ones, the encoder that they are fitted to sees to the rest."""
    geometry = slide.geometry if isinstance(slide, StoredSlide) else None
    tokens = (None, None) if geometry is None else (geometry.blocks, _without_notes(geometry.encoder_record))
    return slide.input, slide.tile_px, *tokens


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
    data: PatchData,
    order: Iterable[NDArray[np.intp]],
    device: torch.device,
    *,
    workers: int = 1,
    ahead: int = 2,
    draw: Callable[[int, int], NDArray[np.uint8]] | None = None,
) -> Generator[Batch]:
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
    draw : callable, optional
        From the number of a batch, from 0, and its patches' number k to how they are flipped and turned: (k,) uint8.

    Yields
    ------
    Batch
        On the device. An error while reading is raised here.
    """

    def make(step: int, indices: NDArray[np.intp]) -> Batch:
        batch = data.batch(indices) if draw is None else data.batch(indices, draw(step, indices.size))
        return _pinned(batch) if device.type == "cuda" else batch

    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="batches") as pool:
        try:
            for step, indices in enumerate(order):
                waiting.append(pool.submit(make, step, indices))
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
    return replace(
        batch,
        tokens=[seen[id(token)] for token in batch.tokens],
        image=None if batch.image is None else batch.image.pin_memory(),
        targets={name: values.pin_memory() for name, values in batch.targets.items()},
        pixels=None if batch.pixels is None else batch.pixels.pin_memory(),
    )

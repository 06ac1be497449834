"""The encoder of a live training: patches are encoded in every step, by frozen weights or by weights that train, too.

The encoder stays in evaluation mode also where it is trained: what was trained long ago on large batches should not
meet dropout, or statistics of a few tiles, once more. Training then changes its weights and nothing else. Before it
may stand an adapter, which is trained from the first step on and then gives the encoder, and the decoder's image skip,
what they see; slides need not have the same channels then.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slideloom.adapters.base import Adapter
from slideloom.adapters.build import build_adapter
from slideloom.adapters.panel import adapter_channels, adapter_statistics
from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import canonical
from slideloom.config.model import AugmentationConfig
from slideloom.decoders.cellvit import expand_blocks
from slideloom.encoders.base import RGB, Encoder, encoder_record
from slideloom.encoders.fit import check_fit, choose_channels, marker_panel, slide_panel, used_statistics
from slideloom.encoders.normalise import normalise
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.training.annotated import AnnotatedSlide, Geometry
from slideloom.training.appearance import Appearance, apply_appearance, draw_appearance, leave_out
from slideloom.training.batch import Batch, layout_on
from slideloom.training.job import LiveEncoder, TrainJob
from slideloom.training.optimiser import autocast
from slideloom.training.raw import RawSlide

__all__ = ["Front", "make_front"]

_LOG = logging.getLogger(__name__)


class Front:
    """The encoder of a live training; one for training and validation.

    Parameters
    ----------
    encoder : Encoder
        Built from ``job.live``.
    live : LiveEncoder
        Its entry.
    job : TrainJob
        When it is trained, and in which arithmetic it runs.
    device : torch.device
        Where it runs.
    statistics : ChannelStatistics, optional
        Of the training slides.
    adapter : Adapter, optional
        What stands before it.

    Attributes
    ----------
    module : Module
        Its layers, in evaluation mode; their weights are frozen until :meth:`train_from` says otherwise.
    adapter : Adapter or None
        On the device.
    trained : bool
        Whether its weights are being trained or have been.

    Raises
    ------
    SlideloomError
        ``encoder_untrainable``: it should be trained, but has no weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        live: LiveEncoder,
        job: TrainJob,
        device: torch.device,
        statistics: ChannelStatistics | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.adapter = None if adapter is None else adapter.to(device)
        self.module: nn.Module = encoder.module
        self.trained = False
        self._unfreeze_epoch = job.training.unfreeze_epoch
        if self._unfreeze_epoch is not None and not any(True for _ in self.module.parameters()):
            raise SlideloomError(
                f"encoder {encoder.spec.name} has no weights that could be trained",
                where=job.name,
                hint="Leave training.unfreeze_epoch out",
                code="encoder_untrainable",
            )
        # A device without a number is named so: encoders compare names.
        self._encoder = encoder.to(str(device))
        self._live, self._statistics = live, statistics
        self._precision, self._device = job.training.precision, device
        self._trains = False

    def fit(self, slides: Sequence[AnnotatedSlide]) -> None:
        """Tell slides which pixels are wanted of them, and find out what they are normalised with.

        Parameters
        ----------
        slides : sequence of AnnotatedSlide
            Raw ones; those that were fitted before are left as they are.

        Raises
        ------
        SlideError, SlideloomError
            As :func:`~slideloom.encoders.fit.check_fit`, :func:`~slideloom.encoders.fit.choose_channels` and
            :func:`~slideloom.encoders.fit.used_statistics`; ``mixed_slides``: its tokens are stored.
        """
        encoder, config = self._encoder, self._live.config
        for slide in slides:
            if not isinstance(slide, RawSlide):
                raise SlideloomError(
                    "its tokens are stored",
                    where=slide.slide_id,
                    expected="slides without embeddings, with training.input: live",
                    code="mixed_slides",
                )
            if slide.fitted:
                continue
            notes = check_fit(encoder, config, slide.patches)
            if self.adapter is None:
                channels = choose_channels(encoder, config, slide.patches)
                statistics = used_statistics(encoder, config, slide.patches, self._statistics)
            else:
                channels = adapter_channels(config, slide.patches, self.adapter.most_channels)
                statistics = adapter_statistics(config, slide.patches, self._statistics)
            blocks = tuple(encoder.blocks if slide.needs.skips else encoder.blocks[-1:])
            # As it would be read back from an embedding store.
            record: dict[str, Any] = json.loads(canonical(encoder_record(encoder, config, self._precision)))
            record["notes"] += notes
            told = None if statistics is None else statistics.as_dict()
            seen = len(channels) if self.adapter is None else self.adapter.out_channels
            geometry = Geometry(encoder.width, encoder.patch_px, seen, blocks, record, told)
            slide.fit_to(channels, statistics, geometry)
            for note in notes:
                _LOG.warning("%s: %s", slide.slide_id, note)

    def fitting(self, slides: Sequence[AnnotatedSlide], role: str) -> list[AnnotatedSlide]:
        """The slides that fit the encoder, fitted; tell which do not.

        Parameters
        ----------
        slides : sequence of AnnotatedSlide
            Raw ones.
        role : str
            For the log.
        """
        kept: list[AnnotatedSlide] = []
        left_out: list[str] = []
        for slide in slides:
            try:
                self.fit([slide])
                kept.append(slide)
            except SlideError as error:
                left_out.append(f"{slide.slide_id} ({error.what})")
        if left_out:
            _LOG.warning("%d of %d %s slides are left out: %s", len(left_out), len(slides), role, "; ".join(left_out))
        return kept

    def train_from(self, epoch: int) -> bool:
        """Freeze or unfreeze the weights for an epoch.

        Parameters
        ----------
        epoch : int
            Its number; from ``training.unfreeze_epoch`` on the weights are trained.

        Returns
        -------
        bool
            Whether they are trained in this epoch.
        """
        self._trains = self._unfreeze_epoch is not None and epoch >= self._unfreeze_epoch
        self.module.requires_grad_(self._trains)
        self.trained |= self._trains
        return self._trains

    def prepare(
        self,
        batch: Batch,
        slides: Sequence[AnnotatedSlide],
        augmentation: AugmentationConfig | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Change the look of a batch's pixels, normalise and encode them.

        Parameters
        ----------
        batch : Batch
            Of raw slides, on the device.
        slides : sequence of AnnotatedSlide
            Its ``owners`` are places among these.
        augmentation : AugmentationConfig, optional
            Of the look; none when left out, and the weights then get no gradients.
        rng : Generator
            Where changes of the look come from.

        Returns
        -------
        Batch
            With tokens and, where the decoder needs it, the image; without pixels.
        """
        if batch.pixels is None or batch.owners is None:
            raise ValueError("a batch without raw pixels")
        pixels, training = batch.pixels, augmentation is not None
        kind = self._encoder.spec.kind if self.adapter is None else "markers"
        look = Appearance()
        if augmentation is not None and rng is not None:
            look = draw_appearance(augmentation, kind, len(pixels), pixels.shape[1], rng)
        changed = apply_appearance(pixels, look)
        if changed is not pixels and kind == "rgb":
            # What an image file would hold, and all that RGB encoders take.
            changed = changed.round_().clamp_(0, 255).to(torch.uint8)
        geometry = slides[0].geometry
        with torch.no_grad():
            images = leave_out(self._normalised(changed, batch.owners, slides), look)
        trains = training and (self._trains or self.adapter is not None)
        with torch.set_grad_enabled(trains), autocast(self._precision, self._device):
            if self.adapter is not None:
                images = self.adapter.train(training)(images, _present(batch.owners, slides, look, images)).float()
            found = self._encoder.tokens(images)
        tokens = [found[block].permute(0, 3, 1, 2).float() for block in geometry.blocks]
        layout = layout_on(self._device)
        tokens = [values.contiguous(memory_format=layout) for values in tokens]
        return replace(
            batch,
            tokens=expand_blocks(tokens),
            image=images.contiguous(memory_format=layout) if slides[0].needs.image else None,
            pixels=None,
            owners=None,
        )

    def _normalised(self, pixels: Tensor, owners: Any, slides: Sequence[AnnotatedSlide]) -> Tensor:
        """Patches of slides with statistics of their own go through the encoder's normalisation slide by slide."""
        numbers = np.unique(owners)
        wanted = {number: _statistics_of(slides[number]) for number in numbers.tolist()}
        first = wanted[int(numbers[0])]
        if all(one == first for one in wanted.values()):
            return self._preprocessed(pixels, first)
        # Some types of raw pixels cannot be picked on every device; float32 is what normalisation begins with.
        values = pixels.to(torch.float32)
        out = torch.zeros_like(values)
        for number, statistics in wanted.items():
            rows = torch.from_numpy(np.flatnonzero(owners == number)).to(pixels.device, non_blocking=True)
            # Panels with fewer channels than the batch's largest are filled up behind.
            here = len(slides[number].channels)
            out[rows, :here] = self._preprocessed(values.index_select(0, rows)[:, :here], statistics)
        return out

    def _preprocessed(self, pixels: Tensor, statistics: ChannelStatistics | None) -> Tensor:
        if self.adapter is None:
            return self._encoder.preprocess(pixels, statistics)
        names = () if statistics is None else statistics.markers
        return normalise(pixels, statistics, names, self._live.config.model)

    def state_dict(self) -> dict[str, Tensor]:
        """The module's."""
        return self.module.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """The module's; strictly."""
        self.module.load_state_dict(state_dict)


def make_front(job: TrainJob, slides: Sequence[AnnotatedSlide], device: torch.device) -> Front | None:
    """The encoder of a job; None when it reads stored tokens.

    Parameters
    ----------
    job : TrainJob
        ``live`` says which encoder.
    slides : sequence of AnnotatedSlide
        Those of the training. The first one's panel is the encoder's where neither its config nor the statistics name
        markers. None is fitted yet: see :meth:`Front.fitting`; a :class:`~slideloom.training.feed.Feed` insists on all
        of its own.
    device : torch.device
        Where it runs.

    Raises
    ------
    SlideloomError
        What ``live.build`` refuses, and :class:`Front`.
    """
    live = job.live
    if live is None:
        return None
    statistics = None
    if live.statistics is not None:
        statistics = ChannelStatistics.from_dict(read_json(live.statistics))
    if live.adapter is None:
        encoder = live.build(live.config, slide_panel(slides[0].patches, statistics, live.uniprot))
        return Front(encoder, live, job, device, statistics)
    adapter = build_adapter(live.adapter, seed=job.training.seed)
    encoder = live.build(live.config.model_copy(update={"markers": []}), marker_panel(RGB, {}))
    return Front(encoder, live, job, device, statistics, adapter)


def _present(
    owners: NDArray[np.intp], slides: Sequence[AnnotatedSlide], look: Appearance, images: Tensor
) -> Tensor | None:
    """(n, c) bool: the channels that a patch has and that were not left out; None where it is all of them."""
    counts = np.array([len(slides[owner].channels) for owner in owners.tolist()])
    there: NDArray[Any] = np.less(np.arange(images.shape[1]), counts[:, None])
    if look.left_out is not None:
        kept = there & ~look.left_out
        # A patch keeps a channel: where the one that was to stay is none of its own, it keeps all.
        there = np.where(kept.any(axis=1, keepdims=True), kept, there)
    return None if there.all() else torch.from_numpy(there).to(images.device)


def _statistics_of(slide: AnnotatedSlide) -> ChannelStatistics | None:
    return slide.statistics if isinstance(slide, RawSlide) else None

"""VirTues as a frozen encoder of any panel of markers: patch summary tokens of 8 px, 512 numbers each.

Every channel is told apart by the protein embedding of its marker
(:mod:`slideloom.encoders.virtues.marker_embeddings`), so that a panel may hold any markers in any order. The weights
expect 1 µm per pixel, each image clipped at the 0.99 quantile of its tissue, ``log(1 + x)``, mean and deviation of the
training set, and a light blur.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from slideloom.config.catalogue import EncoderEntry
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import (
    EncoderSpec,
    channel_label,
    check_final_norm,
    check_own_patch,
    check_patch_px,
    check_tile,
    even_blocks,
    resolve_blocks,
)
from slideloom.encoders.checkpoints.weights import read_weights
from slideloom.encoders.normalise import normalise
from slideloom.encoders.virtues.marker_embeddings import read_marker_embeddings
from slideloom.encoders.virtues.net import Architecture, VirTuesNet, drawn_net
from slideloom.encoders.virtues.schemes import alternating
from slideloom.encoders.virtues.weights import load_virtues
from slideloom.errors import SlideloomError
from slideloom.patches.panels import marker_indices
from slideloom.patches.statistics import ChannelStatistics
from slideloom.slides.tables import Channel

__all__ = ["VirTues", "blur", "build_virtues"]

_LOG = logging.getLogger(__name__)
#: Gaussian of deviation 1 px, three taps.
_TAPS = (0.27406862, 0.45186275, 0.27406862)
#: Tokens a pass on a CPU: enough to fill its matrix products, few enough to stay in its caches.
_CPU_TOKENS = 4096
#: Deviation of the numbers of real embeddings (ESM-2 150M, 213 proteins).
_EMBEDDING_STD = 0.25


def blur(images: Tensor) -> Tensor:
    """Gaussian blur, 3 x 3 taps of deviation 1 px, mirrored at the edges: (n, c, h, w) → the same."""
    low, middle, high = _TAPS
    padded = functional.pad(images, (0, 0, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] * low + padded[..., 1:-1, :] * middle + padded[..., 2:, :] * high
    padded = functional.pad(rows, (1, 1, 0, 0), mode="reflect")
    return padded[..., :-2] * low + padded[..., 1:-1] * middle + padded[..., 2:] * high


class VirTues:
    """Patch summary tokens of VirTues.

    Parameters
    ----------
    net : VirTuesNet
        The layers, frozen.
    spec : EncoderSpec
        What it declares; with ``final_norm`` the last block's tokens are given after the final norm.
    blocks : tuple of int
        Blocks to hand out, 1-based, rising.
    markers : sequence of str
        Name of each channel, in order.
    embeddings : (c, marker_width) float32 Tensor
        Protein embedding of each channel's marker.
    weights : str
        Where the weights came from, as :class:`~slideloom.encoders.base.Encoder` says.
    notes : tuple of str
        Remarks on weights and markers.
    dropped : tuple of str
        Markers of the panel that are not read.
    isolated : bool
        Whether each patch is encoded by itself; the blur still crosses patches.
    """

    def __init__(
        self,
        net: VirTuesNet,
        spec: EncoderSpec,
        blocks: tuple[int, ...],
        markers: Sequence[str],
        embeddings: Tensor,
        weights: str,
        notes: tuple[str, ...] = (),
        dropped: tuple[str, ...] = (),
        isolated: bool = False,
    ) -> None:
        self.net = net.eval().requires_grad_(False)
        self.spec = spec
        self.blocks = blocks
        self.markers = tuple(markers)
        self.width = spec.width
        self.patch_px = spec.patch_px
        self.image_channels = len(self.markers)
        self.weights = weights
        self.notes = notes
        self.dropped = dropped
        self.isolated = isolated
        self._embeddings = embeddings
        self._made_of: tuple[int, int] | None = None
        self._encode_markers()

    @property
    def module(self) -> VirTuesNet:
        """The layers."""
        return self.net

    def to(self, device: str) -> VirTues:
        """Move the weights."""
        with torch.no_grad():
            markers = self._panel()
        frozen = self._made_of is not None
        self.net.to(device)
        self._embeddings = self._embeddings.to(device)
        # Moved, not made anew: a device of another kind would round them differently.
        self._markers, self._made_of = markers.to(device), self._version() if frozen else None
        return self

    def _panel(self) -> Tensor:
        """What is added to the tokens of each channel: made once of frozen weights, each time of those in training."""
        layer = self.net.marker_encoder
        if layer.weight.requires_grad or layer.bias.requires_grad:
            # Fused optimisers change weights without a trace that could be looked for.
            self._made_of = None
            with torch.autocast(self._embeddings.device.type, enabled=False):
                return self.net.encode_markers(self._embeddings)
        if self._made_of != self._version():
            self._encode_markers()
        return self._markers

    def _encode_markers(self) -> None:
        # A tensor born in inference mode could never take part in training. And full precision: what tells markers
        # apart is small.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(self._embeddings.device.type, enabled=False),
        ):
            self._markers, self._made_of = self.net.encode_markers(self._embeddings), self._version()

    def _version(self) -> tuple[int, int]:
        """Another one whenever the weights that encode markers have changed in place; they were never replaced."""
        layer = self.net.marker_encoder
        return (0, 0) if layer.weight.is_inference() else (layer.weight._version, layer.bias._version)

    def preprocess(self, pixels: Tensor, statistics: ChannelStatistics | None) -> Tensor:
        """Clip, take the logarithm, standardise: see :func:`~slideloom.encoders.normalise.normalise`.

        Parameters
        ----------
        pixels : Tensor
            (n, c, h, w) raw intensities, channels in the order of ``markers``.
        statistics : ChannelStatistics
            Of the same markers in the same order, with clipping points.

        Returns
        -------
        Tensor
            (n, c, h, w) float32.

        Raises
        ------
        SlideloomError
            ``encoder_statistics``: none given, of other markers, or without clipping points. ``encoder_channels``:
            another number of channels.
        """
        return normalise(pixels, statistics, self.markers, self.spec.name)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """Tokens of each block, without gradients: see :meth:`tokens`."""
        return self.tokens(images)

    def tokens(self, images: Tensor) -> dict[int, Tensor]:
        """Blur, then patch summary tokens of each block, in the caller's gradient mode.

        Parameters
        ----------
        images : Tensor
            (n, c, h, w) preprocessed; h and w multiples of ``patch_px``.

        Returns
        -------
        dict of int to Tensor
            By block, (n, h / patch_px, w / patch_px, width), float32.
        """
        height, width = images.shape[-2:]
        check_tile(height, self.spec)
        check_tile(width, self.spec)
        normed = self.spec.final_norm and self.blocks[-1] == self.spec.depth
        wanted = self.blocks[:-1] if normed else self.blocks
        tokens_each = (1 + self.image_channels) * (height // self.patch_px) * (width // self.patch_px)
        most = max(1, _CPU_TOKENS // tokens_each) if images.device.type == "cpu" else max(1, len(images))
        # Pieces of one size: the last bits of a product may follow from the number of rows.
        size = next(k for k in range(min(most, max(1, len(images))), 0, -1) if len(images) % k == 0)
        parts: dict[int, list[Tensor]] = {block: [] for block in self.blocks}
        markers = self._panel()
        for batch in torch.split(blur(images.float()), size):
            tokens = self.net(batch, markers, blocks=wanted, final=normed, isolated=self.isolated)
            found = tokens.after | ({self.spec.depth: tokens.final} if normed else {})
            for block, value in found.items():
                parts[block].append(value)
        return {block: values[0] if len(values) == 1 else torch.cat(values) for block, values in parts.items()}


@dataclass(frozen=True)
class _Panel:
    """Markers that are read, their embeddings, markers that are not, and remarks."""

    markers: tuple[str, ...]
    embeddings: Tensor
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def build_virtues(config: EncoderConfig, entry: EncoderEntry, channels: Sequence[Channel]) -> VirTues:
    """Build from a config entry, with weights from a local checkpoint or from a seed. Nothing is downloaded.

    A marker's accession is that of ``marker_ids``, or else of its channel. Seeded weights are drawn as the authors drew
    theirs; without ``marker_embeddings`` the embeddings are then drawn, too, for each accession by itself.

    Parameters
    ----------
    config : EncoderConfig
        ``checkpoint`` or ``random``, ``marker_embeddings``, ``markers`` (empty: every channel), ``marker_ids``,
        ``unknown_markers``, ``blocks``, ``final_norm``, ``context``, ``patch_px`` (8, if given).
    entry : EncoderEntry
        Of the catalogue; all but ``virtues`` itself fix the model's sizes.
    channels : sequence of Channel
        Of a slide of the study.

    Raises
    ------
    SlideloomError
        ``unknown_markers``: markers without an accession or an embedding, all of them listed; with ``drop``: none is
        left. ``marker_embeddings``: none are named, or see :mod:`slideloom.encoders.virtues.marker_embeddings`.
        ``checkpoint_sizes``: the model is not the one named. ``final_norm``: it has none. ``encoder_patch_px``,
        ``encoder_blocks``, and those of :mod:`slideloom.encoders.virtues.weights` and
        :mod:`slideloom.encoders.checkpoints.weights`.
    SlideError
        ``missing_marker``.
    """
    chosen = [channels[index] for index in marker_indices(channels, config.markers)]
    notes: tuple[str, ...] = ()
    if config.checkpoint is not None:
        weights = read_weights(config.checkpoint)
        fixed = entry.name != "virtues" and entry.depth is not None
        loaded = load_virtues(weights, config.model, pattern=alternating(entry.depth or 0) if fixed else None)
        net, origin, notes = loaded.net, f"sha256:{weights.sha256}", loaded.notes
        if fixed:
            _check_sizes(net.architecture, entry, config)
    elif config.random is not None:
        net, origin = _seeded(entry, config.random), f"random:{config.random}"
        _LOG.warning("%s runs WITHOUT trained weights, from random seed %d", config.model, config.random)
    else:
        raise SlideloomError(
            "no weights are named", where=config.model, expected="checkpoint or random", code="encoder_weights"
        )
    sizes = net.architecture
    check_patch_px(sizes.patch_px, config.model)
    panel = _panel(config, chosen, sizes.marker_width)
    spec = EncoderSpec(
        name=config.model,
        kind="markers",
        patch_px=sizes.patch_px,
        width=sizes.width,
        depth=sizes.depth,
        blocks=even_blocks(sizes.depth),
        tile_multiple_px=sizes.patch_px,
        mpp_um=entry.mpp_um,
        licence=entry.licence,
        source=entry.source,
        final_norm=config.final_norm,
    )
    check_own_patch(config, spec)
    blocks = resolve_blocks(config.blocks, spec)
    if config.final_norm:
        check_final_norm(blocks, spec, sizes.final_norm)
    return VirTues(
        net,
        spec,
        blocks,
        panel.markers,
        panel.embeddings,
        origin,
        notes + panel.notes,
        panel.dropped,
        config.context == "patch",
    )


def _seeded(entry: EncoderEntry, seed: int) -> VirTuesNet:
    """The model of the catalogue's sizes with drawn weights."""
    published = Architecture()
    width = entry.width or published.width
    architecture = Architecture(
        width=width,
        heads=entry.heads or published.heads,
        feedforward=2 * width,
        pattern=alternating(entry.depth or published.depth),
    )
    return drawn_net(architecture, seed)


def _check_sizes(found: Architecture, entry: EncoderEntry, config: EncoderConfig) -> None:
    """Refuse a checkpoint of another model than the one that the config names."""
    got, wanted = (found.depth, found.width, found.heads), (entry.depth, entry.width, entry.heads)
    if got != wanted:
        say = "{} blocks of width {} with {} heads"
        raise SlideloomError(
            f"{config.checkpoint} holds {say.format(*got)}",
            where=config.model,
            expected=say.format(*wanted),
            hint="Name another checkpoint, or model: virtues, which reads sizes from the checkpoint",
            code="checkpoint_sizes",
        )


def _panel(config: EncoderConfig, channels: Sequence[Channel], width: int) -> _Panel:
    """Embeddings of the channels' markers."""
    names = [channel_label(channel) for channel in channels]
    ids = [config.marker_ids.get(name) or channel.uniprot for name, channel in zip(names, channels, strict=True)]
    accessions = list(dict.fromkeys(accession for accession in ids if accession))
    notes: tuple[str, ...] = ()
    if config.marker_embeddings is not None:
        read = read_marker_embeddings(config.marker_embeddings, accessions, width)
        known = dict(zip(read.ids, read.vectors, strict=True))
    elif config.random is not None:
        known = {accession: _drawn(accession, config.random, width) for accession in accessions}
        notes = ("marker embeddings were DRAWN from the seed: no protein knowledge is in them",)
        _LOG.warning("%s runs WITHOUT protein embeddings of its markers: they are drawn", config.model)
    else:
        raise SlideloomError(
            "no marker embeddings are named",
            where=config.model,
            expected="marker_embeddings: a folder of <UniProt accession>.pt, or one .safetensors file",
            hint="Without them a checkpoint cannot know what its channels show",
            code="marker_embeddings",
        )
    unknown = {
        name: f"{name} ({accession}: no embedding)" if accession else f"{name} (no UniProt accession)"
        for name, accession in zip(names, ids, strict=True)
        if accession not in known
    }
    kept = [(name, accession) for name, accession in zip(names, ids, strict=True) if name not in unknown]
    if unknown:
        notes += _dropped_note(unknown, config, bool(kept))
    vectors = torch.stack([known[accession] for _, accession in kept])
    notes += (f"marker embeddings sha256:{hashlib.sha256(vectors.numpy().tobytes()).hexdigest()}",)
    return _Panel(tuple(name for name, _ in kept), vectors, tuple(unknown), notes)


def _dropped_note(unknown: Mapping[str, str], config: EncoderConfig, some_left: bool) -> tuple[str, ...]:
    """What a reader must know of markers that are left out; refuses where the config does not allow it."""
    listed = ", ".join(unknown.values())
    first = next(iter(unknown))
    if config.unknown_markers == "error" or not some_left:
        held = config.marker_embeddings or "the markers table"
        raise SlideloomError(
            f"no protein embedding for {listed}" + ("" if some_left else "; no other marker is left"),
            where=config.model,
            expected=f"one for every marker, in {held}",
            hint=f"Add <accession>.pt of its protein, map it to one (marker_ids: {{{first}: P68431}} reads a nuclear "
            "stain as histone H3), drop such channels (unknown_markers: drop), or name the markers to read (markers)",
            code="marker_embedding",
        )
    _LOG.warning("%s does not read %s", config.model, listed)
    return (f"channels left out for want of a protein embedding: {listed}",)


def _drawn(accession: str, seed: int, width: int) -> Tensor:
    """A vector for an accession, the same in every process."""
    generator = torch.Generator().manual_seed(zlib.crc32(accession.encode()) + (seed << 32))
    return torch.randn(width, generator=generator) * _EMBEDDING_STD

"""The baselines that every learned encoder must beat: the mean of each channel in each token's square."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from slideloom.config.encoder_entry import EncoderEntry
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import RGB, EncoderSpec, channel_label, check_patch_px, check_tile, resolve_blocks
from slideloom.encoders.normalise import normalise
from slideloom.encoders.rgb import RGBEncoder
from slideloom.patches.panels import marker_indices
from slideloom.patches.statistics import ChannelStatistics
from slideloom.slides.tables import Channel

__all__ = ["MeanMarker", "MeanRGB", "build_mean_marker", "build_mean_rgb"]

_PATCH_PX = 8
_PATCH_SIDES_PX = (8, 16)


class MeanMarker:
    """Tokens are means: width = number of markers, one block, no weights.

    Parameters
    ----------
    markers : sequence of str
        Name of each channel, in order.
    patch_px : {8, 16}
        Side of a token's square.
    """

    def __init__(self, markers: Sequence[str], patch_px: int = _PATCH_PX) -> None:
        check_patch_px(patch_px, "mean_marker", _PATCH_SIDES_PX)
        self.markers = tuple(markers)
        self.width = self.image_channels = len(self.markers)
        self.patch_px = patch_px
        self.blocks: tuple[int, ...] = (1,)
        self.weights = "none"
        self.notes: tuple[str, ...] = ()
        self.dropped: tuple[str, ...] = ()
        self.module = nn.Identity()
        self.spec = EncoderSpec(
            name="mean_marker",
            kind="markers",
            patch_px=patch_px,
            width=self.width,
            depth=1,
            blocks=self.blocks,
            tile_multiple_px=patch_px,
            source="Slideloom",
        )

    def to(self, device: str) -> MeanMarker:
        """Nothing to move."""
        return self

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

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """Mean over each ``patch_px`` square: (n, c, h, w) → {1: (n, h / patch_px, w / patch_px, c)}."""
        return _means(images, self.spec)

    def tokens(self, images: Tensor) -> dict[int, Tensor]:
        """The same as :meth:`encode`."""
        return self.encode(images)


class MeanRGB(RGBEncoder):
    """Tokens are means of red, green and blue, scaled to -1 … 1: width 3, one block, no weights.

    Parameters
    ----------
    patch_px : {8, 16}
        Side of a token's square.
    entry : EncoderEntry
        The catalogue's; mean and deviation of its input.
    """

    def __init__(self, patch_px: int, entry: EncoderEntry) -> None:
        check_patch_px(patch_px, entry.name, _PATCH_SIDES_PX)
        spec = EncoderSpec(
            name=entry.name,
            kind="rgb",
            patch_px=patch_px,
            width=len(RGB),
            depth=1,
            blocks=(1,),
            tile_multiple_px=patch_px,
            mean=entry.mean,
            std=entry.std,
            source=entry.source,
        )
        super().__init__(nn.Identity(), spec, spec.blocks, "none")

    def tokens(self, images: Tensor) -> dict[int, Tensor]:
        """Mean over each square: (n, 3, h, w) → {1: (n, h / patch_px, w / patch_px, 3)}."""
        return _means(images, self.spec)


def _means(images: Tensor, spec: EncoderSpec) -> dict[int, Tensor]:
    for side in images.shape[-2:]:
        check_tile(side, spec)
    return {1: functional.avg_pool2d(images, spec.patch_px).permute(0, 2, 3, 1).contiguous()}


def build_mean_rgb(config: EncoderConfig, entry: EncoderEntry) -> MeanRGB:
    """Build from a config entry: ``patch_px`` (8 or 16; default 8)."""
    encoder = MeanRGB(config.patch_px or _PATCH_PX, entry)
    resolve_blocks(config.blocks, encoder.spec)
    return encoder


def build_mean_marker(config: EncoderConfig, channels: Sequence[Channel]) -> MeanMarker:
    """Build from a config entry.

    Parameters
    ----------
    config : EncoderConfig
        ``markers`` (empty: every channel), ``patch_px`` (8 or 16; default 8).
    channels : sequence of Channel
        Of a slide of the study; they settle the markers when the config leaves them open.

    Raises
    ------
    SlideError
        ``missing_marker``.
    """
    chosen = marker_indices(channels, config.markers)
    encoder = MeanMarker([channel_label(channels[index]) for index in chosen], config.patch_px or _PATCH_PX)
    resolve_blocks(config.blocks, encoder.spec)
    return encoder

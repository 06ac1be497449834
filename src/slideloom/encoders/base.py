"""What an encoder declares and does. Nothing here imports torch, so that a config can be checked in no time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from slideloom.errors import SlideloomError

if TYPE_CHECKING:
    from torch import Tensor

    from slideloom.patches.statistics import ChannelStatistics
    from slideloom.slides.tables import Channel

__all__ = [
    "PATCH_SIDES_PX",
    "RGB",
    "Encoder",
    "EncoderSpec",
    "channel_label",
    "check_patch_px",
    "check_tile",
    "even_blocks",
    "resolve_blocks",
]

#: Channel names that every RGB reader gives.
RGB = ("red", "green", "blue")
#: Token sides that the decoder can bring back to pixels.
PATCH_SIDES_PX = (8, 16)


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder takes, gives, and may be used for.

    Attributes
    ----------
    name : str
        As the config names it.
    kind : {"rgb", "markers"}
        Reads red, green and blue, or any list of markers.
    patch_px : int
        Side of the square of pixels that one token stands for.
    width : int
        Length of a token.
    depth : int
        Number of blocks.
    blocks : tuple of int
        Blocks handed out when the config names none, 1-based.
    tile_multiple_px : int
        Tile sides must be a multiple of it.
    mpp_um : tuple of float, optional
        Lowest and highest resolution it was made for, µm per pixel; None: any.
    mean, std : tuple of float
        Of RGB input scaled to [0, 1]; empty for marker encoders, which take channel statistics.
    licence : str
        Of the published weights; ``none`` where there are no weights.
    source : str
        Where model and published weights come from.
    """

    name: str
    kind: Literal["rgb", "markers"]
    patch_px: int
    width: int
    depth: int
    blocks: tuple[int, ...]
    tile_multiple_px: int
    mpp_um: tuple[float, float] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    licence: str = "none"
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Encoder(Protocol):
    """A frozen encoder.

    Attributes
    ----------
    spec : EncoderSpec
        What it declares.
    blocks : tuple of int
        Blocks it hands out, 1-based, rising.
    width, patch_px, image_channels : int
        Token length, token side in pixels, channels of the image it is given (and that the decoder's image skip sees).
    markers : tuple of str
        Name of each channel, in order; red, green, blue for RGB.
    weights : str
        ``sha256:<digits>`` of the checkpoint, ``random:<seed>``, or ``none`` for an encoder without weights.
    notes : tuple of str
        What a reader of its embeddings must know, such as parts of a checkpoint that were left aside.
    """

    spec: EncoderSpec
    blocks: tuple[int, ...]
    width: int
    patch_px: int
    image_channels: int
    markers: tuple[str, ...]
    weights: str
    notes: tuple[str, ...]

    def to(self, device: str) -> Encoder:
        """Move the weights to a device; returns the same encoder."""
        ...

    def preprocess(self, pixels: Tensor, statistics: ChannelStatistics | None) -> Tensor:
        """Raw pixels (n, c, h, w), exactly the encoder's channels, source dtype → float32 (n, c, h, w), same device."""
        ...

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """Preprocessed images (n, c, h, w) → by block, tokens (n, h / patch_px, w / patch_px, width)."""
        ...


def channel_label(channel: Channel) -> str:
    """The marker, or the channel's own name where it shows none (RGB)."""
    return channel.marker or channel.name


def even_blocks(depth: int, count: int = 4) -> tuple[int, ...]:
    """Evenly spaced blocks, 1-based, the last one included.

    Examples
    --------
    >>> even_blocks(12), even_blocks(24), even_blocks(6), even_blocks(2)
    ((3, 6, 9, 12), (6, 12, 18, 24), (2, 3, 5, 6), (1, 2))
    """
    return tuple(sorted({-(-(k * depth) // count) for k in range(1, count + 1)}))


def resolve_blocks(wanted: Sequence[int], spec: EncoderSpec) -> tuple[int, ...]:
    """Blocks to hand out: those asked for, or the encoder's choice.

    Raises
    ------
    SlideloomError
        Not rising, or beyond the encoder's depth.
    """
    blocks = tuple(wanted) or spec.blocks
    if list(blocks) != sorted(set(blocks)) or blocks[0] < 1 or blocks[-1] > spec.depth:
        raise SlideloomError(
            f"blocks {list(blocks)}",
            where=spec.name,
            expected=f"rising numbers from 1 to {spec.depth}",
            hint=f"Leave blocks out to get {list(spec.blocks)}",
            code="encoder_blocks",
        )
    return blocks


def check_patch_px(patch_px: int, name: str) -> None:
    """Refuse token sides that no decoder brings back to pixels.

    Raises
    ------
    SlideloomError
        ``encoder_patch_px``.
    """
    if patch_px not in PATCH_SIDES_PX:
        raise SlideloomError(
            f"tokens of {patch_px} px",
            where=name,
            expected=" or ".join(str(side) for side in PATCH_SIDES_PX),
            hint="The decoder upsamples 8-fold or 16-fold; choose an encoder with one of these patch sizes",
            code="encoder_patch_px",
        )


def check_tile(tile_px: int, spec: EncoderSpec) -> None:
    """Refuse tiles that do not hold a whole number of tokens.

    Raises
    ------
    SlideloomError
        ``encoder_tile_px``.
    """
    if tile_px % spec.tile_multiple_px:
        lower = max(1, tile_px // spec.tile_multiple_px) * spec.tile_multiple_px
        raise SlideloomError(
            f"tiles of {tile_px} px",
            where=spec.name,
            expected=f"a multiple of {spec.tile_multiple_px} px",
            hint=f"Set the grid's tile_px to {lower} or {lower + spec.tile_multiple_px}",
            code="encoder_tile_px",
        )

"""What an encoder declares and does. Nothing here imports torch, so that a config can be checked in no time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from slideloom.errors import SlideloomError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slideloom.config.model import EncoderConfig
    from slideloom.patches.statistics import ChannelStatistics
    from slideloom.slides.tables import Channel

__all__ = [
    "DECODER_INPUTS",
    "PATCH_SIDES_PX",
    "RGB",
    "Encoder",
    "EncoderSpec",
    "channel_label",
    "check_final_norm",
    "check_own_patch",
    "check_patch_px",
    "check_tile",
    "encoder_record",
    "even_blocks",
    "resolve_blocks",
    "spread",
]

#: Channel names that every RGB reader gives.
RGB = ("red", "green", "blue")
#: Token sides that the decoder can bring back to pixels.
PATCH_SIDES_PX = (8, 14, 16)
#: Token maps that a decoder takes, shallow to deep.
DECODER_INPUTS = 4


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
    prefix_tokens : int
        Class and register tokens, which are left out of the maps.
    final_norm : bool
        Whether the last block's tokens are given after the final normalisation.
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
    prefix_tokens: int = 0
    final_norm: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Encoder(Protocol):
    """An encoder, frozen when it is built.

    Its layers are in evaluation mode and stay so, also where a decoder's training trains them, too. ``encode`` reads
    ``blocks`` when it is called, may be called from several threads at once, and gives a tile the same bits whatever
    its place in a batch of one size.

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
    dropped : tuple of str
        Markers of the panel that it does not read, on purpose.
    module : Module
        Its layers; without parameters where there is nothing to train. What is derived from weights follows them when
        they are trained, loaded or moved.
    """

    spec: EncoderSpec
    blocks: tuple[int, ...]
    width: int
    patch_px: int
    image_channels: int
    markers: tuple[str, ...]
    weights: str
    notes: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def module(self) -> nn.Module:
        """Its layers."""
        ...

    def to(self, device: str) -> Encoder:
        """Move the weights to a device; returns the same encoder."""
        ...

    def preprocess(self, pixels: Tensor, statistics: ChannelStatistics | None) -> Tensor:
        """Raw pixels (n, c, h, w), exactly the encoder's channels, source dtype → float32 (n, c, h, w), same device.

        Works pixel by pixel: the result is also what a decoder's image skip sees. What mixes pixels (a blur, a change
        of size) belongs to :meth:`encode`.
        """
        ...

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """Preprocessed images (n, c, h, w) → by block, tokens (n, h / patch_px, w / patch_px, width)."""
        ...

    def tokens(self, images: Tensor) -> dict[int, Tensor]:
        """What :meth:`encode` gives, in the caller's gradient mode: gradients reach weights that require them."""
        ...


def encoder_record(encoder: Encoder, config: EncoderConfig, precision: str = "fp32") -> dict[str, Any]:
    """What an artefact says of the encoder that it was made with; JSON values.

    Parameters
    ----------
    encoder : Encoder
        The encoder.
    config : EncoderConfig
        The entry that it was built from.
    precision : str
        Its arithmetic.

    Returns
    -------
    dict
        ``encoder`` (the config's entry), ``spec``, ``weights``, ``notes``, ``markers``, ``dropped``, ``precision``.
    """
    entry = config.model_dump(mode="json")
    for key in ("checkpoint", "marker_embeddings"):
        if entry[key] is not None:
            # Where a file lay on one machine says nothing on another; its digest stands under "weights".
            entry[key] = entry[key].rsplit("/", 1)[-1]
    return {
        "encoder": entry,
        "spec": encoder.spec.as_dict(),
        "weights": encoder.weights,
        "notes": list(encoder.notes),
        "markers": list(encoder.markers),
        "dropped": list(encoder.dropped),
        "precision": precision,
    }


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


def spread(count: int) -> tuple[int, ...]:
    """Which of an encoder's blocks goes to each input of the decoder, numbered from 0, shallow to deep.

    The deepest block is always the last input's; with fewer than four, neighbours are repeated.

    Raises
    ------
    SlideloomError
        ``decoder_blocks``: no block, or more than four.

    Examples
    --------
    >>> spread(1), spread(2), spread(3), spread(4)
    ((0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3))
    """
    if not 1 <= count <= DECODER_INPUTS:
        raise SlideloomError(
            f"{count} encoder blocks for a decoder with {DECODER_INPUTS} inputs",
            expected=f"1 to {DECODER_INPUTS} blocks",
            hint="Name at most four blocks under the encoder's key blocks",
            code="decoder_blocks",
        )
    return tuple(-(-(k * count) // DECODER_INPUTS) - 1 for k in range(1, DECODER_INPUTS + 1))


def check_own_patch(config: EncoderConfig, spec: EncoderSpec) -> None:
    """Refuse a config's ``patch_px`` that is not the model's own.

    Raises
    ------
    SlideloomError
        ``encoder_patch_px``.
    """
    if config.patch_px not in (None, spec.patch_px):
        raise SlideloomError(
            f"patch_px {config.patch_px}",
            where=config.model,
            expected=f"{spec.patch_px}, the model's own",
            hint="Leave patch_px out",
            code="encoder_patch_px",
        )


def check_final_norm(blocks: tuple[int, ...], spec: EncoderSpec, possible: bool) -> None:
    """Refuse a final normalisation that the model has not, or that none of the blocks would get.

    Parameters
    ----------
    blocks : tuple of int
        That are handed out.
    spec : EncoderSpec
        Of the model.
    possible : bool
        Whether the model normalises its last block's tokens.

    Raises
    ------
    SlideloomError
        ``encoder_final_norm``.
    """
    if not possible:
        raise SlideloomError(
            "final_norm, but the model has no final normalisation of its tokens",
            where=spec.name,
            hint="Remove final_norm",
            code="encoder_final_norm",
        )
    if blocks[-1] != spec.depth:
        raise SlideloomError(
            f"final_norm, but the blocks are {list(blocks)}",
            where=spec.name,
            expected=f"block {spec.depth}, the last, among them",
            hint="The model's final normalisation was trained for the last block only",
            code="encoder_final_norm",
        )


def check_patch_px(patch_px: int, name: str, allowed: Sequence[int] = PATCH_SIDES_PX) -> None:
    """Refuse token sides that no decoder brings back to pixels, or that are not ``allowed``.

    Raises
    ------
    SlideloomError
        ``encoder_patch_px``.
    """
    if patch_px not in allowed:
        raise SlideloomError(
            f"tokens of {patch_px} px",
            where=name,
            expected=" or ".join(str(side) for side in allowed),
            hint="The decoder brings tokens of these sides back to pixels; choose such an encoder",
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

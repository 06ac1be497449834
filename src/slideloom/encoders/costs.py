"""What one pass of an encoder over a tile costs, counted without weights.

Counted are matrix products, convolutions and attention, a multiplication with its addition as two operations. Norms,
activations and sums are left out: they are below one per cent.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slideloom.config.catalogue import EncoderEntry
from slideloom.encoders.base import RGB, even_blocks

__all__ = ["default_tile", "encoder_gflop", "virtues_gflop"]

#: Tiles at which costs are told: of markers, and of RGB unless the encoder was trained on smaller ones.
_MARKER_TILE_PX, _RGB_TILE_PX = 120, 256
#: Length of a marker's protein embedding.
_EMBEDDING = 640


def default_tile(entry: EncoderEntry) -> int:
    """Side of the tile at which an encoder's cost is told, pixels."""
    return _MARKER_TILE_PX if entry.kind == "markers" else min(entry.tile_px or _RGB_TILE_PX, _RGB_TILE_PX)


def virtues_gflop(
    markers: int, height: int, width: int, *, patch: int = 8, dim: int = 512, depth: int = 16, registers: int = 0
) -> float:
    """Operations of VirTues' encoder on one tile, in 10^9.

    Parameters
    ----------
    markers : int
        Channels of the tile.
    height, width : int
        Of the tile, pixels.
    patch, dim, depth, registers : int
        Of the model: side of a token, length of a token, blocks (half along space, half along markers), registers.

    Examples
    --------
    >>> round(virtues_gflop(16, 120, 120), 1), round(virtues_gflop(40, 128, 128), 1)
    (272.1, 756.2)
    """
    places, rows = (height // patch) * (width // patch), markers + 1 + registers
    # Four square matrices of attention, and two of the feed-forward part, which is twice as wide as a token.
    linears = depth * 2 * 8 * dim**2 * rows * places
    along_space = depth // 2 * 4 * dim * rows * places**2
    along_markers = depth // 2 * 4 * dim * places * rows**2
    tokens = 2 * dim * (patch**2 * markers * places + _EMBEDDING * markers)
    return (linears + along_space + along_markers + tokens) / 1e9


def encoder_gflop(entry: EncoderEntry, tile_px: int, markers: int = 0) -> float:
    """Operations of a catalogue's encoder on one square tile, through its last block, in 10^9.

    Parameters
    ----------
    entry : EncoderEntry
        With sizes of its own, or the name of a model of timm.
    tile_px : int
        Side of the tile, pixels.
    markers : int
        Channels of the tile, for marker encoders.

    Raises
    ------
    ValueError
        The sizes are in no catalogue.
    """
    if entry.family == "mean_marker":
        return 0.0
    if entry.family == "virtues" and entry.width and entry.depth and entry.token_px:
        return virtues_gflop(markers, tile_px, tile_px, patch=entry.token_px, dim=entry.width, depth=entry.depth)
    # As matrix products, which the counter knows on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if entry.family == "timm" and entry.arch:
            _run_timm(entry, tile_px)
        elif entry.family == "cellvit" and entry.width:
            _run_cellvit(entry, tile_px)
        else:
            raise ValueError(f"the sizes of {entry.name} are not known")
    return float(counter.get_total_flops()) / 1e9


def _run_timm(entry: EncoderEntry, tile_px: int) -> None:
    from slideloom.encoders.timm_models.vit import bare_encoder

    bare_encoder(entry).encode(torch.empty(1, len(RGB), tile_px, tile_px, device="meta"))


def _run_cellvit(entry: EncoderEntry, tile_px: int) -> None:
    from slideloom.encoders.cellvit.encoder import encoder_module

    # Its positions are derived once a size, which needs a device that knows precisions: so on one that only pretends.
    with FakeTensorMode(), torch.inference_mode():
        module = encoder_module(entry.arch).eval()
        module.run(torch.empty(1, len(RGB), tile_px, tile_px), even_blocks(module.depth))

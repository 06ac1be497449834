"""The stored tokens of a slide, reduced; apart from their form because the encoders' room imports PyTorch."""

from __future__ import annotations

import numpy as np

from slideloom.encoders.lattice import TokenFrame, TokenLattice
from slideloom.instances.refine.tokens import Projection, TokenPlane

__all__ = ["token_plane"]


def token_plane(
    lattice: TokenLattice, block: int, projection: Projection, shape: tuple[int, int], mpp_um: float, token_px: int
) -> TokenPlane:
    """Reduce the stored tokens of a slide.

    Parameters
    ----------
    lattice : TokenLattice
        Of the slide.
    block : int
        Encoder block.
    projection : Projection
        To a few numbers.
    shape : (int, int)
        Height and width of the maps, pixels.
    mpp_um : float
        Pixel size of the maps.
    token_px : int
        Side of a token there.

    Returns
    -------
    TokenPlane
        Read in squares of 16 tokens that lie where they do on the slide.
    """
    side = 16
    frame = TokenFrame(mpp_um, side * token_px, token_px)
    height, width = (-(-length // token_px) for length in shape)
    codes = np.zeros((height, width, projection.matrix.shape[1]), np.int32)
    covered = np.zeros((height, width), np.uint8)
    for top in range(0, height, side):
        lefts = list(range(0, width, side))
        tokens = lattice.sample(block, [top * token_px] * len(lefts), [left * token_px for left in lefts], frame)
        for left, square in zip(lefts, tokens, strict=True):
            part = square[: height - top, : width - left]
            place = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
            there = part.any(axis=2)
            # Every square in one go and of one size: what a product rounds to depends on its shape.
            codes[place] = projection.apply(square)[: part.shape[0], : part.shape[1]] * there[..., None]
            covered[place] = there
    return TokenPlane(codes, covered, token_px)

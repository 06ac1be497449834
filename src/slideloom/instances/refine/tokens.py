"""A slide's tokens, reduced to a few numbers each, laid out on the grid of its maps.

Reduced tokens are kept as whole numbers, so that their sums over an instance depend on no window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideloom.instances.windows import Box

__all__ = ["TOKEN_SCALE", "Projection", "TokenPlane"]

#: Code of 1.
TOKEN_SCALE = 4096
#: Codes stay below 2**20: the sum over any instance is exact.
_MOST = 1 << 20


@dataclass(frozen=True, eq=False)
class Projection:
    """Linear map from tokens to a few numbers.

    Attributes
    ----------
    mean : (d,) float32 array
        Taken off first.
    matrix : (d, k) float32 array
        What the rest is multiplied by.
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]

    @classmethod
    def fit(cls, tokens: NDArray[np.floating], depth: int = 8) -> Projection:
        """Principal components of tokens, each scaled to a variance of 1.

        Parameters
        ----------
        tokens : (n, d) float array
            Of training patches.
        depth : int
            Components; fewer where the tokens have fewer.
        """
        values = tokens.astype(np.float64)
        mean = values.mean(0)
        spread, axes = np.linalg.eigh(np.cov(values - mean, rowvar=False).reshape(values.shape[1], -1))
        chosen = [at for at in np.argsort(-spread, kind="stable")[:depth] if spread[at] > spread.max() * 1e-9]
        axes = axes[:, chosen]
        # Of an axis and its opposite, the one whose largest entry is positive.
        axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
        return cls(mean.astype(np.float32), (axes / np.sqrt(spread[chosen])).astype(np.float32))

    def apply(self, tokens: NDArray[np.floating]) -> NDArray[np.int32]:
        """Codes (…, k) of tokens (…, d)."""
        values = (tokens.astype(np.float32) - self.mean) @ self.matrix
        return np.clip(np.rint(values * TOKEN_SCALE), -_MOST, _MOST).astype(np.int32)


@dataclass(frozen=True, eq=False)
class TokenPlane:
    """Reduced tokens of a slide.

    Attributes
    ----------
    codes : (h, w, k) int32 array
        :data:`TOKEN_SCALE` times the values.
    covered : (h, w) uint8 array
        1 where there is a token.
    token_px : int
        Side of a token, pixels of the maps; the first begins at the slide's corner.
    """

    codes: NDArray[np.int32]
    covered: NDArray[np.uint8]
    token_px: int

    @property
    def depth(self) -> int:
        """Numbers a token."""
        return int(self.codes.shape[2])

    def beneath(self, place: Box) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Codes and cover of the whole plane, and the row and column of them beneath each row and column of a box."""
        rows = np.minimum(np.arange(place.top, place.bottom) // self.token_px, len(self.codes) - 1)
        cols = np.minimum(np.arange(place.left, place.right) // self.token_px, self.codes.shape[1] - 1)
        return self.codes, self.covered, rows.astype(np.int64), cols.astype(np.int64)

    def values(self, box: Box) -> NDArray[np.float64]:
        """Values between the middles of the tokens, (height, width, k), bilinear; nothing known counts as 0."""
        parts = []
        for start, stop, most in ((box.top, box.bottom, len(self.codes)), (box.left, box.right, self.codes.shape[1])):
            at = (np.arange(start, stop) + 0.5) / self.token_px - 0.5
            low = np.floor(at).astype(np.int64)
            parts.append((np.clip(low, 0, most - 1), np.clip(low + 1, 0, most - 1), at - low))
        (top, bottom, down), (left, right, across) = parts

        def at_corner(rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.int32]:
            place = np.ix_(rows, cols)
            known: NDArray[np.int32] = self.codes[place] * self.covered[place][:, :, None]
            return known

        upper = at_corner(top, left) * (1 - across)[:, None] + at_corner(top, right) * across[:, None]
        lower = at_corner(bottom, left) * (1 - across)[:, None] + at_corner(bottom, right) * across[:, None]
        mixed: NDArray[np.float64] = (upper * (1 - down)[:, None, None] + lower * down[:, None, None]) / TOKEN_SCALE
        return mixed

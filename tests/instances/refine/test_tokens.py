"""Reduced tokens on the maps' grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slideloom.encoders.lattice import TokenFrame
from slideloom.instances.refine.read_tokens import token_plane
from slideloom.instances.refine.tokens import Projection, TokenPlane
from slideloom.instances.windows import Box

TOKEN_PX = 8


class Lattice:
    """Tokens of a slide as :class:`slideloom.encoders.lattice.TokenLattice` gives them; zeros where there are none."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def sample(self, block: int, y_px: Any, x_px: Any, frame: TokenFrame) -> np.ndarray:
        assert (block, frame.mpp_um, frame.token_px) == (3, 0.5, TOKEN_PX)
        out = np.zeros((len(y_px), frame.side, frame.side, self.tokens.shape[2]), np.float16)
        for place, y, x in zip(out, y_px, x_px, strict=True):
            part = self.tokens[y // TOKEN_PX :, x // TOKEN_PX :][: frame.side, : frame.side]
            place[: part.shape[0], : part.shape[1]] = part
        return out


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    rng = np.random.default_rng(3)
    made = rng.normal(size=(21, 35, 6)).astype(np.float16)
    made[rng.random((21, 35)) < 0.1] = 0
    return made


def test_every_token_lies_where_it_did(tokens: np.ndarray) -> None:
    rng = np.random.default_rng(4)
    projection = Projection(*(rng.normal(size=shape).astype(np.float32) for shape in ((6,), (6, 2))))
    shape = 21 * TOKEN_PX - 3, 35 * TOKEN_PX - 7
    plane = token_plane(Lattice(tokens), 3, projection, shape, 0.5, TOKEN_PX)  # type: ignore[arg-type]
    there = tokens.any(2)
    values = (tokens.astype(np.float64) - projection.mean) @ projection.matrix
    np.testing.assert_array_equal(plane.covered, there)
    np.testing.assert_allclose(plane.codes[there] / 4096, values[there], atol=2 / 4096)
    assert not plane.codes[~there].any()
    box = Box(5, 19, 41, 70)
    codes, covered, rows, cols = plane.beneath(box)
    y, x = np.mgrid[box.slices]
    np.testing.assert_array_equal(codes[rows[:, None], cols], plane.codes[y // TOKEN_PX, x // TOKEN_PX])
    np.testing.assert_array_equal(covered[rows[:, None], cols], there[y // TOKEN_PX, x // TOKEN_PX])


def test_between_the_middles_of_tokens_values_are_bilinear() -> None:
    y, x = np.mgrid[:9, :11]
    plane = TokenPlane((np.stack([3 * x + 5 * y, 7 - x], -1) * 4096).astype(np.int32), np.ones((9, 11), np.uint8), 4)
    values = plane.values(Box(0, 0, 36, 44))
    v, u = (np.clip((np.arange(n * 4) + 0.5) / 4 - 0.5, 0, n - 1) for n in (9, 11))
    np.testing.assert_allclose(values, np.stack([3 * u + 5 * v[:, None], 7 - u + 0 * v[:, None]], -1))
    np.testing.assert_array_equal(plane.values(Box(7, 3, 20, 30)), values[7:20, 3:30])

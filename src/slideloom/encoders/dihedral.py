"""The eight flips and quarter turns of a square, numbered, and what they do to an array.

Number ``s`` stands for: mirrored left to right if ``s >= 4``, then turned by ``s % 4`` quarter turns counter-clockwise,
as :func:`numpy.fliplr` and :func:`numpy.rot90` do on rows and columns. 0 changes nothing; 4 mirrors left to right and
6 top to bottom.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["N_SYMMETRIES", "compose", "inverse", "steps", "transform"]

N_SYMMETRIES = 8

#: By number: which of (rows, columns) run backwards, then whether rows and columns change places.
_STEPS: tuple[tuple[tuple[int, ...], bool], ...] = (
    ((), False),
    ((-1,), True),
    ((-2, -1), False),
    ((-2,), True),
    ((-1,), False),
    ((), True),
    ((-2,), False),
    ((-2, -1), True),
)


def steps(symmetry: int) -> tuple[tuple[int, ...], bool]:
    """How a symmetry comes about.

    Parameters
    ----------
    symmetry : int
        0 to 7.

    Returns
    -------
    tuple of int
        Axes that are reversed first: -2 for rows, -1 for columns.
    bool
        Whether rows and columns then change places.

    Raises
    ------
    ValueError
        There is no such symmetry.
    """
    if not 0 <= symmetry < N_SYMMETRIES:
        raise ValueError(f"symmetry {symmetry}, expected 0 to {N_SYMMETRIES - 1}")
    return _STEPS[symmetry]


def transform(values: Tensor, symmetry: int) -> Tensor:
    """Flip and turn the last two axes.

    Parameters
    ----------
    values : (..., h, w) Tensor
        Of any dtype, on any device.
    symmetry : int
        0 to 7.

    Returns
    -------
    Tensor
        (..., h, w), or (..., w, h) where rows and columns change places; the same object for 0. It may share memory
        with ``values``, and need not be contiguous.

    Examples
    --------
    >>> transform(torch.tensor([[1, 2], [3, 4]]), 1)
    tensor([[2, 4],
            [1, 3]])
    """
    reverse, swap = steps(symmetry)
    if reverse:
        # PyTorch flips no uint16; what the bits mean does not matter here.
        bits = values.view(torch.int16) if values.dtype == torch.uint16 else values
        values = bits.flip(reverse).view(values.dtype)
    return values.transpose(-2, -1) if swap else values


def compose(first: int, second: int) -> int:
    """The one symmetry that does ``first``, then ``second``.

    Examples
    --------
    >>> compose(4, 1), compose(1, 4)
    (5, 7)
    """
    for symmetry in (first, second):
        steps(symmetry)
    # A mirror that follows reverses the turns before it.
    turns = second + (-first if second >= 4 else first)
    return turns % 4 + 4 * ((first >= 4) != (second >= 4))


def inverse(symmetry: int) -> int:
    """The symmetry that undoes this one.

    Examples
    --------
    >>> [inverse(symmetry) for symmetry in range(8)]
    [0, 3, 2, 1, 4, 5, 6, 7]
    """
    steps(symmetry)
    return symmetry if symmetry >= 4 else -symmetry % 4

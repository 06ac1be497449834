"""The small network with which a seed of InstanSeg tells its pixels from others.

Four numbers go in: how far the embedding of a pixel lies from the seed's, across and down, and the pixel's two sigmas.
One comes out, the logit that the pixel belongs to the seed. Everything is computed in float32 in one fixed order, so a
pixel's logit for a seed has the same bits wherever an array begins.

Source: Goldsborough et al., InstanSeg: an embedding-based instance segmentation algorithm optimized for accurate,
efficient and portable cell segmentation (2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError

__all__ = ["FEATURES", "SeedClassifier", "logit", "logits_of_row", "lowest_logit", "probability"]

#: Numbers that the network reads for a pixel.
FEATURES = 4
_LAYERS = ("fc1", "fc2", "fc3")
#: ln 2 in two parts, the first with so few bits that whole multiples of it are exact.
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_LOG2_E = 1.44269504088896338700
_TERMS = np.array([1 / math.factorial(k) for k in range(13, -1, -1)])
_ONE = np.float32(1)
_NONE = np.float32(0)


@dataclass(frozen=True, eq=False)
class SeedClassifier:
    """Weights of the network: linear, ReLU, linear, ReLU, linear.

    Attributes
    ----------
    weights : tuple of float32 arrays
        (w, 4), (w, w) and (1, w), outputs first; w is 5 in the original.
    biases : tuple of float32 arrays
        (w,), (w,) and (1,).
    """

    weights: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    biases: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> SeedClassifier:
        """Take the weights from ``fc1.weight``, ``fc1.bias``, … ``fc3.bias`` of a mapping to arrays.

        Raises
        ------
        SlideloomError
            ``checkpoint_arch``: a key is absent, or the shapes are no such network.
        """
        names = [f"{layer}.{part}" for part in ("weight", "bias") for layer in _LAYERS]
        absent = [name for name in names if name not in state]
        if absent:
            raise _no_classifier(f"no {', '.join(absent)}")
        found = [np.ascontiguousarray(np.asarray(state[name], dtype=np.float32)) for name in names]
        shapes = [values.shape for values in found]
        width = shapes[0][0] if shapes[0] else 0
        if shapes != [(width, FEATURES), (width, width), (1, width), (width,), (width,), (1,)]:
            raise _no_classifier(f"weights of the shapes {', '.join(map(str, shapes))}")
        if not all(np.isfinite(values).all() for values in found):
            raise _no_classifier("weights that are not finite")
        return cls((found[0], found[1], found[2]), (found[3], found[4], found[5]))

    def as_json(self) -> dict[str, Any]:
        """Key to nested lists, as :meth:`of_state` reads them; float32 values come back to the bit."""
        parts = (("weight", self.weights), ("bias", self.biases))
        return {
            f"{layer}.{part}": values.tolist()
            for part, arrays in parts
            for layer, values in zip(_LAYERS, arrays, strict=True)
        }

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """What :func:`logit` takes: weights and biases of one layer after the other, those of the last one flat."""
        (one, two, three), (first, second, last) = self.weights, self.biases
        return one, first, two, second, np.append(three[0], last)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network.

        Parameters
        ----------
        features : (n, 4) float32 array
            Across, down, and the two sigmas.

        Returns
        -------
        (n,) float32 array
        """
        found: NDArray[np.float32] = _logits(np.ascontiguousarray(features, np.float32), *self.arrays)
        return found


def _no_classifier(what: str) -> SlideloomError:
    return SlideloomError(
        what,
        where="pixel classifier of InstanSeg",
        expected="fc1, fc2 and fc3 with weight and bias, 4 numbers in and 1 out",
        hint="Read the maps or the weights of an InstanSeg model with two sigmas",
        code="checkpoint_arch",
    )


@lru_cache(maxsize=32)
def lowest_logit(threshold: float) -> float:
    """The least float32 logit whose probability reaches a threshold, above 0 and below 1."""
    least = np.float32(threshold)
    # Floats of one sign rise with their bits.
    low, high = 0, int(np.float32(200).view(np.int32))
    if probability(_NONE) < least:
        while low < high:
            middle = (low + high) // 2
            if probability(_float(middle)) >= least:
                high = middle
            else:
                low = middle + 1
        return float(_float(low))
    while low < high:
        middle = (low + high + 1) // 2
        if probability(-_float(middle)) >= least:
            low = middle
        else:
            high = middle - 1
    return -float(_float(low))


def _float(bits: int) -> np.float32:
    return np.int32(bits).view(np.float32)


@numba.njit(nogil=True, cache=True)
def _exponential(x: float) -> float:
    """The exponential of -700 … 700, the same bits on every machine."""
    steps = math.floor(x * _LOG2_E + 0.5)
    rest = x - steps * _LN2_HIGH
    rest = rest - steps * _LN2_LOW
    total = 0.0
    for index in range(_TERMS.size):
        total = total * rest + _TERMS[index]
    return math.ldexp(total, int(steps))


@numba.njit(nogil=True, cache=True)
def probability(value: Any) -> Any:
    """The sigmoid of a float32 logit as float32 arithmetic has it: 1 from some 17 on."""
    bounded = min(max(float(value), -100.0), 100.0)
    return _ONE / (_ONE + np.float32(_exponential(-bounded)))


@numba.njit(nogil=True, cache=True)
def logit(
    across: Any, down: Any, sigma: Any, other: Any, one: Any, first: Any, two: Any, second: Any, last: Any, hidden: Any
) -> Any:
    """Logit of one pixel; ``hidden`` (2, w) float32 is written over."""
    width = first.size
    for unit in range(width):
        value = first[unit]
        value = value + one[unit, 0] * across
        value = value + one[unit, 1] * down
        value = value + one[unit, 2] * sigma
        value = value + one[unit, 3] * other
        hidden[0, unit] = value if value > _NONE else _NONE
    found = last[width]
    for unit in range(width):
        value = second[unit]
        for before in range(width):
            value = value + two[unit, before] * hidden[0, before]
        found = found + last[unit] * (value if value > _NONE else _NONE)
    return found


@numba.njit(nogil=True, cache=True)
def logits_of_row(
    features: Any, count: int, one: Any, first: Any, two: Any, second: Any, last: Any, hidden: Any, out: Any
) -> None:
    """Logits of many pixels, the same bits as :func:`logit`.

    Parameters
    ----------
    features : (4, n) float32 array
        What the network reads.
    count : int
        How many of the n pixels are asked for, from the first on.
    one, first, two, second, last
        :attr:`SeedClassifier.arrays`.
    hidden : (w + 1, n) float32 array
        Is written over.
    out : (n,) float32 array
        Is filled.
    """
    width = first.size
    for unit in range(width):
        bias, a, b, c, d = first[unit], one[unit, 0], one[unit, 1], one[unit, 2], one[unit, 3]
        for x in range(count):
            value = bias + a * features[0, x] + b * features[1, x] + c * features[2, x] + d * features[3, x]
            hidden[unit, x] = value if value > _NONE else _NONE
    for x in range(count):
        out[x] = last[width]
    for unit in range(width):
        for x in range(count):
            hidden[width, x] = second[unit]
        for before in range(width):
            weight = two[unit, before]
            for x in range(count):
                hidden[width, x] = hidden[width, x] + weight * hidden[before, x]
        weight = last[unit]
        for x in range(count):
            value = hidden[width, x]
            out[x] = out[x] + weight * (value if value > _NONE else _NONE)


@numba.njit(nogil=True, cache=True)
def _logits(features: Any, one: Any, first: Any, two: Any, second: Any, last: Any) -> Any:
    hidden = np.empty((2, first.size), np.float32)
    found = np.empty(len(features), np.float32)
    for row in range(len(features)):
        found[row] = logit(
            features[row, 0], features[row, 1], features[row, 2], features[row, 3],
            one, first, two, second, last, hidden,
        )  # fmt: skip
    return found

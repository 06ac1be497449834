"""Patients resampled, signs flipped, many tests corrected: arithmetic that every figure's interval comes from.

Patients, not slides, are the independent units. All of it is matrix arithmetic with fixed seeds: equal values give
equal intervals, run after run.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

__all__ = ["draws", "holm", "percentiles", "sign_flip_p", "sign_flip_ps", "smallest_p", "t_half_width"]

Floats = NDArray[np.float64]

_SEED = 20260101
_RESAMPLES = 2000
_FLIPS = 20_000
_EXACT_UP_TO = 12
#: Numbers held at a time while signs are flipped; bounds memory.
_AT_ONCE = 1 << 21


@lru_cache(maxsize=8)
def draws(n: int) -> Floats:
    """How often each of n patients is drawn in each resample, (resamples, n); the same for every figure."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    drawn.setflags(write=False)
    return drawn


def percentiles(values: Floats) -> Floats:
    """Ends of the 95 % interval of resampled figures, (resamples, k) to (2, k); NaN where a figure never is finite."""
    ends = np.full((2, values.shape[1]), np.nan)
    whole = np.isfinite(values).all(axis=0)
    ends[:, whole] = np.percentile(values[:, whole], [2.5, 97.5], axis=0)
    for k in np.flatnonzero(~whole & np.isfinite(values).any(axis=0)):
        ends[:, k] = np.percentile(values[np.isfinite(values[:, k]), k], [2.5, 97.5])
    return ends


def sign_flip_p(differences: Floats) -> float:
    """Two-sided p value of the hypothesis that differences are as likely positive as negative.

    Parameters
    ----------
    differences : ndarray of float64, (n,)
        Paired differences (sums) of independent units.

    Returns
    -------
    float
        Share of sign patterns whose absolute sum is at least the one observed: of all 2ⁿ up to n = 12, else of 20 000
        random ones and the one observed.

    Examples
    --------
    >>> sign_flip_p(np.array([1.0, 2.0, 3.0]))
    0.25
    """
    return float(sign_flip_ps(differences[None])[0])


def sign_flip_ps(differences: Floats) -> Floats:
    """:func:`sign_flip_p` of many sets of differences at once, (k, n) to (k,), all with the same flips."""
    n = differences.shape[1]
    total = differences.sum(axis=1)
    # Sums of the same numbers in another order differ in their last bits; that must not decide.
    least = np.abs(total) - 1e-12 * np.abs(differences).sum(axis=1)
    hits = np.zeros(len(differences), np.int64)
    signs = 2**n if n <= _EXACT_UP_TO else _FLIPS
    rng = np.random.default_rng(_SEED)
    step = max(1, _AT_ONCE // max(n, len(differences)))
    for start in range(0, signs, step):
        stop = min(signs, start + step)
        if n <= _EXACT_UP_TO:
            kept = (np.arange(start, stop)[:, None] >> np.arange(n)) & 1
        else:
            kept = rng.integers(0, 2, (stop - start, n), np.uint8)
        hits += (np.abs(2 * (kept.astype(np.float64) @ differences.T) - total) >= least).sum(axis=0)
    return hits / signs if n <= _EXACT_UP_TO else (hits + 1) / (signs + 1)


def smallest_p(n: ArrayLike) -> Floats:
    """The smallest p value that :func:`sign_flip_p` can give n units: 2 of the 2ⁿ patterns, or one of those drawn.

    Examples
    --------
    >>> smallest_p([2, 5, 6]).tolist()
    [0.5, 0.0625, 0.03125]
    """
    exact = 2.0 ** (1 - np.asarray(n, np.float64))
    return np.maximum(exact, 1 / (_FLIPS + 1))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's adjustment: p values of one family, such that all those below a level hold together at that level.

    Parameters
    ----------
    p_values : array_like of float, (m,)
        Raw p values; NaN is no test, and counts for nothing.

    Returns
    -------
    ndarray of float64, (m,)
        The k-th smallest times m - k + 1, at least its predecessor, at most 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    adjusted = np.full(values.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    steps = values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def t_half_width(std: ArrayLike, n: ArrayLike) -> Floats:
    """Half the width of Student's 95 % interval of a mean.

    Parameters
    ----------
    std : array_like of float
        Sample standard deviation (n - 1) of what was averaged.
    n : array_like of int
        How many; below 2 the interval is NaN.
    """
    count = np.asarray(n, np.float64)
    spread = np.asarray(std, np.float64)
    degrees = np.where(count > 1, count - 1, np.nan)
    width: Floats = stdtrit(degrees, 0.975) * spread / np.sqrt(count)
    return width

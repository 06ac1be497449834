"""How often each patch is seen: rare classes of nuclei, and rare tissues, more often than they stand in the data.

After CellViT (Hörst et al. 2024) and equation (2) of the SP/H&E report. All counts are of the training patches alone:
CellViT's own were of its whole data set, test patches among them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import SamplingConfig
from slideloom.errors import SlideloomError
from slideloom.training.data import epoch_order

__all__ = ["cellvit_weights", "draw_epoch", "group_weights", "joined_weights", "patch_weights", "report_weights"]

_LOG = logging.getLogger(__name__)
Weights = NDArray[np.float64]


def patch_weights(
    presence: NDArray[np.bool_], groups: Sequence[str] | None, n_nuclei: int, config: SamplingConfig
) -> Weights:
    """How often each training patch is to be drawn, up to a common factor.

    Parameters
    ----------
    presence : (n, k) bool array
        Whether a patch holds a nucleus of class 1 … k.
    groups : sequence of str or None
        By patch, the value of the sheet column that ``config.column`` names; needed where groups are to become even.
    n_nuclei : int
        Nuclei in all patches, for ``formula: report``.
    config : SamplingConfig
        What should become even, how much, and by which formula.

    Returns
    -------
    (n,) float64 array
        None negative. With ``gamma`` 0 every weight is 1. A class that no patch holds plays no part, and is told.
        Where no patch holds a nucleus, classes weigh nothing, which is told, too.

    Raises
    ------
    SlideloomError
        ``sampling_groups``: groups are needed and missing, or not one a patch. ``no_nuclei``: patches hold nuclei, but
        ``n_nuclei`` is 0.
    """
    count = len(presence)
    if config.gamma == 0:
        return np.ones(count)
    parts: list[Weights] = []
    if config.by != "group":
        parts.append(_class_weights(presence, n_nuclei, config))
    if config.by != "classes":
        if groups is None or len(groups) != count:
            raise SlideloomError(
                f"{0 if groups is None else len(groups)} values of column {config.column} for {count} patches",
                where="sampling",
                expected="one a patch",
                code="sampling_groups",
            )
        parts.append(group_weights(groups, config.gamma))
    return parts[0] if len(parts) == 1 else joined_weights(*parts)


def _class_weights(presence: NDArray[np.bool_], n_nuclei: int, config: SamplingConfig) -> Weights:
    held = presence.any(axis=0)
    if not held.any():
        _LOG.warning("no training patch holds a nucleus with a class: classes do not weigh in the sampling")
        return np.ones(len(presence))
    if not held.all():
        absent = ", ".join(str(number) for number in np.flatnonzero(~held) + 1)
        _LOG.warning("no training patch holds a nucleus of class %s: sampling cannot make it more frequent", absent)
    if config.formula == "cellvit":
        return cellvit_weights(presence, config.gamma)
    return report_weights(presence, n_nuclei, config.gamma)


def cellvit_weights(
    presence: NDArray[np.bool_],
    gamma: float,
    patches_with: Sequence[int] | None = None,
    n_pairs: int | None = None,
) -> Weights:
    """CellViT's weights by class: (1-γ) max_j c_ij + γ Σ_j c_ij N / (γ f_j + (1-γ) N).

    Parameters
    ----------
    presence : (n, k) bool array
        c: whether patch i holds a nucleus of class j.
    gamma : float
        γ, 0 to 1.
    patches_with : sequence of int, optional
        f, k numbers: patches that hold each class; counted in ``presence`` when left out.
    n_pairs : int, optional
        N; the sum of ``patches_with`` when left out.

    Returns
    -------
    (n,) float64 array
        Patches without nuclei get the smallest weight of those with; all get 1 where none has any.
    """
    held = np.asarray(presence, bool)
    frequency = np.asarray(held.sum(axis=0) if patches_with is None else patches_with, np.float64)
    total = float(frequency.sum() if n_pairs is None else n_pairs)
    any_held = held.any(axis=1)
    if not any_held.any():
        return np.ones(len(held))
    weights = (1 - gamma) * any_held + gamma * _over_frequency(held, frequency, gamma, total, total)
    weights[~any_held] = weights[any_held].min()
    return weights


def report_weights(presence: NDArray[np.bool_], n_nuclei: int, gamma: float) -> Weights:
    """Equation (2) of the SP/H&E report as printed: (1-γ) + γ Σ_c c_ic N^γ / (γ Σ_k c_kc + (1-γ) N).

    Parameters
    ----------
    presence : (n, k) bool array
        c: whether patch i holds a nucleus of class c.
    n_nuclei : int
        N: nuclei in all patches.
    gamma : float
        γ, 0 to 1.

    Returns
    -------
    (n,) float64 array
        Patches without nuclei get 1-γ: at γ = 1 they are never drawn.

    Raises
    ------
    SlideloomError
        ``no_nuclei``: patches hold nuclei, but ``n_nuclei`` is 0.
    """
    held = np.asarray(presence, bool)
    if not held.any():
        return np.ones(len(held))
    if n_nuclei < 1:
        raise SlideloomError(
            f"{n_nuclei} nuclei in patches that hold some", where="sampling", expected="at least 1", code="no_nuclei"
        )
    frequency = held.sum(axis=0).astype(np.float64)
    return (1 - gamma) + gamma * _over_frequency(held, frequency, gamma, float(n_nuclei), float(n_nuclei) ** gamma)


def _over_frequency(
    held: NDArray[np.bool_], frequency: Weights, gamma: float, total: float, numerator: float
) -> Weights:
    """Σ_j c_ij · numerator / (γ f_j + (1-γ) total); classes that no patch holds are left out, whatever γ."""
    present = held.any(axis=0)
    weights: Weights = held[:, present] @ (numerator / (gamma * frequency[present] + (1 - gamma) * total))
    return weights


def group_weights(
    groups: Sequence[str], gamma: float, patches_of: Mapping[str, int] | None = None, n_patches: int | None = None
) -> Weights:
    """CellViT's weights by tissue: K / (γ n_g + (1-γ) K).

    Parameters
    ----------
    groups : sequence of str
        Group g of each patch.
    gamma : float
        γ, 0 to 1.
    patches_of : mapping of str to int, optional
        n: patches of each group; counted in ``groups`` when left out.
    n_patches : int, optional
        K; the sum of ``patches_of`` when left out.

    Returns
    -------
    (n,) float64 array
        One a patch.
    """
    names, number, counts = np.unique(np.asarray(groups, str), return_inverse=True, return_counts=True)
    sizes = counts.astype(np.float64)
    total = float(len(groups))
    if patches_of is not None:
        sizes = np.asarray([patches_of[str(name)] for name in names], np.float64)
        total = float(sum(patches_of.values()))
    if n_patches is not None:
        total = float(n_patches)
    weights: Weights = (total / (gamma * sizes + (1 - gamma) * total))[number]
    return weights


def joined_weights(classes: Weights, groups: Weights) -> Weights:
    """CellViT's weights by class and tissue: each over its maximum, then added up."""
    if not classes.size:
        return np.ones(0)
    weights: Weights = classes / classes.max() + groups / groups.max()
    return weights


def draw_epoch(weights: Weights | None, count: int, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.intp]]:
    """Patches of each training step of an epoch.

    Parameters
    ----------
    weights : (n,) float64 array or None
        From :func:`patch_weights`; None sees every patch once, as :func:`~slideloom.training.data.epoch_order` has it.
    count : int
        Patches that are seen in an epoch.
    batch_size : int
        Patches a step.
    seed, epoch : int
        Decide the draw. The sequence of patches does not depend on ``batch_size``.

    Returns
    -------
    list of (k,) int array
        Drawn with replacement, in proportion to the weights. A last batch of one patch joins the one before.

    Raises
    ------
    SlideloomError
        ``sampling_weights``: a weight is negative or not finite, or all are 0.
    """
    plain = epoch_order(count, batch_size, seed, epoch)
    if weights is None:
        return plain
    given = np.asarray(weights, np.float64)
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise SlideloomError(
            "a weight is negative or not finite, or all are 0",
            where="sampling",
            expected="finite weights, one of them positive",
            code="sampling_weights",
        )
    reached = np.cumsum(given / given.max())
    points = np.random.default_rng([seed, epoch, 0xD2]).random(count) * reached[-1]
    # A point that rounds up to the very end belongs to the last patch that can be drawn.
    drawn = np.minimum(np.searchsorted(reached, points, side="right"), np.flatnonzero(given)[-1])
    return np.split(drawn, np.cumsum([len(batch) for batch in plain])[:-1])

"""Panoptic quality over many images, in three averagings that are often confused: image, tissue, pooled.

``image``
    Mean over the images.
``tissue``
    Mean over the images of a tissue, then over the tissues. The published mPQ and bPQ of PanNuke and CellViT.
``pooled``
    Counts of all images added up, one quotient at the end; large images weigh more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from slideloom.metrics.conventions import DEFAULT, Convention, convention_named
from slideloom.metrics.panoptic import Panoptic, mean_defined

__all__ = ["Averaging", "ClassMean", "PanopticMean", "mean_by_class", "mean_panoptic"]

Averaging = Literal["image", "tissue", "pooled"]


@dataclass(frozen=True)
class PanopticMean:
    """Averaged figures.

    Attributes
    ----------
    pq, dq, sq : float or None
        Each over the images where it is defined; ``None`` where it is nowhere.
    n : int
        Images that took part in PQ.
    """

    pq: float | None
    dq: float | None
    sq: float | None
    n: int


@dataclass(frozen=True)
class ClassMean:
    """Averaged figures by class, and mPQ.

    Attributes
    ----------
    mpq : float or None
        Image and tissue averaging: mean over the classes of each image first, over images after, as PanNuke does.
        Pooled: mean of the classes' pooled PQ. ``None`` when no class is defined anywhere.
    n : int
        Images that took part in mPQ.
    by_class : dict of int to PanopticMean
        Every class by itself.
    """

    mpq: float | None
    n: int
    by_class: dict[int, PanopticMean]


def mean_panoptic(
    images: Sequence[Panoptic],
    averaging: Averaging,
    *,
    tissues: Sequence[str] | None = None,
    convention: str | Convention = DEFAULT,
) -> PanopticMean:
    """Average PQ, DQ and SQ; of all instances together this is bPQ.

    Parameters
    ----------
    images : sequence of Panoptic
        One an image.
    averaging : {"image", "tissue", "pooled"}
        How; see the module.
    tissues : sequence of str, optional
        Tissue of each image; needed for ``tissue``.
    convention : str or Convention
        Says whether an image without truth is left out of means (``pannuke``) or counts (``stardist``). When counts are
        pooled, false positives of such images count under both.

    Raises
    ------
    ValueError
        No such averaging, or tissues are missing or not one an image.
    """
    groups = _groups(len(images), averaging, tissues)
    if averaging == "pooled":
        total = sum(images, Panoptic(0, 0, 0, 0.0))
        return PanopticMean(total.pq, total.dq, total.sq, sum(each.dq is not None for each in images))
    scored = [(each, group) for each, group in zip(images, groups, strict=True) if _takes_part(each, convention)]
    of = [group for _, group in scored]
    return PanopticMean(
        _mean_of_means([each.pq for each, _ in scored], of),
        _mean_of_means([each.dq for each, _ in scored], of),
        _mean_of_means([each.sq for each, _ in scored], of),
        len(scored),
    )


def mean_by_class(
    images: Sequence[Mapping[int, Panoptic]],
    averaging: Averaging,
    *,
    tissues: Sequence[str] | None = None,
    convention: str | Convention = DEFAULT,
) -> ClassMean:
    """Average class by class, and mPQ over the classes.

    Parameters
    ----------
    images : sequence of mapping of int to Panoptic
        One an image, as :func:`~slideloom.metrics.panoptic.class_panoptic` gives; all of the same classes.
    averaging, tissues, convention
        As in :func:`mean_panoptic`. Under ``pannuke`` a class that an image's truth does not hold is left out for that
        image, whatever was predicted; pooled, one that no image's truth holds.

    Raises
    ------
    ValueError
        As in :func:`mean_panoptic`, or the images do not name the same classes.
    """
    groups = _groups(len(images), averaging, tissues)
    classes = sorted(images[0]) if images else []
    if any(sorted(each) != classes for each in images):
        raise ValueError("images of one average must name the same classes")
    by_class = {
        class_id: mean_panoptic([each[class_id] for each in images], averaging, tissues=tissues, convention=convention)
        for class_id in classes
    }
    of_image = [
        mean_defined([figures.pq for figures in each.values() if _takes_part(figures, convention)]) for each in images
    ]
    n = sum(value is not None for value in of_image)
    if averaging != "pooled":
        return ClassMean(_mean_of_means(of_image, groups), n, by_class)
    totals = [sum((each[class_id] for each in images), Panoptic(0, 0, 0, 0.0)) for class_id in classes]
    return ClassMean(mean_defined([each.pq for each in totals if _takes_part(each, convention)]), n, by_class)


def _takes_part(figures: Panoptic, convention: str | Convention) -> bool:
    if convention_named(convention).empty_truth == "undefined":
        return figures.tp + figures.fn > 0
    return figures.tp + figures.fp + figures.fn > 0


def _groups(n: int, averaging: Averaging, tissues: Sequence[str] | None) -> Sequence[str]:
    if averaging not in ("image", "tissue", "pooled"):
        raise ValueError(f"there is no averaging {averaging!r}; there are image, tissue and pooled")
    if averaging != "tissue":
        return [""] * n
    if tissues is None or len(tissues) != n:
        raise ValueError("averaging by tissue needs the tissue of every image")
    return tissues


def _mean_of_means(values: Sequence[float | None], groups: Sequence[str]) -> float | None:
    return mean_defined(
        [
            mean_defined([value for value, of in zip(values, groups, strict=True) if of == group])
            for group in sorted(set(groups))
        ]
    )

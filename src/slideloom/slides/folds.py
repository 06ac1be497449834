"""Names of a split's folds. They stand in paths, so they are known before anything has run."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from slideloom.config.fields import unfit_for_paths
from slideloom.config.model import SplitConfig
from slideloom.slides.sheet import SlideRow

__all__ = ["fold_names", "is_annotated", "platform_folds"]

_LONGEST = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def is_annotated(row: SlideRow, annotated: Container[str] | None = None) -> bool:
    """Whether a slide can train and be scored: it is among ``annotated``, or else the sheet names its nuclei."""
    return bool(row.instances) if annotated is None else row.slide_id in annotated


def fold_names(
    split: SplitConfig, rows: Iterable[SlideRow], annotated: Container[str] | None = None
) -> tuple[str, ...]:
    """Names of the folds of a split: ``0``, ``1``, …, or one for each platform.

    Parameters
    ----------
    split : SplitConfig
        The split.
    rows : iterable of SlideRow
        The sheet.
    annotated : container of str, optional
        Slides that have an instance annotation; those that the sheet gives one when left out.
    """
    if split.scheme == "leave_platform_out":
        return tuple(platform_folds(split, rows, annotated))
    return tuple(str(k) for k in range({"kfold": split.folds, "quarters": 2}.get(split.scheme, 1)))


def platform_folds(
    split: SplitConfig, rows: Iterable[SlideRow], annotated: Container[str] | None = None
) -> dict[str, str]:
    """The platform that each fold of ``leave_platform_out`` tests, by the fold's name, sorted by platform.

    Only platforms with an annotated slide, and of ``platforms`` where the split names some. Names differ by more than
    letter case, which some file systems ignore, and are short enough for a path.

    Parameters
    ----------
    split, rows, annotated
        As in :func:`fold_names`.
    """
    platforms = {row.platform for row in rows if is_annotated(row, annotated)}
    chosen = sorted(name for name in platforms if not split.platforms or name in split.platforms)
    folds: dict[str, str] = {}
    taken: set[str] = set()
    for platform in chosen:
        plain = _UNSAFE.sub("_", platform).strip("._-")[:_LONGEST].rstrip("._-") or "platform"
        if unfit_for_paths(plain, _LONGEST):
            plain = f"platform_{plain}"
        name, number = plain, 2
        while name.casefold() in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.casefold())
        folds[name] = platform
    return folds

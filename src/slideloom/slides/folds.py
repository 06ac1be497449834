"""Names of a split's folds. They stand in paths, so they are known before anything has run."""

from __future__ import annotations

import re
from collections.abc import Iterable

from slideloom.config.model import SplitConfig
from slideloom.slides.sheet import SlideRow

__all__ = ["fold_names", "platform_folds"]

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def fold_names(split: SplitConfig, rows: Iterable[SlideRow]) -> tuple[str, ...]:
    """Names of the folds of a split: ``0``, ``1``, …, or one for each platform.

    Parameters
    ----------
    split : SplitConfig
        The split.
    rows : iterable of SlideRow
        The sheet.
    """
    if split.scheme == "leave_platform_out":
        return tuple(platform_folds(split, rows))
    return tuple(str(k) for k in range({"kfold": split.folds, "quarters": 2}.get(split.scheme, 1)))


def platform_folds(split: SplitConfig, rows: Iterable[SlideRow]) -> dict[str, str]:
    """The platform that each fold of ``leave_platform_out`` tests, by the fold's name, sorted.

    Only platforms with an annotated slide, and of ``platforms`` where the split names some.
    """
    platforms = {row.platform for row in rows if row.instances}
    chosen = sorted(name for name in platforms if not split.platforms or name in split.platforms)
    folds: dict[str, str] = {}
    for platform in chosen:
        plain = _UNSAFE.sub("_", platform).strip("._-") or "platform"
        name, number = plain, 2
        while name in folds:
            name, number = f"{plain}_{number}", number + 1
        folds[name] = platform
    return folds

"""Who trains, validates and tests: one row per slide and fold.

Slides that share the group (a patient, as a rule) never stand on both sides of a fold. The result depends on the rows'
content only, never on their order. Slides without an instance annotation can neither train nor be scored: they get the
role ``infer``.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import pandas as pd
import pyarrow as pa

from slideloom.artefacts.tables import Column, TableSchema, read_table, write_table
from slideloom.config.model import SplitConfig
from slideloom.errors import SlideloomError
from slideloom.slides.folds import fold_names
from slideloom.slides.sheet import SlideRow

__all__ = ["SPLIT", "make_split", "read_split", "slides_with_role", "write_split"]

_LOG = logging.getLogger(__name__)
_ROLES = ("train", "val", "test", "infer")
#: Columns of ``splits/{split}.parquet``.
SPLIT = TableSchema(
    name="split",
    version=1,
    row="a slide in a fold",
    key=("slide_id", "fold"),
    columns=(
        Column("slide_id", pa.string(), "Slide, as in the sheet."),
        Column("fold", pa.string(), "Name of the fold."),
        Column("role", pa.string(), "train, val, test or infer."),
    ),
)


def make_split(rows: Sequence[SlideRow], config: SplitConfig, annotated: AbstractSet[str]) -> pd.DataFrame:
    """Give every slide a role in every fold.

    Parameters
    ----------
    rows : sequence of SlideRow
        The sheet's rows, in any order.
    config : SplitConfig
        Scheme, shares and grouping. With ``platforms``, slides of other platforms get no row at all.
    annotated : set of str
        Slides that have an instance annotation.

    Returns
    -------
    pandas.DataFrame
        ``slide_id``, ``fold``, ``role`` (all text; role one of train, val, test, infer), sorted by fold and slide.

    Raises
    ------
    SlideloomError
        ``unknown_role``: the sheet's column holds something else; ``group_on_both_sides``: a group trains and tests;
        ``too_few_groups``: fewer groups than the scheme needs.

    Notes
    -----
    ``column``: as the sheet says; an empty cell means ``infer``. ``sequential``: groups sorted as text, the first
    share of the annotated slides trains, the rest tests. ``kfold``: sorted groups are cut into ``folds`` contiguous
    parts, and each part tests once. In both, the ``val`` share is taken from the end of the training part. Shares count
    slides, and a cut falls at the group boundary nearest to the share.
    """
    chosen = sorted(
        (row for row in rows if not config.platforms or row.platform in config.platforms), key=lambda row: row.slide_id
    )
    if config.scheme == "column":
        folds = [_by_column(chosen, config)]
    else:
        groups: dict[str, list[str]] = defaultdict(list)
        for row in chosen:
            if row.slide_id in annotated:
                groups[str(getattr(row, config.group))].append(row.slide_id)
        ordered = [groups[name] for name in sorted(groups)]
        folds = _sequential(ordered, config) if config.scheme == "sequential" else _kfold(ordered, config)
    table = [
        (row.slide_id, fold, roles.get(row.slide_id, "infer"))
        for fold, roles in zip(fold_names(config, rows), folds, strict=True)
        for row in chosen
    ]
    return pd.DataFrame(table, columns=["slide_id", "fold", "role"], dtype="str")


def _by_column(rows: Sequence[SlideRow], config: SplitConfig) -> dict[str, str]:
    roles = {row.slide_id: _written_role(row, config.column) for row in rows}
    wrong = sorted(f"{slide}: {role!r}" for slide, role in roles.items() if role not in _ROLES)
    if wrong:
        raise SlideloomError(
            f"unknown roles: {', '.join(wrong)}",
            where=f"sample sheet, column {config.column}",
            expected=", ".join(_ROLES) + " or empty",
            code="unknown_role",
        )
    _check_groups(rows, roles, config)
    return roles


def _written_role(row: SlideRow, column: str) -> str:
    return (row.column(column) or "").strip().lower() or "infer"


def _check_groups(rows: Sequence[SlideRow], roles: dict[str, str], config: SplitConfig) -> None:
    sides: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        sides[str(getattr(row, config.group))].add(roles[row.slide_id])
    torn = sorted(group for group, found in sides.items() if {"train", "test"} <= found)
    if torn:
        raise SlideloomError(
            f"{config.group} {', '.join(torn)} on both sides of train and test",
            where=f"sample sheet, column {config.column}",
            expected=f"every {config.group} on one side",
            hint="Move the slides to one side, or set the split's group to slide_id if they really are independent",
            code="group_on_both_sides",
        )
    for other in ("train", "test"):
        near = ", ".join(sorted(group for group, found in sides.items() if {"val", other} <= found))
        if near:
            _LOG.warning("%s %s on both sides of val and %s: one of them flatters", config.group, near, other)


def _sequential(groups: list[list[str]], config: SplitConfig) -> list[dict[str, str]]:
    _require(groups, 2, config)
    cut = _cuts(groups, [config.train])[0]
    return [_roles(groups[:cut], groups[cut:], config)]


def _kfold(groups: list[list[str]], config: SplitConfig) -> list[dict[str, str]]:
    _require(groups, config.folds, config)
    cuts = [0, *_cuts(groups, [k / config.folds for k in range(1, config.folds)]), len(groups)]
    return [
        _roles(groups[:start] + groups[stop:], groups[start:stop], config) for start, stop in itertools.pairwise(cuts)
    ]


def _roles(training: list[list[str]], testing: list[list[str]], config: SplitConfig) -> dict[str, str]:
    cut = len(training)
    if config.val > 0 and len(training) > 1:
        cut = _cuts(training, [1 - config.val])[0]
    elif config.val > 0:
        _LOG.warning("one %s trains, so none is left to validate on", config.group)
    roles = {slide: "train" for group in training[:cut] for slide in group}
    roles |= {slide: "val" for group in training[cut:] for slide in group}
    return roles | {slide: "test" for group in testing for slide in group}


def _cuts(groups: list[list[str]], shares: list[float]) -> list[int]:
    """Numbers of groups whose slides come nearest to each rising share, with at least one group in every part."""
    totals = [0]
    for group in groups:
        totals.append(totals[-1] + len(group))
    cuts: list[int] = []
    for number, share in enumerate(shares):
        first = (cuts[-1] if cuts else 0) + 1
        last = len(groups) - (len(shares) - number)
        # The tolerance makes a tie a tie whatever the share's rounding; ties go to the smaller part.
        cuts.append(min(range(first, last + 1), key=lambda k: (round(abs(totals[k] - share * totals[-1]), 9), k)))
    return cuts


def _require(groups: list[list[str]], count: int, config: SplitConfig) -> None:
    if len(groups) < count:
        raise SlideloomError(
            f"{len(groups)} annotated {config.group} groups are too few to split",
            where=f"split scheme {config.scheme}",
            expected=f"at least {count}",
            hint="Annotate more slides, lower folds, or write roles into the sheet (scheme: column)",
            code="too_few_groups",
        )


def write_split(rows: Sequence[SlideRow], config: SplitConfig, annotated: AbstractSet[str], place: Path) -> None:
    """Write :func:`make_split`'s table as Parquet, whole or not at all.

    Parameters
    ----------
    rows, config, annotated
        As in :func:`make_split`.
    place : Path
        The ``.parquet`` file.
    """
    split = make_split(rows, config, annotated)
    columns = {name: pa.array(split[name].tolist(), pa.string()) for name in SPLIT.names}
    write_table(SPLIT, pa.table(columns), place, made_from={"split": config.model_dump(mode="json")})


def read_split(place: Path) -> pd.DataFrame:
    """Read a split: columns ``slide_id``, ``fold`` and ``role``, all text."""
    split: pd.DataFrame = read_table(SPLIT, place).to_pandas()
    return split.astype("str")


def slides_with_role(split: pd.DataFrame, fold: str, *roles: str) -> list[str]:
    """Slides that have one of the roles in a fold, sorted.

    Parameters
    ----------
    split : pandas.DataFrame
        From :func:`read_split`.
    fold : str
        Name of the fold.
    *roles : str
        train, val, test or infer.
    """
    rows = split[(split["fold"] == fold) & split["role"].isin(roles)]
    return sorted(rows["slide_id"])

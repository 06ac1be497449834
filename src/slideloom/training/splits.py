"""The table of who trains, validates and tests: one row per slide and fold, written before anything trains.

Who stands where is worked out in :mod:`slideloom.slides.sides`, which the check of the config asks, too. A slide that
plays no part in a fold has no row there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import pandas as pd
import pyarrow as pa

from slideloom.artefacts.tables import Column, TableSchema, read_table, write_table
from slideloom.config.model import SplitConfig
from slideloom.slides.sheet import ROLES, SlideRow
from slideloom.slides.sides import Sides, take_sides

__all__ = ["SPLIT", "make_split", "read_split", "roles_of_fold", "slides_with_role", "write_split"]

_LOG = logging.getLogger(__name__)
#: Columns of ``splits/{split}.parquet``.
SPLIT = TableSchema(
    name="split",
    version=1,
    row="a slide in a fold",
    key=("slide_id", "fold"),
    columns=(
        Column("slide_id", pa.string(), "Slide, as in the sheet."),
        Column("fold", pa.string(), "Name of the fold."),
        Column("role", pa.string(), "train, val, test or infer. A slide that plays no part in a fold has no row."),
    ),
)


def make_split(rows: Sequence[SlideRow], config: SplitConfig, annotated: AbstractSet[str]) -> pd.DataFrame:
    """Give every slide a role in every fold, as :func:`slideloom.slides.sides.take_sides` has it.

    Parameters
    ----------
    rows : sequence of SlideRow
        The sheet's rows, in any order.
    config : SplitConfig
        Scheme, shares and grouping.
    annotated : set of str
        Slides that have an instance annotation.

    Returns
    -------
    pandas.DataFrame
        ``slide_id``, ``fold``, ``role`` (all text; role one of train, val, test, infer), by fold, then sorted by slide.

    Raises
    ------
    SlideloomError
        The errors of :func:`slideloom.slides.sides.take_sides`.
    """
    return _table(_told(take_sides(rows, config, annotated)).folds)


def _table(folds: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    table = [(slide, fold, role) for fold, roles in folds.items() for slide, role in roles.items()]
    return pd.DataFrame(table, columns=["slide_id", "fold", "role"], dtype="str")


def _told(sides: Sides) -> Sides:
    for note in sides.notes:
        _LOG.warning("%s", note)
    return sides


def write_split(rows: Sequence[SlideRow], config: SplitConfig, annotated: AbstractSet[str], place: Path) -> None:
    """Write :func:`make_split`'s table as Parquet, whole or not at all.

    Parameters
    ----------
    rows, config, annotated
        As in :func:`make_split`.
    place : Path
        The ``.parquet`` file. Its metadata hold the config; by fold and role, the numbers of slides and patients; and
        notes on what was joined or left out.
    """
    sides = _told(take_sides(rows, config, annotated))
    split = _table(sides.folds)
    columns = {name: pa.array(split[name].tolist(), pa.string()) for name in SPLIT.names}
    made_from = {
        "split": config.model_dump(mode="json"),
        "counts": _counts(rows, sides.folds),
        "notes": list(sides.notes),
    }
    write_table(SPLIT, pa.table(columns), place, made_from=made_from)


def _counts(rows: Iterable[SlideRow], folds: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, dict[str, int]]]:
    """By fold and role, the numbers of slides and of patients."""
    patient_of = {row.slide_id: row.patient_id for row in rows}
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for fold, roles in folds.items():
        slides = {role: [slide for slide, one in roles.items() if one == role] for role in ROLES}
        counts[fold] = {
            role: {"slides": len(found), "patients": len({patient_of[slide] for slide in found})}
            for role, found in slides.items()
            if found
        }
    return counts


def read_split(place: Path) -> pd.DataFrame:
    """Read a split: columns ``slide_id``, ``fold`` and ``role``, all text."""
    split: pd.DataFrame = read_table(SPLIT, place).to_pandas()
    return split.astype("str")


def roles_of_fold(place: Path, fold: str) -> dict[str, str]:
    """Role of every slide that plays a part in a fold.

    Parameters
    ----------
    place : Path
        File of :func:`write_split`.
    fold : str
        Name of the fold.

    Returns
    -------
    dict of str to str
        By slide.
    """
    split = read_split(place).query("fold == @fold")
    return dict(zip(split["slide_id"], split["role"], strict=True))


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

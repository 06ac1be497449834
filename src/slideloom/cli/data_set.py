"""``slideloom sheet --layout``: a data set in a known layout becomes a sheet and its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from slideloom.errors import SlideloomError

__all__ = ["SheetCommand", "bring_in", "check_layout", "layout_names"]

#: What may stand in a layout's place: go by the names of files, or look which layout it is.
_WITHOUT = ("names", "auto")


def layout_names() -> tuple[str, ...]:
    """What ``--layout`` may be: ``names``, ``auto``, and every layout there is.

    The importers are asked for their names when they are needed, not whenever a command starts.
    """
    from slideloom.slides.layouts.choose import LAYOUTS

    return (*_WITHOUT, *LAYOUTS)


def check_layout(value: str) -> str:
    """The name itself.

    Raises
    ------
    typer.BadParameter
        It is none of :func:`layout_names`; they are told.
    """
    if value not in _WITHOUT and value not in (names := layout_names()):
        raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}.")
    return value


class SheetCommand(TyperCommand):
    """The command, whose help ends with the layouts there are."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the layouts."""
        formatter.write_paragraph()
        formatter.write_text(f"Layouts: {', '.join(layout_names())}.")


def bring_in(
    layout: str, folder: Path, out: Path | None, *, force: bool, mpp_um: float | None, one_modality: bool
) -> None:
    """Write sheet, tables and what else a data set in a known layout needs.

    Parameters
    ----------
    layout : str
        One of :data:`~slideloom.slides.layouts.choose.LAYOUTS`.
    folder : Path
        The data set's top.
    out : Path or None
        The sheet to write.
    force : bool
        Whether files that are there may be replaced.
    mpp_um : float or None
        Pixel size of every image, µm per pixel, over what the data set says.
    one_modality : bool
        Colour pictures stand in the column ``sp``, as channels red, green and blue.

    Raises
    ------
    SlideloomError
        There is no ``out``, a file to write is there, or the folder does not have that layout.
    """
    from slideloom.cli.guards import check_sheet_place
    from slideloom.slides.layouts.annotated import FILE_LIST
    from slideloom.slides.layouts.choose import read_data_set
    from slideloom.slides.layouts.imported import table_paths, write_tables
    from slideloom.slides.layouts.multiplexed import CELLS_SHEET, in_one_modality

    if out is None:
        what = f"the layout {layout} gives tables beside the sheet"
        raise SlideloomError(what, expected="the option --out", hint="Give --out FOLDER/slides.tsv")
    beside: Mapping[str, Path] = {"cells": out.with_name(CELLS_SHEET), "files": out.with_name(FILE_LIST)}
    for place in (*table_paths(out).values(), *beside.values()):
        check_sheet_place(place, force)
    if out in beside.values():
        what = f"{out.name} is what importers call another of their tables"
        raise SlideloomError(what, where=str(out), hint="Give --out FOLDER/slides.tsv")
    before = _states(beside)
    found = read_data_set(layout, folder, out.parent, mpp_um)
    # An importer writes these itself; of an earlier import they may be there without it.
    made = [name for name, state in _states(beside).items() if state != before.get(name)]
    if one_modality:
        if "cells" in made:
            _move_pictures(beside["cells"])
        found = in_one_modality(found)
    written = (*write_tables(found, out), *(beside[name] for name in made))
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    for name in sorted(before.keys() - set(made)):
        typer.echo(f"note: {beside[name]} is of an earlier import, and no part of this one", err=True)
    count = f"{len(found.rows)} {'slide' if len(found.rows) == 1 else 'slides'}"
    typer.echo(f"{count} of the layout {layout} in {', '.join(map(str, written))}.", err=True)


def _states(places: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """What tells whether files were written anew, of those that are there."""
    there = {name: place.stat() for name, place in places.items() if place.exists()}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in there.items()}


def _move_pictures(sheet: Path) -> None:
    """Do to a sheet that an importer wrote beside its own what ``in_one_modality`` does to that."""
    from slideloom.slides.layouts.imported import Imported
    from slideloom.slides.layouts.multiplexed import in_one_modality
    from slideloom.slides.sheet import read_sheet, write_sheet
    from slideloom.slides.tables import ClassTable

    rows, problems = read_sheet(sheet)
    if problems:
        raise SlideloomError("cannot be read back", where=str(sheet), hint=str(problems[0]))
    moved = in_one_modality(Imported(tuple(replace(row, line=0) for row in rows), (), ClassTable(), ()))
    write_sheet(moved.rows, sheet)

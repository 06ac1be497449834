"""Where commands write and what they read, looked at first: nothing of a person's own is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slideloom.errors import SlideloomError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_demo_folder", "check_image_folder", "check_sheet_place", "read_report", "reports_folder"]

_DEMO_PLATFORM = "synthetic-"


def check_sheet_place(place: Path, force: bool) -> None:
    """Check that a sheet may be written.

    Parameters
    ----------
    place : Path
        The sheet or table to write.
    force : bool
        Whether a file that is there may be replaced.

    Raises
    ------
    SlideloomError
        It is a folder, or there already.
    """
    if place.is_dir():
        hint = f"Name the file, such as {place / 'slides.tsv'}"
        raise SlideloomError("is a folder", where=str(place), expected="the sheet to write", hint=hint)
    if place.exists() and not force:
        raise SlideloomError("this file exists already", where=str(place), hint="Give --force to replace it")


def check_image_folder(folder: Path) -> None:
    """Check that there is a folder to look for images in.

    Raises
    ------
    SlideloomError
        It is a file, or not there.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "this folder does not exist"
        hint = "Name the folder that holds the images; folders below it are searched, too"
        raise SlideloomError(what, where=str(folder), expected="a folder", hint=hint)


def check_demo_folder(folder: Path) -> None:
    """Check that the synthetic cohort may be written into a folder: one of its own, new or a demo's.

    Parameters
    ----------
    folder : Path
        Where it would be written.

    Raises
    ------
    SlideloomError
        The folder is a file, cannot be made, or holds a sheet or tables of somebody's own.
    """
    from slideloom.slides.sheet import read_sheet

    if folder.exists() and not folder.is_dir():
        hint = "Name a folder; it is made if it is not there"
        raise SlideloomError("is a file", where=str(folder), expected="a folder", hint=hint)
    sheet = folder / "slides.tsv"
    if sheet.exists():
        rows, problems = read_sheet(sheet)
        if not problems and all(row.platform.startswith(_DEMO_PLATFORM) for row in rows):
            return
    for place in (sheet, folder / "markers.tsv", folder / "classes.tsv"):
        if place.exists():
            what = "this file is not the demo's, and would be replaced"
            hint = "Give the cohort a folder of its own, such as demo/cohort"
            raise SlideloomError(what, where=str(place), hint=hint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # before the minutes that the slides take
        what, hint = f"this folder cannot be made: {error.strerror or error}", "Name one where you may write"
        raise SlideloomError(what, where=str(folder), hint=hint) from error


def reports_folder(results: Path) -> Path:
    """The folder of a run's tables.

    Parameters
    ----------
    results : Path
        What a person names as the results.

    Returns
    -------
    Path
        It holds ``slides.parquet``.

    Raises
    ------
    SlideloomError
        There is none.
    """
    from slideloom.artefacts.paths import Paths

    if results.is_file():
        hint = "Name the folder that the config's key 'results' gives, such as `slideloom show results`"
        raise SlideloomError("is a file", where=str(results), expected="the results folder of a run", hint=hint)
    if not results.exists():
        hint = "Name the config's 'results' folder; it is there once snakemake has run"
        raise SlideloomError("this folder does not exist", where=str(results), hint=hint)
    reports = Paths(results).reports()
    if not (reports / "slides.parquet").is_file():
        hint = "Run snakemake first, or name the config's 'results' folder"
        raise SlideloomError("no slides table here", where=str(reports / "slides.parquet"), hint=hint)
    return reports


def read_report(place: Path) -> pd.DataFrame:
    """Read a table of the reports.

    Parameters
    ----------
    place : Path
        Parquet.

    Returns
    -------
    DataFrame
        As it was written.

    Raises
    ------
    SlideloomError
        It is no table, or damaged.
    """
    import pandas as pd

    try:
        return pd.read_parquet(place)
    except (OSError, ValueError) as error:
        what = f"cannot be read as a table: {str(error).splitlines()[0][:200]}"
        hint = "Delete it and run snakemake again: it makes the table anew"
        raise SlideloomError(what, where=str(place), expected="Parquet", hint=hint, code="unreadable") from error

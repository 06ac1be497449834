"""What was read of a study, right or wrong, and how a mistake in it is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slideloom.config.load import Draft
from slideloom.config.yaml_lines import KeyPath, Places
from slideloom.errors import Problem
from slideloom.slides.delimited import nearest
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable, MarkerTable

__all__ = ["Evidence"]


@dataclass(frozen=True)
class Evidence:
    """All that was read, right or wrong.

    Attributes
    ----------
    draft : Draft
        The right parts of the config.
    places : Places
        Where each key was written.
    base : Path
        Where the config's paths start.
    sheet, data_root : Path
        The sheet, and where its paths start.
    rows : tuple of SlideRow or None
        None when the sheet could not be read.
    markers : MarkerTable or None
        None when the config names no table, or nothing could be read of it.
    classes : ClassTable or None
        Likewise.
    """

    draft: Draft
    places: Places
    base: Path
    sheet: Path
    data_root: Path
    rows: tuple[SlideRow, ...] | None
    markers: MarkerTable | None
    classes: ClassTable | None

    def at(self, *path: str | int, what: str, hint: str = "") -> Problem:
        """A problem at a key of the config."""
        return Problem(self.places.of(path), what, hint)

    def on(self, row: SlideRow, column: str, what: str, hint: str = "") -> Problem:
        """A problem in a row of the sheet."""
        return Problem(f"{self.sheet}:{row.line}: {column}", what, hint)

    def points_nowhere(self, path: KeyPath, name: str, section: str) -> Iterator[Problem]:
        """Tell a name that no entry of a section has."""
        known = sorted(self.draft.names.get(section, ()))
        if name not in known:
            near = nearest(name, known)
            hint = f"Did you mean {near!r}?" if near else f"There is: {', '.join(known) or 'none'}"
            yield self.at(*path, what=f"{section} has no entry {name!r}", hint=hint)

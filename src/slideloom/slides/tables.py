"""Markers and classes: what channel names mean, and what kinds of nuclei there are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slideloom.config.texts import quoted
from slideloom.errors import Problem
from slideloom.slides.delimited import Table, TableRow, read_table

__all__ = [
    "CLASS_COLUMNS",
    "MARKER_COLUMNS",
    "Channel",
    "ClassTable",
    "MarkerTable",
    "is_accession",
    "read_classes",
    "read_markers",
]

MARKER_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "channel": "Channel name as it stands in the image file or in the sheet's `sp_channels`. Required.",
        "marker": "The marker that the channel shows; several channel names may mean one marker. Required.",
        "uniprot": "UniProt accession of the marker, such as `P08575`; empty where there is none (DNA).",
        "nuclear": "`yes` for a nuclear stain such as DAPI or Hoechst, `no` (or empty) otherwise.",
    }
)
CLASS_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "id": "Whole numbers 1, 2, 3, … without a gap, 254 at most. 0 is background and is not listed. Required.",
        "name": "The class's name, as it stands in the tables. Required.",
        "colour": "Its colour in pictures, `#rrggbb`. Required.",
        "aliases": "Other texts by which annotation files name it, separated by `;`.",
    }
)
_YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False, "": False}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_UNIPROT = re.compile(r"[OPQ][0-9][A-Z0-9]{3}[0-9](-\d+)?|[A-NR-Z][0-9]([A-Z][A-Z0-9]{2}[0-9]){1,2}(-\d+)?")
_LAST_CLASS = 254


def is_accession(text: str) -> bool:
    """Whether a text is a UniProt accession, with or without an isoform: ``P08575``, ``P08575-4``, ``A0A024R216``."""
    return _UNIPROT.fullmatch(text) is not None


def _fold(text: str) -> str:
    return " ".join(_composed(text).split()).casefold()


def _composed(text: str) -> str:
    """One spelling of letters that have several, such as é in one character or as e and an accent."""
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Channel:
    """One channel of an image.

    Attributes
    ----------
    name : str
        As the image file or the sheet names it.
    marker : str
        What it shows; empty for the colours of an RGB image.
    uniprot : str
        Accession of the marker; may be empty.
    nuclear : bool
        Whether it is a nuclear stain.
    """

    name: str
    marker: str
    uniprot: str = ""
    nuclear: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Channel:
        """Inverse of :meth:`as_dict`."""
        return cls(**value)


@dataclass(frozen=True)
class MarkerTable:
    """Which marker each channel name means.

    Attributes
    ----------
    channels : tuple of Channel
        A row each, in the order of the table.
    """

    channels: tuple[Channel, ...] = ()

    @cached_property
    def markers(self) -> frozenset[str]:
        """Names of all markers."""
        return frozenset(channel.marker for channel in self.channels)

    @cached_property
    def _exact(self) -> dict[str, Channel]:
        return {_composed(channel.name): channel for channel in self.channels}

    @cached_property
    def _folded(self) -> dict[str, Channel | None]:
        """None where rows that differ by letter case or spaces show different markers."""
        found: dict[str, Channel | None] = {}
        for channel in self.channels:
            first = found.setdefault(_fold(channel.name), channel)
            if first is not None and first.marker != channel.marker:
                found[_fold(channel.name)] = None
        return found

    def lookup(self, channel_name: str) -> Channel | None:
        """Find a channel by name; letter case and runs of spaces count only between rows that differ in nothing else.

        Where such rows show different markers, a name that is none of theirs exactly is not known.

        Parameters
        ----------
        channel_name : str
            As the image file names it.

        Returns
        -------
        Channel or None
            With ``name`` as it was asked for; None when no row has that name.
        """
        found = self._exact.get(_composed(channel_name)) or self._folded.get(_fold(channel_name))
        return Channel(channel_name, found.marker, found.uniprot, found.nuclear) if found else None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"channels": [channel.as_dict() for channel in self.channels]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> MarkerTable:
        """Inverse of :meth:`as_dict`."""
        return cls(tuple(Channel.from_dict(channel) for channel in value["channels"]))


@dataclass(frozen=True)
class ClassTable:
    """The classes of nuclei. Background, 0, is implied and not listed.

    Attributes
    ----------
    ids : tuple of int
        1, 2, 3, … without a gap.
    names : tuple of str
        A name each.
    colours : tuple of (int, int, int)
        Red, green, blue, 0 to 255, each.
    aliases : tuple of tuple of str
        Other texts by which annotation files name each class.
    """

    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    aliases: tuple[tuple[str, ...], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _words(self) -> dict[str, int]:
        aliases = self.aliases or ((),) * len(self.ids)
        words = {_fold(alias): number for number, group in zip(self.ids, aliases, strict=True) for alias in group}
        # Aliases that are numbers say that annotations have a numbering of their own: then ours would only mislead.
        if not any(word.isdecimal() for word in words):
            words.update({str(number): number for number in self.ids})
        words.update({_fold(name): number for number, name in zip(self.ids, self.names, strict=True)})
        return words

    def id_of(self, text: str) -> int | None:
        """Id of the class that an annotation file names so.

        Parameters
        ----------
        text : str
            A name or an alias (letter case does not count); or an id, unless some alias is a whole number, because then
            annotations have a numbering of their own.

        Returns
        -------
        int or None
            None when no class is named so.

        Examples
        --------
        >>> table = ClassTable((1, 2), ("tumour", "stroma"), ((255, 0, 0), (0, 255, 0)), (("0",), ("1", "stromal")))
        >>> table.id_of("1"), table.id_of("Tumour"), table.id_of("2")
        (2, 1, None)
        """
        return self._words.get(_fold(text))

    def as_dict(self) -> dict[str, Any]:
        """JSON values: names, colours and aliases, each by id."""
        aliases = self.aliases or ((),) * len(self.ids)
        return {
            "names": {str(number): name for number, name in zip(self.ids, self.names, strict=True)},
            "colours": {str(number): list(colour) for number, colour in zip(self.ids, self.colours, strict=True)},
            "aliases": {str(number): list(group) for number, group in zip(self.ids, aliases, strict=True)},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ClassTable:
        """Inverse of :meth:`as_dict`; the order of the JSON object plays no part."""
        ids = tuple(sorted(int(key) for key in value["names"]))
        colours = tuple((int(r), int(g), int(b)) for r, g, b in (value["colours"][str(number)] for number in ids))
        return cls(
            ids,
            tuple(str(value["names"][str(number)]) for number in ids),
            colours,
            tuple(tuple(value["aliases"][str(number)]) for number in ids),
        )


def read_markers(path: Path) -> tuple[MarkerTable, list[Problem]]:
    """Read ``markers.tsv``.

    Parameters
    ----------
    path : Path
        Table with the columns of :data:`MARKER_COLUMNS`.

    Returns
    -------
    table : MarkerTable
        Of the rows that could be read.
    problems : list of Problem
        Every fault, each with its line.
    """
    mistaken = {"name": "channel", "target": "marker", "uniprot_id": "uniprot", "uniprotid": "uniprot"}
    table = read_table(path, tuple(MARKER_COLUMNS), ("channel", "marker"), mistaken)
    problems = list(table.problems)
    channels: dict[str, Channel] = {}
    by_marker: dict[tuple[str, str], tuple[str, int]] = {}
    for row in table.rows:
        name, marker = row.cells["channel"], row.cells["marker"]
        uniprot, nuclear = row.cells.get("uniprot", ""), row.cells.get("nuclear", "").casefold()
        if not name or not marker:
            empty = "marker" if name else "channel"
            problems.append(Problem(table.place(row, empty), "is empty", "Every row names a channel and its marker"))
            continue
        if nuclear not in _YES:
            what = f"{quoted(row.cells['nuclear'])} is neither yes nor no"
            problems.append(Problem(table.place(row, "nuclear"), what, "Write yes for DAPI and the like, else no"))
        if uniprot and not is_accession(uniprot):
            hint = "It looks like P08575; leave it empty where there is none"
            problems.append(Problem(table.place(row, "uniprot"), f"{quoted(uniprot)} is not a UniProt accession", hint))
        if _composed(name) in channels:
            hint = "Remove one of the two"
            problems.append(Problem(table.place(row, "channel"), f"{quoted(name)} has a row already", hint))
            continue
        channel = Channel(name, marker, uniprot, _YES.get(nuclear, False))
        for column in ("uniprot", "nuclear"):
            given = row.cells.get(column, "")
            first = by_marker.setdefault((marker, column), (given, row.line)) if given else (given, 0)
            if given.casefold() != first[0].casefold():
                what = f"{quoted(given)} for the marker {quoted(marker)}, but {quoted(first[0])} in line {first[1]}"
                problems.append(Problem(table.place(row, column), what, "Rows of one marker must agree"))
        channels[_composed(name)] = channel
    if table.columns and not channels and not problems:
        problems.append(Problem(str(path), "has no channels below its header"))
    return MarkerTable(tuple(channels.values())), problems


def read_classes(path: Path) -> tuple[ClassTable, list[Problem]]:
    """Read ``classes.tsv``.

    Parameters
    ----------
    path : Path
        Table with the columns of :data:`CLASS_COLUMNS`.

    Returns
    -------
    table : ClassTable
        Of the rows that could be read, by id.
    problems : list of Problem
        Every fault, each with its line.
    """
    mistaken = {"color": "colour", "class": "name", "class_id": "id", "class_name": "name", "alias": "aliases"}
    table = read_table(path, tuple(CLASS_COLUMNS), ("id", "name", "colour"), mistaken)
    problems = list(table.problems)
    classes: dict[int, tuple[str, tuple[int, int, int], tuple[str, ...]]] = {}
    taken: dict[str, TableRow] = {}
    for row in table.rows:
        number, name, colour = row.cells["id"], row.cells["name"], row.cells["colour"]
        value = int(number) if number.isdecimal() and len(number) <= 3 else -1
        aliases = tuple(alias for part in row.cells.get("aliases", "").split(";") if (alias := part.strip()))
        if not 1 <= value <= _LAST_CLASS:
            what = f"{quoted(number)} is not a whole number from 1 to {_LAST_CLASS}"
            hint = "Number the classes 1, 2, 3, …"
            if value == 0:
                hint = "0 is background, which is implied; leave it out"
            problems.append(Problem(table.place(row, "id"), what, hint))
        elif value in classes:
            what = f"{value} is the id of {quoted(classes[value][0])} already"
            problems.append(Problem(table.place(row, "id"), what, "Give each class a number of its own"))
        if not name or _fold(name) == "background":
            what = f"{name!r} is implied, with the id 0; leave it out" if name else "is empty"
            problems.append(Problem(table.place(row, "name"), what, "" if name else "Every class has a name"))
        if not _COLOUR.fullmatch(colour):
            what = f"{quoted(colour)} is not a colour such as #1f77b4"
            problems.append(
                Problem(table.place(row, "colour"), what, "Write # and six digits 0-9 a-f: red, green, blue")
            )
            colour = "#000000"
        for column, word in [("name", name), *(("aliases", alias) for alias in aliases)]:
            owner = taken.setdefault(_fold(word), row) if word else row
            if owner is not row:
                what = f"{quoted(word)} means the class of line {owner.line} already"
                problems.append(Problem(table.place(row, column), what, "One text means one class: remove one"))
        if 1 <= value <= _LAST_CLASS:
            classes.setdefault(value, (name, _rgb(colour), aliases))
    problems += _gaps(table, sorted(classes))
    if table.columns and not classes and not problems:
        problems.append(Problem(str(path), "has no classes below its header"))
    ids = tuple(sorted(classes))
    names = tuple(classes[number][0] for number in ids)
    colours = tuple(classes[number][1] for number in ids)
    return ClassTable(ids, names, colours, tuple(classes[number][2] for number in ids)), problems


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _gaps(table: Table, ids: Sequence[int]) -> list[Problem]:
    missing = sorted(set(range(1, max(ids, default=0) + 1)) - set(ids))
    if not missing:
        return []
    shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
    hint = "Number the classes 1, 2, 3, … and give the numbers of your annotations as aliases"
    return [Problem(f"{table.path}: id", f"the ids leave out {shown}", hint)]

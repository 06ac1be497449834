"""Classes by instance id, as a class table settles them; looked up pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from slideloom.config.texts import shortened
from slideloom.errors import SlideError
from slideloom.slides.annotation_sources import UNKNOWN_CLASS, unknown_classes
from slideloom.slides.classlist import read_class_rows, settle_classes
from slideloom.slides.labels import source_name
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

__all__ = ["ClassRegister", "read_register"]


class ClassRegister:
    """Class of each instance id.

    Parameters
    ----------
    settled : dict of int to int
        Class id by instance id.
    where : str
        The table, for messages.
    member : str
        Value of its column ``image`` that the rows have; empty for all rows.
    """

    def __init__(self, settled: dict[int, int], where: str = "", member: str = "") -> None:
        self._settled = settled
        self._where = where
        self._member = member
        self._ids = np.array(sorted(settled), np.int64)
        self._numbers = np.array([settled[one] for one in sorted(settled)], np.uint8)

    @property
    def is_empty(self) -> bool:
        """Whether no instance has a class."""
        return not self._settled

    def of(self, instances: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Class of every pixel: 0 background, :data:`UNKNOWN_CLASS` inside instances that have none."""
        class_map = unknown_classes(instances)
        inside = np.flatnonzero(instances.reshape(-1) > 0)
        if not self._ids.size or not inside.size:
            return class_map
        found = instances.reshape(-1)[inside]
        place = np.minimum(np.searchsorted(self._ids, found), self._ids.size - 1)
        known = self._ids[place] == found
        class_map.reshape(-1)[inside] = np.where(known, self._numbers[place], np.uint8(UNKNOWN_CLASS))
        return class_map

    def remarks(self, ids: set[int]) -> Iterator[str]:
        """What a person should know of the table beside an instance map with these ids."""
        known = self._settled.keys()
        if strangers := len(known - ids):
            yield f"{self._where}: {strangers} of {len(known)} instance ids are not in the instance map"
        if without := len(ids - known):
            yield f"{self._where}: {without} of {len(ids)} instances have no class"

    def refusal(self) -> SlideError:
        """Error of a table that says nothing of a slide with nuclei: ``annotation_no_rows``; to be raised."""
        if self._member:
            what = f"no row belongs to {shortened(repr(self._member))}"
            hint = "The member after '::' must equal a value of the column 'image'"
        else:
            what = "no row names an instance"
            hint = "Leave the sheet's column 'classes' empty if no class is known"
        expected = "a row for each nucleus whose class is known"
        return SlideError(what, where=self._where, expected=expected, hint=hint, code="annotation_no_rows")


def read_register(source: Source, classes: ClassTable) -> tuple[ClassRegister, tuple[str, ...]]:
    """Read a class table by the study's classes.

    Parameters
    ----------
    source : Source
        As for :func:`~slideloom.slides.classlist.read_class_rows`.
    classes : ClassTable
        The study's classes.

    Returns
    -------
    (ClassRegister, tuple of str)
        The classes, and warnings.

    Raises
    ------
    SlideError
        As :func:`~slideloom.slides.classlist.read_class_rows` and
        :func:`~slideloom.slides.classlist.settle_classes`.
    """
    where = source_name(source)
    settled, notes = settle_classes(read_class_rows(source), classes, where)
    return ClassRegister(settled, where, source.member), notes

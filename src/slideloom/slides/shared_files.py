"""Files that more than one slide of a sheet names: mostly a row that was copied, and mended in part."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

from slideloom.config.texts import quoted
from slideloom.slides.sheet import SlideRow

__all__ = ["shared_file_warnings"]

#: Files that are told of, and slides of one that are named, before the rest is counted.
_SHOWN, _NAMED = 5, 3
#: Columns of annotations, and what these show.
_ANNOTATIONS = {"instances": "nuclei", "cells": "cells"}


def shared_file_warnings(rows: Iterable[SlideRow]) -> list[str]:
    """Remarks on slides that name one file, or one member of a file.

    Parameters
    ----------
    rows : iterable of SlideRow
        The sheet.

    Returns
    -------
    list of str
        Of images that are slides of different patients: those of one patient never stand on both sides of a split. Of
        annotations (``instances``, ``cells``) of different images: slides that share an image may share its annotation.
        Tables of classes may serve as many slides as they like.
    """
    columns = ("he", "sp", *_ANNOTATIONS)
    found: dict[str, dict[str, list[SlideRow]]] = {name: defaultdict(list) for name in columns}
    for row in rows:
        for column, files in found.items():
            if text := getattr(row, column):
                files[os.path.normpath(text)].append(row)
    told: dict[str, list[str]] = {}
    for column in ("he", "sp"):
        told[column] = [
            f"{_slides(sharing)} have one {column} image, {quoted(file)}, and are of different patients: it counts for "
            "each of them, and may stand on both sides of a split"
            for file, sharing in found[column].items()
            if len({row.patient_id for row in sharing}) > 1
        ]
    for column, things in _ANNOTATIONS.items():
        told[column] = [
            f"{_slides(sharing)} have one annotation, {quoted(file)}: that is right only where their images show the "
            f"same {things} in the same places"
            for file, sharing in found[column].items()
            if len(sharing) > 1 and not _share_image(sharing)
        ]
    warnings = []
    for column, remarks in told.items():
        warnings += remarks[:_SHOWN]
        if len(remarks) > _SHOWN:
            warnings.append(f"{len(remarks) - _SHOWN} more files in the sheet's column {column} stand there repeatedly")
    return warnings


def _share_image(rows: Sequence[SlideRow]) -> bool:
    """Whether one image, H&E or multiplexed, is that of all these slides."""
    images = ({os.path.normpath(getattr(row, column) or "") for row in rows} for column in ("he", "sp"))
    return any(len(one) == 1 and one != {os.path.normpath("")} for one in images)


def _slides(rows: Sequence[SlideRow]) -> str:
    named = [f"{row.slide_id!r} (line {row.line})" if row.line else repr(row.slide_id) for row in rows[:_NAMED]]
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    joined = ", ".join(named) + more if more else f"{', '.join(named[:-1])} and {named[-1]}"
    return f"the sheet's slides {joined}"

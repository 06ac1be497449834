"""Names that a person takes for one and a program for two: patients and platforms that look alike."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from slideloom.config.texts import quoted
from slideloom.slides.sheet import SlideRow

__all__ = ["alike_warnings", "look_of"]

#: Cyrillic and Greek letters that look like Latin ones.
_TWINS = str.maketrans("АВЕКМНОРСТУХаеорсухіѕјΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABEKMHOPCTYXaeopcyxisjABEZHIKMNOPTYXo")
_SHOWN = 5


def look_of(text: str) -> str:
    """What a person sees of a name: without letter case, width, blanks, invisible signs, or the letter's alphabet.

    Examples
    --------
    >>> look_of("P\u200d 01") == look_of("p01")
    True
    """
    if text.isascii() and text.isprintable():
        return text.replace(" ", "").casefold()
    seen = unicodedata.normalize("NFKC", text).translate(_TWINS)
    return "".join(one for one in seen if unicodedata.category(one) not in ("Cf", "Zs", "Cc")).casefold()


def alike_warnings(rows: Iterable[SlideRow]) -> list[str]:
    """Remarks on patients, and on platforms, whose names look alike, but are not equal.

    Parameters
    ----------
    rows : iterable of SlideRow
        The sheet.

    Returns
    -------
    list of str
        Slides of a patient stand on one side of a split; those of two that should be one may stand on both.
    """
    found: dict[str, dict[str, dict[str, SlideRow]]] = {"patient_id": defaultdict(dict), "platform": defaultdict(dict)}
    for row in rows:
        for column, looks in found.items():
            name = getattr(row, column)
            looks[look_of(name)].setdefault(name, row)
    warnings = []
    for column, means in {
        "patient_id": "they count as different patients, and may stand on both sides of a split",
        "platform": "they count as different platforms",
    }.items():
        alike = [names for names in found[column].values() if len(names) > 1]
        for names in alike[:_SHOWN]:
            holders = " and ".join(f"{_visible(name)} (slide {row.slide_id!r})" for name, row in names.items())
            warnings.append(f"the sheet's {column} {holders} look alike: {means}")
        if len(alike) > _SHOWN:
            warnings.append(f"{len(alike) - _SHOWN} more names in the sheet's column {column} look like another")
    return warnings


def _visible(name: str) -> str:
    """The name in quotes, and, where letters are not Latin, which ones they are."""
    strange = [one for one in name if not one.isascii()]
    return quoted(name) + (f" with U+{ord(strange[0]):04X}" if strange else "")

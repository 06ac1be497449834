"""Kinds of bad input, each with its one answer: what the corpus is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slideloom.errors import SlideloomError

__all__ = ["Answer", "Cells", "Kind", "check_shape", "peak_mb"]

#: ``refused``: nothing is run. ``failed``: the slide fails alone, with a reason code. ``warned``: the slide runs, and a
#: warning is recorded. ``accepted``: the slide runs as any other.
Answer = Literal["refused", "failed", "warned", "accepted"]
#: Cells of the sheet by column, paths relative to the folder; of a config, ``{"config": "config.yaml"}``.
Cells = Mapping[str, str]
#: What a person reads at once: lines of a screen, and characters of a line's worth of words.
_SCREEN_LINES, _SCREEN_CHARACTERS = 24, 1600


@dataclass(frozen=True)
class Kind:
    """A kind of bad input and its answer.

    Attributes
    ----------
    name : str
        Unique, ``snake_case``.
    group : str
        ``slide``, ``multiplex``, ``annotation``, ``sheet``, ``config`` or ``store``.
    what : str
        A few words for the page that lists the kinds.
    make : callable
        Writes the files into an empty folder and returns the cells of the slide's row (or where the config lies). Takes
        well under a second, and the same bytes come out each time.
    answer : Answer
        The one answer.
    code : str
        Reason code of what failed.
    stage : str
        Where it first fails.
    says : str
        Regular expression that the message or the warning matches.
    """

    name: str
    group: str
    what: str
    make: Callable[[Path], Cells]
    answer: Answer
    code: str = ""
    stage: str = "facts"
    says: str = ""

    def __str__(self) -> str:
        return self.name


def check_shape(error: SlideloomError, *, names: tuple[str, ...] = ()) -> None:
    """A message that a tired person can act on: what was found and where, what was expected or what to do.

    Parameters
    ----------
    error : SlideloomError
        As it was raised.
    names : tuple of str
        What it must name, such as the slide and the file.
    """
    text = str(error)
    assert error.what.strip(), "it says what is wrong"
    assert error.where.strip() or all(name in text for name in names), f"it says where: {text}"
    assert error.expected.strip() or error.hint.strip(), f"it says what was expected, or what to do: {text}"
    assert error.hint.strip(), f"it says what to do: {text}"
    for name in names:
        assert name in text, f"it names {name}: {text}"
    assert "Traceback" not in text
    assert "object at 0x" not in text
    assert len(text.splitlines()) <= _SCREEN_LINES
    assert len(text) <= _SCREEN_CHARACTERS, f"it fits a screen: {len(text)} characters"


def peak_mb() -> float:
    """Most memory that this process has held, MB; read from Linux's ``/proc``.

    Not ``ru_maxrss``: that of a child begins at what its parent held when it was started.
    """
    found = re.search(r"VmHWM:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024

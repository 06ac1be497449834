"""Run cases in this process under watch: what comes out, the time and memory it takes, and what is written where."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import sys
import time
import traceback
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slideloom.errors import ConfigError, SlideloomError
from tests.bad_inputs.kinds import peak_mb

from .targets import TARGETS, Refusals

__all__ = ["MOST_MB", "MOST_S", "Watch"]

#: What a case may take: far more than any does, on a busy machine, too.
MOST_S = 10.0
#: What all cases of a process may hold at once, beside what the process held before them.
MOST_MB = 500
_SCREEN_CHARACTERS, _SCREEN_LINES = 2000, 40
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Audit events that no reader of a file has any business with.
_NEVER = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "pickle.find_class")
_MOVES = {
    f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "link", "symlink", "chmod", "chown", "truncate")
}


class Watch:
    """Runs cases in a folder of its own; limits the memory of the whole process from then on.

    Parameters
    ----------
    folder : Path
        Where cases are laid out; must exist.
    names : sequence of str
        The targets that will be run; their sound files are read first.

    Attributes
    ----------
    counts : Counter of str
        Cases by outcome: ``accepted``, a reason code, or ``wrong``.
    slowest_s : float
        The longest case.
    """

    def __init__(self, folder: Path, names: Sequence[str] = tuple(TARGETS)) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._folder = folder.resolve()
        self._number = 0
        self._watched = False
        self._trespasses: list[str] = []
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        for name in names:  # whatever is imported or compiled late comes now
            for seed in TARGETS[name].seeds:
                assert not (wrong := self.run(name, seed)), f"{name}: a sound file: {wrong}"
        self.counts.clear()
        self.slowest_s = 0.0
        self._base_mb = peak_mb()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MOST_MB * 10**6,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._hear)

    @property
    def cases(self) -> int:
        """How many were run."""
        return self.counts.total()

    @property
    def grown_mb(self) -> float:
        """How far the peak of the process's memory has risen since the sound files were read, MB."""
        return peak_mb() - self._base_mb

    def run(self, name: str, data: bytes) -> str:
        """Run a case.

        Parameters
        ----------
        name : str
            The target.
        data : bytes
            The file.

        Returns
        -------
        str
            What is wrong with how Slideloom took it, with a traceback; empty when nothing is.
        """
        self._number += 1
        place = self._folder / str(self._number)  # a place of its own: readers remember files by path and time
        place.mkdir()
        os.chdir(place)
        self._trespasses.clear()
        grown_mb, start = peak_mb(), time.perf_counter()
        wrong, outcome = "", "accepted"
        self._watched = True
        try:
            TARGETS[name].read(data, place)
        except Refusals as group:
            outcome, wrong = group.exceptions[0].code, "".join(map(_badly_told, group.exceptions))
        except SlideloomError as error:
            outcome, wrong = error.code, _badly_told(error)
        except BaseException as error:
            wrong = "".join(traceback.format_exception(error))[-6000:]
        finally:
            self._watched = False
        seconds, grown_mb = time.perf_counter() - start, peak_mb() - grown_mb
        if seconds > MOST_S:
            wrong += f"\nit took {seconds:.1f} s"
        if grown_mb > MOST_MB:
            wrong += f"\nit took {grown_mb:.0f} MB"
        wrong += "".join(f"\n{trespass}" for trespass in self._trespasses)
        self.counts["wrong" if wrong else outcome] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        os.chdir(self._folder)
        shutil.rmtree(place)
        return wrong

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watched:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(one in str(mode) for one in "wax+") or (isinstance(flags, int) and flags & _WRITES)
            if writes and isinstance(path, str | bytes | os.PathLike) and not self._inside(path):
                self._trespasses.append(f"it opened {path!r} to write")
        elif event in _MOVES or event.startswith("shutil."):
            outside = [one for one in arguments if isinstance(one, str | bytes | os.PathLike) and not self._inside(one)]
            if outside:
                self._trespasses.append(f"{event} of {outside}")
        elif event.startswith(_NEVER):
            self._trespasses.append(f"{event} {arguments!r}"[:300])

    def _inside(self, path: str | bytes | os.PathLike[Any]) -> bool:
        name = os.fsdecode(path)
        return name == os.devnull or Path(os.path.realpath(name)).is_relative_to(self._folder)


def _badly_told(error: SlideloomError) -> str:
    """Whether a message could not be read by a person: too long, or with characters that a screen obeys."""
    problems = error.problems if isinstance(error, ConfigError) else ()
    for text in (*map(str, problems), *(() if problems else (str(error),))):
        odd = {one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") and one != "\n"}
        if len(text) > _SCREEN_CHARACTERS or len(text.splitlines()) > _SCREEN_LINES or odd:
            return f"\nits message is no text for a person ({len(text)} characters, {sorted(odd)!r}): {text[:600]!r}"
        if not error.code or not (error.what.strip()):
            return f"\nits message says nothing: {text!r}"
    return ""

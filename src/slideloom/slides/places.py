"""Files that the sheet names and the folder that results go to, as the file system has them: nothing is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from slideloom.config.texts import absence, shortened
from slideloom.config.yaml_lines import KeyPath
from slideloom.errors import Problem, SlideloomError
from slideloom.slides.delimited import nearest
from slideloom.slides.evidence import Evidence
from slideloom.slides.sheet import SlideRow, parse_source

__all__ = ["check_places", "shorten_list"]

#: Mistakes of one kind that are told one by one before the rest is counted.
_SHOWN = 5
_PATHS = ("slides", "data_root", "markers", "classes")
_FILES = ("he", "sp", "instances", "classes", "cells")
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
#: Names of a folder that are compared with one that is not there.
_LOOKED_AT = 5000
_MORE = "Mend the ones above, and check again"
_OTHER = "Name a folder that you may write to"
_BRACES = re.compile(r"[{}]")
_DRIVE = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)


def shorten_list(problems: Sequence[Problem], where: str, rest: str) -> Iterator[Problem]:
    """The first problems of one kind, and how many more there are."""
    yield from problems[:_SHOWN]
    if len(problems) > _SHOWN:
        yield Problem(where, f"{len(problems) - _SHOWN} {rest}", _MORE)


def check_places(evidence: Evidence) -> Iterator[Problem]:
    """Check the files that the sheet names, and the folder of results.

    Parameters
    ----------
    evidence : Evidence
        What was read.

    Yields
    ------
    Problem
        Files that are not there; results that cannot be written, or would lie among what is not theirs.
    """
    images: dict[Path, SlideRow] = {}
    yield from _config_files(evidence)
    yield from _files(evidence, images)
    yield from _results(evidence, images)


def _config_files(evidence: Evidence) -> Iterator[Problem]:
    """Paths of the config that would not mean what is written."""
    draft = evidence.draft
    named: dict[KeyPath, Path | None] = {(key,): getattr(draft, key) for key in _PATHS}
    for name, encoder in draft.encoders.items():
        named["encoders", name, "checkpoint"] = encoder.checkpoint
        named["encoders", name, "marker_embeddings"] = encoder.marker_embeddings
    for name, experiment in draft.experiments.items():
        named["experiments", name, "pretrained"] = experiment.pretrained
        named["experiments", name, "torchscript"] = experiment.torchscript
    for key, path in named.items():
        if path is not None and (wrong := _unplain(path)):
            yield evidence.at(*key, what=f"{_shown(path)} {wrong[0]}", hint=wrong[1])


def _unplain(path: Path) -> tuple[str, str] | None:
    """What is wrong with the text of a path, and what to do."""
    text = str(path)
    if found := _BRACES.search(text):
        what = f"holds {found[0]!r}, which Snakemake takes for a wildcard"
        return what, "Rename it, or make a link to it without braces"
    if text.startswith("~"):
        return "begins with '~', which stands for no home here", "Write the whole path"
    if not text.isprintable():
        return "holds a character that is not seen", "Type the path anew, or rename it"
    return None


# ---- files -----------------------------------------------------------------------------------------------------------


def _files(evidence: Evidence, images: dict[Path, SlideRow]) -> Iterator[Problem]:
    """Files that are not there; the images, by path, are put into ``images``."""
    rows = evidence.rows or ()
    why = absence(evidence.data_root) or ("" if evidence.data_root.is_dir() else "is a file")
    if rows and why:
        what = f"the folder {str(evidence.data_root)!r}, where the sheet's paths start, {why}"
        yield evidence.at("data_root", what=what, hint=f"Paths start at the current folder, {str(Path.cwd())!r}")
        return
    there: dict[Path, str] = {}
    missing: list[tuple[SlideRow, str, Path]] = []
    count = 0
    for row in rows:
        for column in _FILES:
            text: str | None = getattr(row, column)
            if not text:
                continue
            count += 1
            try:
                path = parse_source(text, evidence.data_root).path
            except SlideloomError as error:
                yield evidence.on(row, column, error.message, error.hint)
                continue
            except RuntimeError:  # of pathlib, where ~name is nobody
                what = f"{shortened(text)!r} starts at the home of somebody who is not known here"
                yield evidence.on(row, column, what, "Write the path without ~")
                continue
            if path not in there:
                there[path] = absence(path)
            if _BRACES.search(text) and (wrong := _unplain(path)):
                yield evidence.on(row, column, f"{_shown(path)} {wrong[0]}", wrong[1])
            if column in ("he", "sp"):
                images.setdefault(path, row)
            if there[path]:
                missing.append((row, column, path))
    if count > 1 and len(missing) == count:
        row, column, first = missing[0]
        hint = f"The sheet's paths start at {str(evidence.data_root)!r}; set 'data_root' if they should start elsewhere"
        what = f"none of the {count} files that the sheet names exists, such as {_shown(first)}"
        yield Problem(str(evidence.sheet), what, _form_hint(getattr(row, column)) or hint)
        return
    told = []
    for row, column, path in missing[:_SHOWN]:
        what = f"{_shown(path)} {there[path]} (slide {row.slide_id!r})"
        told.append(evidence.on(row, column, what, _form_hint(getattr(row, column)) or _near_hint(path)))
    yield from told
    if rest := len(missing) - len(told):
        yield Problem(str(evidence.sheet), f"{rest} more files do not exist", _MORE)


def _shown(path: Path) -> str:
    return repr(shortened(str(path), 300))


def _form_hint(text: str) -> str:
    """What to do about a path that no file here can have."""
    if _URL.match(text):
        return "Nothing is ever fetched: copy the file to this machine, and write its path"
    if _DRIVE.match(text) or text.startswith("\\\\"):
        return "That is a Windows path; write where the file lies on this machine, such as /data/slide.svs"
    if "\\" in text:
        return "Separate folders by '/', not by a backslash"
    if text[0] in "'\"" or text[-1] in "'\"":
        return "Remove the quotes around the path"
    return ""


def _near_hint(path: Path) -> str:
    """A file beside it that is called nearly so, or which folder is not there either."""
    folder = path.parent
    if os.path.islink(path):
        return "Make the link anew, or name the file itself"
    if absence(folder):
        while absence(folder.parent) and folder != folder.parent:
            folder = folder.parent
        return f"The folder {_shown(folder)} is not there either"
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _LOOKED_AT)]
    except OSError:
        names = []
    near = nearest(path.name, sorted(names), cutoff=0.8)
    return f"Did you mean {near!r}, which is there?" if near else f"The folder {_shown(folder)} has no such file"


# ---- results ---------------------------------------------------------------------------------------------------------


def _results(evidence: Evidence, images: dict[Path, SlideRow]) -> Iterator[Problem]:
    if evidence.draft.results is None:
        return
    path = evidence.base / evidence.draft.results
    wrong = _unplain(path) or _unwritable(path) or _misplaced(path, evidence, images)
    if wrong:
        yield evidence.at("results", what=f"{_shown(path)} {wrong[0]}", hint=wrong[1])


def _unwritable(path: Path) -> tuple[str, str] | None:
    ground = path
    while (why := absence(ground)) == "does not exist" and not os.path.islink(ground) and ground != ground.parent:
        ground = ground.parent
    if why:
        reason = "is a link that leads nowhere" if why == "does not exist" else why
        return reason if ground == path else f"cannot be made: {_shown(ground)} {reason}", _OTHER
    if not ground.is_dir():
        what = "is a file" if ground == path else f"cannot be made: {_shown(ground)} is a file"
        return what, "Results need a folder: choose another name"
    if not os.access(ground, os.W_OK | os.X_OK):
        return f"cannot be written: nothing may be made in {_shown(ground.absolute())}", _OTHER
    return None


def _misplaced(path: Path, evidence: Evidence, images: dict[Path, SlideRow]) -> tuple[str, str] | None:
    """Results fill a folder of their own: they are made, made anew and deleted without a look at what lies beside."""
    place = path.resolve()
    others = {
        "is the folder that the study is run from": evidence.base,
        "is the folder that the sheet's paths start from": evidence.data_root,
        "is the home folder": Path(os.path.expanduser("~")),
        "is the root of the file system": Path("/"),
    }
    for what, other in others.items():
        if place == other.resolve():
            return what, "Results fill a folder of their own: name one below it, such as 'results'"
    around = {Path(os.path.abspath(image)): row for image, row in images.items()}
    for folder in (place, *place.parents):
        if folder in around:
            return f"lies inside the image of slide {around[folder].slide_id!r}", "Name a folder outside the data"
    return None

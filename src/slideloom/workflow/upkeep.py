"""Before the first job: the package importable in every job, and records that promise what is gone forgotten.

Between runs: artefacts that are no longer what their records say, found by reading them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideloom.artefacts.broken import find_fault, invalidate
from slideloom.artefacts.files import read_json
from slideloom.artefacts.paths import Paths

__all__ = ["Broken", "find_broken", "first_missing", "forget", "forget_broken_records", "share_package"]

#: What reading a record raises that is cut short, or is JSON of something else.
_NONSENSE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Broken:
    """An item whose artefacts are not what its record says.

    Attributes
    ----------
    stage, context, item : str
        Of the record.
    why : str
        What is wrong, with the path.
    records : tuple of Path
        The item's record and its job's.
    places : tuple of Path
        The artefacts.
    """

    stage: str
    context: str
    item: str
    why: str
    records: tuple[Path, ...]
    places: tuple[Path, ...] = ()


def share_package() -> None:
    """Make the package importable in the jobs that this process starts, wherever the clone lies."""
    source = str(Path(__file__).resolve().parents[2])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != source]
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *others])


def forget_broken_records(records: Iterable[str], root: Path) -> list[str]:
    """Forget what is known to be broken, so that it is made again: before a run, in the process that plans it.

    Job records go that promise an artefact which is no longer there: Snakemake itself does not notice a deleted
    intermediate artefact whose successors are up to date. And where a job of the last run found an artefact of an
    earlier stage broken, the record of that artefact goes, with those of the jobs that made it and that found it.

    Parameters
    ----------
    records : iterable of str
        Job records of the study.
    root : Path
        The results folder.

    Returns
    -------
    list of str
        A sentence for each record of a job removed, and each artefact that was found broken.
    """
    notes, whole = [], []
    for text in records:
        record = Path(text)
        if not record.is_file():
            continue
        missing = first_missing(record, root)
        if missing:
            record.unlink()
            notes.append(f"{missing}: its job runs again ({record.relative_to(root)})")
        else:
            whole.append(record)
    return notes + _forget_found_broken(whole, root)


def _forget_found_broken(jobs: Sequence[Path], root: Path) -> list[str]:
    """Forget the artefacts that failures name, and those failures."""
    found: dict[str, Path] = {}
    for finder in jobs:
        body = read_json(finder)
        for state in body["items"].values():
            if state.get("artefact") and state["stage"] == body["stage"]:
                found[state["artefact"]] = finder
    if not found:
        return []
    notes = []
    for stage, context, item, maker, _ in [one for job in jobs for one in _items(job, root)]:
        note = Paths(root).record(stage, context, item)
        places = _outputs(note, root)
        for name in found:
            if any((root / name).is_relative_to(place) for place in (note, *places)):
                forget([Broken(stage, context, item, "", (note, maker), places)])
                notes.append(f"{name} was found broken: it is made again ({maker.relative_to(root)})")
    for finder in found.values():
        finder.unlink(missing_ok=True)
    return notes


def first_missing(record: Path, root: Path) -> str:
    """What a job record promises and is not there, or what of it cannot be read: a sentence; empty when whole."""
    reading = record
    try:
        body = read_json(record)
        for item, state in body["items"].items():
            if state["status"] != "ok":
                continue
            note = Paths(root).record(body["stage"], body["context"], item)
            reading = note
            outputs = [root / output for output in read_json(note)["outputs"]] if note.is_file() else [note]
            reading = record
            for gone in (path for path in outputs if not path.exists()):
                return f"{gone.relative_to(root)} is gone"
    except _NONSENSE:
        return f"{reading.relative_to(root)} cannot be read"
    return ""


def find_broken(records: Iterable[str], root: Path, *, quick: bool = False, workers: int = 4) -> Iterator[Broken]:
    """Compare artefacts with what their records say: a chunk changed or removed inside a store is seen by nobody else.

    Parameters
    ----------
    records : iterable of str
        Job records of the study.
    root : Path
        The results folder.
    quick : bool
        Count files and bytes only, and read nothing.
    workers : int
        Threads that read.

    Yields
    ------
    Broken
        In the order of the records.
    """
    items = [one for text in records if Path(text).is_file() for one in _items(Path(text), root)]
    with ThreadPoolExecutor(workers) as pool:
        faults = pool.map(lambda one: _fault(one, root, quick=quick), items)
        for (stage, context, item, job, _), why in zip(items, faults, strict=True):
            if why:
                note = Paths(root).record(stage, context, item)
                yield Broken(stage, context, item, why, (note, job), _outputs(note, root))


def forget(broken: Iterable[Broken]) -> None:
    """Remove the records of broken items and of their jobs, so that these items, and no others, are made again."""
    for one in broken:
        for place in one.places:
            invalidate(place)
        for record in one.records:
            record.unlink(missing_ok=True)


_Item = tuple[str, str, str, Path, dict[str, Any]]


def _items(job: Path, root: Path) -> list[_Item]:
    try:
        body = read_json(job)
        return [
            (body["stage"], body["context"], item, job, state)
            for item, state in body["items"].items()
            if state["status"] == "ok"
        ]
    except _NONSENSE:
        return []


def _fault(one: _Item, root: Path, *, quick: bool) -> str:
    """What is wrong with an item's artefacts; empty when nothing is."""
    stage, context, item, _, state = one
    note = Paths(root).record(stage, context, item)
    if not note.is_file():
        return f"{note.relative_to(root)} is gone"
    try:
        found = find_fault(Paths(root), stage, context, item, "" if quick else state["digest"])
    except _NONSENSE as error:
        return f"{note.relative_to(root)} cannot be read ({type(error).__name__})"
    return "" if found is None else found.what


def _outputs(note: Path, root: Path) -> tuple[Path, ...]:
    """Artefacts that an item's record names; none where it cannot be read."""
    try:
        return tuple(root / output for output in read_json(note)["outputs"])
    except _NONSENSE:
        return ()

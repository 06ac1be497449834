"""Before the first job: the package importable in every job, and records that promise what is gone forgotten.

Between runs: artefacts that are no longer what their records say, found by reading them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import digest_file, digest_text, digest_tree, tree_size
from slideloom.artefacts.paths import Paths

__all__ = ["Broken", "find_broken", "first_missing", "forget", "forget_broken_records", "share_package"]


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
    """

    stage: str
    context: str
    item: str
    why: str
    records: tuple[Path, ...]


def share_package() -> None:
    """Make the package importable in the jobs that this process starts, wherever the clone lies."""
    source = str(Path(__file__).resolve().parents[2])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != source]
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *others])


def forget_broken_records(records: Iterable[str], root: Path) -> list[str]:
    """Remove job records that promise an artefact which is no longer there, so that its job runs again.

    Snakemake itself does not notice a deleted intermediate artefact whose successors are up to date.

    Parameters
    ----------
    records : iterable of str
        Job records of the study.
    root : Path
        The results folder.

    Returns
    -------
    list of str
        A sentence for each record removed.
    """
    notes = []
    for text in records:
        record = Path(text)
        if not record.is_file():
            continue
        missing = first_missing(record, root)
        if missing:
            record.unlink()
            notes.append(f"{missing} is gone: its job runs again ({record.relative_to(root)})")
    return notes


def first_missing(record: Path, root: Path) -> str:
    """Path of the first artefact or item record that a job record promises and that is not there; empty when whole."""
    try:
        body = read_json(record)
        for item, state in body["items"].items():
            if state["status"] != "ok":
                continue
            note = Paths(root).record(body["stage"], body["context"], item)
            if not note.is_file():
                return str(note)
            for output in read_json(note)["outputs"]:
                if not (root / output).exists():
                    return str(root / output)
    except (OSError, ValueError, KeyError, TypeError):
        return str(record)
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
                yield Broken(stage, context, item, why, (note, job))


def forget(broken: Iterable[Broken]) -> None:
    """Remove the records of broken items and of their jobs, so that these items, and no others, are made again."""
    for one in broken:
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
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _fault(one: _Item, root: Path, *, quick: bool) -> str:
    """What is wrong with an item's artefacts; empty when nothing is."""
    stage, context, item, _, state = one
    note = Paths(root).record(stage, context, item)
    try:
        body = read_json(note)
        outputs = [root / output for output in body["outputs"]]
        if gone := [str(path.relative_to(root)) for path in outputs if not path.exists()]:
            return f"{gone[0]} is gone"
        if stage == "tissue" and _is_edited(outputs[0]):
            return ""  # a person's outline is meant to differ
        sizes = body.get("sizes")
        for path, size in zip(outputs, sizes or [], strict=False):
            if (now := tree_size(path)) != size:
                what = f"{now[0]} files of {now[1]} bytes, and had {size[0]} of {size[1]}"
                return f"{path.relative_to(root)} has {what}"
        if not quick and digest_text(*(digest_tree(path) for path in outputs)) != state["digest"]:
            return f"{', '.join(str(path.relative_to(root)) for path in outputs)}: other content than was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{note.relative_to(root)} cannot be read ({type(error).__name__})"
    return ""


def _is_edited(outline: Path) -> bool:
    made = outline.with_suffix(".made")
    return not made.is_file() or made.read_text(encoding="utf-8").strip() != digest_file(outline)

"""Before the first job: the package importable in every job, and records that promise what is gone forgotten."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from slideloom.artefacts.files import read_json
from slideloom.artefacts.paths import Paths

__all__ = ["forget_broken_records", "share_package"]


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
        missing = _first_missing(record, root)
        if missing:
            record.unlink()
            notes.append(f"{missing} is gone: its job runs again ({record.relative_to(root)})")
    return notes


def _first_missing(record: Path, root: Path) -> str:
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

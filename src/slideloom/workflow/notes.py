"""What a job was asked for, written down as it starts, so that a later plan can be told apart from it in words.

Snakemake keeps the params of its jobs, too, but as one text and below the folder that it was started in. A note lies
with the results. It decides nothing: what runs follows from the job records, and from what Snakemake compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slideloom.artefacts.files import read_json, write_json
from slideloom.artefacts.keys import code_fingerprint, code_parts, digest_file, digest_text
from slideloom.artefacts.paths import Paths

__all__ = ["file_names", "load_code", "load_note", "small_inputs", "spec_digest", "write_note"]

#: Snakemake compares the content of inputs up to this size, and the times of larger ones; bytes.
_SMALL = 1_000_000


def write_note(paths: Paths, record: Path, spec: str, script: Path, inputs: Iterable[Path] = ()) -> None:
    """Write down what a job was asked for.

    Parameters
    ----------
    paths : Paths
        Of the study.
    record : Path
        The job's first output.
    spec : str
        The rule's param, of :meth:`slideloom.workflow.plan.Plan.spec`.
    script : Path
        The rule's script. Digests of the modules that it imports are written once for all jobs of one fingerprint.
    inputs : iterable of Path
        The rule's inputs; small ones, such as job records, are remembered by their content.
    """
    body = json.loads(spec)
    body["files"] = file_names(body.get("files", {}))  # results hold no place of the machine they were made on
    note = {"digest": spec_digest(spec), "spec": body, "inputs": small_inputs(inputs, paths)}
    write_json(_note_place(paths, record, body["stage"]), note)
    place = _code_place(paths, body["code"])
    # A script that was edited since the plan was made is not what the fingerprint stands for.
    if not place.is_file() and script.is_file() and code_fingerprint([script]) == body["code"]:
        write_json(place, code_parts([script]))


def load_note(paths: Paths, record: Path, stage: str) -> dict[str, Any] | None:
    """The note of the job that made, or should have made, a record.

    Returns
    -------
    dict or None
        ``digest``, ``spec`` and ``inputs``; None when there is no note, or none that can be read.
    """
    try:
        note = read_json(_note_place(paths, record, stage))
        return note if {"digest", "spec", "inputs"} <= note.keys() else None
    except (OSError, ValueError):
        return None


def load_code(paths: Paths, fingerprint: str) -> dict[str, str] | None:
    """Digests by script and module of a fingerprint; None when no job wrote them down."""
    try:
        return read_json(_code_place(paths, fingerprint))
    except (OSError, ValueError):
        return None


def spec_digest(spec: str) -> str:
    """Digest by which a spec is compared with a note."""
    return digest_text(spec)


def small_inputs(inputs: Iterable[Path], paths: Paths) -> dict[str, str]:
    """Digests of the small files among inputs, by a digest of their path; folders and larger files are left out.

    A file below the results is known by its path from there.
    """
    found = (path for path in inputs if path.is_file() and path.stat().st_size <= _SMALL)
    return {
        digest_text(str(path.relative_to(paths.root) if path.is_relative_to(paths.root) else path))[:16]: digest_file(
            path
        )
        for path in found
    }


def file_names(value: Any) -> Any:
    """The files of a spec without the folders that they lie in."""
    if isinstance(value, Mapping):
        return {key: file_names(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) else value


def _note_place(paths: Paths, record: Path, stage: str) -> Path:
    if record.parent.name == "jobs":
        return record.parent.with_name("why") / record.name
    return paths.root / "state" / stage / "why" / f"{stage}.json"


def _code_place(paths: Paths, fingerprint: str) -> Path:
    return paths.root / "state" / "code" / f"{fingerprint}.json"

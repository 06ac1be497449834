"""Why each job would run, in words: which key of the config, which slide, which file, which module of the code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideloom.artefacts.keys import code_parts
from slideloom.workflow.graph import PlannedJob, planned_jobs
from slideloom.workflow.notes import file_names, load_code, load_note, small_inputs, spec_digest
from slideloom.workflow.plan import Plan
from slideloom.workflow.upkeep import first_missing

__all__ = ["JobReasons", "find_reasons"]

_ABSENT = object()
#: Where the parts of a spec's config stand in the study's config; ``{}`` is the stage's first name.
_SECTIONS = {
    "grid": "grids.{}",
    "encoder": "encoders.{}",
    "markers": "encoders.{}.markers",
    "normalisation": "encoders.{}.normalisation",
    "split": "splits.{}",
    "experiment": "experiments.{}",
    "heads": "experiments.{}.heads",
    "roles": "inference.roles",
    "bands": "jobs.bands",
}
_TABLES = {"classes": "the table of classes", "uniprot": "the table of markers", "groups": "the sheet's groups"}


@dataclass(frozen=True)
class JobReasons:
    """One job that would run.

    Attributes
    ----------
    job : PlannedJob
        The job.
    reasons : tuple of str
        Why, a sentence each; empty when it only follows others.
    follows : tuple of str
        Stages of jobs that it reads and that would run.
    """

    job: PlannedJob
    reasons: tuple[str, ...]
    follows: tuple[str, ...]


def find_reasons(plan: Plan, scripts: Path) -> list[JobReasons]:
    """Jobs that a run would start now, each with its reasons.

    Compares what is planned with the notes that jobs left of what they were asked for. Snakemake compares with its own
    memory below ``.snakemake``, and decides; where that was removed, it runs no job because of an edit.

    Parameters
    ----------
    plan : Plan
        The plan.
    scripts : Path
        Folder of the rules' scripts.

    Returns
    -------
    list of JobReasons
        In the order of the stages. A job that follows others is listed, though it runs only where what they make has
        changed.
    """
    code = _Code(plan, scripts)
    running: dict[str, str] = {}
    found = []
    for job in planned_jobs(plan):
        reasons = tuple(_own_reasons(plan, job, code))
        follows = tuple(dict.fromkeys(running[record] for record in job.reads if record in running))
        if reasons or follows:
            running[str(job.record)] = job.stage
            found.append(JobReasons(job, reasons, follows))
    return found


class _Code:
    """Digests of the code that each stage runs, now and before."""

    def __init__(self, plan: Plan, scripts: Path) -> None:
        self._plan, self._scripts = plan, scripts
        self._parts: dict[str, dict[str, str]] = {}
        self._differences: dict[tuple[str, str], list[str]] = {}

    def differences(self, stage: str, before: str) -> list[str]:
        """What is another code than that of a fingerprint."""
        if (stage, before) not in self._differences:
            self._differences[stage, before] = self._compare(stage, load_code(self._plan.paths, before))
        return self._differences[stage, before]

    def _compare(self, stage: str, old: Mapping[str, str] | None) -> list[str]:
        if old is None:
            return ["the code has changed"]
        if stage not in self._parts:
            self._parts[stage] = code_parts([self._scripts / f"{stage}.py"])
        new = self._parts[stage]
        names = [name for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
        told = [f"code: {name} has changed" for name in names]
        told += [f"code: {name} is imported now" for name in sorted(new.keys() - old.keys())]
        return told + [f"code: {name} is imported no longer" for name in sorted(old.keys() - new.keys())]


def _own_reasons(plan: Plan, job: PlannedJob, code: _Code) -> Iterator[str]:
    """Why a job would run by itself, whatever those do that it reads."""
    note = load_note(plan.paths, job.record, job.stage)
    if not job.record.is_file():
        started = note is not None
        yield "its record is gone: it failed, was stopped, or was removed" if started else "it has never run"
    elif gone := next((path for path in job.also if not path.exists()), None):
        yield f"{_short(plan, gone)} is gone"
    elif job.record.parent.name == "jobs" and (missing := first_missing(job.record, plan.paths.root)):
        yield missing
    if note is None:
        if job.record.is_file():
            yield "nothing is written down of what it was made from (an older version of Slideloom made it)"
        return
    spec = job.spec(plan)
    if spec_digest(spec) != note["digest"]:
        yield from _told(job, note["spec"], json.loads(spec), code) or ["a file that it reads lies elsewhere"]
    if job.record.is_file():
        yield from _newer(plan, job, note["inputs"])


def _newer(plan: Plan, job: PlannedJob, before: Mapping[str, str]) -> Iterator[str]:
    made = job.record.stat().st_mtime
    for path in (*job.files, *map(Path, job.reads)):
        if path.exists() and path.stat().st_mtime > made:
            now = small_inputs([path], plan.paths)
            if not now or not now.items() <= before.items():
                yield f"{_short(plan, path)} is newer than what was made from it"


def _told(job: PlannedJob, old: Mapping[str, Any], new: Mapping[str, Any], code: _Code) -> list[str]:
    """What differs between two specs."""
    told = []
    if old["stage"] != new["stage"]:
        told.append(f"the stage is {new['stage']} now, and was {old['stage']}")
    name = job.context[0] if job.context else ""
    for path, before, after in _differences(old["config"], new["config"]):
        told.append(_config_change(path, name, before, after))
    told += _of_slides(old.get("items", {}), new.get("items", {}))
    for slide in sorted(old.get("edited", {}).keys() | new.get("edited", {}).keys()):
        if old.get("edited", {}).get(slide) != new.get("edited", {}).get(slide):
            told.append(f"slide {slide}: the tissue outline was edited")
    if old.get("template") != new.get("template"):
        told.append("the page's template has changed")
    for path, before, after in _differences(old.get("files", {}), file_names(new.get("files", {}))):
        told.append(f"file {'.'.join(map(str, path))}: {_value(before)} → {_value(after)}")
    if old["code"] != new["code"]:
        told += code.differences(job.stage, old["code"])
    return list(dict.fromkeys(told))


def _config_change(path: tuple[str | int, ...], name: str, before: Any, after: Any) -> str:
    first, rest = str(path[0]), [str(part) for part in path[1:]]
    if first in _TABLES:
        return f"{_TABLES[first]} has changed"
    if first == "rows":
        return "the sheet has changed"
    if first == "encoders" and rest:
        if "uniprot" in rest:
            return f"{_TABLES['uniprot']} has changed"
        return f"an encoder of {name}: {'.'.join(rest[1:])}: {_value(before)} → {_value(after)}"
    if first == "study":
        return f"config {'.'.join(rest)}: {_value(before)} → {_value(after)}"
    section = _SECTIONS.get(first, first).format(name)
    return f"config {'.'.join([section, *rest])}: {_value(before)} → {_value(after)}"


def _of_slides(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    told = [f"slide {slide} is new here" for slide in sorted(new.keys() - old.keys())]
    told += [f"slide {slide} is here no longer" for slide in sorted(old.keys() - new.keys())]
    for slide in sorted(old.keys() & new.keys()):
        for path, before, after in _differences(old[slide], new[slide]):
            told.append(f"slide {slide}: {path[0]}: {_value(before)} → {_value(after)}")
    return told


def _differences(
    old: Any, new: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any, Any]]:
    """Places at which two JSON values differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and _deep(old) and _deep(new):
        for place, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, (*path, place))
    elif old != new:
        yield path, old, new


def _deep(values: list[Any]) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _value(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _short(plan: Plan, path: Path) -> str:
    return str(path.relative_to(plan.paths.root)) if path.is_relative_to(plan.paths.root) else str(path)

"""Whether the cluster knows what a profile asks it for: partitions, account, QOS, GPUs, time."""

from __future__ import annotations

import getpass
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slideloom.cli.surroundings import Finding, ask, at_hand
from slideloom.slides.study import Study
from slideloom.workflow.needs import NEEDS

__all__ = ["find_site", "slurm"]

_TOPIC = "Slurm"
_KEYS = (
    *("cpu_partition", "gpu_partition", "account", "qos", "gpu_model", "extra", "gpu_extra", "status_command", "jobs"),
    "arrays",
)
_STATUS = ("sacct", "squeue")
#: Stages that run on the GPU partition; ``train_live`` trains with the encoder at work.
_GPU_STAGES = ("embeddings", "maps")
_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>\d+))?(?::(?P<seconds>\d+))?")
_SHOWN = 12


@dataclass(frozen=True)
class _Partition:
    """As ``sinfo`` lists it; ``minutes`` is None where jobs may run for ever."""

    name: str
    up: bool
    minutes: int | None
    gpus: frozenset[str]


def find_site(profile: str | None) -> Path | None:
    """The ``site.yaml`` of a profile.

    Parameters
    ----------
    profile : str, optional
        Folder, or name below ``~/.config/snakemake``, as Snakemake's ``--profile`` takes it. Left out: ``slurm`` there,
        else ``profiles/slurm`` below the current folder.

    Returns
    -------
    Path or None
        None where the profile has none, as ``profiles/local``.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "snakemake"
    places = [Path(profile), home / profile] if profile else [home / "slurm", Path("profiles/slurm")]
    return next((place / "site.yaml" for place in places if (place / "site.yaml").is_file()), None)


def slurm(study: Study, profile: str | None = None) -> list[Finding]:
    """Look at the settings of a profile for Slurm.

    Parameters
    ----------
    study : Study
        What is to run.
    profile : str, optional
        As :func:`find_site` takes it. Where none is named, what is wrong does not keep the run from starting: another
        profile may be meant.

    Returns
    -------
    list of Finding
        What cannot be looked at is said in words.
    """
    site = find_site(profile)
    if site is None:
        if profile is None:
            return []
        return [Finding(_TOPIC, "skipped", f"the profile {profile} has no site.yaml: not a profile for Slurm")]
    found = list(_look(site, study))
    if profile is None:
        found = [Finding(_TOPIC, "note", one.text, one.hint) if one.state == "wrong" else one for one in found]
    return found


def _look(place: Path, study: Study) -> Iterator[Finding]:
    if not at_hand("sinfo"):
        yield Finding(_TOPIC, "skipped", f"{place} was not looked at: sinfo is not on PATH")
        return
    site, fault = _read(place)
    if fault:
        yield Finding(_TOPIC, "wrong", f"{place}: {fault}", "Take the file from profiles/slurm and fill it in anew")
        return
    answer, complaint = ask("sinfo", "--noheader", "--format=%R|%a|%l|%G")
    if complaint:
        yield Finding(_TOPIC, "skipped", f"{place} was not looked at: sinfo says {complaint!r}")
        return
    findings = [*_keys(place, site), *_partitions(place, site, _read_partitions(answer), study)]
    findings += [*_account(place, site), *_programs(place, site)]
    yield from findings
    if not any(one.state == "wrong" for one in findings):
        asked = ", ".join(f"{key} {site[key]}" for key in _KEYS[:5] if site.get(key))
        yield Finding(_TOPIC, "fine", f"{place}: the cluster knows {asked or 'it; nothing in particular is asked for'}")


def _read(place: Path) -> tuple[dict[str, Any], str]:
    try:
        body = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        return {}, " ".join(f"it cannot be read: {error}".split())[:300]
    if body is None:
        return {}, ""
    return (body, "") if isinstance(body, dict) else ({}, f"it holds a {type(body).__name__}, not keys and values")


def _keys(place: Path, site: Mapping[str, Any]) -> Iterator[Finding]:
    unknown = [str(key) for key in site if key not in _KEYS]
    if unknown:
        yield Finding(_TOPIC, "note", f"{place}: {', '.join(unknown)} is no key of it", f"There are {', '.join(_KEYS)}")


# ---- partitions ------------------------------------------------------------------------------------------------------


def _read_partitions(answer: str) -> dict[str, _Partition]:
    """Partitions by name; ``sinfo`` gives a line for each kind of their nodes."""
    found: dict[str, _Partition] = {}
    for line in answer.splitlines():
        words = line.strip().split("|")
        if len(words) != 4:
            continue
        name, up, limit, gres = words
        gpus = {model or "gpu" for model in re.findall(r"\bgpu(?::([A-Za-z][\w.-]*))?", gres)}
        older = found.get(name)
        gpus |= older.gpus if older else frozenset()
        found[name] = _Partition(name, up == "up", _minutes(limit), frozenset(gpus))
    return found


def _minutes(limit: str) -> int | None:
    """A time limit as ``sinfo`` writes it: ``2-00:00:00``, ``12:00:00``, ``30:00``, ``infinite``."""
    match = _LIMIT.fullmatch(limit)
    if match is None:
        return None
    if match["days"] is None and match["seconds"] is None:
        return int(match["hours"])  # minutes:seconds, or minutes alone
    return (int(match["days"] or 0) * 24 + int(match["hours"])) * 60 + int(match["minutes"] or 0)


def _partitions(
    place: Path, site: Mapping[str, Any], known: Mapping[str, _Partition], study: Study
) -> Iterator[Finding]:
    names = ", ".join(list(known)[:_SHOWN]) or "none"
    for key in ("cpu_partition", "gpu_partition"):
        name = str(site.get(key) or "")
        if not name:
            continue
        # Several may be named: the scheduler takes the first that is free.
        for one in name.split(","):
            if one not in known:
                yield Finding(_TOPIC, "wrong", f"{place}: {key}: there is no partition {one!r}", f"There is: {names}")
            elif not known[one].up:
                yield Finding(_TOPIC, "note", f"{place}: {key}: the partition {one!r} is down", "Jobs will wait for it")
    chosen = [known[one] for one in str(site.get("gpu_partition") or "").split(",") if one in known]
    if chosen:
        yield from _gpus(place, site, chosen)
        yield from _time(chosen, study)


def _gpus(place: Path, site: Mapping[str, Any], chosen: list[_Partition]) -> Iterator[Finding]:
    where, model = " and ".join(one.name for one in chosen), str(site.get("gpu_model") or "")
    there = sorted({gpu for one in chosen for gpu in one.gpus})
    if not there:
        text = f"{place}: gpu_partition: no node of {where} has a GPU"
        yield Finding(_TOPIC, "wrong", text, 'Partitions with GPUs: sinfo -o "%P %G"')
    elif model and model not in there:
        text = f"{place}: gpu_model: no node of {where} has a GPU called {model!r}"
        yield Finding(_TOPIC, "wrong", text, f"There is: {', '.join(there)}; empty: any")


def _time(chosen: list[_Partition], study: Study) -> Iterator[Finding]:
    stages = set(_GPU_STAGES)
    for experiment in study.config.experiments.values():
        if experiment.trains:
            stages.add("train_live" if experiment.training.input == "live" else "train")
    limits = [one.minutes for one in chosen if one.minutes is not None]
    if len(limits) < len(chosen):
        return
    longest = max(limits)
    for stage in sorted(stages):
        asked = NEEDS[stage].minutes
        if asked > longest:
            where = " and ".join(one.name for one in chosen)
            text = f"jobs of {stage} ask for {asked} minutes, {where} gives {longest}: they would wait for ever"
            yield Finding(_TOPIC, "wrong", text, f"Run Snakemake with --set-resources '{stage}:runtime={longest}'")


# ---- accounts and programs -------------------------------------------------------------------------------------------


def _account(place: Path, site: Mapping[str, Any]) -> Iterator[Finding]:
    account, qos = (str(site.get(key) or "") for key in ("account", "qos"))
    if not account and not qos:
        return
    if not at_hand("sacctmgr"):
        yield Finding(_TOPIC, "skipped", f"{place}: account and qos were not looked at: sacctmgr is not on PATH")
        return
    user = getpass.getuser()
    command = ("sacctmgr", "--noheader", "--parsable2", "list", "associations", f"user={user}", "format=account,qos")
    answer, complaint = ask(*command)
    if complaint:
        text = f"{place}: account and qos were not looked at: sacctmgr says {complaint!r}"
        yield Finding(_TOPIC, "skipped", text)
        return
    granted: dict[str, set[str]] = {}
    for line in answer.splitlines():
        name, _, several = line.strip().partition("|")
        granted.setdefault(name, set()).update(filter(None, several.split(",")))
    accounts = ", ".join(sorted(granted)[:_SHOWN]) or "none"
    if account and account not in granted:
        text = f"{place}: account: {user} may not use {account!r}"
        yield Finding(_TOPIC, "wrong", text, f"{user} has: {accounts}")
        return
    allowed = granted.get(account) or {one for several in granted.values() for one in several}
    if qos and qos not in allowed:
        text = f"{place}: qos: {user} may not use {qos!r}"
        yield Finding(_TOPIC, "wrong", text, f"There is: {', '.join(sorted(allowed)[:_SHOWN]) or 'none'}")


def _programs(place: Path, site: Mapping[str, Any]) -> Iterator[Finding]:
    status = str(site.get("status_command") or _STATUS[0])
    if status not in _STATUS:
        text = f"{place}: status_command: {status!r} is not known"
        yield Finding(_TOPIC, "wrong", text, f"{_STATUS[0]}, or {_STATUS[1]} where there are no accounts of jobs")
    elif not at_hand(status):
        yield Finding(_TOPIC, "wrong", f"{place}: status_command: {status} is not on PATH", f"Try {_STATUS[1]}")
    elif status == _STATUS[0]:
        _, complaint = ask("sacct", "--noheader", "--parsable2", "--format=JobID", "--starttime=now")
        if complaint:
            text = f"{place}: status_command: sacct says {complaint!r}"
            yield Finding(_TOPIC, "wrong", text, "Where the cluster keeps no accounts of jobs: status_command: squeue")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        text = "Snakemake's executor for Slurm is not installed"
        yield Finding(_TOPIC, "wrong", text, "pip install -r requirements.lock")

"""``slideloom why`` and ``slideloom verify``: what would run and why, and artefacts that are not what was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from slideloom.errors import SlideloomError
from slideloom.slides.study import Study
from slideloom.workflow.plan import Plan
from slideloom.workflow.reasons import JobReasons, find_reasons
from slideloom.workflow.upkeep import Broken, find_broken, forget

__all__ = ["print_broken", "print_reasons", "reasons_of", "verify_study"]

#: Sentences of one stage that are shown before the rest is counted.
_SHOWN = 12
_SCRIPTS = Path(__file__).resolve().parents[3] / "workflow" / "scripts"


def reasons_of(study: Study, scripts: Path = _SCRIPTS) -> list[JobReasons]:
    """Jobs of a study that would run now, each with its reasons.

    Raises
    ------
    SlideloomError
        The package does not lie in a clone, so the rules' scripts are not there.
    """
    if not scripts.is_dir():
        hint = "Run it from the clone that the workflow runs from"
        raise SlideloomError("the workflow's scripts are not there", where=str(scripts), hint=hint)
    return find_reasons(Plan(study, scripts), scripts)


def print_reasons(found: Sequence[JobReasons], screen: Console) -> None:
    """Print the jobs by stage, with each reason once and the jobs that it stands for."""
    if not found:
        screen.print("[bold green]nothing would run[/]: every artefact is there and up to date")
        return
    groups: dict[str, list[JobReasons]] = {}
    for one in found:
        groups.setdefault("  ".join([one.job.stage, "/".join(one.job.context)]).strip(), []).append(one)
    for name, jobs in groups.items():
        count = f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}"
        screen.print(f"[bold]{escape(name)}[/]  [dim]{count}[/]")
        sentences: dict[str, int] = {}
        for one in jobs:
            told = one.reasons or (f"reads what runs again: {', '.join(one.follows)}",)
            for sentence in told:
                sentences[sentence] = sentences.get(sentence, 0) + 1
        for sentence, times in list(sentences.items())[:_SHOWN]:
            of = "" if times == len(jobs) else f"  ({times} of {len(jobs)} jobs)"
            screen.print(f"  {escape(sentence)}{of}", soft_wrap=True)
        if len(sentences) > _SHOWN:
            screen.print(f"  and {len(sentences) - _SHOWN} more")
    last = "Those that only read what runs again start, and keep what was made from the same content."
    screen.print(f"\n{len(found)} jobs. {last}")


def verify_study(study: Study, *, quick: bool, keep: bool, workers: int) -> list[Broken]:
    """Items of a study whose artefacts are not what was written; their records are forgotten unless ``keep``."""
    records = Plan(study, _SCRIPTS).all_records()
    broken = list(find_broken(records, study.paths.root, quick=quick, workers=workers))
    if not keep:
        forget(broken)
    return broken


def print_broken(broken: Sequence[Broken], screen: Console, *, keep: bool) -> None:
    """Print what is broken, and what becomes of it."""
    if not broken:
        screen.print("[bold green]whole[/]: every artefact is what was written")
        return
    for one in broken:
        where = " ".join(part for part in (one.stage, one.context, one.item) if part)
        screen.print(f"[bold red]{escape(where)}[/]  {escape(one.why)}", soft_wrap=True)
    then = "nothing was changed" if keep else "the next run makes these again, and no others"
    screen.print(f"\n{len(broken)} broken; {then}.")

"""One job, many slides: each item finished is never done again, each item that fails fails alone.

A job works through a list of items (slides, or one fold). Every item has a completion record that holds the key it was
made from: the stage's config slice, the code, and the digests of what it read. An item whose record carries today's key
is left alone, so a killed job goes on where it stopped and a job that gains a slide computes that slide only. A
:class:`~slideloom.errors.SlideError` ends one item; it is written down with its reason and its successors pass over it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slideloom.artefacts.broken import BrokenArtefactError, check_item, told_broken
from slideloom.artefacts.files import read_json, system_error, write_json
from slideloom.artefacts.keys import canonical, digest_text, digest_tree, tree_size
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.provenance import made_here
from slideloom.errors import SlideError, SlideloomError

__all__ = ["SCHEMA_VERSION", "ItemState", "Outcome", "Stage", "load_job_states"]

SCHEMA_VERSION = 1
_LOG = logging.getLogger(__name__)
#: Paths of what was made of an item, a sentence that says why there was nothing to make, or why it could not be made.
Outcome = Iterable[Path] | str | Exception


@dataclass(frozen=True)
class ItemState:
    """What became of one item of a job.

    Attributes
    ----------
    status : {"ok", "absent", "failed"}
        ``absent``: there was nothing to do, such as targets of a slide without annotation.
    digest : str
        Digest of the content that was made; empty when failed.
    stage, code, message, hint : str
        Of a failure: where it first happened and why. ``message`` says why for ``absent``, too.
    artefact : str
        Of a failure: the artefact of an earlier stage that was found broken, relative to the results. The next run
        makes it again.
    """

    status: Literal["ok", "absent", "failed"]
    digest: str = ""
    stage: str = ""
    code: str = ""
    message: str = ""
    hint: str = ""
    artefact: str = ""

    def joined(self, other: ItemState) -> ItemState:
        """One state for two artefacts of an item: the first that is not ``ok``, or both digests as one."""
        if self.status != "ok":
            return self
        return other if other.status != "ok" else ItemState("ok", digest_text(self.digest, other.digest))

    def as_dict(self) -> dict[str, str]:
        """The filled-in fields."""
        return {name: value for name, value in vars(self).items() if value}


def load_job_states(records: Iterable[Path]) -> dict[str, ItemState]:
    """Read job records and join the states of their items.

    Parameters
    ----------
    records : iterable of Path
        Job records of one stage.

    Returns
    -------
    dict of str to ItemState
        By item. An item with several records, such as a slide with the tokens of several encoders, is as good as the
        worst of them.
    """
    states: dict[str, ItemState] = {}
    for record in records:
        for item, values in read_json(Path(record))["items"].items():
            state = ItemState(**values)
            states[item] = states[item].joined(state) if item in states else state
    return states


@dataclass(frozen=True)
class Stage:
    """A stage at work on the items of one job.

    Attributes
    ----------
    name : str
        The stage, such as ``patches``.
    context : str
        What tells runs of one stage apart: the grid, the encoder, ``experiment/fold``; may be empty.
    paths : Paths
        Of the study.
    params : str
        Canonical text of the config slice and the code that the result depends on.
    upstream : mapping of str to mapping of str to ItemState
        By upstream stage, the states of its items. An item that failed in one of ``requires`` fails here, too, with the
        reason of its first failure.
    requires : tuple of str
        Upstream stages without whose artefact an item cannot be worked on; ``absent`` there means ``absent`` here.
    shared : str
        Digest of what every item reads (a model, statistics); part of each item's key.
    per_item : mapping of str to str
        Canonical text of what is particular to an item, such as its sheet row.
    seeds : mapping of str to int
        Seeds that the work draws from, for the record of what made an item; no part of its key.
    sources : tuple of (str, str)
        Stage and context of the records whose artefacts an item reads. They are looked at before the item is worked on,
        by :func:`slideloom.artefacts.broken.check_item`; no part of its key.
    """

    name: str
    context: str
    paths: Paths
    params: str
    upstream: Mapping[str, Mapping[str, ItemState]] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    shared: str = ""
    per_item: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    sources: tuple[tuple[str, str], ...] = ()

    def run(
        self, items: Iterable[str], work: Callable[[str], Iterable[Path] | str], job_record: Path
    ) -> dict[str, ItemState]:
        """Work through the items and write the job record last.

        Parameters
        ----------
        items : iterable of str
            What to work on.
        work : callable
            Takes an item; makes its artefacts and returns their paths, or a sentence that says why there was nothing
            to make. Raises :class:`~slideloom.errors.SlideError` when the item cannot be done.
        job_record : Path
            Where the states are written.

        Returns
        -------
        dict of str to ItemState
            By item, in the order given.
        """

        def one_by_one(waiting: Iterator[str]) -> Iterator[tuple[str, Outcome]]:
            for item in waiting:
                try:
                    made = work(item)
                    outcome: Outcome = made if isinstance(made, str) else list(made)
                except Exception as error:
                    outcome = error
                yield item, outcome

        return self.run_stream(items, one_by_one, job_record)

    def run_stream(
        self, items: Iterable[str], stream: Callable[[Iterator[str]], Iterable[tuple[str, Outcome]]], job_record: Path
    ) -> dict[str, ItemState]:
        """Work through the items with one program that has several in hand; write the job record last.

        Parameters
        ----------
        items : iterable of str
            What to work on.
        stream : callable
            Takes the items that are not kept, in order, and gives each back once, in any order, with what became of it:
            what ``work`` of :meth:`run` returns, or the exception that it raises. What an item was before is forgotten
            as it is taken. An exception that ``stream`` itself raises ends the job.
        job_record : Path
            Where the states are written.

        Returns
        -------
        dict of str to ItemState
            By item, in the order given.
        """
        names = list(items)
        states: dict[str, ItemState] = {}
        waiting: list[str] = []
        for item in names:
            kept = self._settled(item)
            if kept is None:
                waiting.append(item)
            else:
                states[item] = kept
                self._tell(item, kept, "kept", f"{len(states)}/{len(names)}")
        taken: dict[str, float] = {}
        last = 0.0

        def take() -> Iterator[str]:
            for item in waiting:
                # Before its artefact is touched: an older record must not vouch for a newer artefact.
                self._record(item).unlink(missing_ok=True)
                taken[item] = time.perf_counter()
                broken = self._broken(item)
                if broken is None:
                    yield item
                else:
                    states[item] = self._finish(item, broken)
                    self._tell(item, states[item], "not begun", f"{len(states)}/{len(names)}")

        for item, outcome in stream(take()):
            states[item] = self._finish(item, outcome)
            now = time.perf_counter()
            took = f"{now - max(taken[item], last):.1f} s"
            self._tell(item, states[item], took, f"{len(states)}/{len(names)}")
            last = now
        if missing := [item for item in names if item not in states]:
            raise SlideloomError(f"nothing became of {', '.join(missing)}", where=self.name, code="internal")
        write_json(
            job_record,
            {
                "schema": SCHEMA_VERSION,
                "stage": self.name,
                "context": self.context,
                "items": {item: states[item].as_dict() for item in names},
            },
        )
        return {item: states[item] for item in names}

    def key(self, item: str) -> str:
        """Digest of everything that the item's artefact is made from."""
        read = {stage: states[item].digest for stage, states in self.upstream.items() if item in states}
        return digest_text(str(SCHEMA_VERSION), self.params, self.shared, self.per_item.get(item, ""), canonical(read))

    def _record(self, item: str) -> Path:
        return self.paths.record(self.name, self.context, item)

    def _broken(self, item: str) -> BrokenArtefactError | None:
        """What is wrong with an artefact that the item reads, as far as can be told without reading it."""
        try:
            for stage, context in self.sources:
                check_item(self.paths, stage, context, item)
        except BrokenArtefactError as error:
            return error
        return None

    def _tell(self, item: str, state: ItemState, took: str, number: str) -> None:
        # A failure is news at its first stage only; those below repeat it.
        level = logging.WARNING if state.status == "failed" and state.stage == self.name else logging.INFO
        note = f": {state.message}" if state.message else ""
        _LOG.log(level, "%s %s %s %s (%s)%s", self.name, item, number, state.status, took, note)

    def _settled(self, item: str) -> ItemState | None:
        """State of an item that needs no work: its upstream has nothing for it, or it was done before."""
        for stage in self.requires:
            before = self.upstream[stage].get(item)
            if before is None:
                raise SlideloomError(f"stage {stage} left no record of {item}", where=self.name, code="internal")
            if before.status != "ok":
                return before
        return self._kept(self._record(item), self.key(item))

    def _finish(self, item: str, outcome: Outcome) -> ItemState:
        """Write the record of what became of an item; failures of the machine are raised."""
        outputs: list[Path] = []
        if isinstance(outcome, str):
            state = ItemState("absent", digest=digest_text("absent"), message=outcome)
        elif not isinstance(outcome, Exception):
            outputs = list(outcome)
            try:
                state = ItemState("ok", digest=digest_text(*(digest_tree(path) for path in outputs)))
            except OSError as error:
                state = self._failed(item, error)
        else:
            state = self._failed(item, outcome)
        body: dict[str, Any] = {"schema": SCHEMA_VERSION, "key": self.key(item), "state": state.as_dict()}
        body["outputs"] = [path.relative_to(self.paths.root).as_posix() for path in outputs]
        body["sizes"] = [tree_size(path) for path in outputs if path.exists()]
        body["made"] = made_here(self.seeds)
        write_json(self._record(item), body)
        return state

    def _failed(self, item: str, error: Exception) -> ItemState:
        # Failures of the machine, not of the slide: the job stops and is run again. They are asked for first, as
        # tensorstore tells of a full disk by the error that it raises for a damaged chunk, too.
        if isinstance(error, MemoryError):
            raise error
        if not isinstance(error, SlideError) and (machine := system_error(error, self.paths.root)) is not None:
            raise machine from error
        if (broken := told_broken(error, self.paths.root)) is not None:
            message = broken.message.replace(f"{self.paths.root}/", "")  # results hold no place of the machine
            below = broken.place.is_relative_to(self.paths.root)
            place = broken.place.relative_to(self.paths.root).as_posix() if below else ""
            return ItemState("failed", "", self.name, broken.code, message, broken.hint, place)
        if isinstance(error, SlideError):
            return self._failure(error.code, error.message, error.hint)
        return self._unforeseen(item, error)

    def _kept(self, record: Path, key: str) -> ItemState | None:
        try:
            body = read_json(record)
            whole = all((self.paths.root / output).exists() for output in body["outputs"])
            state = ItemState(**body["state"])
            # What failed is tried again: the cause may have been a passing one.
            return state if body["key"] == key and whole and state.status != "failed" else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _failure(self, code: str, message: str, hint: str) -> ItemState:
        return ItemState("failed", stage=self.name, code=code, message=message, hint=hint)

    def _unforeseen(self, item: str, error: Exception) -> ItemState:
        _LOG.error("%s %s: unforeseen error", self.name, item, exc_info=error)
        log = "the job's log holds the traceback; please report it"
        if isinstance(error, SlideloomError):
            return self._failure(error.code, error.message, error.hint)
        return self._failure("internal", f"{type(error).__name__}: {error}", log)

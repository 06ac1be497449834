"""One job, many slides: each item finished is never done again, each item that fails fails alone.

A job works through a list of items (slides, or one fold). Every item has a completion record that holds the key it was
made from: the stage's config slice, the code, and the digests of what it read. An item whose record carries today's key
is left alone, so a killed job goes on where it stopped and a job that gains a slide computes that slide only. A
:class:`~slideloom.errors.SlideError` ends one item; it is written down with its reason and its successors pass over it.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slideloom.artefacts.files import read_json, write_json
from slideloom.artefacts.keys import canonical, digest_text, digest_tree
from slideloom.artefacts.paths import Paths
from slideloom.errors import SlideError, SlideloomError

__all__ = ["SCHEMA_VERSION", "ItemState", "Stage", "load_job_states"]

SCHEMA_VERSION = 1
_LOG = logging.getLogger(__name__)
#: Failures of the machine, not of the slide: the job stops and is run again.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS}


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
    """

    status: Literal["ok", "absent", "failed"]
    digest: str = ""
    stage: str = ""
    code: str = ""
    message: str = ""
    hint: str = ""

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
        By item.
    """
    states: dict[str, ItemState] = {}
    for record in records:
        for item, state in read_json(Path(record))["items"].items():
            states[item] = ItemState(**state)
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
    """

    name: str
    context: str
    paths: Paths
    params: str
    upstream: Mapping[str, Mapping[str, ItemState]] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    shared: str = ""
    per_item: Mapping[str, str] = field(default_factory=dict)

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
        states: dict[str, ItemState] = {}
        names = list(items)
        for number, item in enumerate(names, 1):
            start = time.perf_counter()
            states[item], made = self._one(item, work)
            took = f"{time.perf_counter() - start:.1f} s" if made else "kept"
            state = states[item]
            # A failure is news at its first stage only; those below repeat it.
            level = logging.WARNING if state.status == "failed" and state.stage == self.name else logging.INFO
            note = f": {state.message}" if state.message else ""
            _LOG.log(level, "%s %s %d/%d %s (%s)%s", self.name, item, number, len(names), state.status, took, note)
        write_json(
            job_record,
            {
                "schema": SCHEMA_VERSION,
                "stage": self.name,
                "context": self.context,
                "items": {item: state.as_dict() for item, state in states.items()},
            },
        )
        return states

    def key(self, item: str) -> str:
        """Digest of everything that the item's artefact is made from."""
        read = {stage: states[item].digest for stage, states in self.upstream.items() if item in states}
        return digest_text(str(SCHEMA_VERSION), self.params, self.shared, self.per_item.get(item, ""), canonical(read))

    def _one(self, item: str, work: Callable[[str], Iterable[Path] | str]) -> tuple[ItemState, bool]:
        for stage in self.requires:
            before = self.upstream[stage].get(item)
            if before is None:
                raise SlideloomError(f"stage {stage} left no record of {item}", where=self.name, code="internal")
            if before.status != "ok":
                return before, False
        record = self.paths.record(self.name, self.context, item)
        key = self.key(item)
        kept = self._kept(record, key)
        if kept is not None:
            return kept, False
        record.unlink(missing_ok=True)
        outputs: list[Path] = []
        try:
            made = work(item)
            if isinstance(made, str):
                state = ItemState("absent", digest=digest_text("absent"), message=made)
            else:
                outputs = list(made)
                state = ItemState("ok", digest=digest_text(*(digest_tree(path) for path in outputs)))
        except SlideError as error:
            state = self._failure(error.code, error.message, error.hint)
        except OSError as error:
            if error.errno in _MACHINE:
                raise
            state = self._unforeseen(item, error)
        except MemoryError:
            raise
        except Exception as error:
            state = self._unforeseen(item, error)
        body: dict[str, Any] = {"schema": SCHEMA_VERSION, "key": key, "state": state.as_dict()}
        body["outputs"] = [path.relative_to(self.paths.root).as_posix() for path in outputs]
        write_json(record, body)
        return state, True

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

"""What a rule's script needs: the job's spec read back, its log set up, its items run.

A script builds on nothing but the params and the inputs that its rule declares, so whatever it depends on is what
Snakemake compares.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from slideloom.artefacts.broken import check_item
from slideloom.artefacts.files import read_json, write_json
from slideloom.artefacts.keys import canonical, digest_text, digest_tree
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.provenance import made_here, seeds_of
from slideloom.artefacts.stage import ItemState, Outcome, Stage, load_job_states
from slideloom.config.model import EncoderConfig
from slideloom.errors import SlideloomError
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import parse_source
from slideloom.workflow.notes import write_note

__all__ = ["Job"]

_LOG = logging.getLogger(__name__)
_SPENT = {
    *("n_tiles", "seconds", "build_s", "read_s", "preprocess_s", "forward_s", "copy_s", "blend_s", "write_s", "idle_s"),
    "gpu_seconds",
}


@dataclass(frozen=True)
class Job:
    """One job of the workflow, as its script sees it.

    Attributes
    ----------
    stage, context : str
        As in :class:`~slideloom.artefacts.stage.Stage`.
    config : dict
        The slice of the config that the stage depends on, as JSON values.
    code : str
        Fingerprint of the script and the modules it imports.
    rows : dict of str to SlideRow
        The sheet's rows of the job's slides, with the columns that the stage reads.
    edited : dict of str to str
        Digests of tissue outlines that a person edited.
    paths : Paths
        Of the study.
    root : Path
        Folder that the sheet's paths start from.
    wildcards : mapping
        Of the rule.
    inputs : mapping of str to tuple of Path
        Named inputs of the rule.
    record : Path
        Where the job's states are written.
    threads : int
        Cores the job may use.
    files : mapping
        Files that stand beside the config, by encoder and key: where they lie is no part of what is made from them.
    spent : dict of str to float
        The job's account so far; see :meth:`account`.
    """

    stage: str
    context: str
    config: dict[str, Any]
    code: str
    rows: dict[str, SlideRow]
    edited: dict[str, str]
    paths: Paths
    root: Path
    wildcards: Mapping[str, str]
    inputs: Mapping[str, tuple[Path, ...]]
    record: Path
    threads: int
    files: Mapping[str, Any] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, snakemake: Any) -> Job:
        """Read the ``snakemake`` object of a script, send the log where the rule says and note what was asked for."""
        threads = int(snakemake.threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        _log_to(Path(snakemake.log[0]))
        spec = json.loads(snakemake.params.spec)
        paths, record = Paths(Path(snakemake.config["results"])), Path(snakemake.output[0])
        # Snakemake removed the outputs before the script began, so no note stands beside an older job's record.
        inputs = {name: _as_paths(value) for name, value in snakemake.input.items()}
        script = Path(getattr(snakemake, "scriptdir", "")) / f"{spec['stage']}.py"
        read = [path for named in inputs.values() for path in named] or [Path(path) for path in snakemake.input]
        write_note(paths, record, snakemake.params.spec, script, read)
        return cls(
            stage=spec["stage"],
            context=spec["context"],
            config=spec["config"],
            code=spec["code"],
            rows={
                slide: SlideRow.from_dict({"slide_id": slide, **columns})
                for slide, columns in spec.get("items", {}).items()
            },
            edited=spec.get("edited", {}),
            paths=paths,
            root=Path(snakemake.config["data_root"]),
            wildcards=dict(snakemake.wildcards.items()),
            inputs=inputs,
            record=record,
            threads=threads,
            files=spec.get("files", {}),
        )

    def encoder_config(self, name: str) -> EncoderConfig:
        """An encoder's entry of the config, with its files put back."""
        return EncoderConfig(**self._encoder(name)["encoder"], **self.files.get(name, {}))

    def uniprot(self, name: str) -> dict[str, str]:
        """Accessions by marker, for an encoder that needs them; empty for others."""
        return dict(self._encoder(name).get("uniprot", {}))

    def _encoder(self, name: str) -> Mapping[str, Any]:
        several = self.config.get("encoders")
        if several is None:
            return self.config
        found: Mapping[str, Any] = next(one for one in several if one["name"] == name)
        return found

    def states(self, name: str) -> dict[str, ItemState]:
        """States of the items of an upstream stage, from the job records among the rule's inputs."""
        return load_job_states(self.inputs[name])

    def states_by_context(self, name: str) -> dict[str, dict[str, ItemState]]:
        """States of the items of an upstream stage, by the context of their records, such as the encoder's name."""
        found: dict[str, list[Path]] = {}
        for path in self.inputs[name]:
            found.setdefault(read_json(path)["context"], []).append(path)
        return {context: load_job_states(paths) for context, paths in found.items()}

    def sources(self, *names: str) -> tuple[tuple[str, str], ...]:
        """Stage and context of the records that upstream stages left, by the names of the rule's inputs."""
        records = [path for name in names for path in self.inputs[name]]
        return tuple(sorted({(str(body["stage"]), str(body["context"])) for body in map(read_json, records)}))

    def check(self, name: str, items: Iterable[str]) -> None:
        """Look at artefacts of an upstream stage that the job's own items share, such as a model.

        Parameters
        ----------
        name : str
            Of the rule's input.
        items : iterable of str
            Of the upstream stage.

        Raises
        ------
        BrokenArtefactError
            One of them is not what its record says, as far as can be told without reading it.
        """
        sources = self.sources(name)
        for item in items:
            for stage, context in sources:
                check_item(self.paths, stage, context, item)

    def source_digests(self, rows: Mapping[str, SlideRow] | None = None) -> dict[str, str]:
        """Digest of the files that the sheet, or other rows, name for each of the job's slides.

        A file that cannot be read digests as its reason: reading it again when that changes is right, and the error is
        told where the slide is opened.
        """
        found: dict[Path, str] = {}
        digests: dict[str, str] = {}
        for slide, row in (self.rows if rows is None else rows).items():
            texts = sorted({text for text in (row.he, row.sp, row.instances, row.classes, row.cells) if text})
            paths = [parse_source(text, self.root).path for text in texts]
            for path in paths:
                if path not in found:
                    found[path] = _digest_or_reason(path)
            digests[slide] = digest_text(*(found[path] for path in paths))
        return digests

    def run(
        self,
        work: Callable[[str], Iterable[Path] | str],
        *,
        requires: Iterable[str] = (),
        reads: Iterable[str] = (),
        shared: str = "",
        items: Iterable[str] | None = None,
        per_item: Mapping[str, str] | None = None,
    ) -> None:
        """Run the items through :meth:`slideloom.artefacts.stage.Stage.run`.

        Parameters
        ----------
        work : callable
            Makes one item.
        requires, reads : iterable of str
            Upstream stages, by the names of the rule's inputs: those without which an item cannot be done, and those
            that it reads where they exist.
        shared : str
            Digest of what all items read.
        items : iterable of str, optional
            The job's slides when left out.
        per_item : mapping of str to str, optional
            What else an item depends on.
        """
        with self._accounted():
            stage = self._stage(requires, reads, shared, per_item)
            stage.run(self.rows if items is None else items, work, self.record)

    def run_stream(
        self,
        stream: Callable[[Iterator[str]], Iterable[tuple[str, Outcome]]],
        *,
        requires: Iterable[str] = (),
        reads: Iterable[str] = (),
        shared: str = "",
        per_item: Mapping[str, str] | None = None,
    ) -> None:
        """Run the job's slides through :meth:`slideloom.artefacts.stage.Stage.run_stream`.

        Parameters
        ----------
        stream : callable
            Makes the slides that need it, several at a time.
        requires, reads, shared, per_item
            As :meth:`run` has them.
        """
        with self._accounted():
            self._stage(requires, reads, shared, per_item).run_stream(self.rows, stream, self.record)

    def _stage(
        self, requires: Iterable[str], reads: Iterable[str], shared: str, per_item: Mapping[str, str] | None
    ) -> Stage:
        requires, reads = tuple(requires), tuple(reads)
        rows = {slide: canonical(row.as_dict()) for slide, row in self.rows.items()}
        extra = dict(per_item or {})
        return Stage(
            name=self.stage,
            context=self.context,
            paths=self.paths,
            params=canonical({"config": self.config, "code": self.code}),
            upstream={name: self.states(name) for name in (*requires, *reads)},
            requires=requires,
            shared=shared,
            per_item={item: rows.get(item, "") + extra.get(item, "") for item in rows.keys() | extra.keys()},
            seeds=seeds_of(self.config),
            sources=self.sources(*requires, *reads),
        )

    @contextmanager
    def _accounted(self) -> Iterator[None]:
        """Write the job's account when the block is through."""
        self._account_place.unlink(missing_ok=True)
        yield
        write_json(self._account_place, {**self.spent, "made": made_here()})
        if self.spent:
            _LOG.info("account: %s", ", ".join(f"{name} {value:.1f}" for name, value in sorted(self.spent.items())))

    def account(self, spent: Mapping[str, float]) -> None:
        """Add a slide's account (``n_tiles``, ``seconds``, ``read_s`` …) to the job's; other values are passed over."""
        for name, value in spent.items():
            if name in _SPENT:
                self.spent[name] = self.spent.get(name, 0.0) + float(value)

    @property
    def _account_place(self) -> Path:
        return self.paths.account_of(self.record)


def _digest_or_reason(path: Path) -> str:
    try:
        return digest_tree(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _as_paths(value: Any) -> tuple[Path, ...]:
    return (Path(value),) if isinstance(value, str) else tuple(Path(path) for path in value)


class _OneLine(logging.Formatter):
    """What the screen shows: a line, without the traceback that the log holds."""

    def format(self, record: logging.LogRecord) -> str:
        told = logging.makeLogRecord(vars(record) | {"exc_info": None, "exc_text": None, "stack_info": None})
        return super().format(told)


def _log_to(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.WARNING)  # the log holds the rest; the screen is Snakemake's
    screen.setFormatter(_OneLine(layout))
    log = logging.FileHandler(place, mode="w", encoding="utf-8")
    logging.basicConfig(level=logging.INFO, format=layout, handlers=[log, screen], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _end_of_job(place)


def _end_of_job(place: Path) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """What is told of an error that ends the job: a line on the screen, the traceback in the log."""

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        said = str(error) if isinstance(error, SlideloomError) else f"{kind.__name__}: {error}"
        _LOG.critical("the job ends: %s (the traceback stands in %s)", said, place, exc_info=(kind, error, trace))

    return tell

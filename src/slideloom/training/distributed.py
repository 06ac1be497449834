"""One training in several processes of one machine.

Each process takes its share of every batch; what they find is added up before each step, so that all of them hold the
same weights all along. :func:`launch` starts them through PyTorch's elastic launcher, the one behind ``torchrun``;
:func:`member` is what each of them does.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from slideloom.artefacts.provenance import note_gpus
from slideloom.errors import SlideloomError
from slideloom.training.handover import from_text, to_text

__all__ = ["ALONE", "World", "launch", "launched", "member"]

T = TypeVar("T")
R = TypeVar("R")
_LOG = logging.getLogger(__name__)
#: The program of a process: where modules are found, the folder of :func:`launch`, who started it, what it calls.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from slideloom.training.distributed import _work; _work(sys.argv[2], int(sys.argv[3]), sys.argv[4])"
)
_LOOK_S = 0.2
_FAILED = "process_failed"


@dataclass(frozen=True)
class World:
    """The processes of a training, seen from one of them.

    Attributes
    ----------
    rank : int
        Number of this process, from 0 on; the first alone logs, saves and writes.
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """The part of a batch that this process takes; may be empty."""
        return indices[self.rank :: self.size]

    def add_up(self, *values: Tensor) -> None:
        """Replace tensors by their sums over all processes, in place."""
        for value in values if self.size > 1 else ():
            distributed.all_reduce(value)

    def add_up_together(self, values: Sequence[Tensor]) -> None:
        """The same for many tensors of one kind and device, in one go."""
        if self.size == 1 or not values:
            return
        flat = torch.cat([value.reshape(-1) for value in values])
        self.add_up(flat)
        parts = torch.split(flat, [value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view(value.shape))

    def tell(self, value: T) -> T:
        """What the first process has, in every process; as :func:`slideloom.training.handover.to_text` writes it."""
        if self.size == 1:
            return value
        # PyTorch's own way to broadcast an object would unpickle what comes in.
        text = to_text(value).encode() if self.first else b""
        device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
        length = torch.tensor([len(text)], device=device)
        distributed.broadcast(length, src=0)
        body = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.first:
            body.copy_(torch.from_numpy(np.frombuffer(text, np.uint8).copy()))
        distributed.broadcast(body, src=0)
        told: T = from_text(body.cpu().numpy().tobytes().decode())
        return told


#: A training in one process.
ALONE = World()


def launched() -> bool:
    """Whether this process was started by ``torchrun`` or by :func:`launch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


@contextmanager
def member(processes: int, device: str) -> Iterator[tuple[World, str]]:
    """Take part in a training of several processes, each started with ``RANK`` in its environment.

    Parameters
    ----------
    processes : int
        How many the job asks for.
    device : str
        ``cpu`` or ``cuda``.

    Yields
    ------
    world : World
        This process among the others.
    device : str
        This process's own.

    Raises
    ------
    SlideloomError
        ``processes``: another number was started. ``too_few_gpus``: not one for each.
    """
    size, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if size != processes:
        raise SlideloomError(
            f"{size} processes were started",
            expected=f"{processes}, as the job asks for",
            hint="Start it without torchrun: it starts its processes itself",
            code="processes",
        )
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        if torch.cuda.device_count() < size:
            raise _too_few_gpus(size)
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    yield World(distributed.get_rank(), size), device
    # Not after an error: the others would see the connection close, and fail of that, before it is told.
    distributed.destroy_process_group()


def launch(function: Callable[[T], R], argument: T, processes: int, device: str) -> R:
    """Run a function in several processes at once, and wait for them.

    Parameters
    ----------
    function : callable
        Of a module that can be imported by name.
    argument
        What it is given in each process; handed over as text, see :mod:`slideloom.training.handover`.
    processes : int
        How many.
    device : str
        Where they work; for ``cuda`` there must be a GPU for each.

    Returns
    -------
    object
        What the function gave in the first process; handed over likewise.

    Raises
    ------
    SlideloomError
        Of the process that failed first, when that is what it raised; else ``process_failed`` with its last words. The
        other processes are ended.

    Notes
    -----
    Each process is a fresh interpreter with this one's ``sys.path``, so a script needs no guard around its main part.
    What the first process logs appears in this process's log.

    What they hand each other lies in a folder that only this user can open, PyTorch's rendezvous included: over a port,
    it would unpickle what any other user of the machine sends there.
    """
    if torch.device(device).type == "cuda" and torch.cuda.device_count() < processes:
        raise _too_few_gpus(processes)
    # Half a second of imports that a training in one process does without.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def run(folder: Path) -> R:
        (folder / "task").write_text(to_text(argument), encoding="utf-8")
        (folder / "level").write_text(str(_LOG.getEffectiveLevel()))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint=str(folder / "rendezvous"),
            rdzv_configs={"store_type": "file"},
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "torch")),
        )
        name = f"{function.__module__}:{function.__qualname__}"
        program = ("-c", _PROGRAM, json.dumps(sys.path), str(folder), str(os.getpid()), name)
        with _signals_left_alone(), _launcher_quiet(), _retold(folder / "log"):
            try:
                elastic_launch(config, sys.executable)(*program)
            except ChildFailedError as error:
                exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
                raise _first_error(folder, exit_codes) from error
        if torch.device(device).type == "cuda":
            note_gpus(processes)
        result: R = from_text((folder / "result").read_text(encoding="utf-8"))
        return result

    try:
        with tempfile.TemporaryDirectory(prefix="slideloom-") as name:
            return run(Path(name))
    except SignalException as error:
        # The processes are ended. This one now ends as it would have if it had been alone.
        signal.raise_signal(error.sigval)
        raise


# ---- in the processes ---------------------------------------------------------------------------------------------


def _work(folder_name: str, parent: int, name: str) -> None:
    """What each process runs."""
    from torch.distributed.elastic.multiprocessing.errors import record

    folder, rank = Path(folder_name), int(os.environ["RANK"])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if rank == 0:
        logging.basicConfig(level=int((folder / "level").read_text()), handlers=[_Lines(folder / "log")])
    else:
        logging.disable(logging.CRITICAL)
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    argument = from_text((folder / "task").read_text(encoding="utf-8"))

    def task() -> None:
        try:
            result = function(argument)
        except Exception as error:
            told = error if isinstance(error, SlideloomError) else _failure(rank, f"{type(error).__name__}: {error}")
            (folder / f"error-{time.time_ns():020d}-{rank}").write_text(to_text(told), encoding="utf-8")
            raise
        if rank == 0:
            (folder / "result").write_text(to_text(result), encoding="utf-8")

    record(task)()


def _end_with(parent: int) -> None:
    """No process goes on by itself when the one that started it was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class _Lines(logging.Handler):
    """Log records as lines of JSON."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self._file = place.open("a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        told = {"name": record.name, "levelno": record.levelno, "created": record.created}
        self._file.write(json.dumps(told | {"msg": record.getMessage()}) + "\n")
        self._file.flush()


# ---- in the process that waits for them ---------------------------------------------------------------------------


@contextmanager
def _retold(place: Path) -> Iterator[None]:
    """Log here what is written there, line by line, until the end."""
    place.touch()
    over = threading.Event()

    def follow() -> None:
        with place.open(encoding="utf-8") as lines:
            begun = ""
            while True:
                last = over.wait(_LOOK_S)
                for line in lines:
                    begun += line
                    if begun.endswith("\n"):
                        _log_again(json.loads(begun))
                        begun = ""
                if last:
                    return

    thread = threading.Thread(target=follow, name="log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _log_again(told: dict[str, Any]) -> None:
    logger = logging.getLogger(told["name"])
    if logger.isEnabledFor(told["levelno"]):
        logger.handle(logging.makeLogRecord(told | {"levelname": logging.getLevelName(told["levelno"])}))


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    """The launcher sets handlers of its own and leaves them behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _launcher_quiet() -> Iterator[None]:
    """The launcher logs its own doings as events, among the lines of this program."""
    events = logging.getLogger("torchelastic-events-null")
    before, events.disabled = events.disabled, True
    try:
        yield
    finally:
        events.disabled = before


def _first_error(folder: Path, exit_codes: Mapping[int, int]) -> SlideloomError:
    """What the first process to fail said; the others only miss it, and may say so, too.

    Parameters
    ----------
    folder : Path
        Where processes leave their errors, named by the time.
    exit_codes : mapping of int to int
        By number, of the processes that failed; negative: the signal that ended it.
    """
    # One that the system killed has said nothing; that the launcher ended the others by SIGTERM is no reason.
    killed = [rank for rank, code in exit_codes.items() if code < 0 and code != -signal.SIGTERM]
    if killed:
        return _failure(killed[0], f"it was ended by {signal.Signals(-exit_codes[killed[0]]).name}")
    found: list[SlideloomError] = [
        from_text(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("error-*"))
    ]
    if found:
        return next((one for one in found if one.code != _FAILED), found[0])
    rank, code = next(iter(exit_codes.items()))
    return _failure(rank, f"exit code {code}")


def _failure(rank: int, what: str) -> SlideloomError:
    return SlideloomError(
        f"process {rank} failed: {what}",
        hint="The log has its last words; a process that was killed may have run out of memory",
        code=_FAILED,
    )


def _too_few_gpus(processes: int) -> SlideloomError:
    return SlideloomError(
        f"{torch.cuda.device_count()} GPUs for {processes} processes",
        expected="a GPU for each",
        hint="Ask for as many GPUs, or for fewer processes",
        code="too_few_gpus",
    )

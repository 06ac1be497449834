"""A process that runs cases, and what drives it: a case that crashes or hangs ends the process, not the test.

``python -m tests.fuzz.worker TARGET FILE`` runs one case and prints what is wrong with it.
"""

from __future__ import annotations

import json
import os
import selectors
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from .watch import MOST_MB, MOST_S, Watch

__all__ = ["REPOSITORY", "Worker", "environment"]

REPOSITORY = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """For processes that import this package and the Slideloom beside it."""
    return os.environ | {"PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}", "OMP_NUM_THREADS": "1"}


class Worker:
    """Runs cases in a child process, started anew after one that ended it; a context manager.

    Parameters
    ----------
    folder : Path
        Must exist.

    Attributes
    ----------
    cases : int
        How many were run.
    """

    def __init__(self, folder: Path) -> None:
        self.cases = 0
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, name: str, data: bytes) -> str:
        """What is wrong with how Slideloom took a file of a target; empty when nothing is."""
        if self._child is None:
            self._child = self._start()
        child, self.cases = self._child, self.cases + 1
        assert child.stdin is not None
        head = name.encode()
        child.stdin.write(struct.pack("<II", len(head), len(data)) + head + data)
        child.stdin.flush()
        answer = self._line(2 * MOST_S)
        if answer is not None:
            found = json.loads(answer)
            return str(found["wrong"])
        child.kill()
        self._child = None
        told = (self._folder / "stderr.txt").read_bytes()[-3000:].decode(errors="replace")
        return f"the process ended, or did not answer in {2 * MOST_S:.0f} s (status {child.wait()}):\n{told}"

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fuzz.worker"]
        with (self._folder / "stderr.txt").open("wb") as errors:
            self._child = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=-1, stdout=-1, stderr=errors, env=environment(), bufsize=0
            )
        assert self._line(120) == b"ready", (self._folder / "stderr.txt").read_text()
        return self._child

    def _line(self, patience_s: float) -> bytes | None:
        assert self._child is not None
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._child.stdout, selectors.EVENT_READ)
            line = self._child.stdout.readline() if waiting.select(patience_s) else b""
        return line.strip() if line.endswith(b"\n") else None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *about: object) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def _serve(folder: Path) -> None:
    """Answer cases on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer
    watch = Watch(folder)
    answers.write(b"ready\n")
    while head := sys.stdin.buffer.read(8):
        name_bytes, data_bytes = struct.unpack("<II", head)
        name = sys.stdin.buffer.read(name_bytes).decode()
        wrong = watch.run(name, sys.stdin.buffer.read(data_bytes))
        if not wrong and watch.grown_mb > MOST_MB:
            wrong = f"memory has grown by {watch.grown_mb:.0f} MB in {watch.cases} cases"
        answers.write(json.dumps({"wrong": wrong}).encode() + b"\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        if sys.argv[1:]:
            data = Path(sys.argv[2]).read_bytes()
            print(Watch(Path(place), [sys.argv[1]]).run(sys.argv[1], data) or "nothing is wrong")
        else:
            _serve(Path(place))

"""Write the digests of every file that pip may install into the lock files: ``python envs/lock.py [FILE ...]``.

Which versions are pinned is decided by whoever edits a lock file; this program keeps the pins and renews the digests,
as PyPI gives them for every file of a version, for any machine and any Python. It needs ``uv`` and a network.
``requirements-cuda.lock`` is resolved anew: what PyTorch's build for GPUs needs on Linux, and the others do not hold.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from write import read_pins  # beside this program

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.11"
INDEX = "https://pypi.org/simple"
CUDA = "requirements-cuda.lock"
#: What stands above the pins of each lock file.
HEADS = {
    "requirements-pip.lock": "# pip itself, installed first: older ones do not take digests from a constraint.",
    "requirements.lock": "# Every package that a run needs, pinned. Made from pyproject.toml: see docs/development.md.",
    "requirements-dev.lock": "# What tests and checks need beside requirements.lock, pinned.",
    "requirements-readers.lock": (
        "# What the tests' readers of our exports need, pinned; in an environment of its own, .venv-readers (make\n"
        "# readers): anndata and spatialdata hold pandas below 3, and SpatialData holds Dask, on Python 3.11."
    ),
    CUDA: (
        "# What PyTorch's build for GPUs needs beside requirements.lock, pinned: a constraint of it. Nothing here\n"
        "# is installed where a build for CPUs is."
    ),
}
_DIGESTS = "# pip takes a file only when its SHA-256 stands here. Digests are written by python envs/lock.py."
#: Files that are not on PyPI and may be installed all the same, by pin: digest and name.
ELSEWHERE: dict[str, dict[str, str]] = {
    "torch==2.13.0": {
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b": (
            "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
        )
    }
}


def canonical(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(pins: Iterable[str], *options: str) -> dict[str, tuple[str, list[str]]]:
    """Ask the index, through uv.

    Returns
    -------
    dict
        By canonical name, in their order: the pin (``name==version``) and its digests, sorted.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.in"
        asked.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        command = ["uv", "pip", "compile", str(asked), "--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
        command += ["--python-version", PYTHON, "--default-index", INDEX, *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    found: dict[str, tuple[str, list[str]]] = {}
    for requirement in done.stdout.replace("\\\n", " ").splitlines():
        pin, *rest = requirement.split()
        digests = sorted(word.removeprefix("--hash=sha256:") for word in rest if word.startswith("--hash="))
        found[canonical(pin.split("==")[0].split("[")[0])] = (pin, digests)
    return found


def lock_text(name: str, pins: Iterable[str], digests: dict[str, tuple[str, list[str]]]) -> str:
    """Text of a lock file."""
    lines = [HEADS[name], _DIGESTS]
    wanted = list(pins)
    for pin, files in ELSEWHERE.items():
        if pin in wanted:
            lines += [f"# Of {pin} also {file}, which PyPI does not hold." for file in files.values()]
    if name == "requirements.lock":
        lines.append(f"--constraint {CUDA}")
    for pin in wanted:
        found = digests[canonical(pin.split("==")[0])][1]
        every = sorted({*found, *ELSEWHERE.get(pin, ())})
        lines.append(" \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in every)]))
    return "\n".join(lines) + "\n"


def write(name: str) -> None:
    """Renew one lock file in place."""
    place = ROOT / name
    if name == CUDA:
        run = read_pins((ROOT / "requirements.lock").read_text(encoding="utf-8"))
        held = {canonical(pin.split("==")[0]) for pin in run}
        with tempfile.TemporaryDirectory() as folder:
            fixed = Path(folder) / "fixed.txt"
            fixed.write_text("".join(f"{pin}\n" for pin in run), encoding="utf-8")
            asked = [pin for pin in run if pin.startswith("torch")]
            found = resolve(asked, "--universal", "--constraint", str(fixed))
        found = {package: about for package, about in found.items() if package not in held}
        pins = [pin for pin, _ in found.values()]
    else:
        pins = read_pins(place.read_text(encoding="utf-8"))
        found = resolve(pins, "--no-deps")
    place.write_text(lock_text(name, pins, found), encoding="utf-8")


if __name__ == "__main__":
    for asked in sys.argv[1:] or HEADS:
        write(asked)

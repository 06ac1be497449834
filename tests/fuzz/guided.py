"""Coverage-guided fuzzing of a group of targets, or ``all``: ``python -m tests.fuzz.guided GROUP SECONDS FOLDER``.

libFuzzer, by way of atheris, keeps the cases that reach lines of Slideloom that no case before reached, and damages
them further, about half of the time as :mod:`tests.fuzz.edits` does. The first byte of a case says which target it is
for.

With a number of cases as a fourth argument it stops after so many, and begins from a fixed seed: every run is the
same, unless its time is up before.

Written into the folder: ``report.json``, and a file for each way in which a case went wrong. A case that ends the
process lies there as ``crash-…`` or ``timeout-…``, as libFuzzer leaves it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

import atheris

_INSTRUMENTED = ["slideloom.config", "slideloom.slides", "slideloom.errors", "slideloom.artefacts.files"]
_SOURCES = Path(__file__).resolve().parents[2] / "src"
_MOST_BYTES = 16_384


def main(group: str, seconds: float, folder: Path, most_cases: int = 0) -> None:
    """Fuzz until the time is up or so many cases were run, write the report, and end the process."""
    with atheris.instrument_imports(include=_INSTRUMENTED, exclude=_compiled()):
        from .edits import apply, random_edits
        from .targets import TARGETS
        from .watch import MOST_MB, MOST_S, Watch

        cases, corpus = folder / "cases", folder / "corpus"
        cases.mkdir()
        corpus.mkdir()
        names = [name for name, target in TARGETS.items() if group in (target.group, "all")]
        watch = Watch(cases, names)
    for number, name in enumerate(names):
        for seed in TARGETS[name].seeds:
            (corpus / f"{name}-{hashlib.sha256(seed).hexdigest()[:8]}").write_bytes(bytes([number]) + seed)
    wrong: dict[str, str] = {}
    start = time.monotonic()

    def one(data: bytes) -> None:
        if data:
            name = names[data[0] % len(names)]
            told = watch.run(name, data[1:])
            if told and (way := _way(name, told)) not in wrong:
                place = folder / f"wrong-{name}-{hashlib.sha256(data).hexdigest()[:12]}"
                place.write_bytes(data[1:])
                wrong[way] = f"python -m tests.fuzz.worker {name} {place}\n{told}"
        if time.monotonic() - start > seconds or 0 < most_cases <= watch.cases:
            report = {
                "cases": watch.cases, "outcomes": dict(watch.counts), "slowest_s": round(watch.slowest_s, 2),
                "grown_mb": round(watch.grown_mb), "seconds": round(time.monotonic() - start, 1), "wrong": wrong,
            }  # fmt: skip
            if watch.grown_mb > MOST_MB:
                wrong["memory"] = f"memory has grown by {watch.grown_mb:.0f} MB in {watch.cases} cases"
            (folder / "report.json").write_text(json.dumps(report, indent=1))
            os._exit(0)  # libFuzzer has no other way to stop between two cases

    def damage(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        head, body = data[:1] or b"\0", data[1:]
        form = TARGETS[names[head[0] % len(names)]].form
        own = rng.random() < (0.8 if form.tree else 0.5)  # bytes changed at random leave no JSON
        body = apply(random_edits(rng), body, form) if own else form.mend(atheris.Mutate(body, most - 1))
        return (head + body)[:most]

    options = [
        f"-max_len={_MOST_BYTES}",
        "-len_control=0",
        f"-timeout={MOST_S:.0f}",
        "-rss_limit_mb=0",
        "-mutate_depth=2",
    ]
    options += ["-seed=1"] if most_cases else []
    options += [f"-artifact_prefix={folder}{os.sep}", "-detect_leaks=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=damage)
    atheris.Fuzz()


def _compiled() -> list[str]:
    """Modules with functions that numba compiles: it cannot compile what atheris adds to them."""
    found = [path for path in (_SOURCES / "slideloom" / "slides").glob("*.py") if "numba" in path.read_text()]
    return [".".join(path.relative_to(_SOURCES).with_suffix("").parts) for path in found]


def _way(name: str, told: str) -> str:
    """One name for all cases that go wrong in the same place."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ")]
    return f"{name}: {places[-1]} {lines[-1][:60]}" if places else f"{name}: {lines[0][:40]}"


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]).resolve(), int(sys.argv[4]) if len(sys.argv) > 4 else 0)

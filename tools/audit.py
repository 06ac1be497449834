"""Ask for published advisories against every pinned package: ``python tools/audit.py LOCK [LOCK ...]``.

Ends with 1 when a pinned version has an advisory that is not in :data:`ACCEPTED`. A machine without a network can ask
nobody: then it says so, names what was not looked up, and ends with 0, for that says nothing about the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Advisories that do not concern this project: their number and why. Each is a decision; none stands here lightly.
ACCEPTED: Mapping[str, str] = {}
_PATIENCE_S = 300.0
_SHOWN = 5


def read_pins(lock: str) -> list[str]:
    """What a lock file pins, ``name==version``, in order."""
    words = [line.split() for line in lock.splitlines() if not line.startswith("#")]
    return [line[0] for line in words if line and not line[0].startswith("-")]


def ask(pins: Iterable[str]) -> dict[str, Any] | None:
    """What pip-audit found out; None when it could not ask."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "pins.txt", Path(folder) / "answer.json"
        asked.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(asked), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--output", str(answer), "--progress-spinner", "off", "--timeout", "15"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        except subprocess.TimeoutExpired:
            return None
        if not answer.is_file() or done.returncode not in (0, 1):
            return None
        try:
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return found


def judge(answers: Sequence[tuple[Sequence[str], Mapping[str, Any] | None]]) -> tuple[list[str], int]:
    """Lines to print and the exit code.

    Parameters
    ----------
    answers : sequence of (pins, answer)
        As :func:`ask` gives them.
    """
    looked, silent, bad, lines = 0, [], 0, []
    for pins, answer in answers:
        if answer is None:
            silent += list(pins)
            continue
        for one in answer["dependencies"]:
            if "skip_reason" in one:
                silent.append(str(one["name"]))
                continue
            looked += 1
            for advisory in one.get("vulns", ()):
                names = {str(advisory["id"]), *map(str, advisory.get("aliases", ()))}
                accepted = sorted(names & set(ACCEPTED))
                if accepted:
                    lines.append(f"{one['name']} {one['version']}: {accepted[0]}, accepted: {ACCEPTED[accepted[0]]}")
                    continue
                bad += 1
                mended = ", ".join(map(str, advisory.get("fix_versions", ()))) or "no version yet"
                lines.append(f"{one['name']} {one['version']}: {advisory['id']}; mended in {mended}")
    if silent:
        shown = ", ".join(silent[:_SHOWN]) + (f" and {len(silent) - _SHOWN} more" if len(silent) > _SHOWN else "")
        lines.append(
            f"NOT CHECKED, the advisory service gave no answer: {len(silent)} of {looked + len(silent)}: {shown}"
        )
    lines.append(f"Advisories: {looked} packages looked up, {bad} with an advisory, {len(silent)} not looked up.")
    return lines, int(bad > 0)


def main(places: Sequence[str]) -> int:
    """Ask about every lock file, each package once."""
    seen: set[str] = set()
    answers = []
    for place in places:
        pins = [pin for pin in read_pins(Path(place).read_text(encoding="utf-8")) if pin not in seen]
        seen.update(pins)
        answers.append((pins, ask(pins)))
        if answers[-1][1] is None:
            # Who does not answer once is not asked a second time.
            rest = [pin for other in places for pin in read_pins(Path(other).read_text(encoding="utf-8"))]
            answers.append((sorted(set(rest) - seen), None))
            break
    lines, code = judge(answers)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

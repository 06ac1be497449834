"""The page that lists every kind of bad input with its answer: ``python -m tests.bad_inputs.page docs/failures.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.bad_inputs.corpus import KINDS
from tests.bad_inputs.kinds import Answer, Kind

__all__ = ["failures_page"]

_HEAD = """# Bad input, and what becomes of it

Every kind of bad input has one answer:

- **refused**: the sheet or the config is wrong, and nothing is run; every mistake is told at once.
- **failed**: the slide fails alone, at the stage named, with a reason code; `reports/failures.parquet` lists it with a
  message and a hint, and the other slides finish with the very figures that they would have had without it. Mend it and
  run the same command.
- **warned**: the slide runs, and a warning is recorded beside it (`slides/{slide}/slide.json`, attributes of its
  patches and targets) and told by `reports/warnings.parquet`, the page and `slideloom doctor`.
- **accepted**: the slide runs as any other.

Made by `python -m tests.bad_inputs.page docs/failures.md` from the corpus in `tests/bad_inputs/`, which the
tests feed to Slideloom kind by kind.
"""
_GROUPS = {
    "slide": "Slides",
    "multiplex": "Multiplexed images",
    "annotation": "Annotations",
    "sheet": "The sheet",
    "config": "Config and tables",
    "store": "What lies in the results folder",
}
_ORDER: tuple[Answer, ...] = ("refused", "failed", "warned", "accepted")


def failures_page() -> str:
    """The whole page, Markdown."""
    counts = ", ".join(f"{sum(kind.answer == answer for kind in KINDS)} {answer}" for answer in _ORDER)
    parts = [_HEAD, f"{len(KINDS)} kinds: {counts}.\n"]
    for group, title in _GROUPS.items():
        kinds = sorted((kind for kind in KINDS if kind.group == group), key=lambda kind: _ORDER.index(kind.answer))
        parts.append(f"## {title}\n\n{_table(kinds)}")
    codes = sorted({kind.code for kind in KINDS if kind.code})
    parts.append("## Reason codes\n\n" + "\n".join(f"- `{code}`: {_kinds_of(code)}" for code in codes) + "\n")
    return "\n".join(parts)


def _table(kinds: Iterable[Kind]) -> str:
    lines = ["| what | answer | reason code | stage |", "|---|---|---|---|"]
    for kind in kinds:
        code, stage = (f"`{kind.code}`", f"`{kind.stage}`") if kind.code else ("", "")
        lines.append(f"| {kind.what.replace('|', chr(92) + '|')} | {kind.answer} | {code} | {stage} |")
    return "\n".join(lines) + "\n"


def _kinds_of(code: str) -> str:
    found = [kind.what for kind in KINDS if kind.code == code]
    return "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(failures_page(), encoding="utf-8")

"""Write ``envs/slideloom.yaml`` from ``requirements.lock``: ``python envs/write.py``. A test keeps it current.

The pins are written out, for conda and Snakemake look at this file alone: Snakemake copies it to a folder of its own,
from where the path of another file leads nowhere, and takes an environment whose file is unchanged for current.
"""

from __future__ import annotations

from pathlib import Path

PYTHON = "3.11"
HERE = Path(__file__).resolve().parent
PLACE = HERE / "slideloom.yaml"
LOCK = HERE.parent / "requirements.lock"
HEAD = """\
# For sites that run jobs in conda environments (--sdm conda); a clone's .venv needs none of this.
# Written from requirements.lock: python envs/write.py
# Versions without digests: what PyTorch's build for GPUs needs is decided when the environment is made.
channels: [conda-forge, nodefaults]
"""


def read_pins(lock: str) -> list[str]:
    """What a lock file pins, ``name==version``, in order; digests and options are left out."""
    words = [line.split() for line in lock.splitlines() if not line.startswith("#")]
    return [line[0] for line in words if line and not line[0].startswith("-")]


def environment(lock: str) -> str:
    """The environment file that holds the pins of a lock file."""
    pins = "".join(f"      - {pin}\n" for pin in read_pins(lock))
    return f"{HEAD}dependencies:\n  - python={PYTHON}\n  - pip\n  - pip:\n{pins}"


if __name__ == "__main__":
    PLACE.write_text(environment(LOCK.read_text(encoding="utf-8")), encoding="utf-8")

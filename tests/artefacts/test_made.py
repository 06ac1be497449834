"""What made an item stands in its record: true of the machine that made it, and of no consequence."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from slideloom.artefacts.files import read_json
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.provenance import installed_versions
from slideloom.artefacts.stage import Stage


def _run(paths: Paths, seeds: dict[str, int], made: list[str]) -> bytes:
    """Run a stage of one item and give the job record's bytes."""

    def work(item: str) -> list[Path]:
        made.append(item)
        place = paths.root / f"{item}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("equal on every host")
        return [place]

    record = paths.job_record("text", "", "1-0")
    Stage(name="text", context="", paths=paths, params="{}", seeds=seeds).run(["a"], work, record)
    return record.read_bytes()


def test_host_versions_and_seeds_are_recorded_and_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Paths(tmp_path / "here"), Paths(tmp_path / "there")
    made: list[str] = []
    monkeypatch.setattr(platform, "node", lambda: "gpu01")
    first = _run(here, {"training.seed": 1}, made)
    note = read_json(here.record("text", "", "a"))
    assert note["made"] == {
        "host": "gpu01",
        "device": "cpu",
        "versions": installed_versions(),
        "seeds": {"training.seed": 1},
    }
    monkeypatch.setattr(platform, "node", lambda: "gpu02")
    # Kept: the record goes on telling of the machine that made it.
    assert _run(here, {"training.seed": 1}, made) == first
    assert made == ["a"]
    assert read_json(here.record("text", "", "a")) == note
    # Made anew elsewhere: the job record, which Snakemake compares, is equal; the item's differs in what made it alone.
    assert _run(there, {}, made) == first
    other = read_json(there.record("text", "", "a"))
    assert other.pop("made") == {"host": "gpu02", "device": "cpu", "versions": installed_versions()}
    assert other == {name: value for name, value in note.items() if name != "made"}

"""Bins of slides: never too full, the same whatever the order, and hardly disturbed by a slide that comes or goes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import Stage
from slideloom.slides.sheet import SlideRow
from slideloom.workflow.bins import JOB_PATTERN, Load, gather_bins, load_of, weigh_slides
from slideloom.workflow.needs import NEEDS, mem_mb, runtime_min
from slideloom.workflow.plan import SLIDE_STAGES

from ..data_sets import write_ome_zarr

GB = 10**9
MOST_SLIDES, MOST_GB = 16, 64.0
cohorts = st.dictionaries(
    st.text("abcdefghij0123456789_.-", min_size=1, max_size=6), st.integers(0, 12 * GB), min_size=1, max_size=80
)


def _thousand() -> dict[str, int]:
    """Sizes from a megabyte to 120 GB, without a pattern."""
    return {f"slide_{k:04d}": (k * 2_654_435_761) % (120 if k % 40 == 0 else 8) * GB + 1_000_000 for k in range(1000)}


@given(cohorts, st.integers(1, 5), st.sampled_from([3.0, 10.0, 1000.0]))
def test_every_slide_has_one_bin_and_no_bin_is_too_full(weights: dict[str, int], slides: int, gb: float) -> None:
    bins = gather_bins(weights, slides, gb)
    assert sorted(slide for members in bins.values() for slide in members) == sorted(weights)
    for name, members in bins.items():
        assert re.fullmatch(JOB_PATTERN, name)
        assert list(members) == sorted(members)
        heavy = any(weights[slide] > gb * GB for slide in members)
        assert name == f"slide-{members[0]}" if heavy else not name.startswith("slide-")
        assert len(members) == 1 if heavy else len(members) <= slides
        assert heavy or sum(weights[slide] for slide in members) <= gb * GB


@given(cohorts, st.randoms(use_true_random=False))
def test_bins_do_not_depend_on_the_order_of_the_sheet(weights: dict[str, int], chance: object) -> None:
    names = list(weights)
    chance.shuffle(names)  # type: ignore[attr-defined]
    assert gather_bins({name: weights[name] for name in names}, 4, 20.0) == gather_bins(weights, 4, 20.0)


@given(cohorts, st.data())
def test_a_slide_that_comes_or_goes_changes_its_own_bin_only(weights: dict[str, int], data: st.DataObject) -> None:
    slide = data.draw(st.sampled_from(sorted(weights)))
    whole = gather_bins(weights, 4, 20.0)
    without = gather_bins({name: weight for name, weight in weights.items() if name != slide}, 4, 20.0)
    gone = {name: members for name, members in without.items() if whole.get(name) != members}
    new = {name: members for name, members in whole.items() if without.get(name) != members}
    assert len(gone) <= 1, "one bin took the slide, or split"
    (before,) = gone.values() or [()]
    assert sorted(name for members in new.values() for name in members) == sorted([*before, slide])


def test_a_slide_more_in_a_thousand_is_one_bin_or_its_halves() -> None:
    weights = _thousand()
    before = gather_bins(weights, MOST_SLIDES, MOST_GB)
    split = 0
    for k in range(100):
        after = gather_bins(weights | {f"new_{k}": 2 * GB}, MOST_SLIDES, MOST_GB)
        changed = [members for name, members in after.items() if before.get(name) != members]
        lost = before.keys() - after.keys()
        assert len(lost) <= 1
        assert sum(map(len, changed)) <= MOST_SLIDES + 1
        split += len(lost)
    assert 0 < split < 50, "most slides join a bin"


def test_bins_of_a_thousand_slides_are_neither_many_nor_empty() -> None:
    weights = _thousand()
    bins = gather_bins(weights, MOST_SLIDES, MOST_GB)
    least = sum(weights.values()) / GB / MOST_GB
    assert least <= len(bins) <= 2.5 * least
    assert sum(name.startswith("slide-") for name in bins) == sum(weight > MOST_GB * GB for weight in weights.values())


def test_slides_of_equal_checksum_stay_together() -> None:
    pair = {"plumless": GB, "buckeroo": GB}  # the textbook pair of words of equal CRC-32
    assert list(gather_bins(pair, 1, 10.0).values()) == [("buckeroo", "plumless")]


def test_a_slide_weighs_what_its_images_take(tmp_path: Path) -> None:
    for name, size in {"he.svs": 700, "sp.tif": 50, "many.npz": 900, "cells.tif": 5000}.items():
        (tmp_path / name).write_bytes(b"0" * size)
    write_ome_zarr(tmp_path / "store.zarr", np.zeros((2, 30, 40), np.uint16))
    (tmp_path / "empty.zarr").mkdir()
    zarr.create_array(tmp_path / "old.zarr", shape=(8, 4), dtype="u1", zarr_format=2)
    rows = [
        SlideRow("both", he="he.svs", sp="sp.tif", instances="cells.tif"),
        *(SlideRow(f"field_{k}", he=f"many.npz::images[{k}]") for k in range(3)),
        SlideRow("image", he="store.zarr", sp="absent.tif"),
        SlideRow("array", he="old.zarr", sp="empty.zarr"),
    ]
    weights = {"both": 750, "field_0": 300, "field_1": 300, "field_2": 300, "image": 2400, "array": 16}
    assert weigh_slides(rows, tmp_path) == weights
    assert load_of(["both", "field_0"], weights) == Load(2, 1050 / GB, 750 / GB)
    assert load_of([], weights) == Load(0, 0.0, 0.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attributes": [1]}', "[" * 100_000, '{"attributes": {"ome": 3}}'])
def test_a_folder_of_nonsense_stops_no_plan(text: str, tmp_path: Path) -> None:
    (tmp_path / "odd.zarr").mkdir()
    (tmp_path / "odd.zarr" / "zarr.json").write_text(text)
    assert weigh_slides([SlideRow("odd", sp="odd.zarr")], tmp_path) == {"odd": 0}


def test_finished_slides_of_a_bin_that_splits_are_kept(tmp_path: Path) -> None:
    weights = {f"slide_{k}": GB for k in range(4)}
    paths = Paths(tmp_path)
    worked: list[str] = []

    def work(slide: str) -> list[Path]:
        worked.append(slide)
        place = tmp_path / f"{slide}.txt"
        place.write_text(slide)
        return [place]

    def run(bins: dict[str, tuple[str, ...]]) -> dict[str, str]:
        worked.clear()
        digests = {}
        for job, slides in bins.items():
            stage = Stage("patches", "grid", paths, params="same")
            states = stage.run(slides, work, paths.job_record("patches", "grid", job))
            digests |= {slide: state.digest for slide, state in states.items()}
        return digests

    whole = gather_bins(weights, 4, 100.0)
    assert list(whole) == ["1-0"]
    before = run(whole)
    assert sorted(worked) == sorted(weights)
    after = gather_bins(weights | {"new": GB}, 4, 100.0)
    assert "1-0" not in after
    digests = run(after)
    assert worked == ["new"]
    assert {slide: digests[slide] for slide in before} == before


def test_every_stage_says_what_it_needs() -> None:
    scripts = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
    assert set(NEEDS) == {path.stem for path in scripts.glob("*.py")}


@pytest.mark.parametrize("stage", sorted(NEEDS))
def test_memory_and_time_grow_with_the_slides_and_with_the_attempt(stage: str) -> None:
    small, large = Load(4, 2.0, 1.0), Load(16, 64.0, 20.0)
    for need in (mem_mb, runtime_min):
        assert 0 < need(stage, small, 1) <= need(stage, large, 1) < need(stage, large, 2)
    if stage in SLIDE_STAGES:
        assert runtime_min(stage, small, 1) < runtime_min(stage, large, 1) <= 24 * 60, "a full bin is done in a day"
    assert runtime_min(stage, Load(1, 1e6, 1e6), 3) <= 7 * 24 * 60

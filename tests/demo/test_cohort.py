from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.demo.cohort import DemoSlide, SlidePlan, grow_slide, make_slide, plan_cohort, write_cohort
from slideloom.demo.panel import BACKGROUND_FREQUENCY, CLASSES, MARKERS, class_id
from slideloom.errors import SlideloomError

FREQUENCY = np.array([BACKGROUND_FREQUENCY, *(kind.frequency for kind in CLASSES)])


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _rows(path: Path, delimiter: str) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_the_panel_is_the_report_s() -> None:
    assert pytest.approx(0.767, abs=1e-3) == BACKGROUND_FREQUENCY
    names = [kind.name for kind in CLASSES]
    assert names[:5] == ["Stroma", "Tumor", "Macrophage", "Helper T cell", "Cytotoxic T cell"]
    assert names[5:] == ["Endothelia", "Other", "Treg", "B cells"]
    assert [class_id(name) for name in names] == list(range(1, 10))
    assert len({marker.name for marker in MARKERS}) == 16


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    write_cohort(tmp_path / "a", seed=3, n_slides=2, size_px=257)
    write_cohort(tmp_path / "b", seed=3, n_slides=2, size_px=257)
    write_cohort(tmp_path / "c", seed=4, n_slides=2, size_px=257)
    first, second, other = (_digests(tmp_path / name) for name in "abc")
    assert len(first) == 11
    assert first == second
    assert first["he/slide_01.svs"] != first["he/slide_02.svs"]
    assert {name for name in first if first[name] == other[name]} == {"markers.tsv", "classes.tsv", "slides.tsv"}


def test_a_slide_depends_on_its_plan_alone(plans: list[SlidePlan], slides: list[DemoSlide]) -> None:
    alone = make_slide(plans[2])
    np.testing.assert_array_equal(alone.he, slides[2].he)
    np.testing.assert_array_equal(alone.sp, slides[2].sp)
    np.testing.assert_array_equal(alone.nuclei.labels, slides[2].nuclei.labels)


def test_files_hold_what_make_slide_gives(cohort: Path, plans: list[SlidePlan], slides: list[DemoSlide]) -> None:
    points = _rows(cohort / "classes" / "nuclei.csv", ",")
    for row, plan, slide in zip(_rows(cohort / "slides.tsv", "\t"), plans, slides, strict=True):
        assert (row["slide_id"], row["patient_id"], row["split"]) == (plan.slide_id, plan.patient_id, plan.split)
        np.testing.assert_array_equal(tifffile.imread(cohort / row["sp"]), slide.sp)
        labels = tifffile.imread(cohort / row["instances"])
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels, slide.nuclei.labels)
        place, _, member = row["classes"].partition("::")
        if not member:
            np.testing.assert_array_equal(tifffile.imread(cohort / place), slide.nuclei.classes)
            continue
        assert (place, member) == ("classes/nuclei.csv", plan.slide_id)
        own = [point for point in points if point["image"] == member]
        assert [int(point["label_id"]) for point in own] == list(range(1, len(slide.nuclei) + 1))
        for point in own:
            y, x = int(point["y"]), int(point["x"])
            assert labels[y, x] == int(point["label_id"])
            assert slide.nuclei.classes[y, x] == int(point["class_id"])
    assert {row["classes"].partition("::")[1] for row in _rows(cohort / "slides.tsv", "\t")} == {"", "::"}


def test_tables_read_back(cohort: Path) -> None:
    from slideloom.slides.sheet import read_sheet
    from slideloom.slides.tables import read_classes, read_markers

    rows, problems = read_sheet(cohort / "slides.tsv")
    assert not problems
    assert [row.split for row in rows] == ["train", "train", "val", "test"]
    markers, problems = read_markers(cohort / "markers.tsv")
    assert not problems
    channel = markers.lookup("FOXP3")
    assert channel is not None
    assert (channel.marker, channel.uniprot, channel.nuclear) == ("FOXP3", "Q9BZS1", False)
    classes, problems = read_classes(cohort / "classes.tsv")
    assert not problems
    assert list(classes.names) == [kind.name for kind in CLASSES]


def test_annotations_read_back(cohort: Path, slides: list[DemoSlide]) -> None:
    from slideloom.slides.annotations import slide_annotations
    from slideloom.slides.headers import write_facts
    from slideloom.slides.sheet import read_sheet
    from slideloom.slides.tables import read_classes, read_markers

    markers, classes = read_markers(cohort / "markers.tsv")[0], read_classes(cohort / "classes.tsv")[0]
    for row, slide in zip(read_sheet(cohort / "slides.tsv")[0][:2], slides, strict=False):
        facts = write_facts(row, cohort, markers, cohort / f"{row.slide_id}.json")
        assert {name: image.mpp_um for name, image in facts.images.items()} == {"he": 0.5, "sp": 0.5}
        assert facts.warnings == ()
        maps = slide_annotations(row, cohort, facts, "sp", 1.0, classes)
        assert maps is not None
        np.testing.assert_array_equal(maps.instances, slide.nuclei.labels)
        np.testing.assert_array_equal(maps.class_map, slide.nuclei.classes)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), n_slides=st.integers(1, 30), size_px=st.integers(128, 3000))
def test_plans(seed: int, n_slides: int, size_px: int) -> None:
    plans = plan_cohort(seed, n_slides, size_px)
    assert len({plan.slide_id for plan in plans}) == n_slides
    roles: dict[str, set[str]] = {}
    for plan in plans:
        roles.setdefault(plan.patient_id, set()).add(plan.split)
    assert all(len(role) == 1 for role in roles.values()), "a patient in two roles"
    assert all(sum(plan.patient_id == patient for plan in plans) <= 2 for patient in roles)
    assert {plan.split for plan in plans} == set(["train", "test", "val"][: min(n_slides, 3)])
    total = np.sum([plan.target_px for plan in plans], axis=0)
    wanted = FREQUENCY[1:] * size_px**2 * n_slides
    # Whole nuclei: at most half a one off.
    assert np.all(np.abs(total - wanted) <= [0.5 * kind.area_px + 1e-6 * size_px**2 * n_slides for kind in CLASSES])
    # What is tested on is taught.
    taught = np.sum([plan.target_px for plan in plans if plan.split == "train"], axis=0)
    for plan in plans:
        assert not np.any(
            (plan.target_px > 0) & (taught == 0) & (total > 2 * n_slides * np.array([k.area_px for k in CLASSES]))
        )


def test_default_cohort_s_plan() -> None:
    plans = plan_cohort(0, 8, 960)
    assert [plan.split for plan in plans] == ["train"] * 5 + ["val"] + ["test"] * 2
    b_cells = np.array([plan.target_px[class_id("B cells") - 1] for plan in plans])
    assert b_cells.sum() > 0
    assert b_cells[5:].sum() == 0, "too few to test on"
    assert min(plan.target_px[class_id("Treg") - 1] for plan in plans) > 0
    tumour = np.array([plan.target_px[class_id("Tumor") - 1] for plan in plans])
    assert tumour.max() > 1.3 * tumour.min(), "slides differ"
    assert len({plan.platform for plan in plans}) == 2


def test_the_cohort_has_the_report_s_frequencies() -> None:
    counts = np.zeros(10)
    for plan in plan_cohort(11, 8, 400):
        counts += np.bincount(grow_slide(plan)[1].classes.ravel(), minlength=10)
    share = counts / counts.sum()
    off = dict(zip(["Background", *(kind.name for kind in CLASSES)], share / FREQUENCY - 1, strict=True))
    assert abs(off["Background"]) < 0.015
    assert abs(off["Stroma"]) < 0.05
    assert abs(off["Tumor"]) < 0.05
    assert abs(off["Macrophage"]) < 0.06
    assert abs(off["Helper T cell"]) < 0.10
    for name in ("Cytotoxic T cell", "Endothelia", "Other"):
        assert abs(off[name]) < 0.2, name
    assert -0.5 < off["Treg"] < 1
    assert share[class_id("B cells")] > 0


@pytest.mark.slow
def test_frequencies_at_the_default_size() -> None:
    counts = np.zeros(10)
    for plan in plan_cohort(0, 8, 960):
        counts += np.bincount(grow_slide(plan)[1].classes.ravel(), minlength=10)
    off = counts / counts.sum() / FREQUENCY - 1
    assert np.all(np.abs(off[:8]) < [0.01, 0.03, 0.03, 0.03, 0.05, 0.05, 0.05, 0.05])
    assert abs(off[class_id("Treg")]) < 0.25
    assert abs(off[class_id("B cells")]) < 0.6


@pytest.mark.parametrize(
    ("numbers", "word"), [({"n_slides": 0}, "n_slides"), ({"size_px": 100}, "size_px"), ({"seed": -1}, "seed")]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, numbers: dict[str, int], word: str) -> None:
    with pytest.raises(SlideloomError, match=word):
        write_cohort(tmp_path / "cohort", **numbers)
    assert not (tmp_path / "cohort").exists()

from __future__ import annotations

from pathlib import Path

import pytest

from slideloom.cli.slide_report import Fault, SlideReport
from slideloom.cli.verdict import empty_sides, fruitless
from slideloom.slides.study import Study, load_study

SHEET = """\
slide_id\tpatient_id\the\tsp\tinstances\tclasses\tmpp_um\tsp_channels\tsplit
t1\tP1\tgood_he.png\tgood_sp.tif\tgood_labels.tif\t\t0.5\tDAPI;CD3\ttrain
t2\tP2\tgood_he.png\t\tgood_labels.tif\t\t0.5\t\ttrain
v\tP3\tgood_he.png\tgood_sp.tif\tgood_labels.tif\t\t0.5\tDAPI;CD3\tval
e\tP4\tgood_he.png\tgood_sp.tif\tgood_labels.tif\t\t0.5\tDAPI;CD3\ttest
i\tP5\tgood_he.png\tgood_sp.tif\t\t\t0.5\tDAPI;CD3\tinfer
"""


@pytest.fixture
def config(study: Path) -> Path:
    Path("slides.tsv").write_text(SHEET)
    study.write_text(study.read_text().replace("[nucleus, hv, classes]", "[nucleus, hv]"))
    return study


@pytest.fixture
def loaded(config: Path) -> Study:
    return load_study(config)


def reports(study: Study, *bad: str) -> list[SlideReport]:
    faults = (Fault("truncated", "it ends too early"),)
    return [
        SlideReport(row.slide_id, row.patient_id, row.platform, faults=faults if row.slide_id in bad else ())
        for row in study.rows
    ]


@pytest.mark.parametrize(
    ("bad", "sides"),
    [
        ((), []),
        (("t2", "e", "i"), []),
        (
            ("t1",),
            [
                "experiment sp: none of 1 slides to train on is good",
                "encoder mm: none of 1 slides to take its statistics from is good",
            ],
        ),
        (("v",), ["experiment sp, experiment he: none of 1 slides to choose the epoch by is good"]),
        (
            ("t1", "t2"),
            [
                "experiment sp: none of 1 slides to train on is good",
                "experiment he: none of 2 slides to train on is good",
                "encoder mm: none of 1 slides to take its statistics from is good",
            ],
        ),
        (
            ("v", "e", "i"),
            ["experiment sp, experiment he: none of 1 slides to choose the epoch by is good"],
        ),
    ],
)
def test_a_side_without_a_good_slide(loaded: Study, bad: tuple[str, ...], sides: list[str]) -> None:
    assert empty_sides(loaded, reports(loaded, *bad)) == sides


def test_folds_are_told_apart(config: Path) -> None:
    text = config.read_text().replace("{scheme: column}", "{scheme: kfold, folds: 2}")
    config.write_text(text.replace("statistics: holdout", "normalisation: {scope: slide}"))
    loaded = load_study(config)
    found = empty_sides(loaded, reports(loaded, "v", "e"))
    assert found
    assert all("of fold" in text for text in found)


def test_what_is_not_trained_needs_slides_to_predict_only(config: Path) -> None:
    Path("other").mkdir()
    for slide in "vei":
        Path("other", f"{slide}.tif").touch()
    head, _, _ = config.read_text().partition("  sp: {encoder")
    config.write_text(head + "  other: {labels: 'other/{slide}.tif', grid: he64, split: holdout}\n")
    loaded = load_study(config)
    assert empty_sides(loaded, reports(loaded, "t1", "t2", "v", "e")) == []
    assert empty_sides(loaded, reports(loaded, "v", "e", "i")) == [
        "experiment other: none of 3 slides to predict is good"
    ]


def test_what_will_have_no_results_is_told_and_may_start(loaded: Study) -> None:
    assert fruitless(loaded, reports(loaded, "e")) == []
    (text,) = fruitless(loaded, reports(loaded, "e", "v"))
    assert text.startswith("experiment sp, experiment he: none of 2 slides to score is good: there will be no figures")
    (text,) = fruitless(loaded, reports(loaded, "e", "v", "i"))
    assert text.startswith(
        "experiment sp, experiment he: none of 3 slides to predict is good: there will be no results"
    )

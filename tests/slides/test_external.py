from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slideloom.errors import ConfigError
from slideloom.slides.external import external_row, external_rows, external_sources
from slideloom.slides.sheet import SlideRow
from slideloom.slides.study import Study, study_from_mapping

SHEET = "slide_id\the\tinstances\tclasses\tmpp_um\tsplit\n" + "".join(
    f"s{k}\the.tif\tinst.tif\tclasses.csv\t0.5\t{role}\n" for k, role in enumerate(("train", "val", "test", "infer"))
)


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    for name in ("he.tif", "inst.tif", "s2.tif", "s2.csv"):
        Path(name).touch()
    Path("classes.csv").write_text("id,class\n1,a\n")
    Path("slides.tsv").write_text(SHEET)
    Path("classes.tsv").write_text("id\tname\tcolour\n1\ta\t#ff0000\n")
    return {
        "study": "s",
        "slides": "slides.tsv",
        "classes": "classes.tsv",
        "grids": {"he": {"image": "he", "tile_px": 64}},
        "splits": {"holdout": {}},
        "experiments": {"other": {"labels": "{slide}.tif", "grid": "he", "split": "holdout"}},
    }


def _study(mapping: dict[str, Any]) -> Study:
    return study_from_mapping(mapping, Path.cwd())


def _told(mapping: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        _study(mapping)
    return str(caught.value)


def test_the_slides_id_stands_in_the_path() -> None:
    row = external_row(SlideRow("a-1", he="x.svs", instances="truth.tif", classes="truth.csv"), "m/{slide}.tif", None)
    assert (row.instances, row.classes, row.he) == ("m/a-1.tif", None, "x.svs"), "the truth's classes do not leak in"
    row = external_row(row, "m/{slide}.npz::labels", "m/all.csv::{slide}")
    found = external_sources(row, "m/{slide}.npz::labels", "m/all.csv::{slide}", Path("root"))
    assert [(source.path, source.member) for source in found] == [
        (Path("root/m/a-1.npz"), "labels"),
        (Path("root/m/all.csv"), "a-1"),
    ]


def test_slides_that_are_predicted_have_them(mapping: dict[str, Any]) -> None:
    study = _study(mapping)
    found = external_rows(study.rows, study.config)
    assert sorted(found) == ["s1", "s2", "s3"], "a training slide is not predicted"
    row, grid = found["s2"]["other"]
    assert row.instances == "s2.tif"
    assert grid == study.config.grids["he"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"labels": "all.tif"}, "{slide}"),
        ({"grid": None}, "'grid'"),
        ({"grid": "hee"}, "Did you mean 'he'?"),
        ({"encoder": "x"}, "neither 'encoder'"),
        ({"labels": "gone/{slide}.tif"}, "none of the files of 2 scored slides exists"),
        ({"label_classes": "gone/{slide}.csv"}, "label_classes: none of the files"),
        ({"training": {"lr": 1e-3}}, "plays no part"),
        ({"labels": None}, "an 'encoder', or the 'labels'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(mapping: dict[str, Any], edit: dict[str, Any], words: str) -> None:
    entry = mapping["experiments"]["other"] | edit
    mapping["experiments"]["other"] = {key: value for key, value in entry.items() if value is not None}
    assert words in _told(mapping)


def test_classes_need_names(mapping: dict[str, Any]) -> None:
    del mapping["classes"]
    mapping["experiments"]["other"]["label_classes"] = "{slide}.csv"
    assert "needs the key 'classes'" in _told(mapping)


def test_a_missing_file_of_one_slide_is_no_mistake_of_the_config(mapping: dict[str, Any]) -> None:
    assert not Path("s1.tif").exists()
    assert _study(mapping).experiment_slides("other")

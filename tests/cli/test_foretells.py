"""The doctor foretells what the corpus of bad input declares: which slides fail, with which code, and which do not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from tests.bad_inputs.corpus import SLIDES
from tests.bad_inputs.panel import MARKERS
from tests.bad_inputs.scene import CLASS_NAMES

from slideloom.cli.examine import examine
from slideloom.cli.slide_report import SlideReport
from slideloom.config.load import load_config
from slideloom.slides.sheet import read_sheet
from slideloom.slides.study import Study
from slideloom.slides.tables import read_classes, read_markers

CONFIG = """\
study: corpus
slides: slides.tsv
markers: markers.tsv
classes: classes.tsv
grids: {he64: {image: he, tile_px: 64}, sp64: {image: sp, tile_px: 64}}
encoders:
  vit: {model: timm/test_vit, grid: he64, random: 0}
  mean: {model: mean_marker, grid: sp64, normalisation: {scope: slide}}
splits: {all: {scheme: column}}
experiments:
  he: {encoder: vit, split: all, heads: [nucleus, hv]}
  sp: {encoder: mean, split: all, heads: [nucleus, hv]}
"""
FILES = ("he", "sp", "instances", "classes")
#: Where headers and the overview tell a failure, unless it takes every pixel or the whole annotation.
EARLY = ("facts", "tissue")
#: Told as a warning: whether such values lie in tissue is for the patches to tell.
ONLY_WARNED = {"non_finite_pixels"}


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["headers", "deep"])
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, dict[str, SlideReport]]:
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for kind in SLIDES:
        place = folder / kind.name
        place.mkdir()
        cells = {key: f"{kind.name}/{value}" if key in FILES else value for key, value in kind.make(place).items()}
        rows.append({"slide_id": kind.name, "patient_id": kind.name, "split": "train", **cells})
    pd.DataFrame(rows).fillna("").to_csv(folder / "slides.tsv", sep="\t", index=False)
    markers = ["channel\tmarker\tuniprot\tnuclear", *("\t".join(row) for row in MARKERS)]
    (folder / "markers.tsv").write_text("\n".join(markers) + "\n", encoding="utf-8")
    classes = [f"{number}\t{name}\t#8080{number}0" for number, name in enumerate(CLASS_NAMES, 1)]
    (folder / "classes.tsv").write_text("\n".join(["id\tname\tcolour", *classes]) + "\n")
    (folder / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Files that are not there are refused before anything is opened; here they are opened all the same.
        config, place = load_config(Path("config.yaml")), Path("slides.tsv")
        markers_table, classes_table = read_markers(Path("markers.tsv"))[0], read_classes(Path("classes.tsv"))[0]
        rows_read = tuple(read_sheet(place)[0])
        study = Study(config, Path("config.yaml"), rows_read, markers_table, classes_table, Path())
        reports = examine(study, deep=request.param, workers=1)
        return request.param, {report.slide_id: report for report in reports}


def test_who_fails_and_why(seen: tuple[bool, dict[str, SlideReport]]) -> None:
    deep, reports = seen
    declared, told = {}, {}
    for kind in SLIDES:
        codes = {fault.code for fault in reports[kind.name].faults}
        assert "internal" not in codes, reports[kind.name].faults
        fails = kind.answer == "failed" and kind.code not in ONLY_WARNED
        if fails and not deep and kind.stage not in EARLY:
            continue  # it takes every pixel, or the whole annotation
        declared[kind.name] = {kind.code} if fails else set()
        told[kind.name] = codes
    assert len(declared) > 100
    assert told == declared


def test_every_fault_says_what_to_do(seen: tuple[bool, dict[str, SlideReport]]) -> None:
    for name, report in seen[1].items():
        for fault in report.faults:
            assert name in fault.message, fault
            assert fault.hint, fault

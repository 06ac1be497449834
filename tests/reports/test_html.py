"""The page: whole, escaped, closed to the network, and readable whatever is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from slideloom.config.model import EvaluationConfig, StudyConfig
from slideloom.reports.gather import gather_reports
from slideloom.reports.html import describe_experiments, installed_versions, render_report
from slideloom.reports.overlays import draw_overlays
from slideloom.slides.tables import ClassTable

_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes, ids and text, and refuses unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def count(self, tag: str, **wanted: str) -> int:
        """Tags with these attributes."""
        return sum(t == tag and all(a.get(k) == v for k, v in wanted.items()) for t, a in self.tags)


@pytest.fixture(scope="module")
def written(cohort: Any) -> str:
    """The page of the small cohort."""
    place = cohort.paths.reports()
    runs = list(cohort.runs.values())
    gather_reports("ki67 <b>", runs, cohort.rows, cohort.records, cohort.benchmarks, cohort.paths.root, place)
    overlays = draw_overlays([cohort.sources[0], cohort.sources[-1]], cohort.classes)
    render_report(
        place,
        place / "report.html",
        study="ki67 <b>",
        classes=cohort.classes,
        experiments={"good": "encoder <i>x</i>", "poor": "RANDOM"},
        overlays=overlays,
        n_slides=7,
        config_text="a: <script>alert(1)</script>",
        versions={"slideloom": "0"},
    )
    return (place / "report.html").read_text(encoding="utf-8")


def test_the_page_is_balanced_and_its_links_lead_somewhere(written: str) -> None:
    page = Page(written)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        for name in ("href", "src"):
            target = attrs.get(name, "")
            if target.startswith("#"):
                assert target[1:] in ids, target
            else:
                assert not target or target.startswith("data:image/"), f"{tag} {target[:60]}"


def test_nothing_comes_from_elsewhere(written: str, cohort: Any) -> None:
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|//[a-z]+\.", written)
    assert "default-src 'none'" in written
    assert str(cohort.root) not in written


def test_everything_from_outside_is_escaped(written: str) -> None:
    page = Page(written)
    assert page.count("script") == 2  # the page's and that of the pictures; nobody else's
    assert page.count("b", **{}) > 0
    assert "ki67 <b>" in page.text
    assert "tumour <&>" in page.text
    assert "a: <script>alert(1)</script>" in page.text
    assert "encoder <i>x</i>" in page.text
    assert "x <b>: cut" in page.text
    assert "the largest, 'a <i>b</i>', is read" in page.text


def test_random_weights_are_shouted_and_failures_told(written: str) -> None:
    text = Page(written).text
    assert "Random weights." in text
    assert "⚠ random" in text
    assert "truncated" in text
    assert "Copy it again" in text
    assert re.search(r"4\s+of 7\s*slides scored", text)


def test_the_weights_are_named_by_their_digests(written: str) -> None:
    text = Page(written).text
    assert f"sha256:{'ab' * 32}sha256:{'cd' * 32}" in text
    assert text.count("sha256:") == 2  # random weights have none
    assert "good does not read DNA" in text


def test_slides_charts_pictures_and_costs_are_there(written: str) -> None:
    page = Page(written)
    for section in ("cohort", "failures", "warnings", "experiments", "comparisons", "slides", "classes", "curves",
                    "overlays", "biology", "training", "costs", "provenance"):  # fmt: skip
        assert page.count("section", id=section) == 1, section
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and attrs.get("class") == "chart"]
    for label, n in (
        ("Mean of each metric with its interval, by experiment", 1),
        ("Dice of pixels of each class, by experiment", 1),
        ("PQ of each class, by experiment", 1),
        ("F1 of detection of each class, by experiment", 1),
        ("True and predicted share of each class", 2),
        ("Confusion matrices of pixels and nuclei", 2),
        ("Precision over recall of nucleus pixels, by experiment", 1),
        ("Precision over recall of the pixels of each class", 2),
        ("How often a probability is right, by experiment", 2),
        ("Nuclei per mm² of tissue, by class and experiment", 1),
        ("Share of each class among the predicted nuclei, by experiment", 1),
        ("Loss and validation scores over epochs", 1),
    ):
        assert labels.count(label) == n, label
    rows = re.search(r'id="slide-table".*?</table>', written, re.DOTALL)
    assert rows
    assert rows.group().count("<tr>") == 1 + 8


def test_what_was_chosen_and_who_found_the_nuclei_is_said(cohort: Any, written: str, tmp_path: Path) -> None:
    told = {"good": "labels of another program · labels x/{slide}.tif"}
    place, evaluation = tmp_path / "r.html", EvaluationConfig(convention="stardist", detection_radius_um=4.5)
    render_report(cohort.paths.reports(), place, study="s", classes=cohort.classes, experiments=told,
                  evaluation=evaluation)  # fmt: skip
    page = Page(place.read_text(encoding="utf-8"))
    assert page.count("span", **{"class": "ext"}) > 3
    assert "stardist" in page.text
    assert "4.5 µm" in page.text
    assert Page(written).count("span", **{"class": "ext"}) == 0
    assert "How predictions were scored" not in written


def test_equal_tables_give_equal_pages(written: str, cohort: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        render_report(cohort.paths.reports(), tmp_path / name, study="s", classes=cohort.classes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_empty_study_is_a_page_too(tmp_path: Path) -> None:
    gather_reports("none", [], [], [], [], tmp_path, tmp_path)
    render_report(tmp_path, tmp_path / "report.html", study="none", classes=ClassTable())
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "No slide was scored" in text
    assert "Random weights" not in text


def test_a_study_of_failures_only(blank: Any, tmp_path: Path) -> None:
    lost = {"status": "failed", "stage": "tissue", "code": "no_tissue", "message": "nothing"}
    blank.record("tissue", "", {"s": lost})
    gather_reports("bad", [], [], blank.records, [], blank.paths.root, tmp_path)
    render_report(tmp_path, tmp_path / "r.html", study="bad", classes=ClassTable(), experiments={"sp": "x"}, n_slides=1)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "no_tissue" in page.text
    assert page.count("a", href="#failures", **{"class": "bad"}) == 1


def test_experiments_are_described_and_controls_named() -> None:
    config = StudyConfig.model_validate(
        {
            "study": "x",
            "slides": "slides.tsv",
            "grids": {"g": {"image": "sp", "tile_px": 120, "mpp_um": 0.5}},
            "encoders": {"r": {"model": "timm/x", "grid": "g", "random": 3, "off_resolution": True}},
            "splits": {"s": {}},
            "experiments": {"e": {"encoder": "r", "split": "s", "training": {"shuffle_targets": True}}},
        }
    )
    line = describe_experiments(config)["e"]
    assert "RANDOM WEIGHTS: r seed 3" in line
    assert "SHUFFLED TARGETS" in line
    assert "off the resolution that weights were made for, on purpose: r" in line
    assert "120 px at 0.5 µm/px" in line
    assert {"slideloom", "python", "numpy"} <= set(installed_versions())

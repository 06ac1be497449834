"""The page: whole, escaped, closed to the network, and readable whatever is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from slideloom.config.model import StudyConfig
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
    assert page.count("script") == 1
    assert page.count("b", **{}) > 0
    assert "ki67 <b>" in page.text
    assert "tumour <&>" in page.text
    assert "a: <script>alert(1)</script>" in page.text
    assert "encoder <i>x</i>" in page.text
    assert "x <b>: cut" in page.text


def test_random_weights_are_shouted_and_failures_told(written: str) -> None:
    text = Page(written).text
    assert "Random weights." in text
    assert "⚠ random" in text
    assert "truncated" in text
    assert "Copy it again" in text
    assert re.search(r"4\s+of 7\s*slides scored", text)


def test_the_weights_are_named_by_their_digests(written: str) -> None:
    text = Page(written).text
    assert f"encoder <i>x</i> · weights sha256:{'ab' * 32}, sha256:{'cd' * 32}" in text
    assert "RANDOM · weights" not in text


def test_slides_charts_pictures_and_costs_are_there(written: str) -> None:
    page = Page(written)
    for section in ("experiments", "slides", "classes", "overlays", "training", "failures", "costs", "provenance"):
        assert page.count("section", id=section) == 1
    assert page.count("figure", **{"class": "pane"}) == 3 + 1  # one slide with truth, one without
    assert page.count("svg", **{"class": "chart"}) == 1 + 1 + 2 + 2
    rows = re.search(r'id="slide-table".*?</table>', written, re.DOTALL)
    assert rows
    assert rows.group().count("<tr>") == 1 + 8


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

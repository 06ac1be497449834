"""Charts as files: every promised one is there, well formed, stands alone, and holds what the page's chart holds."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from subprocess import run
from typing import Any
from xml.etree import ElementTree

import pytest
from docutils.core import publish_string
from tests.reports.conftest import GRID_CLASSES

from slideloom.artefacts.tables import read_table, write_table
from slideloom.reports.figures import FIGURES
from slideloom.reports.gather import gather_reports
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.reports.standalone import write_figures
from slideloom.slides.tables import ClassTable

CAPTIONS = Path(__file__).resolve().parents[2] / "workflow" / "report"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def written(cohort: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Figures of the small cohort."""
    place = tmp_path_factory.mktemp("tables")
    runs = list(cohort.runs.values())
    gather_reports("ki67 <b>", runs, cohort.rows, cohort.records, cohort.benchmarks, cohort.paths.root, place)
    files = write_figures(place, place / "figures", cohort.classes, "ki67 <b>", ["good", "poor"])
    assert [file.name for file in files] == [f"{name}.svg" for name in FIGURES]
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


def told(text: str) -> str:
    """What a figure says in words, titles aside."""
    return " ".join("".join(one.itertext()) for one in ElementTree.fromstring(text).iter(f"{SVG}text"))


def test_every_figure_has_a_caption_and_no_caption_is_without_one() -> None:
    captions = {figure.caption for figure in FIGURES.values()}
    assert len(captions) == len(FIGURES)
    assert {place.name for place in CAPTIONS.glob("*.rst")} == captions | {"page.rst", "workflow.rst"}
    for caption in captions:
        text = (CAPTIONS / caption).read_text(encoding="utf-8")
        # Anything that docutils would warn of is an error here.
        told = publish_string(text, writer="pseudoxml", settings_overrides={"report_level": 1, "halt_level": 1})
        assert b"<paragraph>" in told
        assert len(text.split()) > 8
    assert len({figure.title for figure in FIGURES.values()}) == len(FIGURES)


def test_planning_learns_the_names_from_a_module_that_imports_nothing() -> None:
    heavy = "[name for name in ('numpy', 'pyarrow') if name in sys.modules]"
    program = f"import sys; import slideloom.reports.figures; print({heavy})"
    done = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_are_well_formed_and_stand_alone(written: dict[str, str]) -> None:
    for name, text in written.items():
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert root.find(f"{SVG}title").text == FIGURES[name].title
        assert not re.search(r"""(href|src)=|url\(|@import|<script""", text), name
        assert "prefers-color-scheme:dark" in text
        # All that the marks ask for is laid down in the file.
        assert set(re.findall(r"var\((--[a-z0-9]+)\)", text)) <= set(re.findall(r"(--[a-z0-9]+):", text)), name
        assert not re.search(r"\b(nan|inf)\b", text)


def test_figures_hold_what_was_measured(written: dict[str, str]) -> None:
    for name in set(FIGURES) - {"stalls"}:
        assert "Nothing to show" not in told(written[name]), name
    for name in ("intervals", "class_dice", "confusion", "training", "calibration"):
        assert "good" in told(written[name]), name
    assert "poor" not in told(written["training"]), "it was not trained"
    assert "tumour <&>" in told(written["confusion"])
    assert "ki67 <b>, test slides" in told(written["intervals"])
    assert "test slides" not in told(written["costs"])
    assert "Nothing to show" in told(written["stalls"]), "no job kept an account"


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    gather_reports("none", [], [], [], [], tmp_path, tmp_path)
    for file in write_figures(tmp_path, tmp_path / "figures", ClassTable(), "none"):
        assert "Nothing to show" in told(file.read_text(encoding="utf-8"))


def test_equal_tables_give_equal_files_and_odd_names_are_legal(grid: Any, tmp_path: Path) -> None:
    place = grid({f"experiment_{number}": 0.4 + number / 50 for number in range(10)}).write(tmp_path)
    for name, schema in REPORT_TABLES.items():
        rows = read_table(schema, place / f"{name}.parquet").to_pylist()
        odd = [row | ({"class_name": f"\x01]]>{row['class_name']}"} if row.get("class_name") else {}) for row in rows]
        write_table(schema, odd, place / f"{name}.parquet")
    one, two = (write_figures(place, tmp_path / name, GRID_CLASSES, "a\x08 & b") for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
    for file in one:
        assert "a\ufffd & b" in told(file.read_text(encoding="utf-8"))
    intervals = told(one[0].read_text(encoding="utf-8"))
    assert all(f"experiment_{number}" in intervals for number in range(10))


def test_a_figure_is_as_large_as_what_it_holds(written: dict[str, str]) -> None:
    for name, text in written.items():
        root = ElementTree.fromstring(text)
        width, height = float(root.get("width")), float(root.get("height"))
        for group in root.iter(f"{SVG}g"):
            if move := re.fullmatch(r"translate\(([0-9.]+) ([0-9.]+)\)", group.get("transform", "")):
                assert float(move[1]) < width, name
                assert float(move[2]) < height, name

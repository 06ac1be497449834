"""The page of a study with many experiments and a published report: whole, readable, and of a bearable size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.reports.test_html import Page

from slideloom.artefacts.tables import read_table
from slideloom.reports.comparison_views import comparison_matrices, comparison_rows, power_notes
from slideloom.reports.gather import gather_reports
from slideloom.reports.html import render_report
from slideloom.reports.plots import Dot, interval_grid
from slideloom.reports.published_views import published_caution
from slideloom.reports.schemas import COMPARISONS, EXPERIMENTS
from slideloom.reports.views import trained_rows
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2), ("Stroma", "Tumor"), ((1, 2, 3), (4, 5, 6)), ((), ()))


def page_of(tables: Path, place: Path, **more: Any) -> str:
    """The page's text."""
    render_report(tables, place, study="grid", classes=CLASSES, published="sp_he", **more)
    return place.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(many: Path) -> str:
    return page_of(many, many / "report.html")


def test_many_experiments_are_tables_not_endless_charts(written: str) -> None:
    page = Page(written)
    text = re.sub(r"\s+", " ", page.text)
    assert len(written) < 4_000_000
    assert page.count("table", **{"class": "pairs"}) == 9
    # Dice of each class, and nine figures by tissue.
    assert page.count("table", **{"class": "heat sortable"}) == 1 + 9
    assert "PQ by tissue" in text
    # Charts of all experiments together stand open; those of one each lie in closed details.
    opened = re.sub(r"<details>.*?</details>", "", written, flags=re.DOTALL)
    assert re.findall(r'<svg class="chart"[^>]*aria-label="([^"]*)"', opened) == [
        "Mean of each metric with its interval, by experiment",
        "Precision over recall of nucleus pixels, by experiment",
        "How often a probability is right, by experiment",
        "How often a probability is right, by experiment",
        "Share of each class among the predicted nuclei, by experiment",
    ]
    assert "PQ: 0 of 325 differences shown" in text
    assert "cannot reach a p_adj below 0.05" in text
    assert "All 312 rows" in text
    assert "The encoder of sp_16 was never trained" in text


def test_the_published_section_stands_beside_ours(written: str) -> None:
    page = Page(written)
    assert page.count("section", id="published") == 1
    text = re.sub(r"\s+", " ", page.text)
    for number in range(1, 9):
        assert f"Table {number}. " in text
    assert "Not in the report: what a decoder" in text
    assert "Not comparable in size" in text
    assert "the slides are synthetic" in text
    assert re.search(r"holds: \+0\.1", text)
    assert "nothing. The 95 % interval of the difference is -0.23 to +0.25" in text
    assert "0.007 %" in text


def test_a_study_that_names_no_report_has_no_such_section(many: Path, tmp_path: Path) -> None:
    render_report(many, tmp_path / "r.html", study="grid", classes=CLASSES)
    assert Page((tmp_path / "r.html").read_text()).count("section", id="published") == 0


def test_experiments_that_are_missing_leave_gaps(grid: Any, tmp_path: Path) -> None:
    few = grid({"ce_dice": 0.5, "ce_dice_ft": 0.6, "sp_instances": 0.6}, platform="Orion").write(tmp_path)
    text = re.sub(r"\s+", " ", Page(page_of(few, tmp_path / "r.html")).text)
    assert "None of its 2 experiments was run here." in text
    assert "Not comparable in size" not in text
    assert "not run here" in text
    assert "ce_dice_ft better, p_adj = 0.0078" in text


def test_a_report_beside_an_empty_study(tmp_path: Path) -> None:
    gather_reports("none", [], [], [], [], tmp_path, tmp_path, published="sp_he")
    text = Page(page_of(tmp_path, tmp_path / "r.html")).text
    assert "None of its 4 experiments was run here." in text


def test_every_pair_has_one_cell_seen_from_the_better_row(many: Path) -> None:
    comparisons = read_table(COMPARISONS, many / "comparisons.parquet").to_pylist()
    experiments = read_table(EXPERIMENTS, many / "experiments.parquet").to_pylist()
    matrices = comparison_matrices(comparisons, experiments, "test")
    dice = next(matrix for matrix in matrices if matrix.name == "Dice, mean of classes")
    assert len(dice.names) == 24  # the two without a class head have no such figure
    cells = {(dice.names[k], dice.names[j]): cell
             for k, row in enumerate(dice.rows) for j, cell in enumerate(row) if cell}  # fmt: skip
    assert len(cells) == dice.n_pairs == 24 * 23 // 2
    for (first, second), cell in cells.items():
        row = next(r for r in comparisons if r["metric"] == "dice_macro"
                   and {r["experiment_a"], r["experiment_b"]} == {first, second})  # fmt: skip
        sign = 1 if row["experiment_b"] == first else -1
        assert cell.text == f"{100 * sign * row['difference']:+.1f}"
        assert cell.title.startswith(f"{first} less {second}: ")
    assert dice.n_shown == sum(cell.state != "" for cell in cells.values())
    assert len(comparison_rows(comparisons, "test")) == sum(matrix.n_pairs for matrix in matrices)


def test_what_cannot_be_shown_is_said() -> None:
    pair = {"experiment_a": "a", "experiment_b": "b", "role": "test", "metric": "pq", "n": 4, "n_family": 1}
    weak = pair | {"n_patients": 4, "p_value": 0.125, "p_smallest": 0.125, "p_adjusted_smallest": 0.125}
    assert power_notes([weak], "test") == [
        "The pair cannot reach a p below 0.05: they share too few patients. The smallest that is possible, with "
        "4 patients, is 0.12."
    ]
    alone = pair | {"n_patients": 1, "p_value": None, "p_smallest": None, "p_adjusted_smallest": None}
    assert power_notes([alone], "test") == ["The pair: one shared patient only, nothing can be tested."]
    strong = weak | {"n_patients": 9, "p_smallest": 0.004, "p_adjusted_smallest": 0.004}
    assert power_notes([strong], "test") == power_notes([], "test") == []
    crowded = strong | {"p_adjusted_smallest": 0.4}
    assert "too few patients for so many pairs" in power_notes([crowded], "test")[0]


def test_the_caution_says_why() -> None:
    rows = [{"experiment": name, "random_weights": chance} for name, chance in (("a", True), ("b", False), ("c", None))]
    assert "the encoders of 1 of 2 experiments ran with random weights" in published_caution(rows, [])
    assert "of all experiments" in published_caution(rows[:1], [{"platform": "Orion"}])
    assert "synthetic" in published_caution(rows[1:], [{"platform": "synthetic-a"}])
    assert published_caution(rows[1:], [{"platform": "Orion"}]) == ""


def test_a_training_without_validation_or_best_epoch_is_a_line() -> None:
    rows = [{"experiment": "a", "fold": "0", "epoch": k, "seconds": 1.5, "best": None, "train_loss": 1 / (k + 1)}
            for k in range(3)]  # fmt: skip
    (line,) = trained_rows(rows)
    assert (line.epochs, line.best_epoch, line.train_loss, line.val_loss) == (3, None, pytest.approx(1 / 3), None)
    assert line.seconds == 4.5


def test_every_column_of_the_grid_has_its_own_scale() -> None:
    dots = [Dot(0, "a", 0.2, 0.1, 0.3), Dot(0, "b", 0.6), Dot(0, "c", None)]
    svg = interval_grid([("PQ", dots), ("none", [Dot(0, name, None) for name in "abc"])])
    assert svg.count('class="dot"') == 2
    assert ">0.10<" in svg
    assert ">0.60<" in svg
    assert "c: undefined" in svg

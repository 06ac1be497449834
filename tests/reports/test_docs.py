"""docs/tables.md is what the schemas say."""

from __future__ import annotations

from pathlib import Path

import pytest

from slideloom.artefacts.tables import TableSchema, write_table
from slideloom.errors import SlideloomError
from slideloom.instances.cells import CELLS
from slideloom.metrics.biology_schemas import BIOLOGY, NEIGHBOURS
from slideloom.metrics.conventions import CONVENTIONS
from slideloom.metrics.detail_schemas import CONFUSION, SCORES, TILES
from slideloom.metrics.schemas import CLASS_METRICS, COMPARED, SLIDE_METRICS
from slideloom.reports.aggregate import IMAGE_METRICS
from slideloom.reports.class_summary import CLASS_COMPARED
from slideloom.reports.docs import tables_markdown
from slideloom.reports.pooled import CLASS_METRICS_OF_COUNTS, MACRO_METRICS_OF_COUNTS
from slideloom.reports.schemas import CURVES, REPORT_TABLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tables.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == tables_markdown(), "run: python -m slideloom.reports.docs docs/tables.md"


#: Columns of a key that may be null: a nucleus map is of no class; a published figure may stand beside nothing.
_NULL_IN_KEYS = {("curves", "class_id"), ("slide_scores", "class_id"), ("references", "experiment")}


@pytest.mark.parametrize("schema", [*REPORT_TABLES.values(), SCORES, TILES, CELLS], ids=lambda schema: schema.name)
def test_every_column_has_a_meaning_and_says_when_it_is_null(schema: TableSchema) -> None:
    for column in schema.columns:
        assert column.meaning.endswith((".", "pandas.")), column.name
        kind = getattr(column.type, "value_type", column.type)
        line = f"| `{column.name}` | {kind} | {column.unit} | {column.meaning} | {column.null or 'never'} |"
        assert line in tables_markdown()
    assert set(schema.key) <= set(schema.names)
    open_to_null = {column.name for column in schema.columns if column.name in schema.key and column.null}
    assert {(schema.name, name) for name in open_to_null} <= _NULL_IN_KEYS


def test_rows_whose_key_holds_a_null_are_told_apart(tmp_path: Path) -> None:
    row = {"study": "x", "experiment": "a", "role": "test", "random_weights": False, "of": "nucleus", "threshold": 0.5}
    row |= {"precision": 1.0, "recall": 1.0, "tp": 1, "fp": 0, "n_true": 1, "exact": True, "n_slides": 1}
    of_class = row | {"of": "class", "class_id": 0, "class_name": "background"}
    assert write_table(CURVES, [row, of_class], tmp_path / "curves.parquet").num_rows == 2
    with pytest.raises(SlideloomError, match="repeat a key"):
        write_table(CURVES, [row, of_class, row], tmp_path / "curves.parquet")


def test_what_slides_hold_is_what_reports_hold() -> None:
    for of_slide, name in (
        (SLIDE_METRICS, "slides"),
        (CLASS_METRICS, "classes"),
        (CONFUSION, "confusion"),
        (BIOLOGY, "biology"),
        (NEIGHBOURS, "neighbours"),
    ):
        figures = [column for column in of_slide.columns if column.name not in ("slide_id", "image")]
        assert list(REPORT_TABLES[name].columns[-len(figures) :]) == figures
        assert REPORT_TABLES[name].open_columns == of_slide.open_columns


def test_the_page_names_every_file_and_convention() -> None:
    text = tables_markdown()
    for name in REPORT_TABLES:
        assert f"## `reports/{name}.parquet`" in text
    for name in ("slide", "classes", "confusion", "scores", "tiles"):
        assert f"`metrics/{{experiment}}/{{fold}}/{{slide}}/{name}.parquet`" in text
    for name in ("biology", "neighbours"):
        assert f"`biology/{{experiment}}/{{fold}}/{{slide}}/{name}.parquet`" in text
    for name, rule in CONVENTIONS.items():
        line = next(line for line in text.splitlines() if line.lstrip().startswith(f"| `{name}`"))
        assert ("at least" in line) == rule.inclusive
        assert ("matches once" in line) == rule.one_to_one


def test_every_figure_that_is_summarised_is_a_column() -> None:
    assert set(COMPARED) <= set(REPORT_TABLES["slides"].names)
    assert set(CLASS_COMPARED) <= set(REPORT_TABLES["classes"].names)
    assert set(CLASS_METRICS_OF_COUNTS) <= set(CLASS_COMPARED)
    assert set(MACRO_METRICS_OF_COUNTS) <= set(COMPARED)
    assert set(IMAGE_METRICS) <= set(COMPARED)


def test_the_contract_of_the_design_is_kept() -> None:
    wanted = {
        "slides": "study experiment fold slide_id patient_id platform role n_tiles area_mm2 n_gt n_pred tp fp fn pq dq "
        "sq bpq mpq aji f1_50 f1_mean sq_mean precision recall f1_pixel precision_pixel recall_pixel pixel_accuracy "
        "map dice_binary dice_macro hv_mse seam_change_rate",
        "classes": "study experiment fold slide_id class_id class_name gt_pixels pred_pixels gt_fraction pred_fraction "
        "dice iou precision recall n_gt n_pred tp fp fn pq dq sq f1",
        "experiments": "experiment metric averaging n mean std ci_low ci_high",
        "groups": "study experiment role by group metric random_weights n n_patients mean std ci_low ci_high",
        "experiment_classes": "study experiment role class_id class_name metric averaging random_weights n n_slides "
        "n_patients mean std ci_low ci_high",
        "confusion": "study experiment fold slide_id patient_id platform tissue role true_class_id true_class_name "
        "pred_class_id pred_class_name pixels nuclei",
        "curves": "study experiment role random_weights of class_id class_name threshold precision recall tp fp n_true "
        "exact n_slides",
        "calibration": "study experiment role random_weights of bin low high pixels mean_probability true_share",
        "biology": "study experiment fold slide_id patient_id platform tissue role scope n density_per_mm2",
        "neighbours": "study experiment fold slide_id patient_id platform tissue role scope n n_to distance_mean_um",
        "references": "study figure published experiment comparable differs mean",
        "comparisons": "experiment_a experiment_b metric difference ci_low ci_high p_value n",
        "training": "experiment fold epoch lr seconds",
        "costs": "rule wildcards seconds cpu_seconds max_rss_mb gpu_seconds tiles_per_s read_mb written_mb",
        "failures": "slide_id stage reason_code message hint",
        "warnings": "study slide_id stage context message",
    }
    for name, columns in wanted.items():
        assert set(columns.split()) <= set(REPORT_TABLES[name].names), name

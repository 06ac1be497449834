"""docs/tables.md is what the schemas say."""

from __future__ import annotations

from pathlib import Path

from slideloom.reports.docs import tables_markdown
from slideloom.reports.schemas import REPORT_TABLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tables.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == tables_markdown(), "run: python -m slideloom.reports.docs docs/tables.md"


def test_every_column_has_a_meaning_and_says_when_it_is_null() -> None:
    text = tables_markdown()
    for schema in REPORT_TABLES.values():
        for column in schema.columns:
            assert column.meaning.endswith((".", "pandas.")), column.name
            assert f"| `{column.name}` |" in text
        assert set(schema.key) <= set(schema.names)
        assert not [column.name for column in schema.columns if column.name in schema.key and column.null]


def test_the_contract_of_the_design_is_kept() -> None:
    wanted = {
        "slides": "study experiment fold slide_id patient_id platform role n_tiles area_mm2 n_gt n_pred tp fp fn pq dq "
        "sq bpq mpq aji f1_50 f1_mean sq_mean precision recall f1_pixel precision_pixel recall_pixel pixel_accuracy "
        "map dice_binary dice_macro hv_mse seam_change_rate",
        "classes": "study experiment fold slide_id class_id class_name gt_pixels pred_pixels gt_fraction pred_fraction "
        "dice iou precision recall n_gt n_pred tp fp fn pq dq sq f1",
        "experiments": "experiment metric averaging n mean std ci_low ci_high",
        "comparisons": "experiment_a experiment_b metric difference ci_low ci_high p_value n",
        "training": "experiment fold epoch lr seconds",
        "costs": "rule wildcards seconds cpu_seconds max_rss_mb gpu_seconds tiles_per_s read_mb written_mb",
        "failures": "slide_id stage reason_code message hint",
    }
    for name, columns in wanted.items():
        assert set(columns.split()) <= set(REPORT_TABLES[name].names), name

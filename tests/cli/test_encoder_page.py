"""docs/encoders.md: tables as the catalogue and the kept figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slideloom.cli.encoder_page import COSTS, fill_tables, tables
from slideloom.config.catalogue import CATALOGUE, find_entry
from slideloom.encoders.costs import default_tile, encoder_gflop

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encoders.md"


@pytest.fixture(scope="module")
def costs() -> dict[str, Any]:
    return json.loads((PAGE.parent / COSTS).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_page_is_current(costs: dict[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == fill_tables(text, costs), "run: python -m slideloom.cli.encoder_page docs/encoders.md"


def test_filling_twice_changes_nothing_and_spares_the_prose(costs: dict[str, Any]) -> None:
    prose = "before\n\n" + "".join(
        f"<!-- table: {name} -->\nstale row\n<!-- end -->\nkept {name}\n" for name in tables(costs)
    )
    filled = fill_tables(prose, costs)
    assert "stale row" not in filled
    assert fill_tables(filled, costs) == filled
    assert [line for line in filled.splitlines() if line.startswith(("before", "kept"))] == [
        "before",
        *(f"kept {name}" for name in tables(costs)),
    ]


def test_a_page_without_a_table_is_refused(costs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the page has the tables gives; there are expects"):
        fill_tables("<!-- table: gives -->\n<!-- end -->", costs)


def test_every_encoder_has_a_row_that_says_its_licence(costs: dict[str, Any]) -> None:
    made = tables(costs)
    for name, entry in CATALOGUE.items():
        for table in ("expects", "gives", "sources"):
            rows = [row for row in made[table].splitlines() if row.startswith(f"| `{name}` |")]
            assert len(rows) == 1, (name, table)
        assert entry.licence in rows[0]
    widths = {
        table: {row.count(" | ") for row in text.splitlines() if row.startswith("|")} for table, text in made.items()
    }
    assert all(len(counts) == 1 for counts in widths.values()), widths


def test_every_architecture_has_a_cost(costs: dict[str, Any]) -> None:
    told = costs["encoders"]
    twins = {"virtues/sp31", "virtues/sp32", "virtues/imc14", "h_optimus_1"}
    assert set(CATALOGUE) - set(told) == twins | {"cellvit/vit", "timm/<name>"}
    for name in ("virtues", "phikon", "cellvit/vit256"):
        entry = find_entry(name)
        assert entry is not None
        assert told[name]["tile_px"] == default_tile(entry)
        wanted = encoder_gflop(entry, default_tile(entry), told[name]["markers"])
        assert told[name]["gflop"] == pytest.approx(wanted, rel=1e-3)


def test_measured_figures_name_their_command(costs: dict[str, Any]) -> None:
    assert costs["measured"]
    for device, run in costs["measured"].items():
        assert f"--device {device}" in run["command"]
        assert run["machine"]
        for name, figures in run["encoders"].items():
            assert name in costs["encoders"]
            assert all(figures[key] >= 0 for key in ("wall_s", "cpu_s", "peak_mb"))

"""Figures by platform, tissue, patient and fold."""

from __future__ import annotations

from typing import Any

import pytest
from tests.reports.test_aggregate import pick, row

from slideloom.reports.aggregate import summarise_experiments
from slideloom.reports.groups import group_table
from slideloom.reports.summary_schemas import GROUPS


def rows() -> list[dict[str, Any]]:
    """Five slides of three patients, two platforms and one tissue that is known; one of two folds."""
    platforms = {"s1": "a", "s2": "a", "s3": "b", "s4": "b", "s5": "b"}
    patients = {"s1": "P1", "s2": "P1", "s3": "P2", "s4": "P3", "s5": "P3"}
    made = []
    for k, (slide, platform) in enumerate(platforms.items()):
        about = {"patient_id": patients[slide], "platform": platform, "tissue": "Colon" if k < 3 else None}
        made.append(row("x", slide, 0.1 + k / 10 if k != 4 else None, aji=0.5, **about))
    again = {"patient_id": "P1", "platform": "a", "tissue": "Colon", "fold": "1"}
    return [*made, row("x", "s1", 0.5, aji=None, **again), row("x", "s9", 0.9, **again | {"role": "val"})]


def test_a_group_is_averaged_like_an_experiment_of_its_slides() -> None:
    found = group_table(rows()).to_pylist()
    line = pick(found, by="platform", group="a", metric="pq", role="test")
    assert (line["n"], line["n_patients"], line["mean"], line["ci_low"]) == (2, 1, pytest.approx(0.25), None)
    for by, column, group in (("platform", "platform", "b"), ("tissue", "tissue", "Colon"), ("fold", "fold", "0")):
        own = [one for one in rows() if one[column] == group and one["role"] == "test"]
        wanted = pick(summarise_experiments(own), metric="pq", averaging="slide", role="test")
        line = pick(found, by=by, group=group, metric="pq", role="test")
        assert {name: line[name] for name in ("n", "n_patients", "mean", "std", "ci_low", "ci_high")} == {
            name: wanted[name] for name in ("n", "n_patients", "mean", "std", "ci_low", "ci_high")
        }  # fmt: skip


def test_groups_without_a_value_and_unknown_tissues_have_no_row() -> None:
    found = group_table(rows()).to_pylist()
    assert {line["group"] for line in found if line["by"] == "tissue"} == {"Colon"}
    assert {line["group"] for line in found if line["by"] == "patient" and line["role"] == "test"} == {"P1", "P2", "P3"}
    assert {line["metric"] for line in found if line["by"] == "fold" and line["group"] == "1"} == {"pq"}
    assert {line["role"] for line in found} == {"test", "val"}
    assert {line["metric"] for line in found} == {"pq", "aji"}


def test_a_patient_has_no_interval() -> None:
    found = group_table(rows()).to_pylist()
    line = pick(found, by="patient", group="P3", metric="aji", role="test")
    assert (line["n"], line["n_patients"], line["std"], line["ci_low"], line["ci_high"]) == (2, 1, 0.0, None, None)


def test_no_slides_give_a_table_without_rows() -> None:
    empty = group_table([])
    assert empty.num_rows == 0
    assert {"study", *empty.column_names} == set(GROUPS.names)

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.config.model import SplitConfig
from slideloom.errors import SlideloomError
from slideloom.slides.sheet import SlideRow
from slideloom.training.splits import SPLIT, make_split, read_split, slides_with_role, write_split


def rows_of(patients: str) -> list[SlideRow]:
    """A slide a letter, of the patient of that letter."""
    return [SlideRow(f"s{number:03d}", patient_id=patient, he="x.svs") for number, patient in enumerate(patients)]


def roles(table: pd.DataFrame, fold: str = "0") -> dict[str, str]:
    part = table[table["fold"] == fold]
    return dict(zip(part["slide_id"], part["role"], strict=True))


def every(rows: list[SlideRow]) -> set[str]:
    return {row.slide_id for row in rows}


def test_column_takes_the_sheet_at_its_word_and_empty_means_infer() -> None:
    rows = [
        SlideRow("b", he="x", split="Test"),
        SlideRow("a", he="x", split="train"),
        SlideRow("c", he="x"),
        SlideRow("d", he="x", split=" "),
        SlideRow("e", he="x", split="val"),
    ]
    table = make_split(rows, SplitConfig(), {"a", "b"})
    assert roles(table) == {"a": "train", "b": "test", "c": "infer", "d": "infer", "e": "val"}
    assert list(table.columns) == ["slide_id", "fold", "role"]
    assert set(table["fold"]) == {"0"}


def test_column_may_be_any_other_column_of_the_sheet() -> None:
    rows = [SlideRow("a", he="x", split="train", extra={"mine": "test"}), SlideRow("b", he="x", split="train")]
    assert roles(make_split(rows, SplitConfig(column="mine"), set())) == {"a": "test", "b": "infer"}


def test_a_role_that_does_not_exist_is_refused_with_its_slide() -> None:
    rows = [SlideRow("a", he="x", split="train"), SlideRow("b", he="x", split="holdout")]
    with pytest.raises(SlideloomError, match="b: 'holdout'") as caught:
        make_split(rows, SplitConfig(), set())
    assert caught.value.code == "unknown_role"


def test_a_patient_on_both_sides_is_refused_by_name() -> None:
    rows = [
        SlideRow("a", "ann", he="x", split="train"),
        SlideRow("b", "ann", he="x", split="test"),
        SlideRow("c", "bob", he="x", split="train"),
        SlideRow("d", "bob", he="x", split="infer"),
    ]
    with pytest.raises(SlideloomError, match=r"patient_id ann on both sides of train and test") as caught:
        make_split(rows, SplitConfig(), set())
    assert caught.value.code == "group_on_both_sides"
    assert "patient ids of their own" in caught.value.hint


@pytest.mark.parametrize("pair", [("train", "val"), ("val", "test")])
def test_validation_is_a_side_too_and_prediction_is_none(pair: tuple[str, str]) -> None:
    rows = [SlideRow(f"s{number}", "ann", he="x", split=role) for number, role in enumerate(pair)]
    with pytest.raises(SlideloomError, match=f"patient_id ann on both sides of {pair[0]} and {pair[1]}"):
        make_split(rows, SplitConfig(), set())
    alone = [replace(row, split=role) for row, role in zip(rows, (pair[0], "infer"), strict=True)]
    assert roles(make_split(alone, SplitConfig(), set())) == {"s0": pair[0], "s1": "infer"}


def test_a_platform_may_be_asked_to_stay_on_one_side_of_the_sheets_roles() -> None:
    rows = [SlideRow("a", platform="x", he="x", split="train"), SlideRow("b", platform="x", he="x", split="test")]
    assert roles(make_split(rows, SplitConfig(), set())) == {"a": "train", "b": "test"}
    with pytest.raises(SlideloomError, match="platform x on both sides of train and test"):
        make_split(rows, SplitConfig(group="platform"), set())


def test_sequential_sorts_by_group_and_takes_val_from_the_end_of_training() -> None:
    rows = rows_of("EDCBA")  # sorted by patient: s004 s003 s002 s001 s000
    config = SplitConfig(scheme="sequential", train=0.8, val=0.25)
    assert roles(make_split(rows, config, every(rows))) == {
        "s004": "train",
        "s003": "train",
        "s002": "train",
        "s001": "val",
        "s000": "test",
    }


def test_sequential_counts_slides_and_cuts_between_groups() -> None:
    rows = rows_of("AAAAAABBCD")  # 6, 2, 1, 1
    got = roles(make_split(rows, SplitConfig(scheme="sequential", train=0.5), every(rows)))
    assert [slide for slide, role in got.items() if role == "train"] == [f"s{k:03d}" for k in range(6)]


def test_slides_without_annotation_are_only_predicted() -> None:
    rows = rows_of("ABCD")
    got = roles(make_split(rows, SplitConfig(scheme="sequential", train=0.5), {"s000", "s003"}))
    assert got == {"s000": "train", "s001": "infer", "s002": "infer", "s003": "test"}


def test_platforms_leave_the_others_out() -> None:
    rows = [SlideRow(name, platform=name[0], he="x") for name in ("a1", "a2", "b1", "b2")]
    table = make_split(rows, SplitConfig(scheme="sequential", train=0.5, platforms=["b"]), every(rows))
    assert roles(table) == {"b1": "train", "b2": "test"}


def test_one_group_cannot_be_split() -> None:
    rows = rows_of("AAA")
    for config in (SplitConfig(scheme="sequential"), SplitConfig(scheme="kfold", folds=2)):
        with pytest.raises(SlideloomError, match=r"1 annotated groups \(by patient_id\)") as caught:
            make_split(rows, config, every(rows))
        assert caught.value.code == "too_few_groups"


def test_no_group_left_for_val_is_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of("AB")
    with caplog.at_level(logging.WARNING):
        got = roles(make_split(rows, SplitConfig(scheme="sequential", train=0.5, val=0.5), every(rows)))
    assert set(got.values()) == {"train", "test"}
    assert "none is left to validate on" in caplog.text


PATIENTS = st.text(alphabet="ABCDEFGH", min_size=4, max_size=40).filter(lambda text: len(set(text)) >= 4)


@settings(max_examples=25, deadline=None)
@given(patients=PATIENTS, folds=st.integers(2, 4), val=st.sampled_from([0.0, 0.1, 0.34, 0.9]), data=st.data())
def test_kfold_tests_every_group_once_and_never_tears_one(
    patients: str, folds: int, val: float, data: st.DataObject
) -> None:
    rows = rows_of(patients)
    config = SplitConfig(scheme="kfold", folds=folds, val=val)
    table = make_split(rows, config, every(rows))
    assert len(table) == folds * len(rows)
    of_patient = {row.slide_id: row.patient_id for row in rows}
    table["patient"] = table["slide_id"].map(of_patient)
    assert (table.groupby(["fold", "patient"])["role"].nunique() == 1).all()
    tested = table[table["role"] == "test"].drop_duplicates(["fold", "patient"])["patient"]
    assert sorted(tested) == sorted(set(patients))
    for _, fold in table.groupby("fold"):
        assert {"train", "test"} <= set(fold["role"])
        if val:
            assert ("val" in set(fold["role"])) == (fold[fold["role"] != "test"]["patient"].nunique() > 1)
        # contiguous: the tested patients stand side by side among the sorted ones
        spots = sorted(sorted(set(patients)).index(name) for name in set(fold[fold["role"] == "test"]["patient"]))
        assert spots == list(range(spots[0], spots[-1] + 1))
    shuffled = data.draw(st.permutations(rows))
    pd.testing.assert_frame_equal(make_split(shuffled, config, every(rows)), table.drop(columns="patient"))


@settings(max_examples=40, deadline=None)
@given(patients=PATIENTS, train=st.floats(0.05, 0.95), val=st.sampled_from([0.0, 0.2, 0.5]))
def test_sequential_never_tears_a_group_and_keeps_the_order(patients: str, train: float, val: float) -> None:
    rows = rows_of(patients)
    got = roles(make_split(rows, SplitConfig(scheme="sequential", train=train, val=val), every(rows)))
    rank = {"train": 0, "val": 1, "test": 2}
    by_patient: dict[str, set[int]] = {}
    for row in rows:
        by_patient.setdefault(row.patient_id, set()).add(rank[got[row.slide_id]])
    assert all(len(found) == 1 for found in by_patient.values())
    order = [next(iter(by_patient[name])) for name in sorted(by_patient)]
    assert order == sorted(order)
    assert {0, 2} <= set(order)


def test_equal_groups_are_cut_at_the_shares_themselves() -> None:
    rows = [SlideRow(f"s{k:02d}", he="x") for k in range(20)]
    table = make_split(rows, SplitConfig(scheme="kfold", folds=4), every(rows))
    for fold in range(4):
        got = roles(table, str(fold))
        assert [slide for slide, role in got.items() if role == "test"] == [f"s{5 * fold + k:02d}" for k in range(5)]
    got = roles(make_split(rows, SplitConfig(scheme="sequential", train=0.8, val=0.25), every(rows)))
    assert [list(got.values()).count(role) for role in ("train", "val", "test")] == [12, 4, 4]


def test_written_split_reads_back_and_is_the_same_bytes_again(tmp_path: Path) -> None:
    rows = rows_of("AABBCCDD")
    config = SplitConfig(scheme="kfold", folds=2, val=0.5)
    write_split(rows, config, every(rows), tmp_path / "a.parquet")
    write_split(rows[::-1], config, every(rows), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = read_split(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(table, make_split(rows, config, every(rows)))
    assert slides_with_role(table, "1", "test") == ["s004", "s005", "s006", "s007"]
    assert slides_with_role(table, "1", "train", "val") == ["s000", "s001", "s002", "s003"]


def test_the_file_says_what_it_was_made_from_and_what_was_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [SlideRow(f"{platform}{patient}", patient, platform, he="x") for platform in "xy" for patient in "AB"]
    rows += [SlideRow("x9", "C", "x", he="x"), SlideRow("y9", "D", "y", he="x")]
    config = SplitConfig(scheme="leave_platform_out")
    with caplog.at_level(logging.WARNING):
        write_split(rows, config, every(rows) - {"yB"}, tmp_path / "a.parquet")
    about = table_metadata(read_table(SPLIT, tmp_path / "a.parquet"))["made_from"]
    assert about["split"] == config.model_dump(mode="json")
    assert about["counts"]["x"] == {
        "train": {"slides": 1, "patients": 1},
        "test": {"slides": 3, "patients": 3},
        "infer": {"slides": 1, "patients": 1},
    }
    assert about["counts"]["y"]["train"] == {"slides": 2, "patients": 2}
    note = "1 slide of another platform is left out of training, of patients that"
    assert about["notes"] == [f"fold x: {note} x tests", f"fold y: {note} y tests"]
    assert [record.getMessage() for record in caplog.records] == about["notes"]
    table = read_split(tmp_path / "a.parquet")
    assert set(table[table["fold"] == "x"]["slide_id"]) == {"xA", "xB", "x9", "yB", "y9"}
    assert slides_with_role(table, "x", "infer") == ["yB"]


def test_a_study_without_slides_gives_an_empty_table(tmp_path: Path) -> None:
    write_split([], SplitConfig(), set(), tmp_path / "a.parquet")
    assert read_split(tmp_path / "a.parquet").empty

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from slideloom.config.model import SplitConfig
from slideloom.errors import SlideloomError
from slideloom.slides.sheet import SlideRow
from slideloom.slides.sides import Sides, groups_of, take_sides

SCHEMES: list[dict[str, Any]] = [
    {"scheme": "sequential", "train": 0.7},
    {"scheme": "quarters"},
    {"scheme": "kfold", "folds": 3},
    {"scheme": "leave_platform_out"},
]
#: Patient, platform, tissue and whether its nuclei are annotated.
SHEETS = st.lists(
    st.tuples(st.integers(0, 14), st.sampled_from("xyz"), st.sampled_from(["lung", "skin", ""]), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)


def sheet(cells: list[tuple[int, str, str, int]]) -> list[SlideRow]:
    return [
        SlideRow(
            f"s{number:02d}",
            f"p{patient:02d}",
            platform,
            he="x.svs",
            instances="y.tif" if annotated else None,
            extra={"tissue": tissue} if tissue else {},
        )
        for number, (patient, platform, tissue, annotated) in enumerate(cells)
    ]


def simple(patients: str, platforms: str = "") -> list[SlideRow]:
    """A slide a letter."""
    return [
        SlideRow(f"s{k:02d}", patient, platforms[k] if platforms else "unknown", he="x", instances="y")
        for k, patient in enumerate(patients)
    ]


def taken_or_refused(rows: list[SlideRow], split: SplitConfig) -> Sides | SlideloomError:
    try:
        return take_sides(rows, split)
    except SlideloomError as error:
        return error


def n_groups(rows: list[SlideRow], group: str) -> int:
    """Groups as connected components, worked out by scipy."""
    if not rows:
        return 0
    patients = np.unique([row.patient_id for row in rows], return_inverse=True)[1]
    if group == "patient_id":
        return int(patients.max()) + 1
    platforms = np.unique([row.platform for row in rows], return_inverse=True)[1] + patients.max() + 1
    size = int(platforms.max()) + 1
    links = coo_array((np.ones(len(rows)), (patients, platforms)), shape=(size, size))
    return int(connected_components(links, directed=False)[0])


@settings(max_examples=150, deadline=None)
@given(
    cells=SHEETS,
    scheme=st.sampled_from(SCHEMES),
    group=st.sampled_from(["patient_id", "platform"]),
    val=st.sampled_from([0.0, 0.2, 0.5]),
    stratify=st.sampled_from([None, "tissue"]),
    data=st.data(),
)
def test_no_patient_stands_on_two_sides_whatever_the_scheme(
    cells: list[tuple[int, str, str, int]],
    scheme: dict[str, Any],
    group: str,
    val: float,
    stratify: str | None,
    data: st.DataObject,
) -> None:
    rows = sheet(cells)
    marked = [row for row in rows if row.instances]
    if scheme["scheme"] == "leave_platform_out" or not any(row.extra for row in marked):
        stratify = None
    split = SplitConfig.model_validate({**scheme, "group": group, "val": val, "stratify": stratify})
    count = {"kfold": 3, "quarters": 4, "sequential": 2}.get(split.scheme, 0)
    sides = taken_or_refused(rows, split)
    if isinstance(sides, SlideloomError):
        event("refused")
        assert sides.code == "too_few_groups"
        if count:
            assert n_groups(marked, group) < count
        else:
            patients = [{row.patient_id for row in marked if row.platform == one} for one in "xyz"]
            spread = {row.patient_id for row in marked}
            assert sum(map(bool, patients)) < 2 or spread in patients
        return
    event(split.scheme)
    assert n_groups(marked, group) >= count
    assert take_sides(data.draw(st.permutations(rows)), split) == sides, "the order of the sheet does not matter"

    by_id = {row.slide_id: row for row in rows}
    for roles in sides.folds.values():
        held: dict[str, set[str]] = defaultdict(set)
        for slide, role in roles.items():
            if role == "infer":
                assert not by_id[slide].instances
                continue
            assert by_id[slide].instances
            held[by_id[slide].patient_id].add(role)
            if group == "platform" and split.scheme != "leave_platform_out":
                held[by_id[slide].platform].add(role)
        assert all(len(found) == 1 for found in held.values()), held
        assert {"train", "test"} <= set(roles.values())
        assert {row.slide_id for row in rows if not row.instances} <= set(roles)
        learnt = [by_id[slide] for slide, role in roles.items() if role in ("train", "val")]
        assert ("val" in roles.values()) == (val > 0 and n_groups(learnt, group) > 1)

    tests = Counter(slide for roles in sides.folds.values() for slide, role in roles.items() if role == "test")
    if split.scheme in ("kfold", "leave_platform_out"):
        assert tests == Counter(row.slide_id for row in marked), "each annotated slide tests once"
    for fold, roles in sides.folds.items():
        tested = [by_id[slide] for slide, role in roles.items() if role == "test"]
        there = {row.slide_id for row in marked if row.slide_id in roles}
        if split.scheme == "leave_platform_out":
            assert {row.platform for row in tested} == {fold}
            torn = {row.patient_id for row in tested}
            assert there == {row.slide_id for row in marked if row.platform == fold or row.patient_id not in torn}
        elif split.scheme != "quarters":
            assert len(there) == len(marked)


@settings(max_examples=100, deadline=None)
@given(
    cells=SHEETS,
    train=st.floats(0.05, 0.95),
    val=st.floats(0.05, 0.95),
    stratify=st.sampled_from([None, "tissue"]),
)
def test_shares_are_met_within_one_group(
    cells: list[tuple[int, str, str, int]], train: float, val: float, stratify: str | None
) -> None:
    rows = [row for row in sheet(cells) if row.instances]
    groups = groups_of(rows, "patient_id")
    if len(groups) < 3 or not any(row.extra for row in rows):
        return
    largest = max(len(group) for group in groups)
    split = SplitConfig(scheme="sequential", train=train, val=val, stratify=stratify)
    counts = Counter(take_sides(rows, split).folds["0"].values())
    learnt = counts["train"] + counts["val"]
    assert abs(learnt - train * len(rows)) <= largest + 1e-9
    if counts["val"]:
        assert abs(counts["val"] - val * learnt) <= largest + 1e-9


def test_quarters_train_on_the_first_and_third_and_test_on_the_second_and_fourth() -> None:
    rows = simple("HGFEDCBA")
    folds = take_sides(rows, SplitConfig(scheme="quarters")).folds
    assert folds == {
        "0": {"s07": "train", "s06": "train", "s05": "test", "s04": "test"},
        "1": {"s03": "train", "s02": "train", "s01": "test", "s00": "test"},
    }
    folds = take_sides(rows, SplitConfig(scheme="quarters", val=0.5)).folds
    assert folds["1"] == {"s03": "train", "s02": "val", "s01": "test", "s00": "test"}
    # 5, 1, 1, 1, 1, 1 slides: cuts after 5 (of 2.5), 6 (of 5) and 7 (of 7.5; 8 is as near, and a tie goes low).
    uneven = take_sides(simple("AAAAABCDEF"), SplitConfig(scheme="quarters")).folds
    assert [Counter(one.values()) for one in uneven.values()] == [{"train": 5, "test": 1}, {"train": 1, "test": 3}]


def test_quarters_of_the_35_pairs_of_the_report() -> None:
    """Four parts as near to a quarter as 35 slides allow: 9, 8, 9, 9 (cuts at 8.75, 17.5 and 26.25)."""
    folds = take_sides(
        [SlideRow(f"orion_{k:02d}", he="x", instances="y") for k in range(35)], SplitConfig(scheme="quarters")
    )
    sizes = [Counter(roles.values()) for roles in folds.folds.values()]
    assert sizes == [{"train": 9, "test": 8}, {"train": 9, "test": 9}]


def test_platforms_that_share_a_patient_are_one_group() -> None:
    rows = simple("ABBCDE", "xxyyzw")  # B joins x and y
    groups = groups_of(rows, "platform")
    assert [[row.slide_id for row in group] for group in groups] == [["s05"], ["s00", "s01", "s02", "s03"], ["s04"]]
    sides = take_sides(rows, SplitConfig(scheme="kfold", folds=3, group="platform"))
    assert sides.notes == ("platforms x, y share patients and stand on one side together",)
    with pytest.raises(SlideloomError, match=r"3 annotated groups \(by platform\) are too few") as caught:
        take_sides(rows, SplitConfig(scheme="quarters", group="platform"))
    assert caught.value.expected == "at least 4"


def test_leave_platform_out_leaves_its_patients_out_of_training() -> None:
    rows = [*simple("ABBC", "xxyy"), SlideRow("n", "B", "y", he="x")]
    sides = take_sides(rows, SplitConfig(scheme="leave_platform_out"))
    assert sides.folds == {
        "x": {"n": "infer", "s00": "test", "s01": "test", "s03": "train"},
        "y": {"n": "infer", "s00": "train", "s02": "test", "s03": "test"},
    }
    assert [note.split(",")[0] for note in sides.notes] == [
        f"fold {one}: 1 slide of another platform is left out of training" for one in "xy"
    ]


@pytest.mark.parametrize(
    ("patients", "platforms", "what"),
    [
        ("ABC", "xxx", "annotated slides of 1 platform are too few to leave one out"),
        ("", "", "of 0 platforms"),
        ("AABB", "xyxy", "platform 'x' shares every patient with the others: nothing is left to train on"),
    ],
)
def test_leave_platform_out_that_cannot_be(patients: str, platforms: str, what: str) -> None:
    with pytest.raises(SlideloomError, match=what) as caught:
        take_sides(simple(patients, platforms), SplitConfig(scheme="leave_platform_out"))
    assert caught.value.code == "too_few_groups"


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme["scheme"])
def test_one_slide_is_too_few_for_every_scheme(scheme: dict[str, Any]) -> None:
    with pytest.raises(SlideloomError, match="too few") as caught:
        take_sides(simple("A"), SplitConfig.model_validate(scheme))
    assert (caught.value.code, caught.value.expected[:8]) == ("too_few_groups", "at least")


def test_stratified_folds_hold_every_tissue_alike_where_plain_ones_do_not() -> None:
    rows = [
        SlideRow(f"s{k:02d}", he="x", instances="y", extra={"tissue": "lung" if k < 6 else "skin"}) for k in range(12)
    ]
    lung = {row.slide_id for row in rows[:6]}

    def tested(stratify: str | None) -> list[int]:
        folds = take_sides(rows, SplitConfig(scheme="kfold", folds=3, stratify=stratify)).folds
        return [sum(role == "test" and slide in lung for slide, role in roles.items()) for roles in folds.values()]

    assert tested(None) == [4, 2, 0]
    assert tested("tissue") == [2, 2, 2]


def test_a_column_that_is_not_there_and_a_scheme_without_strata() -> None:
    rows = [SlideRow(f"s{k}", he="x", instances="y", extra={"tissue": "lung"}) for k in range(4)]
    with pytest.raises(SlideloomError, match="'tisue'") as caught:
        take_sides(rows, SplitConfig(scheme="sequential", stratify="tisue"))
    assert (caught.value.code, caught.value.hint) == ("unknown_column", "Did you mean 'tissue'?")
    with pytest.raises(SlideloomError, match="There is: platform, tissue"):
        take_sides(rows, SplitConfig(scheme="sequential", stratify="qqqq"))
    for scheme in ({"scheme": "column"}, {"scheme": "leave_platform_out"}):
        with pytest.raises(SlideloomError, match="plays no part") as caught:
            take_sides(rows, SplitConfig.model_validate({**scheme, "stratify": "tissue"}))
        assert caught.value.code == "stratify"
    assert take_sides(rows, SplitConfig(scheme="sequential", stratify="platform")).folds["0"]["s0"] == "train"

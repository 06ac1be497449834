from __future__ import annotations

from slideloom.config.model import SplitConfig
from slideloom.slides.folds import fold_names, platform_folds
from slideloom.slides.sheet import SlideRow

LEAVE = SplitConfig(scheme="leave_platform_out")


def of(*platforms: str) -> list[SlideRow]:
    return [SlideRow(f"s{k}", platform=name, he="x", instances="y") for k, name in enumerate(platforms)]


def test_numbered_folds() -> None:
    schemes = {"column": 1, "sequential": 1, "quarters": 2, "kfold": 4}
    for scheme, count in schemes.items():
        split = SplitConfig.model_validate({"scheme": scheme, "folds": 4})
        assert fold_names(split, of("x")) == tuple(str(k) for k in range(count))


def test_a_fold_for_each_platform_with_an_annotated_slide_whatever_the_order() -> None:
    rows = [*of("orion", "codex", "orion"), SlideRow("n", platform="vectra", he="x")]
    assert platform_folds(LEAVE, rows) == {"codex": "codex", "orion": "orion"}
    assert fold_names(LEAVE, rows[::-1]) == ("codex", "orion")
    assert fold_names(LEAVE, rows, {"n", "s0"}) == ("orion", "vectra")
    assert fold_names(SplitConfig(scheme="leave_platform_out", platforms=["orion"]), rows) == ("orion",)
    assert fold_names(LEAVE, []) == ()


def test_names_can_stand_in_paths_and_differ_where_letter_case_does_not_count() -> None:
    platforms = ("Orion", "orion", "a b", "a/b", "../..", "a_b_2")
    folds = platform_folds(LEAVE, of(*platforms))
    assert sorted(folds.values()) == sorted(platforms)
    assert len({name.casefold() for name in folds}) == len(platforms)
    assert all(name.strip("._-") == name and "/" not in name and " " not in name for name in folds)
    assert folds["platform"] == "../.."
    assert {"Orion", "orion_2"} <= set(folds)


def test_names_are_short_and_no_devices() -> None:
    folds = platform_folds(LEAVE, of("x" * 300, "x" * 299, "CON"))
    assert sorted(folds.values()) == sorted(("x" * 300, "x" * 299, "CON"))
    assert max(map(len, folds)) <= 66
    assert folds["platform_CON"] == "CON"

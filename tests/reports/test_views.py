"""What the page works out from the tables: the cohort, groups of figures, biology, and where experiments come from."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pytest

from slideloom.config.model import EvaluationConfig, StudyConfig
from slideloom.metrics.schemas import SLIDE_FIGURES
from slideloom.reports.biology_views import biology_views, density_chart, fraction_chart
from slideloom.reports.cohort import cohort_lines, cohort_total
from slideloom.reports.describe import describe_evaluation, describe_experiments, origins
from slideloom.reports.metric_groups import GROUPS, MAIN, group_rules, group_tables, groups_of, summary_lines
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2), ("A", "B"), ((255, 0, 0), (0, 0, 255)), ((), ()))


def slide(name: str, patient: str, role: str | None, n_gt: int = 10, **more: Any) -> dict[str, Any]:
    row = {"slide_id": name, "patient_id": patient, "platform": "P", "tissue": None, "role": role, "n_gt": n_gt}
    return row | {"area_mm2": 2.0, "experiment": "e", "fold": "0"} | more


def test_a_slide_counts_once_and_under_each_of_its_roles() -> None:
    scored = [slide("s", "p", "val"), slide("s", "p", "test", 30, area_mm2=3.0), slide("t", "p", "test", platform="Q")]
    predicted = [slide("u", "q", "infer", tissue="Breast"), slide("v", "q", None), slide("s", "p", "test")]
    total = cohort_total(scored, predicted)
    assert (total.n_slides, total.n_scored, total.n_patients, total.n_platforms, total.n_tissues) == (4, 2, 2, 2, 1)
    assert (total.n_gt, total.area_mm2) == (40, 5.0)
    by = cohort_lines(scored, predicted)
    assert [(line.name, line.n_slides, line.n_scored) for line in by["role"]] == [
        ("val", 1, 1), ("test", 2, 2), ("infer", 1, 0)]  # fmt: skip
    assert [(line.name, line.n_slides) for line in by["platform"]] == [("P", 3), ("Q", 1)]
    assert [(line.name, line.n_slides) for line in by["tissue"]] == [("Breast", 1), ("not told", 3)]
    assert cohort_lines(scored, [])["tissue"] == []
    assert cohort_total([], []).n_slides == 0


def test_every_figure_of_the_groups_is_a_column() -> None:
    columns = {column.name for column in SLIDE_FIGURES}
    named = [figure[0] for group in GROUPS for figure in group.figures]
    assert len(named) == len(set(named))
    assert set(named) <= columns
    assert set(named) >= MAIN


def test_a_switch_hides_just_the_columns_of_the_other_groups() -> None:
    groups = groups_of({"pq", "dq", "f1_d", "map"}.__contains__)
    assert [group.key for group in groups] == ["instance", "detection", "pixels"]
    columns = ["experiment", "slide"] + [group.key for group in groups for _ in group.figures]
    for chosen in ("instance", "detection", "pixels", "all"):
        hidden = set()
        for own, other, first, last in re.findall(
            r'#t:not\(\[data-group="(\w+)"\]\):not\(\[data-group="(\w+)"\]\).*?n\+(\d+)\).*?n\+(\d+)\)',
            group_rules("t", 2, groups),
        ):
            if chosen not in (own, other):
                hidden |= set(range(int(first) - 1, int(last)))
        shown = [name for k, name in enumerate(columns) if k not in hidden]
        assert shown == [name for name in columns if chosen == "all" or name in ("experiment", "slide", chosen)]


def test_averagings_of_an_experiment_are_lines() -> None:
    row = {
        "experiment": "a",
        "role": "test",
        "metric": "pq",
        "averaging": "slide",
        "n": 4,
        "n_patients": 2,
        "mean": 0.5,
    }
    rows = [row, row | {"metric": "mpq", "n": 3}, row | {"averaging": "pooled"}, row | {"role": "val"},
            row | {"averaging": "tissue", "n": 0, "mean": None}]  # fmt: skip
    lines = summary_lines(rows, "test")
    assert [(line.averaging, line.n, sorted(line.figures)) for line in lines] == [
        ("slide", 4, ["mpq", "pq"]), ("pooled", 4, ["pq"])]  # fmt: skip


def test_groups_stand_in_columns_where_there_are_several() -> None:
    row = {"experiment": "a", "role": "test", "by": "platform", "group": "P", "metric": "pq", "mean": 0.5}
    assert group_tables([row], "test", [("pq", "PQ")]) == []
    rows = [row, row | {"group": "Q", "experiment": "b"}]
    (table,) = group_tables(rows, "test", [("pq", "PQ"), ("dq", "DQ")])
    assert (table.by, table.metric, table.groups) == ("platform", "PQ", ("P", "Q"))
    assert table.lines == [("a", [row, None]), ("b", [None, rows[1]])]


def nuclei(slide_id: str, class_id: int | None, n: int, density: float | None, fold: str = "0") -> dict[str, Any]:
    row: dict[str, Any] = {"experiment": "e", "fold": fold, "slide_id": slide_id, "class_id": class_id, "n": n}
    row |= {
        "scope": "all" if class_id is None else "class",
        "class_name": "all" if class_id is None else "0AB"[class_id],
    }
    return row | {"density_per_mm2": density, "count_fraction": 0.5, "area_fraction": None, "area_mean_um2": 30.0}


ROWS = [
    nuclei("s", None, 40, 400.0), nuclei("s", None, 60, 600.0, "1"), nuclei("t", None, 10, None),
    nuclei("s", 1, 20, 100.0), nuclei("s", 1, 40, 300.0, "1"), nuclei("t", 1, 10, 800.0), nuclei("s", 2, 10, 0.0),
]  # fmt: skip


def test_folds_are_averaged_before_slides() -> None:
    markers = pa.Table.from_pylist([row | {"mean_CD3": value} for row, value in zip(
        ROWS, [5.0, 5.0, 5.0, 10.0, 20.0, None, 3.0], strict=True)])  # fmt: skip
    (found,) = biology_views(ROWS, markers, pa.table({}), ["other", "e"])
    assert (found.experiment, found.n_slides) == ("e", 2)
    every, first, second = found.classes
    assert (every["class_name"], every["n"], every["density_per_mm2"]) == ("all nuclei", 60, 500.0)
    assert (first["n"], first["density_per_mm2"]) == (40, (200 + 800) / 2)
    assert first["area_fraction"] is None
    assert second["class_name"] == "B"
    assert found.markers[0] == ("CD3",)
    cells = dict(found.markers[1])
    assert cells["A"] == [(pytest.approx(15.0), 1.0)]
    assert cells["B"] == [(3.0, 0.0)]
    assert cells["all nuclei"] == [(5.0, 0.0)]
    assert found.neighbours == ((), [])


def test_the_nearest_class_is_shaded_most() -> None:
    pair = {"experiment": "e", "fold": "0", "slide_id": "s", "scope": "class"}
    distances = ((1, 1, 5.0), (1, 2, 80.0), (2, 1, None))
    rows = [pair | {"class_id": a, "class_name": "0AB"[a], "to_class_id": b, "to_class_name": "0AB"[b],
                    "distance_mean_um": distance} for a, b, distance in distances]  # fmt: skip
    rows.append(pair | {"scope": "all", "class_id": None, "class_name": "all", "to_class_id": None,
                        "to_class_name": "all", "distance_mean_um": 1.0})  # fmt: skip
    (found,) = biology_views(ROWS, pa.Table.from_pylist(ROWS), pa.Table.from_pylist(rows), ["e"])
    names, cells = found.neighbours
    assert names == ("A", "B")
    assert cells == [("A", [(5.0, 1.0), (80.0, 0.0)]), ("B", [(None, 0.0), (None, 0.0)])]


def test_biology_is_drawn_of_what_is_known() -> None:
    density = density_chart(ROWS, CLASSES, {"e": 0})
    assert density is not None
    assert "e, A: 500 (quartiles 350 to 650), 2 slides" in density
    assert "e, all nuclei: 500, 1 slide" in density
    fractions = fraction_chart(ROWS, CLASSES, {"e": 0})
    assert fractions is not None
    assert "e, A: 87.5 %" in fractions  # 70 of 80 nuclei with a class
    assert density_chart([], CLASSES, {"e": 0}) is fraction_chart([], CLASSES, {"e": 0}) is None
    assert density_chart([ROWS[2]], CLASSES, {"e": 0}) is None
    many = density_chart(ROWS, CLASSES, {f"x{k}": k for k in range(9)} | {"e": 9})
    assert many is not None
    assert all(f">{name}<" in many for name in ("x0", "x8", "e")), "every experiment has a line with its name"
    assert "e: 500 (quartiles 350 to 650), 2 slides" in many


def test_labels_of_another_program_are_called_so() -> None:
    config = StudyConfig.model_validate({
        "study": "x", "slides": "slides.tsv", "grids": {"g": {"image": "he", "tile_px": 256, "mpp_um": 0.25}},
        "splits": {"s": {}},
        "experiments": {"mesmer": {"labels": "mesmer/{slide}.tif", "label_classes": "mesmer/{slide}.csv", "grid": "g",
                                   "split": "s"}},
    })  # fmt: skip
    described = describe_experiments(config)
    assert described["mesmer"] == (
        "labels of another program · labels mesmer/{slide}.tif · classes mesmer/{slide}.csv · scored on the H&E image "
        "at 0.25 µm/px · split s"
    )
    found = origins(["mesmer", "cells", "trained"], described, {
        "encoder_weights": {"cells": ["labels"], "trained": ["sha256:ab + sha256:cd", "sha256:ab", "random:1"]},
        "encoder_notes": {"trained": ["no DNA"]},
    })  # fmt: skip
    assert [name for name, one in found.items() if one.external] == ["mesmer", "cells"]
    assert found["trained"].weights == ("sha256:ab", "sha256:cd")
    assert found["trained"].notes == ("no DNA",)


def test_what_stands_before_and_behind_a_network_is_told_where_it_is_not_plain() -> None:
    plain = {"encoder": "image", "split": "s", "training": {"input": "live"}}
    ablated = {"adapter": {"kind": "channelnet", "aggregation": "none"}, "decoder": {"kind": "instanseg"}}
    channelnet = {"adapter": {"kind": "channelnet"}, "decoder": {"kind": "unet", "backbone": "resnet18"}}
    config = StudyConfig.model_validate({
        "study": "x", "slides": "slides.tsv", "grids": {"g": {"image": "sp", "tile_px": 64}},
        "encoders": {"image": {"model": "mean_rgb", "grid": "g"}}, "splits": {"s": {}},
        "instances": {"nucleus_threshold": 0.4},
        "experiments": {
            "plain": plain,
            "unet": plain | channelnet,
            "ablated": plain | ablated,
            "repeated": plain | {"adapter": {"kind": "channel_adapter"}, "decoder": {"kind": "hovernet"}},
            "threshold": plain | {"instances": {"method": "threshold"}, "training": {"input": "live", "seed": 2}},
        },
    })  # fmt: skip
    described = describe_experiments(config)
    common = set(described["plain"].split(" · "))
    own = {name: [part for part in line.split(" · ") if part not in common] for name, line in described.items()}
    assert own == {
        "plain": [],
        "unet": ["ChannelNet (concat) before it", "U-Net on resnet18"],
        "ablated": ["ChannelNet (no exchange) before it", "InstanSeg's network"],
        "repeated": ["channel adapter of 32 before it", "HoVer-Net, fast"],
        "threshold": ["nuclei by threshold", "training seed 2"],
    }


def test_how_predictions_were_scored_is_told_in_full() -> None:
    told = dict(describe_evaluation(EvaluationConfig()))
    assert told["matching of nuclei"] == "pannuke"
    assert told["radius of a detection"] == "3.0 µm"
    assert told["roles"] == "val, test"
    assert len(told) == len(EvaluationConfig.model_fields)

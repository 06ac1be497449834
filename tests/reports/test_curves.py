"""Curves of many slides against the figures of one large slide."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from slideloom.metrics.detail_schemas import SCORE_FIGURES
from slideloom.metrics.probability import ClassScores, brier_score, calibration, precision_recall
from slideloom.metrics.semantic import ScoreHistogram
from slideloom.reports.curves import PooledScores

NAMES = ("background", "tumour", "stroma", "rare")
SCHEMA = pa.schema([(column.name, column.type) for column in SCORE_FIGURES])


def table(truth: np.ndarray, said: np.ndarray | None, nucleus: np.ndarray | None, probability: np.ndarray) -> pa.Table:
    """A slide's scores.parquet, by plain counting."""
    kinds = [] if nucleus is None else [("nucleus", None, np.ones(truth.shape, bool), truth > 0, nucleus)]
    kinds += [] if said is None else [("class", k, said == k, truth == k, probability) for k in range(4)]
    rows = []
    for of, class_id, counted, true, score in kinds:
        for level in sorted({255, *score[counted].tolist()}):
            at = counted & (score == level)
            row = {"of": of, "class_id": class_id, "class_name": None if class_id is None else NAMES[class_id]}
            row |= {"score": level, "positive": int((at & true).sum()), "negative": int((at & ~true).sum())}
            rows.append(row | {"n_true": int(true.sum())})
    return pa.Table.from_pylist(rows, SCHEMA)


def slides(n: int = 6, classes: int = 3) -> list[tuple[np.ndarray, ...]]:
    """Truth, predicted class, nucleus score and class score of some slides; class 3 is true but never predicted."""
    rng = np.random.default_rng(8)
    found = []
    for _ in range(n):
        truth = rng.integers(0, classes + 1, (15, 15)).astype(np.uint8)
        said = rng.integers(0, 3, truth.shape).astype(np.uint8)
        found.append(
            (truth, said, rng.integers(0, 256, truth.shape, np.uint8), rng.integers(90, 256, truth.shape, np.uint8))
        )
    return found


@pytest.fixture(scope="module")
def pooled() -> tuple[PooledScores, ScoreHistogram, ClassScores]:
    own, nucleus, classes = PooledScores(), ScoreHistogram(), ClassScores()
    for k, (truth, said, score, probability) in enumerate(slides()):
        own.add(table(truth, said, score, probability), f"s{k}", f"P{k // 2}")
        nucleus.add(score, truth > 0)
        classes.add(truth, said, probability)
    return own, nucleus, classes


def test_curves_are_those_of_all_pixels_together(pooled: tuple[PooledScores, ScoreHistogram, ClassScores]) -> None:
    own, nucleus, classes = pooled
    found = own.curves().to_pandas()
    assert found["of"].unique().tolist() == ["nucleus", "class"]
    wanted = {None: precision_recall(nucleus), **{k: classes.curve(k) for k in range(4)}}
    for class_id, curve in wanted.items():
        line = found[found["class_id"].isna()] if class_id is None else found[found["class_id"] == class_id]
        assert curve is not None
        for name in ("threshold", "precision", "recall", "tp", "fp", "exact"):
            if class_id != 3:
                assert line[name].to_numpy() == pytest.approx(getattr(curve, name)), (class_id, name)
        assert set(line["n_slides"]) <= {6}
    assert (found["threshold"].diff().dropna() < 0).sum() > 300
    # A class that is true somewhere and never predicted has no point.
    assert 3 not in found["class_id"].tolist()
    assert not found.query("of == 'nucleus'")["class_name"].notna().any()


def test_figures_are_those_of_all_pixels_together(pooled: tuple[PooledScores, ScoreHistogram, ClassScores]) -> None:
    own, nucleus, classes = pooled
    found = {metric: line["mean"] for metric, line in own.figures().items()}
    of_nucleus, of_class = calibration(nucleus), calibration(classes.top_label)
    assert found == pytest.approx(
        {
            "map": nucleus.average_precision,
            "brier": brier_score(nucleus),
            "ece": of_nucleus.ece,
            "mce": of_nucleus.mce,
            "ece_class": of_class.ece,
            "map_won": classes.average_precision_won_macro([1, 2, 3]).value,
        }
    )
    for metric, line in own.figures().items():
        assert (line["n_slides"], line["n_patients"]) == (6, 3)
        if metric != "map_won":
            assert line["ci_low"] <= line["mean"] <= line["ci_high"]
    for class_id in range(4):
        line = own.class_figures()[class_id, "ap_won"]
        assert line["mean"] == pytest.approx(classes.average_precision_won(class_id))
    rows = own.calibration()
    assert [row for row in rows if row["of"] == "nucleus"] == [{"of": "nucleus", **row} for row in of_nucleus.rows()]
    assert [row for row in rows if row["of"] == "class"] == [{"of": "class", **row} for row in of_class.rows()]


def test_an_interval_is_that_of_resampled_patients() -> None:
    own = PooledScores()
    of_patient = []
    for k, (truth, said, score, probability) in enumerate(slides(2)):
        own.add(table(truth, said, score, probability), f"s{k}", f"P{k}")
        of_patient.append((score, truth > 0))
    ends = []
    for picked in ((0, 0), (1, 1)):
        histogram = ScoreHistogram()
        for k in picked:
            histogram.add(*of_patient[k])
        ends.append(histogram.average_precision)
    line = own.figures()["map"]
    assert (line["ci_low"], line["ci_high"]) == (pytest.approx(min(ends)), pytest.approx(max(ends)))


def test_the_order_of_slides_changes_no_bit() -> None:
    found = []
    for order in (range(6), range(5, -1, -1)):
        own, made = PooledScores(), slides()
        for k in order:
            own.add(table(*(made[k][i] for i in (0, 1, 2, 3))), f"s{k}", f"P{k // 2}")
        found.append((own.curves(), own.calibration(), own.class_figures(), own.figures()))
    assert found[0][0].equals(found[1][0])
    assert found[0][1:] == found[1][1:]


def test_a_slide_without_maps_brings_nothing() -> None:
    truth, said, _, probability = slides(1)[0]
    own = PooledScores()
    own.add(table(truth, None, None, probability), "s0", "P")
    assert own.curves().num_rows == 0
    assert own.curves().column_names[0] == "of"
    assert own.calibration() == []
    assert {metric: line["mean"] for metric, line in own.figures().items()} == dict.fromkeys(own.figures())
    own.add(table(truth, said, None, probability), "s0", "P")
    assert set(own.curves()["of"].to_pylist()) == {"class"}
    assert own.figures()["map"]["n"] == 0
    assert own.figures()["ece_class"]["n"] == 1
    # Without any true pixel recall is undefined.
    bare = PooledScores()
    bare.add(table(np.zeros((3, 3), np.uint8), None, np.full((3, 3), 7, np.uint8), probability[:3, :3]), "s0", "P")
    assert bare.curves().num_rows == 0
    assert bare.figures()["map"]["mean"] is None
    assert bare.figures()["brier"]["mean"] == pytest.approx((7 / 255) ** 2)

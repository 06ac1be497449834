"""Detection by centroids: HoVer-Net's figures by their name, and the best pairing by brute force."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.metrics.contingency import contingency
from slideloom.metrics.detection import ClassDetection, Detection, class_detection, detect, pair_centroids

RULES = ("most_pairs", "hovernet")


@pytest.fixture(scope="module")
def original(shared: Path) -> tuple[dict, np.lib.npyio.NpzFile]:
    folder = shared / "fixtures" / "cellvit"
    return json.loads((folder / "metrics.json").read_text()), np.load(folder / "metrics_maps.npz")


def test_every_recorded_detection_is_reproduced_by_the_rule_hovernet(original: tuple) -> None:
    expected, maps = original
    for case, values in expected["instance"].items():
        table = contingency(maps[f"{case}/gt"], maps[f"{case}/pred"])
        # They put a point at the corner in place of nothing; here that has to be done by hand.
        sides = [side if len(side) else np.zeros((1, 2)) for side in (table.gt_centroid, table.pred_centroid)]
        for radius in (12, 6):
            theirs = values[f"detection@{radius}px(empty set replaced by one point (0,0) as in the original)"]
            ours = detect(*sides, radius, rule="hovernet")
            assert (ours.tp, ours.fp, ours.fn) == (theirs["tp"], theirs["fp"], theirs["fn"]), (case, radius)
            figures = (ours.f1 or 0.0, ours.precision or 0.0, ours.recall or 0.0)
            assert figures == pytest.approx((theirs["f1"], theirs["precision"], theirs["recall"]), abs=1e-9)
            best = detect(*sides, radius)
            assert best.tp >= ours.tp
            if (case, radius) == ("shift_xy5", 6):
                assert (ours.tp, best.tp) == (1, 1)  # nothing lies within the radius but a neighbour
            if (case, radius) == ("two_missed_one_false", 6):
                assert (ours.tp, best.tp) == (13, 14)  # least total distance first loses a perfect pair


def test_nothing_is_detected_where_nothing_is(original: tuple) -> None:
    _, maps = original
    for rule in RULES:
        for case, found in {"both_empty": (0, 0, 0), "gt_empty": (0, 16, 0), "pred_empty": (0, 0, 16)}.items():
            table = contingency(maps[f"{case}/gt"], maps[f"{case}/pred"])
            ours = detect(table.gt_centroid, table.pred_centroid, 12, rule=rule)
            assert (ours.tp, ours.fp, ours.fn) == found
            assert ours.f1 == (None if case == "both_empty" else 0.0)
    assert (ours.precision, ours.recall) == (None, 0.0)


def test_the_recorded_pairing_is_hovernets_and_the_other_rules_is_nearer(original: tuple) -> None:
    quirk = original[0]["typed_detection"]["pairing_quirk"]
    a, b = np.array(quirk["A"]), np.array(quirk["B"])
    pairs = np.stack(pair_centroids(a, b, quirk["radius"], rule="hovernet"), axis=1)
    assert pairs.tolist() == quirk["pairs"]
    # They pair 0-9 and 10-21, 20 apart in all, so that the total with 30-100 is least; within the radius 10 will do.
    assert np.stack(pair_centroids(a, b, quirk["radius"]), axis=1).tolist() == [[1, 0], [2, 1]]
    line = np.array([[0.0, 0.0], [0.0, 10.0]])
    shifted = np.array([[0.0, 10.0], [0.0, 21.0]])  # 10 + 11, or 0 within the radius and 21
    assert detect(line, shifted, 10.5) == Detection(1, 1, 1)
    assert detect(line, shifted, 11) == Detection(2, 0, 0)


def test_classes_are_hovernets(original: tuple) -> None:
    typed = original[0]["typed_detection"]
    n = len(typed["paired_true"])
    gt_class = np.array(typed["paired_true"] + typed["unpaired_true"])
    pred_class = np.array(typed["paired_pred"] + typed["unpaired_pred"])
    pairs = np.arange(n), np.arange(n)
    found = class_detection(pairs, gt_class, pred_class, [1, 2, 3, 4, 5, 9])
    for class_id, theirs in typed["results"].items():
        ours = found[int(class_id)]
        figures = (ours.f1_hovernet, ours.precision_hovernet, ours.recall_hovernet)
        assert figures == pytest.approx((theirs["f1"], theirs["precision"], theirs["recall"]), abs=1e-9)
        n_gt, n_pred = (gt_class == int(class_id)).sum(), (pred_class == int(class_id)).sum()
        assert ours.f1 == pytest.approx(2 * ours.tp / (n_gt + n_pred))
        assert (ours.precision, ours.recall) == pytest.approx((ours.tp / n_pred, ours.tp / n_gt))
    absent = found[9]
    assert (absent.f1, absent.precision, absent.recall) == (None, None, None)
    assert (absent.f1_hovernet, absent.precision_hovernet, absent.recall_hovernet) == (None, None, None)
    overall = Detection(n, len(typed["unpaired_pred"]), len(typed["unpaired_true"]))
    theirs = typed["overall"]
    assert (overall.f1, overall.precision, overall.recall) == pytest.approx(
        (theirs["f1"], theirs["precision"], theirs["recall"]), abs=1e-9
    )


def test_unknown_truth_counts_for_no_class() -> None:
    pairs = np.array([0, 1]), np.array([0, 1])
    found = class_detection(pairs, np.array([255, 1, 255]), np.array([1, 2, 1]), [1, 2])
    assert found[1] == ClassDetection(0, 0, 1, 1, 0)
    assert found[2] == ClassDetection(0, 1, 0, 0, 0)
    assert found[1] + found[2] == ClassDetection(0, 1, 1, 1, 0)


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4, unique=True)


@settings(max_examples=80, deadline=None)
@given(gt=POINTS, pred=POINTS, radius=st.sampled_from([1.0, 2.0, 2.5, 5.0]))
def test_the_pairing_is_the_best_of_all(gt: list, pred: list, radius: float) -> None:
    one, two = np.reshape(gt, (-1, 2)).astype(float), np.reshape(pred, (-1, 2)).astype(float)
    distance = (
        np.hypot(*(one[:, None] - two[None]).transpose(2, 0, 1)) if gt and pred else np.zeros((len(gt), len(pred)))
    )
    choices = []
    for order in permutations([*range(len(pred)), *[-1] * len(gt)], len(gt)):
        pairs = [distance[i, j] for i, j in enumerate(order) if j >= 0 and distance[i, j] <= radius]
        choices.append((len(pairs), -round(sum(pairs), 9)))
    gt_at, pred_at = pair_centroids(one, two, radius)
    assert np.unique(gt_at).size == np.unique(pred_at).size == gt_at.size
    assert (gt_at.size, -round(float(distance[gt_at, pred_at].sum()), 9)) == max(choices)
    assert detect(one, two, radius).tp >= detect(one, two, radius, rule="hovernet").tp
    assert detect(two[::-1, ::-1], one[::-1, ::-1], radius).tp == gt_at.size
    assert detect(one + 100, two + 100, radius).tp == gt_at.size


def test_half_a_slide_is_paired_at_once() -> None:
    rng = np.random.default_rng(0)
    gt = rng.uniform(0, 3000, (20_000, 2))
    pred = gt[rng.permutation(20_000)[:19_000]] + rng.normal(0, 3, (19_000, 2))
    gt_at, pred_at = pair_centroids(gt, pred, 12)
    assert np.unique(gt_at).size == np.unique(pred_at).size == gt_at.size
    assert (np.hypot(*(gt[gt_at] - pred[pred_at]).T) <= 12).all()
    assert gt_at.size > 18_500


def test_bad_radii_and_rules_are_refused() -> None:
    points = np.zeros((1, 2))
    with pytest.raises(ValueError, match="above 0"):
        pair_centroids(points, points, 0)
    with pytest.raises(ValueError, match="most_pairs and hovernet"):
        pair_centroids(points, points, 1, rule="nearest")  # type: ignore[arg-type]
    many = np.broadcast_to(points, (20_000, 2))
    with pytest.raises(ValueError, match="too many"):
        pair_centroids(many, many, 1, rule="hovernet")

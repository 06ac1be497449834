"""Averages by image, tissue and pool: the recorded ones of InstanSeg and StarDist, and PanNuke's rule by definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.metrics.averaging import ClassMean, PanopticMean, mean_by_class, mean_panoptic
from slideloom.metrics.contingency import contingency
from slideloom.metrics.panoptic import F1_THRESHOLDS, Panoptic, mean_defined, panoptic

NOTHING, MISSED, INVENTED = Panoptic(0, 0, 0, 0.0), Panoptic(0, 0, 3, 0.0), Panoptic(0, 2, 0, 0.0)


@pytest.fixture(scope="module")
def instanseg(shared: Path) -> tuple[dict, np.lib.npyio.NpzFile]:
    folder = shared / "fixtures" / "instanseg"
    return json.loads((folder / "metrics_expected.json").read_text()), np.load(folder / "metrics_pairs.npz")


def images(maps: np.lib.npyio.NpzFile, names: list[str], threshold: float, convention: str) -> list[Panoptic]:
    tables = [contingency(maps[f"{name}__gt"], maps[f"{name}__pred"]) for name in names]
    return [panoptic(table, threshold, convention=convention) for table in tables]


RANDOM = [f"random{number}" for number in range(4)]


@pytest.mark.parametrize(("key", "convention"), [("stardist", "stardist"), ("torch", "instanseg_pairs")])
@pytest.mark.parametrize("data_set", ["dataset_random0-3", "dataset_random0-3_plus_gt_empty"])
def test_recorded_averages_are_reproduced(instanseg: tuple, data_set: str, key: str, convention: str) -> None:
    expected, maps = instanseg
    names = [*RANDOM, *(["gt_empty"] if "empty" in data_set else [])]
    compared = 0
    for averaging, name in (("pooled", f"pooled_{key}"), ("image", f"by_image_{key}")):
        for threshold, theirs in zip(F1_THRESHOLDS, expected[data_set].get(name, []), strict=False):
            scored = images(maps, names, threshold, convention)
            total = sum(scored, NOTHING)
            assert (total.tp, total.fp, total.fn) == (theirs["tp"], theirs["fp"], theirs["fn"])
            ours = mean_panoptic(scored, averaging, convention=convention)
            assert ours.dq == pytest.approx(theirs["f1"], abs=1e-9)
            assert ours.n == len(names)
            if "panoptic_quality" in theirs:
                assert ours.pq == pytest.approx(theirs["panoptic_quality"], abs=1e-6)
            compared += 1
    if f"pooled_{key}" in expected[data_set]:
        assert compared >= 5


def test_the_papers_four_numbers_are_reproduced(instanseg: tuple) -> None:
    expected, maps = instanseg
    (theirs,) = [values for key, values in expected["dataset_random0-3"].items() if "2024" in key]
    pooled = [
        mean_panoptic(images(maps, RANDOM, t, "instanseg"), "pooled", convention="instanseg") for t in F1_THRESHOLDS
    ]
    ours = [
        mean_defined([each.dq for each in pooled]),
        pooled[0].dq,
        pooled[0].sq,
        mean_defined([each.pq for each in pooled]),
    ]
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_images_without_truth_count_by_convention() -> None:
    perfect = Panoptic(2, 0, 0, 2.0)
    scored = [perfect, INVENTED, NOTHING, MISSED]
    assert mean_panoptic(scored, "image") == PanopticMean(0.5, 0.5, 1.0, 2)
    assert mean_panoptic(scored, "image", convention="stardist") == PanopticMean(
        pytest.approx(1 / 3), pytest.approx(1 / 3), 1.0, 3
    )
    assert mean_panoptic(scored, "pooled").pq == pytest.approx(2 / (2 + 5 / 2))
    assert mean_panoptic([NOTHING, INVENTED], "image") == PanopticMean(None, None, None, 0)
    assert mean_panoptic([], "tissue", tissues=[]) == mean_panoptic([], "pooled") == PanopticMean(None, None, None, 0)
    assert mean_by_class([], "image") == ClassMean(None, 0, {})


def test_tissue_means_are_means_of_means() -> None:
    scored = [Panoptic(1, 0, 0, 0.9), Panoptic(1, 0, 0, 0.7), Panoptic(1, 0, 0, 0.6)]
    assert mean_panoptic(scored, "tissue", tissues=["lung", "lung", "skin"]).pq == pytest.approx(0.7)
    assert mean_panoptic(scored, "image").pq == pytest.approx(2.2 / 3)
    assert mean_panoptic([*scored, INVENTED], "tissue", tissues=["lung", "lung", "skin", "bone"]).pq == pytest.approx(
        0.7
    )


COUNTS = st.builds(
    lambda tp, fp, fn, share: Panoptic(tp, fp, fn, tp * share),
    *[st.integers(0, 3)] * 3,
    st.sampled_from([0.5, 0.75, 1.0]),
)


@settings(max_examples=80, deadline=None)
@given(data=st.lists(st.tuples(COUNTS, COUNTS, COUNTS, st.sampled_from("abc")), min_size=1, max_size=8))
def test_mpq_is_pannukes_by_nanmean(data: list) -> None:
    values = np.full((len(data), 3), np.nan)
    for i, row in enumerate(data):
        for k in range(3):
            if row[k].tp + row[k].fn:
                values[i, k] = row[k].iou_sum / (row[k].tp + row[k].fp / 2 + row[k].fn / 2)
    tissues = [row[3] for row in data]

    def nanmean(numbers: np.ndarray) -> float:
        kept = numbers[~np.isnan(numbers)]
        return float(kept.mean()) if kept.size else float("nan")

    of_image = np.array([nanmean(row) for row in values])
    of_tissue = np.array([nanmean(of_image[np.array(tissues) == each]) for each in sorted(set(tissues))])
    mappings = [{k: row[k] for k in range(3)} for row in data]
    ours = mean_by_class(mappings, "image")
    assert ours.mpq == pytest.approx(None if np.isnan(nanmean(of_image)) else nanmean(of_image))
    assert ours.n == (~np.isnan(of_image)).sum()
    assert [ours.by_class[k].pq for k in range(3)] == [
        None if np.isnan(nanmean(values[:, k])) else pytest.approx(nanmean(values[:, k])) for k in range(3)
    ]
    by_tissue = mean_by_class(mappings, "tissue", tissues=tissues)
    assert by_tissue.mpq == pytest.approx(None if np.isnan(nanmean(of_tissue)) else nanmean(of_tissue))
    pooled = mean_by_class(mappings, "pooled")
    quotients = []
    for k in range(3):
        tp, fp, fn, iou = (sum(getattr(row[k], name) for row in data) for name in ("tp", "fp", "fn", "iou_sum"))
        if tp + fn:
            quotients.append(iou / (tp + fp / 2 + fn / 2))
    assert pooled.mpq == pytest.approx(sum(quotients) / len(quotients) if quotients else None)
    assert mean_by_class(mappings[::-1], "tissue", tissues=tissues[::-1]) == by_tissue


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="image, tissue and pooled"):
        mean_panoptic([NOTHING], "slide")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tissue of every image"):
        mean_panoptic([NOTHING], "tissue")
    with pytest.raises(ValueError, match="same classes"):
        mean_by_class([{1: NOTHING}, {2: NOTHING}], "image")

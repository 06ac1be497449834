"""What must not change a slide's figures: numbering, windows, transposition, margins of background."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.metrics.evaluated import Slide, Tables

from slideloom.metrics import scan, true_extents
from slideloom.metrics.true_extents import Extents
from slideloom.patches.hv import hv_map_int8
from slideloom.slides.annotations import Annotation, AnnotationMaps

_SETTINGS = settings(max_examples=5, deadline=None)


def blobs(rng: np.random.Generator, size: tuple[int, int], n: int) -> np.ndarray:
    """Irregular nuclei, some of them touching, none at the border; later ones over earlier ones."""
    labels = np.zeros(size, np.int32)
    y, x = np.mgrid[: size[0], : size[1]]
    for label in range(1, n + 1):
        centre = rng.uniform(10, np.array(size) - 10)
        radius = rng.uniform(2.5, 7.0, 2)
        turn = rng.uniform(0, np.pi)
        dy, dx = y - centre[0], x - centre[1]
        along, across = dy * np.cos(turn) + dx * np.sin(turn), dx * np.cos(turn) - dy * np.sin(turn)
        labels[(along / radius[0]) ** 2 + (across / radius[1]) ** 2 < 1] = label
    return labels


def random_slide(folder: Path, seed: int) -> Slide:
    """Truth, a prediction that follows it, and maps with noise; a part was not predicted."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(50, 90)), int(rng.integers(50, 90))
    gt = blobs(rng, size, 18)
    labels = np.roll(gt, rng.integers(-1, 2, 2), (0, 1))
    more = blobs(rng, size, 4)
    labels[more > 0] = more[more > 0] + 100
    kinds = np.array([0, *rng.choice([1, 2, 3, 255], 150)], np.uint8)
    gt_class = kinds[gt]
    said = np.where(kinds == 255, 2, kinds)
    class_id = said[np.where(labels > 100, labels - 100, labels)]
    noisy = rng.random(size) < 0.2
    class_id[noisy] = rng.integers(0, 4, noisy.sum())
    covered = np.ones(size, np.uint8)
    covered[: size[0] // 5, : size[1] // 3] = 0
    nucleus = np.clip(np.where(labels > 0, 180, 40) + rng.integers(-70, 70, size), 1, 255).astype(np.uint8)
    sure = rng.integers(64, 256, size).astype(np.uint8)
    hv = np.clip(hv_map_int8(gt) + rng.integers(-40, 40, (2, *size)), -127, 127).astype(np.int8)
    arrays = {"covered": covered, "nucleus": nucleus, "class_id": class_id, "class_probability": sure, "hv": hv}
    return Slide(folder / "slide", gt, gt_class, labels, arrays, tile_px=32)


def renumbered(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """The same nuclei under other numbers."""
    names = np.concatenate(([0], rng.choice(np.arange(1, 2**31 - 1, 9973), labels.max(), replace=False)))
    return names[labels].astype(np.int64)


@_SETTINGS
@given(seed=st.integers(0, 10**6))
def test_numbers_of_nuclei_change_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    slide = random_slide(tmp_path_factory.mktemp("s"), seed)
    rng = np.random.default_rng(seed + 1)
    base = slide.tables()
    assert base is not None
    assert base["slide"][0]["tp_d"] > 0
    assert replace(slide, gt=renumbered(rng, slide.gt).astype(np.int32)).tables() == base
    assert replace(slide, labels=renumbered(rng, slide.labels)).tables() == base


@_SETTINGS
@given(seed=st.integers(0, 10**6), block_px=st.sampled_from([7, 16, 31, 64]))
def test_windows_change_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int, block_px: int) -> None:
    slide = random_slide(tmp_path_factory.mktemp("s"), seed)
    base = slide.tables()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_BLOCK_PX", block_px)
        patch.setattr(true_extents, "_PENDING", 5)
        assert slide.tables() == base


@_SETTINGS
@given(seed=st.integers(0, 10**6))
def test_transposition_changes_nothing_but_where_squares_lie(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    slide = random_slide(tmp_path_factory.mktemp("s"), seed)
    base = slide.tables()
    arrays = {name: data.T if data.ndim == 2 else data[::-1].transpose(0, 2, 1) for name, data in slide.arrays.items()}
    turned = replace(slide, gt=slide.gt.T, gt_class=slide.gt_class.T, labels=slide.labels.T, arrays=arrays).tables()
    assert base is not None
    assert turned is not None
    for name in ("slide", "classes", "confusion", "scores"):
        assert turned[name] == base[name]
    assert _squares(turned, ("x_px", "y_px", "width_px", "height_px")) == _squares(base)


@_SETTINGS
@given(
    seed=st.integers(0, 10**6),
    margins=st.tuples(*[st.sampled_from([0, 32, 64])] * 2),
    behind=st.tuples(*[st.integers(0, 40)] * 2),
)
def test_margins_that_were_not_predicted_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, margins: tuple[int, int], behind: tuple[int, int]
) -> None:
    slide = random_slide(tmp_path_factory.mktemp("s"), seed)
    base = slide.tables()
    padded = _padded(slide, tuple(zip(margins, behind, strict=True))).tables()
    assert base is not None
    assert padded is not None
    for name in ("slide", "classes", "confusion", "scores"):
        assert padded[name] == base[name]
    moved = _squares(padded, ("y_px", "x_px"))
    assert moved == [(y + margins[0], x + margins[1], *rest) for y, x, *rest in _squares(base, ("y_px", "x_px"))]


@_SETTINGS
@given(seed=st.integers(0, 10**6), before=st.integers(0, 40), behind=st.integers(0, 40))
def test_predicted_background_changes_only_what_counts_background(
    tmp_path_factory: pytest.TempPathFactory, seed: int, before: int, behind: int
) -> None:
    slide = random_slide(tmp_path_factory.mktemp("s"), seed)
    slide.arrays["covered"][:] = 1
    padded = _padded(slide, ((before, behind), (behind, before)))
    padded.arrays["covered"][:] = 1
    one, other = slide.tables(), padded.tables()
    assert one is not None
    assert other is not None
    counts_background = {
        "area_mm2", "pixel_accuracy", "ece", "mce", "brier", "class_accuracy", "ece_class", "hv_mse_everywhere",
        "dice_macro_with_background", "iou_macro_with_background", "precision_macro_with_background",
        "recall_macro_with_background",
    }  # fmt: skip
    changed = {name for name, value in one["slide"][0].items() if other["slide"][0][name] != value}
    assert changed <= counts_background
    for row, with_margin in zip(one["classes"][1:], other["classes"][1:], strict=True):
        changed = {name for name, value in row.items() if with_margin[name] != value}
        assert changed <= {"gt_fraction", "pred_fraction"}
    nuclei = [[row["nuclei"] for row in tables["confusion"]] for tables in (one, other)]
    assert nuclei[0] == nuclei[1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), block_px=st.sampled_from([5, 16, 40]))
def test_true_hv_maps_by_windows_are_those_of_the_whole_image(seed: int, block_px: int) -> None:
    rng = np.random.default_rng(seed)
    gt = renumbered(rng, blobs(rng, (60, 70), 15))
    gt[gt == gt.max()] = gt[gt > 0].min()  # one nucleus in two pieces, perhaps far apart
    extents = Extents()
    for top in rng.permutation(range(0, 60, 16)):
        extents.add(gt[top : top + 16], int(top), 0)
    ids, boxes = extents.boxes()
    assert ids.tolist() == np.unique(gt[gt > 0]).tolist()
    for one, box in zip(ids, boxes, strict=True):
        y, x = np.nonzero(gt == one)
        assert box.tolist() == [y.min(), x.min(), y.max() + 1, x.max() + 1]
    whole = hv_map_int8(gt)
    for window in scan.windows(scan.Box(0, 0, 60, 70), block_px):
        reach = extents.around(window.grown(1, (60, 70)))
        assert np.array_equal(hv_map_int8(gt[reach.slices])[:, *window.within(reach)], whole[:, *window.slices])


def test_nothing_but_windows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = random_slide(tmp_path, 3)
    monkeypatch.setattr(scan, "_BLOCK_PX", 16)
    read: list[tuple[int, int]] = []

    def spy(annotation: Annotation, window: tuple[slice, slice]) -> AnnotationMaps:
        maps = whole(annotation, window)
        read.append(maps.instances.shape)
        return maps

    whole = Annotation.read
    monkeypatch.setattr(Annotation, "read", spy)
    assert slide.tables() is not None
    # A window, and on both sides a nucleus of 14 pixels at most; or the outlines' context, which is less.
    assert max(max(shape) for shape in read) <= 16 + 2 * 14
    assert len(read) > 4


def _padded(slide: Slide, margins: Any) -> Slide:
    def pad(data: np.ndarray) -> np.ndarray:
        return np.pad(data, [(0, 0)] * (data.ndim - 2) + list(margins))

    arrays = {name: pad(data) for name, data in slide.arrays.items()}
    return replace(slide, gt=pad(slide.gt), gt_class=pad(slide.gt_class), labels=pad(slide.labels), arrays=arrays)


def _squares(tables: Tables, place: tuple[str, ...] = ("y_px", "x_px", "height_px", "width_px")) -> list[Any]:
    names = (*place, "n_gt", "n_pred", "tp", "fp", "fn", "wrong_class", "iou_sum", "pq")
    return sorted((tuple(row[name] for name in names) for row in tables["tiles"]), key=lambda row: row[:2])

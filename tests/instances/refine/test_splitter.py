"""Splitting merged discs whose truth is known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from scipy import ndimage

from slideloom.errors import SlideloomError
from slideloom.instances.refine.clusters import whole_parts
from slideloom.instances.refine.features import instance_features
from slideloom.instances.refine.found import LabelArray, Refined
from slideloom.instances.refine.splitter import SplitSettings, split_instances, suspects
from slideloom.instances.refine.tokens import TokenPlane
from slideloom.patches.hv import hv_map

MPP = 0.5


def groups(seed: int, sizes: list[int], cell: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Truth and merged labels: in each cell of a row a chain of that many touching ellipses, merged to one."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((cell, cell * len(sizes)), np.int32)
    number = 0
    for index, size in enumerate(sizes):
        radius, angle = float(rng.uniform(8, 11)), float(rng.uniform(0, 2 * np.pi))
        middle = np.array([cell / 2, cell * (index + 0.5)])
        away = np.array([np.sin(angle), np.cos(angle)]) * radius * 1.75
        centres = [middle + away * (part - (size - 1) / 2) for part in range(size)]
        if size == 3:
            centres[1] = centres[1] + np.array([away[1], -away[0]]) * 0.3
        y, x = np.mgrid[: truth.shape[0], : truth.shape[1]]
        stretch = rng.uniform(0.93, 1.07)
        distance = np.stack([np.hypot((y - cy) * stretch, (x - cx) / stretch) for cy, cx in centres])
        inside = distance.min(0) < radius
        truth[inside] = (distance.argmin(0) + number + 1)[inside]
        number += size
    merged, _ = ndimage.label(truth > 0)
    assert merged.max() == len(sizes)
    return truth, merged


def codes(truth: np.ndarray, noise: float = 0.0, blur: float = 0.0, seed: int = 0) -> np.ndarray:
    hv = hv_map(truth)
    if blur:
        hv = np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in hv])
    grain = np.random.default_rng(seed).normal(size=hv.shape)
    grain = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.5) for plane in grain])
    return np.rint(np.clip(hv + noise * grain / grain.std(), -1, 1) * 127).astype(np.int8)


def split(merged: np.ndarray, hv: np.ndarray, **changes: Any) -> tuple[LabelArray, Refined]:
    found, settings = LabelArray.of(merged), SplitSettings(**changes)
    ids = suspects(instance_features(found, {"hv": hv}, mpp_um=MPP), settings, found.table, MPP)
    return found, split_instances(found, {"hv": hv}, ids, settings, mpp_um=MPP)


def recovered(truth: np.ndarray, found: Refined) -> list[bool]:
    """Whether each true nucleus has a counterpart with an IoU above 0.7."""
    labels = found.read(found.grid.frame)
    right = []
    for label in range(1, truth.max() + 1):
        mask = truth == label
        best = np.bincount(labels[mask]).argmax()
        right.append(best > 0 and (mask & (labels == best)).sum() > 0.7 * (mask | (labels == best)).sum())
    return right


SIZES = [1, 2, 3, 1, 2, 4, 1, 2, 1, 3]


@pytest.mark.parametrize(("noise", "blur", "least"), [(0.0, 0.0, 0.99), (0.1, 1.0, 0.95), (0.2, 1.5, 0.85)])
def test_touching_discs_come_apart_and_single_ones_stay(noise: float, blur: float, least: float) -> None:
    right, singles = [], []
    for seed in range(4):
        truth, merged = groups(seed, SIZES)
        found, after = split(merged, codes(truth, noise, blur, seed))
        labels = after.read(after.grid.frame)
        np.testing.assert_array_equal(labels > 0, merged > 0)
        for label in range(1, after.n + 1):
            assert ndimage.label(labels == label)[1] == 1
        right += recovered(truth, after)
        singles += [
            len(np.unique(labels[found.labels == label])) == 1
            for label in range(1, found.n + 1)
            if len(np.unique(truth[found.labels == label])) == 1
        ]
    assert len(singles) == 16
    assert all(singles)
    assert np.mean(right) >= least


def test_single_nuclei_stay_whole_also_where_all_are_looked_at(make_crowd: Any) -> None:
    truth = make_crowd(3, (200, 220), 60, 8.0)
    hv = codes(truth, 0.15, 1.0)
    found = LabelArray.of(truth)
    ids = np.flatnonzero(found.table.area[1:] > 64) + 1
    after = split_instances(found, {"hv": hv}, ids, SplitSettings(), mpp_um=MPP)
    assert len(ids) > 40
    assert after.n - found.n <= 0.05 * len(ids)


def test_what_is_longer_than_the_most_nuclei_in_a_row_is_not_looked_at() -> None:
    """Foreground that runs over a whole slide would be read, and clustered, as a whole."""
    labels = np.zeros((1001, 1001), np.int32)
    labels[100, :800] = labels[100:116, 0] = 1  # 400 µm: as long as four of the largest
    labels[300, :801] = labels[300:316, 0] = 2
    labels[200:1001, 900] = labels[400, 900:916] = 3
    found = LabelArray.of(labels)
    shapes = instance_features(found, {}, mpp_um=MPP)
    order = found.labels[100, 0], found.labels[300, 0], found.labels[1000, 900]
    assert suspects(shapes, SplitSettings(), found.table, MPP).tolist() == [order[0]]
    assert set(suspects(shapes, SplitSettings(most=5), found.table, MPP)) == set(order)
    none = LabelArray.of(np.zeros((5, 5), np.int32))
    assert not len(suspects(instance_features(none, {}, mpp_um=MPP), SplitSettings(), none.table, MPP))


def test_where_it_lies_and_who_works_changes_nothing() -> None:
    truth, merged = groups(5, [2, 3, 1, 2])
    hv = codes(truth, 0.15, 1.0)
    _, whole = split(merged, hv)
    labels = whole.read(whole.grid.frame)
    assert whole.n > merged.max()
    wide = [np.pad(part, [(0, 0)] * (part.ndim - 2) + [(17, 5), (31, 2)]) for part in (merged, hv)]
    found = LabelArray.of(wide[0])
    settings = SplitSettings()
    ids = suspects(instance_features(found, {"hv": wide[1]}, mpp_um=MPP, window_px=64), settings, found.table, MPP)
    moved = split_instances(found, {"hv": wide[1]}, ids, settings, mpp_um=MPP, workers=3)
    np.testing.assert_array_equal(moved.read(moved.grid.frame)[17:-5, 31:-2], labels)


def test_tokens_part_what_differs_in_them_alone() -> None:
    truth, merged = groups(7, [2, 2, 1, 2, 1])
    kind = np.where(truth > 0, truth % 2 * 2 - 1, 0)
    small = kind.reshape(kind.shape[0] // 2, 2, kind.shape[1] // 2, 2).mean((1, 3))
    plane = TokenPlane(np.rint(small[..., None] * 4096).astype(np.int32), np.ones(small.shape, np.uint8), 2)
    flat = TokenPlane(np.zeros_like(plane.codes), plane.covered, 2)
    found = LabelArray.of(merged)
    settings = SplitSettings(by="tokens", token_um=8.0)
    ids = np.arange(1, found.n + 1)
    after = split_instances(found, {}, ids, settings, mpp_um=MPP, tokens=plane)
    assert np.mean(recovered(truth, after)) == 1
    assert after.n == truth.max()
    assert split_instances(found, {}, ids, settings, mpp_um=MPP, tokens=flat).n == found.n


def test_parts_are_made_whole() -> None:
    mask = np.ones((5, 7), bool)
    which = np.zeros((5, 7), np.int64)
    which[:, 4:] = 1
    which[2, 1] = which[0, 0] = 1
    which[3, 6] = 0
    expected = np.ones((5, 7), np.uint8)
    expected[:, 4:] = 2
    np.testing.assert_array_equal(whole_parts(mask, which.ravel(), 2), expected)
    apart = mask.copy()
    apart[:, 3] = False
    which = np.zeros((5, 7), np.int64)
    which[:2, :3] = 1
    parts = whole_parts(apart, which[apart], 2)
    assert (parts[apart] > 0).all()
    assert not parts[~apart].any()


def test_a_way_without_its_maps_is_refused(make_crowd: Any) -> None:
    found = LabelArray.of(make_crowd(3, (60, 60), 5, 8.0))
    for by in ("hv", "tokens"):
        with pytest.raises(SlideloomError) as caught:
            split_instances(found, {}, np.array([1]), SplitSettings(by=by), mpp_um=MPP)  # type: ignore[arg-type]
        assert caught.value.code == "missing_head"

"""How many nuclei a second prediction changes, against masks compared one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.config.model import InstancesConfig
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.seam_change import seam_change
from slideloom.instances.stitch import SlideMaps, stitch
from slideloom.instances.windows import Box, LabelTable, WindowGrid, label_table


@dataclass
class Found:
    """Given labels, read as those of a slide are."""

    labels: np.ndarray

    @property
    def n(self) -> int:
        return int(self.labels.max(initial=0))

    @property
    def grid(self) -> WindowGrid:
        return WindowGrid(Box(0, 0, *self.labels.shape), 16)

    @property
    def table(self) -> LabelTable:
        return label_table(self.labels.astype(np.int32), self.n, self.grid.frame, self.labels.shape[1])

    def read(self, box: Box) -> np.ndarray:
        return self.labels[box.slices].astype(np.uint32)


def by_masks(one: np.ndarray, other: np.ndarray) -> int:
    """Nuclei of both without a counterpart, each mask against each."""
    first, second = ([labels == label for label in range(1, labels.max() + 1)] for labels in (one, other))
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in second] for a in first]).reshape(len(first), len(second))
    return int((~(iou > 0.5).any(1)).sum() + (~(iou > 0.5).any(0)).sum())


def in_order_of_ids(labels: np.ndarray) -> np.ndarray:
    return np.unique(np.append(labels.ravel(), 0), return_inverse=True)[1][:-1].reshape(labels.shape)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 30), width=st.integers(1, 30), window=st.integers(3, 40))
def test_the_rate_is_that_of_masks_compared_one_by_one(seed, height, width, window):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 6, (-(-height // 4), -(-width // 4))).repeat(4, 0).repeat(4, 1)[:height, :width]
    one = in_order_of_ids(blocks)
    other = in_order_of_ids(np.where(rng.random(one.shape) < rng.choice([0, 0.2, 0.5]), rng.integers(0, 6), blocks))
    found = seam_change(Found(one), Found(other), window_px=window)
    n, n_shifted, changed = one.max(), other.max(), by_masks(one, other)
    rate = changed / (n + n_shifted) if n + n_shifted else None
    assert found == {"n": n, "n_shifted": n_shifted, "changed": changed, "rate": rate}
    swapped = seam_change(Found(other), Found(one), window_px=window)
    assert (swapped["changed"], swapped["rate"]) == (changed, rate)


def test_half_of_the_union_is_no_counterpart():
    one, other = np.zeros((2, 8, 8), np.int32)
    one[:4, :4] = other[:4, :2] = 1  # 8 of 16 px
    assert seam_change(Found(one), Found(other)) == {"n": 1, "n_shifted": 1, "changed": 2, "rate": 1.0}
    other[4, 4] = 2
    other[0, 2] = 1
    assert seam_change(Found(one), Found(other)) == {"n": 1, "n_shifted": 2, "changed": 1, "rate": 1 / 3}


def test_nothing_changes_where_nothing_does_and_empty_slides_have_no_rate():
    labels = np.arange(1, 41).reshape(5, 8)
    none = np.zeros_like(labels)
    assert seam_change(Found(labels), Found(labels), window_px=3)["rate"] == 0.0
    assert seam_change(Found(none), Found(none)) == {"n": 0, "n_shifted": 0, "changed": 0, "rate": None}
    assert seam_change(Found(labels), Found(none)) == {"n": 40, "n_shifted": 0, "changed": 40, "rate": 1.0}


def test_ids_beyond_16_bits_are_told_apart():
    labels = np.arange(1, 300 * 300 + 1).reshape(300, 300)
    assert seam_change(Found(labels), Found(labels), window_px=128, workers=2)["changed"] == 0
    other = labels.copy()
    other[::2, 0] = labels.max() + 1
    assert seam_change(Found(labels), Found(in_order_of_ids(other)))["changed"] == 151


def test_frames_must_be_alike():
    with pytest.raises(ValueError, match="frames"):
        seam_change(Found(np.ones((4, 4), np.int32)), Found(np.ones((4, 5), np.int32)))


def test_two_predictions_of_a_slide(
    make_crowd: Callable[..., Any], make_maps: Callable[..., Any], tmp_path: Path
) -> None:
    truth = make_crowd(3, (200, 230), 80, 8)
    method = HVWatershed.from_config(InstancesConfig(), 0.25)
    found = []
    for seed in (1, 2):
        made = make_maps(truth, blur=1.0, noise=0.25, seed=seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        found.append(stitch(SlideMaps({"nucleus": made.nucleus, "hv": made.hv}), method, folder, window_px=96))
    whole = Box(0, 0, *truth.shape)
    expected = by_masks(*(each.read(whole).astype(np.int64) for each in found))
    changes = [seam_change(*found, window_px=window, workers=workers) for window, workers in ((2048, 1), (61, 3))]
    assert changes[0] == changes[1]
    assert changes[0]["changed"] == expected > 0
    assert changes[0]["rate"] == expected / (found[0].n + found[1].n)

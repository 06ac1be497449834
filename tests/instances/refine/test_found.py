"""Dropping and splitting: ids, tables and boxes against labels that were changed pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slideloom.config.model import InstancesConfig
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.refine.found import Found, LabelArray, Piece, keep_instances, replace_instances
from slideloom.instances.stitch import SlideMaps, stitch
from slideloom.instances.windows import Box


def check(found: Found, wanted: np.ndarray) -> None:
    """Labels of any values, as ids in raster order; whole and in odd boxes, with their table."""
    expected = LabelArray.of(wanted)
    frame = found.grid.frame
    assert found.n == expected.n
    for box in (frame, Box(13, 40, 61, 90), Box(0, 0, 1, frame.right), Box(70, 3, 71, 4)):
        np.testing.assert_array_equal(found.read(box), expected.read(box))
    for name in ("first", "area", "box"):
        np.testing.assert_array_equal(getattr(found.table, name)[1:], getattr(expected.table, name)[1:])


def test_drop_split_and_drop_again(tmp_path: Path, make_crowd: Any, make_maps: Any) -> None:
    made = make_maps(make_crowd(1, (120, 150), 40, 8.0))
    maps = SlideMaps({"nucleus": made.nucleus, "hv": made.hv})
    method = HVWatershed.from_config(InstancesConfig(), 0.5)
    found = stitch(maps, method, tmp_path, window_px=64)
    labels = found.read(found.grid.frame).astype(np.int64)
    check(found, labels)
    rng = np.random.default_rng(3)
    keep = rng.random(found.n) < 0.7
    kept = keep_instances(found, keep)
    check(kept, np.where(np.append(False, keep)[labels], labels, 0))
    pieces, wanted = [], kept.read(kept.grid.frame).astype(np.int64)
    for label in range(1, kept.n + 1, 2):
        box = kept.table.box_of(label)
        mask = kept.read(box) == label
        parts = (mask * (1 + (np.arange(mask.shape[0])[:, None] * 3 // mask.shape[0]))).astype(np.uint8)
        if len(np.unique(parts[mask])) < 3:
            continue
        pieces.append(Piece(label, box, parts))
        wanted[box.slices] += parts.astype(np.int64) * 1000
    assert len(pieces) > 5
    split = replace_instances(kept, pieces[::-1])
    check(split, wanted)
    last = rng.random(split.n) < 0.5
    after = split.read(split.grid.frame)
    check(keep_instances(split, last), np.where(np.append(False, last)[after], after, 0))


def test_nothing_dropped_and_everything_dropped(make_crowd: Any) -> None:
    found = LabelArray.of(make_crowd(2, (80, 95), 20, 6.0))
    check(keep_instances(found, np.ones(found.n, bool)), found.labels)
    check(replace_instances(found, []), found.labels)
    assert keep_instances(found, np.zeros(found.n, bool)).n == 0


def test_refuses_what_would_lose_pixels(make_crowd: Any) -> None:
    found = LabelArray.of(make_crowd(2, (80, 95), 20, 6.0))
    box = found.table.box_of(1)
    parts = (found.read(box) == 1).astype(np.uint8)
    parts[-1] *= 2
    parts[0] = 0
    with pytest.raises(ValueError, match="do not cover"):
        replace_instances(found, [Piece(1, box, parts)])
    with pytest.raises(ValueError, match="flags"):
        keep_instances(found, np.ones(found.n + 1, bool))

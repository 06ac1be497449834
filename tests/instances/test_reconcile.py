"""Cells made to fit nuclei."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tests.forest_oracle import in_raster_order

from slideloom.artefacts.zarrio import create_array
from slideloom.instances.reconcile import reconcile, reconcile_slide
from slideloom.instances.stitch import Stitched
from slideloom.instances.windows import Box, WindowGrid, label_table


def blobs(seed: int, shape: tuple[int, int], spread: float, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rough = ndimage.gaussian_filter(rng.normal(size=shape), spread)
    labels, _ = ndimage.label(rough > np.quantile(rough, 1 - share))
    # Halves of pieces by a stripe, so that neighbours touch.
    halves = (labels * 2 + (np.arange(shape[1]) // 9 % 2)) * (labels > 0)
    return in_raster_order(halves).astype(np.int32)


def plainly(nuclei: np.ndarray, cells: np.ndarray, unnucleated: bool) -> np.ndarray:
    """Nucleus after nucleus, cell after cell."""
    largest: dict[int, tuple[int, int]] = {}
    for nucleus in np.unique(nuclei[nuclei > 0]):
        mask = nuclei == nucleus
        for cell in np.unique(cells[mask & (cells > 0)]):
            if (mask & (cells == cell)).sum() / mask.sum() > 0.5:
                largest[int(cell)] = max(largest.get(int(cell), (0, 0)), (int(mask.sum()), -int(nucleus)))
    found = np.zeros(nuclei.shape, np.int64)
    for cell in np.unique(cells[cells > 0]):
        if int(cell) in largest:
            found[cells == cell] = -largest[int(cell)][1]
        elif unnucleated:
            found[cells == cell] = nuclei.max() + cell
    found[nuclei > 0] = nuclei[nuclei > 0]
    return found


def as_stitched(labels: np.ndarray, folder: Path) -> Stitched:
    frame = Box(0, 0, *labels.shape)
    count = int(labels.max())
    atoms = create_array(
        folder / "atoms", labels.shape, np.int32, chunk=labels.shape, shard=labels.shape, codec="labels"
    )
    atoms[...].write(labels).result()
    table = label_table(labels, count, frame, labels.shape[1])
    final = np.arange(count + 1, dtype=np.uint32)
    return Stitched(WindowGrid(frame, max(labels.shape)), atoms, np.array([0, count]), final, table)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.1, 0.3]), st.sampled_from([0.2, 0.6]))
def test_is_what_a_plain_formulation_gives(seed: int, unnucleated: bool, of_nuclei: float, of_cells: float) -> None:
    nuclei, cells = blobs(seed, (40, 50), 1.5, of_nuclei), blobs(seed + 1, (40, 50), 3, of_cells)
    found = reconcile(nuclei, cells, unnucleated=unnucleated)
    np.testing.assert_array_equal(found, plainly(nuclei, cells, unnucleated))
    np.testing.assert_array_equal(found[nuclei > 0], nuclei[nuclei > 0])


@pytest.mark.parametrize("unnucleated", [True, False])
def test_where_there_is_only_one_of_both(unnucleated: bool) -> None:
    some, none = blobs(1, (30, 30), 2, 0.3), np.zeros((30, 30), np.int32)
    np.testing.assert_array_equal(reconcile(some, none, unnucleated=unnucleated), some)
    np.testing.assert_array_equal(reconcile(none, some, unnucleated=unnucleated), some if unnucleated else none)
    np.testing.assert_array_equal(reconcile(none, none, unnucleated=unnucleated), none)


def test_half_a_nucleus_is_not_more_than_half() -> None:
    nuclei, cells = np.zeros((2, 1, 12), np.int32)
    nuclei[0, 2:6] = 1
    cells[0, 4:10] = 1
    np.testing.assert_array_equal(reconcile(nuclei, cells)[0], [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0])
    cells[0, 3] = 1
    np.testing.assert_array_equal(reconcile(nuclei, cells)[0], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])


@settings(max_examples=10)
@given(
    st.integers(0, 10_000),
    st.booleans(),
    st.sampled_from([7, 16, 50]),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 9]),
)
def test_a_slide_is_reconciled_as_an_array(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    unnucleated: bool,
    window_px: int,
    workers: int,
    least: int,
) -> None:
    nuclei, cells = blobs(seed, (40, 50), 1.5, 0.2), blobs(seed + 1, (40, 50), 3, 0.5)
    folder = tmp_path_factory.mktemp("r")
    found = reconcile_slide(
        as_stitched(nuclei, folder / "n"),
        as_stitched(cells, folder / "c"),
        unnucleated=unnucleated,
        min_area_px=least,
        window_px=window_px,
        workers=workers,
    )
    expected = reconcile(nuclei, cells, unnucleated=unnucleated)
    alone = np.where(expected > nuclei.max(), expected, 0)
    small = np.flatnonzero(np.bincount(alone.ravel()) < least)
    alone[np.isin(alone, small)] = 0
    ranked = in_raster_order(alone)
    expected = np.where(expected > nuclei.max(), np.where(ranked > 0, ranked + nuclei.max(), 0), expected)
    frame = Box(0, 0, 40, 50)
    np.testing.assert_array_equal(found.read(frame), expected)
    np.testing.assert_array_equal(found.read(Box(3, 5, 20, 31)), expected[3:20, 5:31])
    table = label_table(expected.astype(np.int32), found.n, frame, 50)
    assert found.n == expected.max()
    for name in ("first", "area", "box"):
        np.testing.assert_array_equal(getattr(found.table, name)[1:], getattr(table, name)[1:])

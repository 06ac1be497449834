"""Whole cells beside nuclei: from maps to a second label image and two columns of the cell table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.forest_oracle import in_raster_order
from tests.instances.instanseg_maps import CODES, a_classifier, a_map

from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.zarrio import create_group, read_attributes, write_array
from slideloom.config.model import InstancesConfig
from slideloom.instances.instanseg import InstanSegParams
from slideloom.instances.instanseg_stitch import segment_arrays
from slideloom.instances.labels import open_labels
from slideloom.instances.reconcile import reconcile
from slideloom.instances.segment import segment_slide
from slideloom.slides.tables import ClassTable

SHAPE = (150, 190)
Codes = NDArray[np.int16]


def drawn(centres: Sequence[tuple[int, int]], radius: float, shape: tuple[int, int] = SHAPE) -> Codes:
    """Codes (5, H, W) of discs."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    at = np.array(centres)
    away = np.hypot(y[..., None] - at[:, 0], x[..., None] - at[:, 1])
    nearest, least = away.argmin(axis=-1), away.min(axis=-1)
    maps = np.stack(
        [
            (at[nearest, 1] - x) / 4,
            (at[nearest, 0] - y) / 4,
            np.where(least < radius, 3, 0),
            np.zeros(shape),
            np.clip(1 - least / (2 * radius), 0, 1),
        ]
    )
    limits = np.array([4, 4, 8, 8, 2])[:, None, None]
    codes: Codes = np.rint(np.clip(maps, -limits, limits) * CODES[:, None, None]).astype(np.int16)
    return codes


def slide_with(slide_of: Callable[..., Any], make_maps: Callable[..., Any], nuclei: Codes, cells: Codes | None) -> Any:
    """A slide whose maps are those of the heads instanseg and, with cells, instanseg_cells."""
    slide = slide_of(make_maps((nuclei[4] > 0).astype(np.int32)), heads=("instanseg",))
    about = read_attributes(slide.maps) | {"pixel_classifier": a_classifier().as_json()}
    maps = {"instanseg": nuclei} | ({} if cells is None else {"instanseg_cells": cells})
    create_group(slide.maps, about | {"heads": list(maps)})
    for name, values in maps.items():
        write_array(slide.maps / name, values)
    return slide


def segmented(slide: Any, place: Path, workers: int = 1, **config: Any) -> tuple[NDArray[Any], Any]:
    """Labels of nuclei, and the table."""
    made = InstancesConfig(**{"min_area_um2": 0.0, **config})
    segment_slide(
        slide.maps, made, ClassTable(), slide.facts, None, place / "s1.ome.zarr", place / "c.parquet", workers=workers
    )
    return np.asarray(open_labels(place / "s1.ome.zarr")), geopandas.read_parquet(place / "c.parquet")


def cells_of(place: Path) -> NDArray[Any]:
    return np.asarray(open_labels(place / "s1.ome.zarr" / "labels" / "cells"))


def apart(codes: Codes) -> NDArray[np.int32]:
    return segment_arrays(codes[:2], codes[2:4], codes[4], a_classifier(), InstanSegParams())


def expected(nuclei: NDArray[Any], cells: NDArray[Any]) -> NDArray[np.int64]:
    """Cells as they should be: those without a nucleus behind all others, in raster order."""
    found = reconcile(nuclei, cells).astype(np.int64)
    alone = np.where(found > nuclei.max(), found, 0)
    return np.where(alone > 0, in_raster_order(alone) + nuclei.max(), found)


def test_cells_with_and_without_a_nucleus_and_nuclei_without_a_cell(
    slide_of: Callable[..., Any], make_maps: Callable[..., Any], tmp_path: Path
) -> None:
    both, bare, empty = [(30, 30), (30, 80), (90, 60)], [(90, 120)], [(120, 160)]
    slide = slide_with(slide_of, make_maps, drawn(both + bare, 5), drawn(both + empty, 9))
    labels, table = segmented(slide, tmp_path)
    cells = cells_of(tmp_path)
    assert len(table) == labels.max() == 4
    assert cells.max() == 5
    for y, x in both:
        own = labels[y, x]
        assert cells[y, x] == own
        assert (cells == own).sum() > 2 * (labels == own).sum()
    (y, x), (cell_y, cell_x) = bare[0], empty[0]
    np.testing.assert_array_equal(cells == labels[y, x], labels == labels[y, x])
    assert labels[cell_y, cell_x] == 0
    assert cells[cell_y, cell_x] == 5
    assert ((labels == 0) | (cells == labels)).all()
    for row in table.itertuples():
        assert row.has_cell == (row.cell_id != labels[y, x])
        if row.has_cell:
            assert row.cell_area_um2 == pytest.approx((cells == row.cell_id).sum() * 0.25)
        else:
            assert np.isnan(row.cell_area_um2)
    about = read_attributes(tmp_path / "s1.ome.zarr" / "labels" / "cells")["slideloom"]
    assert (about["n_cells"], about["n_without_nucleus"]) == (5, 1)
    assert read_attributes(tmp_path / "s1.ome.zarr" / "labels")["ome"] == {"version": "0.5", "labels": ["cells"]}


@pytest.mark.parametrize("seed", [1, 2])
def test_windows_and_workers_change_no_byte(
    slide_of: Callable[..., Any], make_maps: Callable[..., Any], tmp_path: Path, seed: int
) -> None:
    nuclei, cells = a_map(seed, SHAPE), a_map(seed + 100, SHAPE)
    slide = slide_with(slide_of, make_maps, nuclei, cells)
    digests = set()
    for window_px, workers in ((64, 1), (64, 3), (101, 2), (4096, 1)):
        place = tmp_path / f"{window_px}-{workers}"
        labels, table = segmented(slide, place, workers, window_px=window_px)
        digests.add((digest_tree(place / "s1.ome.zarr"), digest_tree(place / "c.parquet")))
    assert len(digests) == 1
    np.testing.assert_array_equal(labels, apart(nuclei))
    np.testing.assert_array_equal(cells_of(place), expected(labels, apart(cells)))
    assert 0 < table["has_cell"].sum() < len(table)


def test_nuclei_are_as_if_there_were_no_cells(
    slide_of: Callable[..., Any], make_maps: Callable[..., Any], tmp_path: Path
) -> None:
    nuclei = a_map(3, SHAPE)
    with_cells = slide_with(slide_of, make_maps, nuclei, a_map(4, SHAPE))
    labels, table = segmented(with_cells, tmp_path / "with")
    create_group(with_cells.maps, read_attributes(with_cells.maps) | {"heads": ["instanseg"]})
    alone, without = segmented(with_cells, tmp_path / "without")
    np.testing.assert_array_equal(labels, alone)
    assert not (tmp_path / "without" / "s1.ome.zarr" / "labels").exists()
    own = ["has_cell", "cell_area_um2"]
    assert without[own].isna().all(axis=None)
    assert table.drop(columns=own).equals(without.drop(columns=own))
    assert table["has_cell"].notna().all()


@pytest.mark.parametrize("method", ["threshold", "distance_watershed"])
def test_nuclei_of_any_method_get_their_cells(
    slide_of: Callable[..., Any], make_maps: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    centres = [(30, 30), (30, 90), (100, 60)]
    slide = slide_with(slide_of, make_maps, drawn(centres, 5), drawn(centres, 12))
    labels, table = segmented(slide, tmp_path, method=method)
    assert len(table) == 3
    assert table["has_cell"].all()
    np.testing.assert_array_equal(cells_of(tmp_path), expected(labels, apart(drawn(centres, 12))))


def test_small_leftovers_of_cells_are_dropped(
    slide_of: Callable[..., Any], make_maps: Callable[..., Any], tmp_path: Path
) -> None:
    """A cell of which a nucleus leaves a rim, and which holds less than half of the nucleus."""
    slide = slide_with(slide_of, make_maps, drawn([(60, 60)], 9), drawn([(66, 68), (120, 120)], 5))
    labels, _ = segmented(slide, tmp_path / "all")
    rims = np.unique(cells_of(tmp_path / "all"), return_counts=True)
    assert rims[0].tolist() == [0, 1, 2, 3]
    least = 0.25 * (rims[1][2] + 1)
    assert least < 0.25 * rims[1][3]
    segmented(slide, tmp_path / "large", min_area_um2=least)
    assert np.unique(cells_of(tmp_path / "large")).tolist() == [0, 1, 2]
    assert labels.max() == 1

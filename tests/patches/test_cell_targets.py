from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.zarrio import create_group, read_attributes
from slideloom.patches.cell_targets import cut_cell_targets
from slideloom.patches.target_store import CellTargetStore, TargetStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.cell_annotation import read_cells
from slideloom.slides.tables import ClassTable


def _blocks(height, width, side):
    y, x = np.mgrid[:height, :width]
    ids = (y // side * 100 + x // side + 1).astype(np.int32)
    return np.where((y % side > 0) & (x % side > 0), ids, 0)


@pytest.fixture
def slide(make_slide):
    made = make_slide(sp=np.zeros((1, 50, 70), np.uint8), instances=_blocks(50, 70, 6))
    np.save(made.root / "cells.npy", _blocks(50, 70, 11))
    return replace(made, row=replace(made.row, cells="cells.npy"))


def test_cells_are_crops_of_the_slide(slide):
    store = slide.cut(image="sp", tile_px=16, stride_px=12, mpp_um=0.7)
    place = slide.root / "cell_targets.zarr"
    assert cut_cell_targets(slide.row, slide.root, slide.facts, store, place)
    cells = read_cells(slide.row, slide.root, slide.facts, "sp", store.scale).cells
    padded = np.pad(cells, ((0, 16), (0, 16)))
    found = CellTargetStore(place)
    assert found.n == store.n
    assert list(found.read([0])) == ["instances"]
    read = found.read(slice(None), ("instances",))["instances"]
    assert read.dtype == np.int32
    for tile, patch in enumerate(read):
        y, x = int(store.y_px[tile]), int(store.x_px[tile])
        np.testing.assert_array_equal(patch, padded[y : y + 16, x : x + 16])
    assert read_attributes(place)["n_instances"] == np.unique(cells[cells > 0]).size


def test_a_slide_without_the_column_has_no_store_and_nuclei_do_not_change_with_it(slide):
    store = slide.cut(image="sp", tile_px=16)
    place = slide.root / "cell_targets.zarr"
    without = replace(slide.row, cells=None)
    assert not cut_cell_targets(without, slide.root, slide.facts, store, place)
    assert not place.exists()
    digests = []
    for row in (without, slide.row):
        target = slide.root / f"targets_{row.cells}.zarr"
        assert cut_targets(row, slide.root, slide.facts, store, ClassTable(), target)
        digests.append(digest_tree(target))
    assert digests[0] == digests[1]


def test_the_two_stores_are_told_apart(slide):
    store = slide.cut(image="sp", tile_px=16)
    place = slide.root / "cell_targets.zarr"
    cut_cell_targets(slide.row, slide.root, slide.facts, store, place)
    with pytest.raises(FileNotFoundError):
        TargetStore(place).read([0])  # it has no classes, HV and boundary
    create_group(slide.root / "empty.zarr", {"schema": 99, "slide_id": "a", "tile_px": 16})
    with pytest.raises(BrokenArtefactError, match="cell targets, schema 1"):
        CellTargetStore(slide.root / "empty.zarr")

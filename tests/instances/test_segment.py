"""Maps on disk to labels and cells on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest

from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.tables import table_metadata
from slideloom.artefacts.zarrio import read_attributes
from slideloom.config.model import InstancesConfig
from slideloom.errors import SlideloomError
from slideloom.instances.labels import open_labels
from slideloom.instances.segment import segment_slide
from slideloom.slides.tables import ClassTable


@pytest.fixture(scope="module")
def made(make_crowd: Callable[..., Any], make_maps: Callable[..., Any]) -> Any:
    return make_maps(make_crowd(4, (260, 300), 90, 7), blur=0.7)


def _segment(slide: Any, classes: ClassTable, place: Path, **config: Any) -> tuple[int, np.ndarray, Any]:
    labels, cells = place / "s1.ome.zarr", place / "cells.parquet"
    n = segment_slide(slide.maps, InstancesConfig(**config), classes, slide.facts, slide.patches, labels, cells)
    return n, np.asarray(open_labels(labels)), geopandas.read_parquet(cells)


def test_labels_and_cells_agree(
    made: Any, slide_of: Callable[..., Any], classes: ClassTable, tmp_path: Path, pq: Callable[..., float]
) -> None:
    slide = slide_of(made, scale=2.0, mpp_um=0.5)
    n, labels, cells = _segment(slide, classes, tmp_path / "out", window_px=128, halo_px=20)
    assert pq(made.truth, labels) > 0.85
    assert n == labels.max() == len(cells)
    assert cells["cell_id"].tolist() == list(range(1, n + 1))
    for _, cell in cells.iterrows():
        mask = labels == cell["cell_id"]
        y, x = np.nonzero(mask)
        assert cell["area_px"] == mask.sum()
        assert cell["area_um2"] == pytest.approx(mask.sum() * 0.25)
        assert cell["x_px"] == pytest.approx(2 * (x.mean() + 0.5))
        assert cell["y_um"] == pytest.approx(0.5 * (y.mean() + 0.5))
        votes = np.bincount(slide.arrays["class_id"][mask], minlength=4)
        assert cell["class_id"] == (votes[1:].argmax() + 1 if votes[1:].any() else 0)
        assert cell["mean_CD3"] == pytest.approx(slide.image[1][mask].mean(), rel=1e-6)
        assert cell["nucleus_probability"] == pytest.approx(made.nucleus[mask].mean() / 255, rel=1e-6)
        assert cell["geometry"].is_valid
    np.testing.assert_allclose(cells.geometry.area, 4 * (cells["area_px"] - 0.5), rtol=0.02)
    assert not list((tmp_path / "out").glob(".*"))


def test_labels_and_cells_record_the_maps_and_their_weights(
    made: Any, slide_of: Callable[..., Any], classes: ClassTable, tmp_path: Path
) -> None:
    slide = slide_of(made)
    _segment(slide, classes, tmp_path)
    labels = read_attributes(tmp_path / "s1.ome.zarr")["slideloom"]["made_from"]
    cells = table_metadata(parquet.read_table(tmp_path / "cells.parquet"))["made_from"]
    assert labels["maps"] == cells["maps"] == read_attributes(slide.maps)
    assert labels["maps"]["encoder_weights"] == "random:1"


@pytest.mark.parametrize("method", ["hv_watershed", "threshold"])
def test_windows_change_no_byte(
    method: str, made: Any, slide_of: Callable[..., Any], classes: ClassTable, tmp_path: Path
) -> None:
    slide = slide_of(made)
    digests = set()
    for window_px, halo_px in ((64, 0), (100, 50), (4096, 128)):
        place = tmp_path / str(window_px)
        _segment(slide, classes, place, method=method, window_px=window_px, halo_px=halo_px)
        digests.add((digest_tree(place / "s1.ome.zarr"), digest_tree(place / "cells.parquet")))
    assert len(digests) == 1


def test_empty_slide_gives_empty_artefacts(
    make_maps: Callable[..., Any], slide_of: Callable[..., Any], classes: ClassTable, tmp_path: Path
) -> None:
    slide = slide_of(make_maps(np.zeros((70, 90), np.int32)))
    n, labels, cells = _segment(slide, classes, tmp_path / "out")
    assert n == 0
    assert not labels.any()
    assert len(cells) == 0
    assert {"probability_tumour", "mean_DNA", "mean_CD3", "geometry"} <= set(cells.columns)


def test_maps_without_hv_and_classes(made: Any, slide_of: Callable[..., Any], tmp_path: Path) -> None:
    slide = slide_of(made, heads=("nucleus",))
    with pytest.raises(SlideloomError, match="threshold") as caught:
        _segment(slide, ClassTable(), tmp_path / "out", method="hv_watershed")
    assert caught.value.code == "missing_head"
    n, labels, cells = _segment(slide, ClassTable(), tmp_path / "out", method="threshold")
    again = _segment(slide, ClassTable(), tmp_path / "auto")
    np.testing.assert_array_equal(again[1], labels, err_msg="auto takes the method that the maps allow")
    assert n == labels.max() == len(cells) > 0
    assert cells["class_name"].isna().all()


def test_without_tiles_there_are_no_marker_means(
    made: Any, slide_of: Callable[..., Any], classes: ClassTable, tmp_path: Path
) -> None:
    slide = slide_of(made)
    place = tmp_path / "cells.parquet"
    segment_slide(slide.maps, InstancesConfig(), classes, slide.facts, None, tmp_path / "x.ome.zarr", place)
    assert not [name for name in pd.read_parquet(place) if name.startswith("mean_")]


def test_tiles_of_another_frame_are_refused(
    made: Any, slide_of: Callable[..., Any], classes: ClassTable, tmp_path: Path
) -> None:
    slide = slide_of(made)
    slide.patches.height_px += 1
    with pytest.raises(SlideloomError) as caught:
        _segment(slide, classes, tmp_path / "out")
    assert caught.value.code == "maps_shape"

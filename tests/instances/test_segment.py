"""Maps on disk to labels and cells on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
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
from slideloom.instances.boundary_watershed import BoundaryWatershed
from slideloom.instances.distance_watershed import DistanceWatershed
from slideloom.instances.finding import choose_method, one_thread_a_worker
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.labels import open_labels
from slideloom.instances.segment import segment_slide
from slideloom.instances.threshold import Threshold
from slideloom.slides.tables import ClassTable


@pytest.fixture(scope="module")
def made(make_crowd: Callable[..., Any], make_maps: Callable[..., Any]) -> Any:
    return make_maps(make_crowd(4, (260, 300), 90, 7), blur=0.7)


def _segment(
    slide: Any, classes: ClassTable, place: Path, workers: int = 1, **config: Any
) -> tuple[int, np.ndarray, Any]:
    labels, cells = place / "s1.ome.zarr", place / "cells.parquet"
    made = (InstancesConfig(**config), classes, slide.facts, slide.patches)
    n = segment_slide(slide.maps, *made, labels, cells, workers=workers)
    return n, np.asarray(open_labels(labels)), geopandas.read_parquet(cells)


def test_labels_and_cells_agree(
    made: Any, slide_of: Callable[..., Any], classes: ClassTable, tmp_path: Path, pq: Callable[..., float]
) -> None:
    slide = slide_of(made, scale=2.0, mpp_um=0.5)
    n, labels, cells = _segment(slide, classes, tmp_path / "out", window_px=128)
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


@pytest.mark.parametrize("method", ["hv_watershed", "boundary_watershed", "distance_watershed", "threshold"])
def test_windows_and_workers_change_no_byte(
    method: str,
    make_crowd: Callable[..., Any],
    make_maps: Callable[..., Any],
    slide_of: Callable[..., Any],
    classes: ClassTable,
    tmp_path: Path,
) -> None:
    noisy = make_maps(make_crowd(9, (157, 211), 70, 7), blur=0.8, noise=0.15)
    slide = slide_of(noisy, heads=("nucleus", "hv", "boundary", "classes"), stride_px=48)
    digests = set()
    for window_px, workers in ((64, 1), (64, 2), (100, 4), (4096, 1)):
        place = tmp_path / f"{window_px}-{workers}"
        n, _, _ = _segment(slide, classes, place, workers, method=method, window_px=window_px)
        assert n > 10
        digests.add((digest_tree(place / "s1.ome.zarr"), digest_tree(place / "cells.parquet")))
    assert len(digests) == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (65, 64), (130, 67)])
@pytest.mark.parametrize("fill", ["nothing", "everything"])
def test_slides_of_any_size(
    shape: tuple[int, int],
    fill: str,
    make_maps: Callable[..., Any],
    slide_of: Callable[..., Any],
    classes: ClassTable,
    tmp_path: Path,
) -> None:
    truth = np.full(shape, int(fill == "everything"), np.int32)
    slide = slide_of(make_maps(truth))
    n, labels, cells = _segment(slide, classes, tmp_path / "out", 2, method="threshold", window_px=64, min_area_um2=0)
    assert n == len(cells) == (fill == "everything")
    np.testing.assert_array_equal(labels, truth)
    if n:
        assert cells["area_px"].tolist() == [shape[0] * shape[1]]
        assert cells["x_px"].tolist() == [pytest.approx(shape[1])]
        assert cells.geometry.bounds.to_numpy().tolist() == [[0, 0, 2 * shape[1], 2 * shape[0]]]


def test_one_nucleus_across_four_windows(
    make_discs: Callable[..., Any],
    make_maps: Callable[..., Any],
    slide_of: Callable[..., Any],
    classes: ClassTable,
    tmp_path: Path,
) -> None:
    truth = make_discs((128, 140), [(64, 64)], 20)
    n, labels, cells = _segment(slide_of(make_maps(truth)), classes, tmp_path / "out", window_px=64)
    assert n == 1
    np.testing.assert_array_equal(labels, truth)
    assert cells.geometry[0].area == pytest.approx(4 * (truth.sum() - 0.5))


def test_shifted_maps_tell_how_much_the_tiles_show(
    make_crowd: Callable[..., Any],
    make_maps: Callable[..., Any],
    slide_of: Callable[..., Any],
    classes: ClassTable,
    tmp_path: Path,
) -> None:
    truth = make_crowd(5, (150, 170), 40, 7)
    # A nucleus that only the one prediction has, far from changing the others.
    less = make_maps(np.where(truth == 1, 0, truth))
    slide = slide_of(make_maps(truth), shifted=less)
    n, plain, _ = _segment(slide, classes, tmp_path / "out", window_px=64)
    seams = read_attributes(tmp_path / "out" / "s1.ome.zarr")["slideloom"]["seam_change"]
    assert seams == {"n": n, "n_shifted": n - 1, "changed": 1, "rate": 1 / (2 * n - 1)}
    shutil.rmtree(slide.maps / "shifted")
    _, alone, _ = _segment(slide, classes, tmp_path / "alone", window_px=64)
    np.testing.assert_array_equal(alone, plain)
    assert "seam_change" not in read_attributes(tmp_path / "alone" / "s1.ome.zarr")["slideloom"]


def test_filters_stay_in_their_threads_and_the_setting_is_put_back() -> None:
    before = cv2.getNumThreads()
    with pytest.raises(KeyError), one_thread_a_worker():
        assert cv2.getNumThreads() == 1
        raise KeyError
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize(
    ("method", "heads", "made", "missing"),
    [
        ("auto", ("nucleus", "hv", "boundary"), HVWatershed, None),
        ("auto", ("nucleus", "boundary"), BoundaryWatershed, None),
        ("auto", ("nucleus",), Threshold, None),
        ("distance_watershed", ("nucleus",), DistanceWatershed, None),
        ("threshold", ("nucleus", "hv"), Threshold, None),
        ("hv_watershed", ("nucleus", "boundary"), None, "hv"),
        ("boundary_watershed", ("nucleus", "hv"), None, "boundary"),
    ],
)
def test_methods_are_chosen_by_name_and_heads(
    method: Any, heads: tuple[str, ...], made: type | None, missing: str | None
) -> None:
    config = InstancesConfig(method=method)
    if made is not None:
        assert type(choose_method(config, 0.25, heads)) is made
        return
    with pytest.raises(SlideloomError, match=f"the head {missing}") as caught:
        choose_method(config, 0.25, heads)
    assert caught.value.code == "missing_head"


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

"""The exports of a slide, by config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideloom.config.model import ExportsConfig, InstancesConfig
from slideloom.errors import SlideError
from slideloom.instances.exports.slide import export_slide
from slideloom.instances.segment import segment_slide
from slideloom.slides.tables import ClassTable

ALL = {"geojson": "s-1.geojson.zip", "anndata": "s-1.h5ad", "spatialdata": "s-1.spatialdata.zarr"}


@pytest.mark.parametrize("wanted", [(), *((name,) for name in ALL), tuple(ALL)], ids=str)
def test_only_what_is_asked_for(
    wanted: tuple[str, ...], made: Callable[..., Any], classes: ClassTable, tmp_path: Path
) -> None:
    slide = made(2)
    folder = tmp_path / "out"
    config = ExportsConfig(**dict.fromkeys(wanted, True))
    places = export_slide(config, "s-1", slide.labels_path, slide.cells_path, slide.facts, classes, "sp", folder)
    assert places == [folder / ALL[name] for name in wanted]
    assert sorted(folder.glob("*")) == sorted(places)


def test_again_in_the_same_place(made: Callable[..., Any], classes: ClassTable, tmp_path: Path) -> None:
    slide = made(2)
    arguments = ("s-1", slide.labels_path, slide.cells_path, slide.facts, classes, "sp", tmp_path / "out")
    config = ExportsConfig(**dict.fromkeys(ALL, True))
    assert export_slide(config, *arguments) == export_slide(config, *arguments)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(ALL.values())


def test_an_image_that_is_not_there(made: Callable[..., Any], classes: ClassTable, tmp_path: Path) -> None:
    slide = made(2)
    with pytest.raises(SlideError) as caught:
        export_slide(
            ExportsConfig(), "s-1", slide.labels_path, slide.cells_path, slide.facts, classes, "he", tmp_path / "out"
        )
    assert caught.value.code == "no_image"


def test_what_segment_slide_writes_is_what_readers_open(
    make_crowd: Callable[..., Any],
    make_maps: Callable[..., Any],
    slide_of: Callable[..., Any],
    tmp_path: Path,
    seen_by: Callable[..., Any],
) -> None:
    slide = slide_of(make_maps(make_crowd(4, (200, 230), 40, 7), blur=0.7))
    names = ClassTable((1, 2, 3), ("tumour", "stroma", "immune"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    labels, cells = tmp_path / "s1.ome.zarr", tmp_path / "cells.parquet"
    n = segment_slide(slide.maps, InstancesConfig(), names, slide.facts, slide.patches, labels, cells)
    config = ExportsConfig(**dict.fromkeys(ALL, True))
    geojson, h5ad, store = export_slide(config, "s1", labels, cells, slide.facts, names, "sp", tmp_path / "out")
    ids = list(range(1, n + 1))
    assert n > 20
    (seen,) = seen_by("geojson", geojson)
    assert (seen["n"], seen["valid"]) == (n, True)
    (seen,) = seen_by("anndata", h5ad)
    assert (seen["obs"]["cell_id"], seen["var_names"]) == (ids, ["DNA", "CD3"])
    assert seen["uns"]["class_colors"][1:] == ["#ff0000", "#00ff00", "#0000ff"]
    (seen,) = seen_by("spatialdata", store)
    assert seen["joined"] == [ids, ids]
    assert seen["labels"]["global"] == [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    (seen,) = seen_by("ome_zarr", labels)
    assert seen["models"] == {"image": "0.5", "label": "0.5"}

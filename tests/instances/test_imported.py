"""Another program's nuclei against plain loops over its files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.artefacts.zarrio import read_array, read_attributes
from slideloom.config.model import ExportsConfig
from slideloom.errors import SlideError
from slideloom.instances import imported
from slideloom.instances.cells import CELLS
from slideloom.instances.exports.slide import export_slide
from slideloom.instances.imported import import_slide
from slideloom.instances.labels import open_labels
from slideloom.metrics.biology import slide_biology
from slideloom.metrics.biology_schemas import BIOLOGY, NEIGHBOURS
from slideloom.metrics.tissue_area import PredictedTissue
from slideloom.patches.store import PatchStore
from slideloom.slides.annotations import AnnotationMaps
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

SHAPE = (150, 190)
ABOUT = {"experiment": "mesmer", "fold": "0", "digest": "abc", "encoder_notes": ["nuclei of Mesmer"]}
ROW = SlideRow("s1", sp="s1.tif", instances="nuclei.npy", classes="classes.npy")


def raster_order(labels: np.ndarray) -> dict[int, int]:
    """Number of each id, by where its first pixel lies."""
    seen: dict[int, int] = {}
    for value in labels.ravel().tolist():
        if value and value not in seen:
            seen[value] = len(seen) + 1
    return seen


def renumbered(labels: np.ndarray) -> np.ndarray:
    out = np.zeros(labels.shape, np.uint32)
    for value, number in raster_order(labels).items():
        out[labels == value] = number
    return out


@pytest.fixture(scope="module")
def foreign(make_crowd: Callable[..., Any]) -> np.ndarray:
    """Ids with gaps, in no order; one nucleus in two pieces, one a ring around a piece of itself, one with a hole."""
    crowd = make_crowd(11, SHAPE, 50, 6)
    crowd[:30, :60] = 0
    crowd[2:8, 2:9] = crowd[2:6, 20:24] = crowd.max() + 1
    crowd[10:29, 10:29] = crowd.max() + 1
    crowd[13:26, 13:26] = 0
    crowd[17:21, 17:22] = crowd[10, 10]
    crowd[12:20, 40:50] = crowd.max() + 1
    crowd[14:16, 43:46] = 0
    ids = np.random.default_rng(0).permutation(np.arange(1, 5_000_000, 50_003))[: crowd.max()]
    return np.concatenate([[0], ids])[crowd].astype(np.int32)


@pytest.fixture(scope="module")
def drawn(foreign: np.ndarray) -> np.ndarray:
    """Class image: most pixels of a nucleus agree, a tenth does not; some nuclei have no class."""
    rng = np.random.default_rng(1)
    class_of = {value: int(rng.choice([1, 2, 3, 255])) for value in np.unique(foreign[foreign > 0]).tolist()}
    classes = np.zeros(foreign.shape, np.uint8)
    for value, number in class_of.items():
        classes[foreign == value] = number
    noisy = (rng.random(foreign.shape) < 0.1) & (foreign > 0) & (classes != 255)
    classes[noisy] = rng.integers(1, 4, int(noisy.sum()))
    return classes


@pytest.fixture
def slide(slide_of: Callable[..., Any], make_maps: Callable[..., Any], foreign: np.ndarray, drawn: np.ndarray) -> Any:
    """A slide of 2 level-0 pixels a grid pixel; tile 1 was not cut."""
    return slide_of(make_maps((foreign > 0).astype(np.int32)), scale=2.0, mpp_um=0.5, drop=(1,))


def doubled(labels: np.ndarray) -> np.ndarray:
    return labels.repeat(2, axis=0).repeat(2, axis=1)


class Taken:
    """What came of an import."""

    def __init__(self, folder: Path, slide: Any, classes: ClassTable, row: SlideRow = ROW, **options: Any) -> None:
        self.maps, self.labels_place = folder / "out" / "maps.zarr", folder / "out" / "s1.ome.zarr"
        self.cells_place = folder / "out" / "cells.parquet"
        options = {"scale": 2.0, "patches": slide.patches, "about": ABOUT, "workers": 1} | options
        keywords = {"about": options.pop("about"), "workers": options.pop("workers")}
        places = (self.maps, self.labels_place, self.cells_place)
        scale, patches = options.pop("scale"), options.pop("patches")
        self.n = import_slide(row, folder, slide.facts, "sp", scale, patches, classes, *places, **keywords)

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(open_labels(self.labels_place))

    @property
    def cells(self) -> pd.DataFrame:
        return geopandas.read_parquet(self.cells_place)

    def digests(self) -> tuple[str, ...]:
        return tuple(digest_tree(place) for place in (self.maps, self.labels_place, self.cells_place))


@pytest.fixture
def taken(tmp_path: Path, slide: Any, classes: ClassTable, foreign: np.ndarray, drawn: np.ndarray) -> Taken:
    np.save(tmp_path / "nuclei.npy", doubled(foreign))
    np.save(tmp_path / "classes.npy", doubled(drawn))
    return Taken(tmp_path, slide, classes)


def test_labels_are_renumbered_and_cells_measured(
    taken: Taken, slide: Any, foreign: np.ndarray, drawn: np.ndarray, classes: ClassTable
) -> None:
    labels, cells = taken.labels, taken.cells
    np.testing.assert_array_equal(labels, renumbered(foreign))
    order = raster_order(foreign)
    assert taken.n == len(cells) == len(order)
    assert cells["cell_id"].tolist() == list(range(1, taken.n + 1))
    cut = np.ones(SHAPE, bool)
    cut[:64, 64:128] = False
    for value, number in order.items():
        mask, cell = foreign == value, cells.iloc[number - 1]
        y, x = np.nonzero(mask)
        assert cell["area_px"] == mask.sum()
        assert cell["area_um2"] == pytest.approx(mask.sum() * 0.25)
        assert cell["x_px"] == pytest.approx(2 * (x.mean() + 0.5))
        assert cell["y_um"] == pytest.approx(0.5 * (y.mean() + 0.5))
        votes = np.bincount(drawn[mask], minlength=256)[1:4]
        assert cell["class_id"] == (votes.argmax() + 1 if votes.any() else 0)
        assert cell["class_name"] == ("background", *classes.names)[cell["class_id"]]
        seen = mask & cut
        expected = slide.image[1][seen].mean() if seen.any() else np.nan
        assert cell["mean_CD3"] == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert not list(taken.maps.parent.glob(".*"))
    read_table(CELLS, taken.cells_place)


def test_probabilities_are_null(taken: Taken) -> None:
    cells = taken.cells
    shares = [name for name in cells if name.startswith("probability_")]
    assert shares == ["probability_tumour", "probability_stroma", "probability_immune"]
    assert cells[["nucleus_probability", "class_probability", *shares]].isna().all(axis=None)
    assert cells["class_id"].notna().all()


def test_outlines_keep_pieces_and_holes(taken: Taken, foreign: np.ndarray) -> None:
    cells, order = taken.cells, raster_order(foreign)
    kinds = set()
    for value, number in order.items():
        mask, shape = foreign == value, cells.geometry.iloc[number - 1]
        pieces, n_pieces = ndimage.label(mask)
        holes = sum(
            ndimage.label(np.pad(pieces != k, 1, constant_values=True), np.ones((3, 3)))[1] - 1
            for k in range(1, n_pieces + 1)
        )
        polygons = shape.geoms if shape.geom_type == "MultiPolygon" else [shape]
        assert shape.is_valid
        assert len(polygons) == n_pieces
        assert sum(len(polygon.interiors) for polygon in polygons) == holes
        assert all(polygon.exterior.is_ccw for polygon in polygons)
        # Half a pixel is lost at a shell's corners, and won at a hole's.
        assert shape.area == pytest.approx(4 * (mask.sum() - 0.5 * n_pieces + 0.5 * holes))
        y, x = np.nonzero(mask)
        assert shapely.contains_xy(shape, 2 * x + 1, 2 * y + 1).all()
        y, x = np.nonzero(~mask)
        assert not shapely.contains_xy(shape, 2 * x + 1, 2 * y + 1).any()
        kinds.add((shape.geom_type, n_pieces, holes))
    assert {("MultiPolygon", 2, 0), ("MultiPolygon", 2, 1), ("Polygon", 1, 1)} <= kinds


def test_geoparquet_says_which_kinds_there_are(
    tmp_path: Path, slide: Any, classes: ClassTable, foreign: np.ndarray
) -> None:
    two = np.zeros(SHAPE, np.int32)
    two[5:9, 5:9], two[20:40, 20:40] = 4, 9
    crumbs = two.copy()
    crumbs[11, 5], crumbs[42, 30] = 4, 9
    for labels, kinds in (
        (foreign, ["Polygon", "MultiPolygon"]),
        (two, ["Polygon"]),
        (crumbs, ["MultiPolygon"]),
        (0 * two, []),
    ):
        np.save(tmp_path / "nuclei.npy", doubled(labels))
        taken = Taken(tmp_path, slide, classes, replace(ROW, classes=None))
        geo = json.loads(pq.read_schema(taken.cells_place).metadata[b"geo"])
        assert geo["columns"]["geometry"]["geometry_types"] == kinds
        assert sorted(set(taken.cells.geom_type)) == sorted(kinds)


def test_maps_say_where_tiles_lie_and_which_class(taken: Taken, foreign: np.ndarray, drawn: np.ndarray) -> None:
    covered = read_array(taken.maps / "covered")
    expected = np.ones(SHAPE, np.uint8)
    expected[:64, 64:128] = 0
    np.testing.assert_array_equal(covered, expected)
    class_id = read_array(taken.maps / "class_id")
    np.testing.assert_array_equal(class_id, np.where(drawn == 255, 0, drawn))
    assert covered.dtype == class_id.dtype == np.uint8
    about = read_attributes(taken.maps)
    known = {
        "scale": 2.0,
        "mpp_um": 0.5,
        "height_px": 150,
        "width_px": 190,
        "image": "sp",
        "heads": ["labels", "classes"],
        "encoder_weights": "labels",
        "slide_id": "s1",
        "tile_px": 64,
        **ABOUT,
    }
    assert {name: about[name] for name in known} == known
    made_from = {"slide_id": "s1", "labels": {"instances": "nuclei.npy", "classes": "classes.npy"}, "maps": about}
    assert read_attributes(taken.labels_place)["slideloom"]["made_from"] == made_from
    assert table_metadata(pq.read_table(taken.cells_place, partitioning=None))["made_from"] == made_from


def test_windows_and_workers_change_no_byte(
    tmp_path: Path,
    slide: Any,
    classes: ClassTable,
    foreign: np.ndarray,
    drawn: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save(tmp_path / "nuclei.npy", doubled(foreign))
    np.save(tmp_path / "classes.npy", doubled(drawn))
    monkeypatch.setattr(imported, "_CHUNK_PX", 16)
    digests: dict[tuple[int, int], set[tuple[str, ...]]] = {}
    for window_px, workers in (((32, 48), 1), ((32, 48), 2), ((32, 48), 4), ((48, 16), 3), ((256, 256), 1)):
        monkeypatch.setattr(imported, "_WINDOW_PX", window_px)
        taken = Taken(tmp_path, slide, classes, workers=workers)
        digests.setdefault(window_px, set()).add(taken.digests())
        np.testing.assert_array_equal(taken.labels, renumbered(foreign))
    assert [len(found) for found in digests.values()] == [1, 1, 1]
    # The windows are the maps' shards; labels and cells know nothing of them.
    assert len({found[1:] for every in digests.values() for found in every}) == 1


@pytest.mark.parametrize("what", ["mask", "class map"])
def test_masks_are_refused_and_leave_nothing(
    what: str, tmp_path: Path, slide: Any, classes: ClassTable, foreign: np.ndarray, drawn: np.ndarray
) -> None:
    values = (foreign > 0).astype(np.uint8) * 255 if what == "mask" else np.where(drawn == 255, 1, drawn)
    np.save(tmp_path / "nuclei.npy", doubled(values))
    with pytest.raises(SlideError, match="a mask or a class map") as told:
        Taken(tmp_path, slide, classes, replace(ROW, classes=None))
    assert told.value.code == "binary_labels"
    assert told.value.where == "s1, nuclei.npy"
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("side_px", "fine"), [(40, True), (149, True), (150, False)])
def test_one_nucleus_is_believed_up_to_its_size(
    side_px: int, fine: bool, tmp_path: Path, slide: Any, classes: ClassTable
) -> None:
    # 10 000 µm² are the square of 149.5 pixels.
    image = replace(slide.facts.images["sp"], mpp_um=100 / 149.5 / 2)
    other = SimpleNamespace(facts=replace(slide.facts, images={"sp": image}), patches=None)
    labels = np.zeros(SHAPE, np.int32)
    labels[:side_px, :side_px] = 3
    np.save(tmp_path / "nuclei.npy", doubled(labels))
    row = replace(ROW, classes=None)
    if fine:
        assert Taken(tmp_path, other, classes, row).n == 1
        return
    with pytest.raises(SlideError, match="one id, in 1 separate piece"):
        Taken(tmp_path, other, classes, row)


def test_what_cannot_be_read_is_refused(tmp_path: Path, slide: Any, classes: ClassTable, foreign: np.ndarray) -> None:
    for row, code in (
        (ROW, "annotation_missing"),
        (replace(ROW, instances=None, classes=None), "annotation_missing"),
        (replace(ROW, instances="bad.npy"), "annotation_unreadable"),
        (replace(ROW, instances="float.npy"), "annotation_float"),
        (replace(ROW, instances="small.npy"), "annotation_shape"),
    ):
        (tmp_path / "bad.npy").write_bytes(b"no array")
        np.save(tmp_path / "float.npy", doubled(foreign).astype(np.float32))
        np.save(tmp_path / "small.npy", foreign[:50])
        with pytest.raises(SlideError) as told:
            Taken(tmp_path, slide, classes, row)
        assert told.value.code == code
        assert told.value.where.startswith("s1")
        assert not [place for place in tmp_path.rglob("out/*")]


def test_a_class_that_the_study_does_not_name_is_refused_late_and_leaves_nothing(
    tmp_path: Path, slide: Any, classes: ClassTable, foreign: np.ndarray
) -> None:
    np.save(tmp_path / "nuclei.npy", doubled(foreign))
    np.save(tmp_path / "classes.npy", doubled(np.where(foreign > 0, np.uint8(9), np.uint8(0))))
    with pytest.raises(SlideError, match="9") as told:
        Taken(tmp_path, slide, classes)
    assert told.value.code == "unknown_class"
    assert not list((tmp_path / "out").iterdir())


def test_tiles_of_another_frame_are_refused(
    tmp_path: Path, slide: Any, classes: ClassTable, foreign: np.ndarray
) -> None:
    np.save(tmp_path / "nuclei.npy", doubled(foreign))
    with pytest.raises(SlideError, match="tiles of a frame of 150 x 190 px") as told:
        Taken(tmp_path, slide, classes, replace(ROW, classes=None), scale=1.0)
    assert told.value.code == "maps_shape"


def test_without_classes_tiles_and_nuclei(tmp_path: Path, slide: Any, classes: ClassTable, foreign: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "nuclei.tif", doubled(foreign).astype(np.uint32), tile=(64, 64), compression="zlib")
    row = replace(ROW, instances="nuclei.tif", classes=None)
    taken = Taken(tmp_path, slide, classes, row, patches=None)
    assert not (taken.maps / "class_id").exists()
    assert read_attributes(taken.maps)["heads"] == ["labels"]
    assert read_array(taken.maps / "covered").all()
    np.testing.assert_array_equal(taken.labels, renumbered(foreign))
    cells = taken.cells
    assert cells[["class_id", "class_name", "class_probability"]].isna().all(axis=None)
    assert not [name for name in cells if name.startswith(("mean_", "probability_"))]

    tifffile.imwrite(tmp_path / "nuclei.tif", 0 * doubled(foreign))
    np.save(tmp_path / "classes.npy", 0 * doubled(foreign))
    for with_classes in (True, False):
        taken = Taken(tmp_path, slide, classes, replace(row, classes="classes.npy" if with_classes else None))
        assert taken.n == len(taken.cells) == taken.labels.max() == 0
        # A slide without nuclei has classes where the experiment gives them: its zeros are an answer.
        assert (taken.maps / "class_id").is_dir() == with_classes
        assert [name for name in taken.cells if name.startswith("mean_")] == ["mean_DNA", "mean_CD3"]


def test_rgb_tiles_give_no_means(tmp_path: Path, slide: Any, classes: ClassTable, foreign: np.ndarray) -> None:
    np.save(tmp_path / "nuclei.npy", doubled(foreign))
    about = slide.patches.path / "zarr.json"
    text = json.loads(about.read_text())
    text["attributes"]["is_rgb"] = True
    about.write_text(json.dumps(text))
    patches = PatchStore(slide.patches.path)
    taken = Taken(tmp_path, slide, classes, replace(ROW, classes=None), patches=patches)
    assert not [name for name in taken.cells if name.startswith("mean_")]
    assert not read_array(taken.maps / "covered").all()


class Drawn:
    """An annotation in memory that remembers which windows of it were read."""

    has_classes = True
    warnings = ("a remark",)

    def __init__(self, labels: np.ndarray, class_map: np.ndarray) -> None:
        self.shape = labels.shape
        self.asked: list[tuple[slice, slice]] = []
        self.closed = False
        self._maps = AnnotationMaps(labels, class_map)

    def read(self, window: tuple[slice, slice]) -> AnnotationMaps:
        self.asked.append(window)
        return AnnotationMaps(*(values[window].copy() for values in self._maps))

    def __enter__(self) -> Drawn:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def test_every_window_is_read_once(
    tmp_path: Path,
    slide: Any,
    classes: ClassTable,
    foreign: np.ndarray,
    drawn: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    annotation = Drawn(foreign, drawn)
    monkeypatch.setattr(imported, "open_annotations", lambda *_: annotation)
    monkeypatch.setattr(imported, "_WINDOW_PX", (32, 96))
    monkeypatch.setattr(imported, "_CHUNK_PX", 32)
    taken = Taken(tmp_path, slide, classes)
    count = np.zeros(SHAPE, int)
    for window in annotation.asked:
        count[window] += 1
    assert (count == 1).all()
    assert len(annotation.asked) == 10
    assert annotation.closed
    assert "s1: a remark" in caplog.messages
    assert read_attributes(taken.maps)["warnings"] == ["a remark"], "the report reads it there"


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_any_labels(
    tmp_path: Path,
    slide: Any,
    classes: ClassTable,
    seed: int,
    height: int,
    width: int,
    pieces: bool,
) -> None:
    rng = np.random.default_rng(seed)
    labels = ndimage.label(rng.random((height, width)) < 0.5)[0].astype(np.int32)
    if pieces and labels.max() > 2:
        labels[rng.integers(height), rng.integers(width)] = labels.max()
    labels = np.concatenate([[0], rng.permutation(10**6)[: labels.max()] + 1])[labels].astype(np.int32)
    class_map = np.where(labels > 0, rng.integers(1, 4, labels.shape), 0).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imported, "open_annotations", lambda *_: Drawn(labels, class_map))
        patch.setattr(imported, "_WINDOW_PX", (8, 16))
        patch.setattr(imported, "_CHUNK_PX", 8)
        patch.setattr(imported, "LARGEST_NUCLEUS_UM2", 1e9)
        taken = Taken(tmp_path, slide, classes, patches=None, workers=2)
    np.testing.assert_array_equal(taken.labels, renumbered(labels))
    assert taken.n == len(raster_order(labels))


def test_exports_and_biology_work_on_it(
    taken: Taken, slide: Any, classes: ClassTable, foreign: np.ndarray, tmp_path: Path
) -> None:
    config = ExportsConfig(geojson=True, anndata=True, spatialdata=True)
    written = export_slide(
        config, "s1", taken.labels_place, taken.cells_place, slide.facts, classes, "sp", tmp_path / "exports"
    )
    assert [place.name for place in written] == ["s1.geojson.zip", "s1.h5ad", "s1.spatialdata.zarr"]
    with zipfile.ZipFile(written[0]) as archive:
        features = json.loads(archive.read("s1.geojson"))["features"]
    cells = taken.cells
    shapes = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in features]
    assert all(shape.equals(cell) for shape, cell in zip(shapes, cells.geometry, strict=True))
    # What is null is left out.
    measured = [set(feature["properties"]["measurements"]) for feature in features]
    assert {frozenset(names) for names in measured} == {
        frozenset({"Area µm^2", "DNA: Mean", "CD3: Mean"}),
        frozenset({"Area µm^2"}),  # where no tile was cut
    }
    with h5py.File(written[1]) as file:
        assert np.isnan(file["obs/nucleus_probability"][:]).all()
        np.testing.assert_array_equal(file["obs/class_id"][:], cells["class_id"])
    geo = json.loads(pq.read_schema(written[2] / "shapes" / "nuclei" / "shapes.parquet").metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon", "MultiPolygon"]

    height, width = slide.facts.images["sp"].shape
    polygons = [shapely.box(0, 0, width, height)]
    tissue = PredictedTissue.of(polygons, slide.facts, "sp", 2.0)  # another program looked everywhere
    place = tmp_path / "biology"
    slide_biology(taken.cells_place, "sp", tissue, place)
    rows = read_table(BIOLOGY, place / "biology.parquet").to_pandas().set_index("class_name")
    assert rows.loc["all", "n"] == taken.n
    assert rows.loc["all", "tissue_mm2"] == pytest.approx(SHAPE[0] * SHAPE[1] * 0.25e-6)
    assert rows.loc["all", "n_in_tissue"] == taken.n
    for name in ("background", *classes.names):
        own = cells[cells["class_name"] == name]
        assert rows.loc[name, "n"] == len(own)
        assert rows.loc[name, "area_total_um2"] == pytest.approx(own["area_um2"].sum())
        assert rows.loc[name, "mean_CD3"] == pytest.approx(own["mean_CD3"].mean(), nan_ok=True)
    assert read_table(NEIGHBOURS, place / "neighbours.parquet").num_rows == 1 + 3 * 3


def test_our_own_export_comes_back_as_it_was(taken: Taken, slide: Any, classes: ClassTable, tmp_path: Path) -> None:
    places = (taken.labels_place, taken.cells_place)
    config = ExportsConfig(geojson=True, anndata=False, spatialdata=False)
    export_slide(config, "s1", *places, slide.facts, classes, "sp", tmp_path)
    labels, cells = taken.labels, taken.cells
    again = Taken(tmp_path, slide, classes, replace(ROW, instances="s1.geojson.zip", classes=None), workers=2)
    # An outline has the centres of a nucleus's pixels inside and all others outside.
    np.testing.assert_array_equal(again.labels, labels)
    pd.testing.assert_frame_equal(
        again.cells.drop(columns="geometry"), cells.drop(columns="geometry"), check_dtype=True
    )
    assert again.cells.geometry.geom_equals(cells.geometry).all()

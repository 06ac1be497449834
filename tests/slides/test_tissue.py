from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from PIL import Image

from slideloom.config.model import TissueConfig
from slideloom.errors import SlideError
from slideloom.slides import tissue
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.grid import TileGrid
from slideloom.slides.headers import read_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, MarkerTable
from slideloom.slides.tissue import finest_scale, read_tissue, tissue_fraction, write_tissue

MARKERS = MarkerTable(
    (Channel("DAPI", "DNA", "", True), Channel("CD3", "CD3"), Channel("CD8", "CD8"), Channel("CK", "CK"))
)


def _make(row, root, place, config=None):
    facts = read_facts(row, root, MARKERS)
    write_tissue(facts, row, root, config or TissueConfig(), place / "tissue.geojson", place / "thumbnail.png")
    return facts


def _disc(height, width, y, x, radius):
    return (np.arange(height)[:, None] - y) ** 2 + (np.arange(width) - x) ** 2 < radius**2


def _he(path, inside):
    """Glass and stained tissue with a little of each scanner's noise."""
    noise = np.random.default_rng(1).normal(0, 3, (*inside.shape, 3))
    colour = np.where(inside[..., None], (200, 120, 170), (243, 241, 244)) + noise
    Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8)).save(path)


def _iou(polygons, inside):
    import cv2

    drawn = np.zeros(inside.shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(drawn, [np.rint(np.asarray(polygon.exterior.coords) - 0.5).astype(np.int32)], 1)
        for hole in polygon.interiors:
            cv2.fillPoly(drawn, [np.rint(np.asarray(hole.coords) - 0.5).astype(np.int32)], 0)
    return np.logical_and(drawn, inside).sum() / np.logical_or(drawn, inside).sum()


@pytest.fixture
def disc(tmp_path):
    inside = _disc(600, 480, 300, 230, 165)
    _he(tmp_path / "he.png", inside)
    return inside


def test_he_tissue_is_found_to_within_a_mask_pixel(tmp_path, disc):
    _make(SlideRow("s", he="he.png", he_mpp_um=1.0), tmp_path, tmp_path / "out")
    polygons = read_tissue(tmp_path / "out" / "tissue.geojson")
    assert len(polygons) == 1
    assert _iou(polygons, disc) > 0.95
    body = json.loads((tmp_path / "out" / "tissue.geojson").read_text())
    assert "warning" not in body["metadata"]
    assert body["metadata"]["image"] == "he"
    picture = np.asarray(Image.open(tmp_path / "out" / "thumbnail.png"))
    assert picture.shape == (600, 480, 3)
    assert (picture[:, :, 1].astype(int) - picture[:, :, 0] > 80).sum() > 500, "the outline is drawn in green"


def test_an_image_larger_than_any_slide_is_looked_at_more_coarsely(tmp_path, disc, monkeypatch):
    monkeypatch.setattr(tissue, "_MOST_PX", 5000)
    seen = []
    look = tissue._look
    monkeypatch.setattr(tissue, "_look", lambda *given: seen.append(look(*given)) or seen[-1])
    _make(SlideRow("s", he="he.png", he_mpp_um=1.0), tmp_path, tmp_path / "out")
    assert seen[0].signal.size <= 5000
    assert seen[0].scale == pytest.approx(np.sqrt(600 * 480 / 5000))
    assert _iou(read_tissue(tmp_path / "out" / "tissue.geojson"), disc) > 0.9


@pytest.mark.parametrize("modality", ["he", "sp"])
@pytest.mark.parametrize(("size", "mpp_um"), [((600, 480), 0.5), ((1200, 700), 4.0), ((300, 3000), 0.5)])
def test_the_finest_scale_is_that_of_the_finest_look(tmp_path, monkeypatch, modality, size, mpp_um):
    noise = np.random.default_rng(3).integers(0, 255, (*size, 3) if modality == "he" else (1, *size), np.uint8)
    np.save(tmp_path / "a.npy", noise)
    names = {"sp_channels": ("DAPI",)} if modality == "sp" else {}
    row = SlideRow("a", **{modality: "a.npy", f"{modality}_mpp_um": mpp_um}, **names)
    scales = []
    read = tissue.read_region

    def watched(image, y, x, height, width, scale, fill):
        scales.append(scale)
        return read(image, y, x, height, width, scale, fill)

    monkeypatch.setattr(tissue, "read_region", watched)
    facts = _make(row, tmp_path, tmp_path, TissueConfig(method="all"))
    assert finest_scale(facts.images[modality], TissueConfig()) == pytest.approx(min(scales))


def test_sp_tissue_is_found_even_in_sparse_counts(tmp_path):
    inside = _disc(500, 500, 250, 250, 150)
    rate = np.where(inside, 0.4, 0.02)
    counts = np.random.default_rng(2).poisson(rate, (4, 500, 500)).astype(np.uint8)
    np.save(tmp_path / "sp.npy", counts)
    row = SlideRow("s", sp="sp.npy", sp_mpp_um=1.0, sp_channels=("DAPI", "CD3", "CD8", "CK"))
    _make(row, tmp_path, tmp_path / "out")
    assert _iou(read_tissue(tmp_path / "out" / "tissue.geojson"), inside) > 0.93


def test_an_even_sp_field_counts_whole_and_says_so(tmp_path):
    counts = np.random.default_rng(2).poisson(30, (4, 256, 256)).astype(np.uint16)
    np.save(tmp_path / "sp.npy", counts)
    row = SlideRow("s", sp="sp.npy", sp_mpp_um=0.5, sp_channels=("DAPI", "CD3", "CD8", "CK"))
    _make(row, tmp_path, tmp_path / "out")
    (polygon,) = read_tissue(tmp_path / "out" / "tissue.geojson")
    assert polygon.equals(shapely.box(0, 0, 256, 256))
    assert "warning" in json.loads((tmp_path / "out" / "tissue.geojson").read_text())["metadata"]


def test_small_pieces_and_holes(tmp_path):
    inside = _disc(900, 900, 450, 450, 300) & ~_disc(900, 900, 450, 450, 20) & ~_disc(900, 900, 320, 450, 60)
    inside |= _disc(900, 900, 60, 60, 20) | _disc(900, 900, 830, 830, 55)
    _he(tmp_path / "he.png", inside)
    _make(SlideRow("s", he="he.png", he_mpp_um=1.0), tmp_path, tmp_path / "out")
    polygons = read_tissue(tmp_path / "out" / "tissue.geojson")
    assert len(polygons) == 2, "the piece of 1 250 µm² is dropped, the one of 9 500 µm² kept"
    assert len(polygons[0].interiors) == 1, "the hole of 1 250 µm² is filled, the one of 11 300 µm² kept"


def test_a_field_of_nothing_but_tissue_counts_whole_and_says_so(tmp_path):
    pink = np.clip(np.random.default_rng(0).normal((200, 130, 170), 12, (256, 256, 3)), 0, 255)
    Image.fromarray(pink.astype(np.uint8)).save(tmp_path / "he.png")
    _make(SlideRow("s", he="he.png", he_mpp_um=0.25), tmp_path, tmp_path / "out")
    (polygon,) = read_tissue(tmp_path / "out" / "tissue.geojson")
    assert polygon.equals(shapely.box(0, 0, 256, 256))
    body = json.loads((tmp_path / "out" / "tissue.geojson").read_text())
    assert "told apart" in body["features"][0]["properties"]["metadata"]["warning"]


@pytest.mark.parametrize("kind", ["glass", "black", "blank"])
def test_no_tissue(tmp_path, kind):
    noise = np.random.default_rng(0).normal(0, 2, (300, 300, 3))
    values = {"glass": 243 + noise, "black": np.abs(noise), "blank": np.full((300, 300, 3), 200)}[kind]
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(tmp_path / "he.png")
    with pytest.raises(SlideError) as caught:
        _make(SlideRow("s", he="he.png", he_mpp_um=0.5), tmp_path, tmp_path / "out")
    assert caught.value.code == "no_tissue"
    assert not (tmp_path / "out" / "tissue.geojson").exists()


def test_method_all(tmp_path, disc):
    _make(SlideRow("s", he="he.png", he_mpp_um=1.0), tmp_path, tmp_path / "out", TissueConfig(method="all"))
    (polygon,) = read_tissue(tmp_path / "out" / "tissue.geojson")
    assert polygon.equals(shapely.box(0, 0, 480, 600))


def test_what_slideloom_made_is_made_anew_and_what_a_person_edited_is_kept(tmp_path, disc):
    row, place = SlideRow("s", he="he.png", he_mpp_um=1.0), tmp_path / "out"
    outline = place / "tissue.geojson"
    _make(row, tmp_path, place, TissueConfig(method="all"))
    _make(row, tmp_path, place)
    made = outline.read_text()
    assert len(read_tissue(outline)[0].exterior.coords) > 10, "an outline of another config is replaced"
    edited = {"type": "Polygon", "coordinates": [[[0, 0], [50, 0], [50, 50], [0, 50], [0, 0]]]}
    outline.write_text(json.dumps(edited))
    _make(row, tmp_path, place)
    assert json.loads(outline.read_text()) == edited
    picture = np.asarray(Image.open(place / "thumbnail.png")).astype(int)
    green = picture[:, :, 1] - picture[:, :, 0] > 80
    assert green[:60, :60].any()
    assert not green[100:, 100:].any(), "the overview shows the edited outline"
    outline.unlink()
    _make(row, tmp_path, place)
    assert outline.read_text() == made, "the same slide gives the same bytes"


def test_an_interruption_leaves_nothing_that_looks_edited(tmp_path, disc, monkeypatch):
    row, place = SlideRow("s", he="he.png", he_mpp_um=1.0), tmp_path / "out"
    _make(row, tmp_path, place, TissueConfig(method="all"))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("slideloom.slides.tissue.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        _make(row, tmp_path, place)
    monkeypatch.undo()
    _make(row, tmp_path, place)
    assert len(read_tissue(place / "tissue.geojson")[0].exterior.coords) > 10


def test_edited_outlines_that_cannot_be_used(tmp_path, disc):
    row, place = SlideRow("s", he="he.png", he_mpp_um=1.0), tmp_path / "out"
    place.mkdir()
    for text, code in (("nonsense", "bad_tissue"), ('{"type": "FeatureCollection", "features": []}', "no_tissue")):
        (place / "tissue.geojson").write_text(text)
        with pytest.raises(SlideError) as caught:
            _make(row, tmp_path, place)
        assert caught.value.code == code
        assert (place / "tissue.geojson").read_text() == text


def _facts(**mpp_um):
    def image(mpp):
        return ImageFacts("x", "r", 100, 100, 1, "uint8", mpp, "file", (), (), False)

    return SlideFacts("s", {modality: image(mpp) for modality, mpp in mpp_um.items()})


def test_fractions_are_areas_of_the_part_on_the_slide():
    grid = TileGrid.make(50, 45, 20, 20)
    tissue = [shapely.box(0, 0, 30, 100)]
    share = tissue_fraction(tissue, _facts(sp=0.5), "sp", grid, 2.0).reshape(grid.n_rows, grid.n_cols)
    assert np.allclose(share, [[0.75, 0, 0]] * 3)
    whole = tissue_fraction([shapely.box(0, 0, 90, 100)], _facts(sp=0.5), "sp", grid, 2.0)
    assert (whole == 1).all()
    assert whole.dtype == np.float32
    assert not tissue_fraction([], _facts(sp=0.5), "sp", grid, 2.0).any()


def test_tissue_of_the_reference_image_is_placed_on_the_other():
    grid = TileGrid.make(50, 50, 10, 10)
    share = tissue_fraction([shapely.box(0, 0, 40, 100)], _facts(he=0.25, sp=0.5), "sp", grid, 1.0)
    assert np.allclose(share.reshape(5, 5)[0], [1, 1, 0, 0, 0])


def test_overlapping_tiles_and_overlapping_outlines():
    grid = TileGrid.make(40, 40, 20, 7)
    tissue = [shapely.box(3, 5, 21, 30), shapely.box(10, 10, 33, 39)]
    share = tissue_fraction(tissue, _facts(sp=0.5), "sp", grid, 1.0)
    right, bottom = grid.x_px + grid.width_valid, grid.y_px + grid.height_valid
    boxes = shapely.box(grid.x_px, grid.y_px, right, bottom)
    expected = shapely.area(shapely.intersection(shapely.union_all(tissue), boxes)) / shapely.area(boxes)
    assert np.allclose(share, expected, atol=1e-6)


def test_real_slides(shared, tmp_path):
    root = shared / "data"
    rows = {
        "svs": SlideRow("svs", he="wsi_cmu1_small_region/CMU-1-Small-Region.svs"),
        "core": SlideRow("core", he="instanseg_examples/HE_example.tif"),
        "edge": SlideRow("edge", he="orion_crc_he_tiles/topic1_C04_12007.png", he_mpp_um=0.325),
        "stroma": SlideRow("stroma", he="orion_crc_he_tiles/topic0_C03_10307.png", he_mpp_um=0.325),
    }
    shares = {}
    for name, row in rows.items():
        facts = _make(row, root, tmp_path / name)
        image = facts.images["he"]
        grid = TileGrid.make(*image.shape, max(image.shape), max(image.shape))
        polygons = read_tissue(tmp_path / name / "tissue.geojson")
        shares[name] = float(tissue_fraction(polygons, facts, "he", grid, 1.0)[0])
    assert 0.25 < shares["svs"] < 0.40
    assert 0.55 < shares["core"] < 0.75
    assert 0.4 < shares["edge"] < 0.6
    assert shares["stroma"] == 1.0

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from slideloom.errors import SlideError
from slideloom.slides.facts import image_source, load_facts
from slideloom.slides.headers import read_facts, write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, MarkerTable

MARKERS = MarkerTable(
    (
        Channel("DAPI", "DNA", "", True),
        Channel("DAPI_2", "DNA", "", True),
        Channel("CD3e", "CD3", "P07766"),
        *(Channel(f"channel_{index}", f"M{index}") for index in range(3)),
    )
)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "he.png")
    np.save(tmp_path / "sp.npy", rng.integers(0, 999, (2, 40, 60)).astype(np.uint16))
    np.save(tmp_path / "four.npy", rng.integers(0, 999, (4, 40, 60)).astype(np.uint16))
    np.save(tmp_path / "labels.npy", rng.integers(0, 9, (40, 60)))
    return tmp_path


def _ome(path, mpp_y, mpp_x, names=("DAPI", "CD3e")):
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": list(names)},
        "PhysicalSizeX": mpp_x,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp_y,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(path, np.zeros((len(names), 40, 60), np.uint16), ome=True, metadata=metadata)


def _code(row, root, markers=MARKERS):
    with pytest.raises(SlideError) as caught:
        read_facts(row, root, markers)
    assert row.slide_id in caught.value.message
    return caught.value


def test_round_trip_and_no_absolute_path(root, tmp_path):
    row = SlideRow(
        "s1",
        he="he.png",
        sp="sp.npy",
        instances="labels.npy",
        he_mpp_um=0.5,
        sp_mpp_um=0.5,
        sp_channels=("DAPI", "CD3e"),
    )
    facts = write_facts(row, root, MARKERS, tmp_path / "out" / "slide.json")
    assert load_facts(tmp_path / "out" / "slide.json") == facts
    text = (tmp_path / "out" / "slide.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["reference"] == facts.reference == "he"
    he, sp = facts.image("he"), facts.image("sp")
    assert (he.shape, he.dtype, he.is_rgb, he.mpp_source) == ((40, 60), "uint8", True, "sheet")
    assert [channel.name for channel in he.channels] == ["red", "green", "blue"]
    assert {channel.marker for channel in he.channels} == {""}
    assert [channel.marker for channel in sp.channels] == ["DNA", "CD3"]
    assert sp.channels[0].nuclear
    assert (sp.dtype, sp.n_channels, sp.is_rgb, sp.source) == ("uint16", 2, False, "sp.npy")
    assert set(facts.annotations) == {"instances"}
    assert facts.warnings == ()


def test_absolute_paths_of_the_sheet_are_cut_to_the_name(root):
    row = SlideRow("s", sp=str(root / "sp.npy"), sp_mpp_um=0.5, sp_channels=("DAPI", "CD3e"))
    assert read_facts(row, root, MARKERS).images["sp"].source == "sp.npy"


def test_digests_follow_content(root):
    row = SlideRow("s1", sp="sp.npy", sp_mpp_um=0.5, sp_channels=("DAPI", "CD3e"), instances="labels.npy")
    before = read_facts(row, root, MARKERS)
    assert read_facts(row, root, MARKERS) == before
    assert len(before.images["sp"].digest) == 40
    labels = np.load(root / "labels.npy")
    labels[0, 0] += 1
    np.save(root / "labels.npy", labels)
    after = read_facts(row, root, MARKERS)
    assert after.images == before.images
    assert after.annotations != before.annotations
    quick = read_facts(row, root, MARKERS, digests=False)
    assert quick.images["sp"].digest == ""


def test_pixel_size_from_the_file(root):
    _ome(root / "a.ome.tif", 0.5, 0.504)
    facts = read_facts(SlideRow("s", sp="a.ome.tif"), root, MARKERS)
    assert facts.images["sp"].mpp_um == pytest.approx(np.sqrt(0.5 * 0.504))
    assert facts.images["sp"].mpp_source == "file"
    assert facts.warnings == ()
    assert facts.reference == "sp"


def test_uneven_pixels(root):
    _ome(root / "a.ome.tif", 0.5, 0.52)
    assert any("high" in text for text in read_facts(SlideRow("s", sp="a.ome.tif"), root, MARKERS).warnings)
    _ome(root / "b.ome.tif", 0.5, 0.6)
    assert _code(SlideRow("s", sp="b.ome.tif"), root).code == "anisotropic_pixels"
    mended = read_facts(SlideRow("s", sp="b.ome.tif", sp_mpp_um=0.5), root, MARKERS)
    assert mended.images["sp"].mpp_um == 0.5
    assert mended.warnings


def test_the_sheet_beats_the_file_and_says_so(root):
    _ome(root / "a.ome.tif", 0.5, 0.5)
    near = read_facts(SlideRow("s", sp="a.ome.tif", sp_mpp_um=0.51), root, MARKERS)
    assert (near.images["sp"].mpp_um, near.images["sp"].mpp_source, near.warnings) == (0.51, "sheet", ())
    far = read_facts(SlideRow("s", sp="a.ome.tif", sp_mpp_um=0.25), root, MARKERS)
    assert far.images["sp"].mpp_um == 0.25
    assert any("0.25" in text and "0.5" in text for text in far.warnings)


def test_no_pixel_size(root):
    error = _code(SlideRow("s", he="he.png"), root)
    assert error.code == "no_pixel_size"
    assert "he_mpp_um" in error.hint


def test_channel_names(root):
    _ome(root / "a.ome.tif", 0.5, 0.5, ("DAPI", "strange"))
    error = _code(SlideRow("s", sp="a.ome.tif"), root)
    assert (error.code, "strange" in error.what, "DAPI" in error.what) == ("unknown_channel", True, False)
    mended = read_facts(SlideRow("s", sp="a.ome.tif", sp_channels=("DAPI", "CD3e")), root, MARKERS)
    assert [channel.name for channel in mended.images["sp"].channels] == ["DAPI", "CD3e"]
    assert _code(SlideRow("s", sp="a.ome.tif", sp_channels=("DAPI",)), root).code == "channel_count"


def test_numbered_channels_stand_in_for_names(root):
    numbered = read_facts(SlideRow("s", sp="sp.npy", sp_mpp_um=0.5), root, MARKERS)
    assert [channel.marker for channel in numbered.images["sp"].channels] == ["M0", "M1"]
    error = _code(SlideRow("s", sp="four.npy", sp_mpp_um=0.5), root)
    assert (error.code, "sp_channels" in error.hint) == ("unknown_channel", True)


def test_two_channels_of_one_marker_are_remarked_on(root):
    row = SlideRow("s", sp="sp.npy", sp_mpp_um=0.5, sp_channels=("DAPI", "DAPI_2"))
    assert any("DNA" in text for text in read_facts(row, root, MARKERS).warnings)


def test_he_must_be_rgb(root):
    assert _code(SlideRow("s", he="four.npy", he_mpp_um=0.5), root).code in ("not_rgb", "unsupported_dtype")
    np.save(root / "two.npy", np.zeros((2, 40, 60), np.uint8))
    assert _code(SlideRow("s", he="two.npy", he_mpp_um=0.5), root).code == "not_rgb"


def test_annotations_are_checked_first(root):
    def row(**columns):
        return SlideRow("s", he="he.png", he_mpp_um=0.5, **columns)

    np.save(root / "small.npy", np.zeros((4, 6), np.int32))
    assert _code(row(instances="small.npy"), root).code == "annotation_shape"
    assert _code(row(instances="none.npy"), root).code == "annotation_missing"
    assert _code(row(instances="he.png"), root).code == "annotation_rgb"
    (root / "c.csv").write_text("a,b\n1,2\n")
    assert _code(row(instances="labels.npy", classes="c.csv"), root).code == "annotation_columns"
    assert read_facts(row(classes="labels.npy"), root, MARKERS).warnings == (
        "classes are given without instances, and are left aside",
    )


def test_images_of_different_extent_are_remarked_on(root):
    np.save(root / "half.npy", np.zeros((2, 20, 30), np.uint16))
    row = SlideRow("s", he="he.png", sp="half.npy", he_mpp_um=0.5, sp_mpp_um=1.0, sp_channels=("DAPI", "CD3e"))
    assert read_facts(row, root, MARKERS).warnings == ()
    row = SlideRow("s", he="he.png", sp="half.npy", he_mpp_um=0.5, sp_mpp_um=0.5, sp_channels=("DAPI", "CD3e"))
    assert any("corner" in text for text in read_facts(row, root, MARKERS).warnings)


def test_missing_images(root):
    assert _code(SlideRow("s"), root).code == "no_image"
    facts = read_facts(SlideRow("s", he="he.png", he_mpp_um=0.5), root, MARKERS)
    with pytest.raises(SlideError) as caught:
        facts.image("sp")
    assert caught.value.code == "no_image"
    with pytest.raises(SlideError) as caught:
        image_source(SlideRow("s", he="he.png"), "sp", root)
    assert caught.value.code == "no_image"


def test_a_real_slide(shared):
    root = shared / "data"
    row = SlideRow("cmu", he="wsi_cmu1_small_region/CMU-1-Small-Region.svs")
    image = read_facts(row, root, MARKERS).images["he"]
    assert (image.shape, image.mpp_um, image.mpp_source) == ((2967, 2220), 0.499, "file")


@pytest.mark.parametrize(
    "name", ["empty.svs", "header_only.svs", "truncated_half.svs", "ome_metadata_mismatch.ome.tiff"]
)
def test_broken_slides_fail_here(shared, name):
    row = SlideRow("broken", he=f"wsi_broken/{name}")
    with pytest.raises(SlideError) as caught:
        read_facts(row, shared / "data", MARKERS)
    assert caught.value.code != "slide_error"

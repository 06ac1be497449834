from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import tifffile

from slideloom.demo.cohort import DemoSlide
from slideloom.demo.panel import MARKERS
from slideloom.demo.write import pyramid, write_he, write_labels, write_sp

RNG_SEED = 0


def test_openslide_takes_the_he_image_for_an_aperio_slide(cohort: Path, slides: list[DemoSlide]) -> None:
    for number, slide in enumerate(slides, 1):
        with openslide.OpenSlide(cohort / "he" / f"slide_{number:02d}.svs") as file:
            assert file.properties["openslide.vendor"] == "aperio"
            assert float(file.properties["openslide.mpp-x"]) == 0.5
            assert float(file.properties["openslide.mpp-y"]) == 0.5
            assert file.properties["openslide.objective-power"] == "20"
            assert file.level_dimensions == ((320, 320), (160, 160))
            assert file.level_downsamples == (1.0, 2.0)
            picture = np.asarray(file.read_region((0, 0), 0, (320, 320)).convert("RGB")).astype(int)
        assert np.abs(picture - slide.he).mean() < 4, "JPEG at quality 90"


def test_tifffile_reads_the_he_pages(cohort: Path, slides: list[DemoSlide]) -> None:
    with tifffile.TiffFile(cohort / "he" / "slide_01.svs") as file:
        assert file.is_svs
        assert [page.shape for page in file.pages] == [(320, 320, 3), (160, 160, 3)]
        page = file.pages.first
        assert page.is_tiled
        assert page.tile == (256, 256)
        assert page.compression == tifffile.COMPRESSION.JPEG
        assert "DateTime" not in page.tags
        resolution = page.tags["XResolution"].value
        assert 1e4 / (resolution[0] / resolution[1]) == pytest.approx(0.5)
        assert np.abs(page.asarray().astype(int) - slides[0].he).mean() < 4


def test_the_sp_image_is_an_ome_pyramid(cohort: Path, slides: list[DemoSlide]) -> None:
    with tifffile.TiffFile(cohort / "sp" / "slide_02.ome.tif") as file:
        assert file.is_ome
        series = file.series[0]
        assert series.axes == "CYX"
        assert [level.shape for level in series.levels] == [(16, 320, 320), (16, 160, 160)]
        assert series.dtype == np.uint16
        np.testing.assert_array_equal(series.asarray(), slides[1].sp)
        halves = slides[1].sp.reshape(16, 160, 2, 160, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(series.levels[1].asarray(), halves, atol=0.51)
        assert file.ome_metadata is not None
        tree = ElementTree.fromstring(file.ome_metadata)
    space = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    names = [channel.get("Name") for channel in tree.findall(".//ome:Channel", space)]
    assert names == [marker.name for marker in MARKERS]
    pixels = tree.find(".//ome:Pixels", space)
    assert pixels is not None
    assert [pixels.get(f"PhysicalSize{axis}") for axis in "XY"] == ["0.5", "0.5"]
    assert {pixels.get(f"PhysicalSize{axis}Unit") for axis in "XY"} == {"µm"}


@pytest.mark.parametrize(
    ("side", "levels"),
    [(128, [128]), (256, [256]), (257, [257, 128]), (960, [960, 480, 240]), (1000, [1000, 500, 250])],
)
def test_pyramid_sizes(side: int, levels: list[int]) -> None:
    image = np.random.default_rng(RNG_SEED).integers(0, 4000, (side, side - 1), np.uint16)
    made = pyramid(image)
    assert [level.shape[0] for level in made] == levels
    if len(made) > 1:
        half = side // 2
        mean = image[: 2 * half, : 2 * ((side - 1) // 2)].reshape(half, 2, (side - 1) // 2, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(made[1], mean, atol=0.51)


@pytest.mark.parametrize(("highest", "dtype"), [(40, np.uint16), (65_535, np.uint16), (65_536, np.uint32)])
def test_labels_keep_every_value(tmp_path: Path, highest: int, dtype: type) -> None:
    labels = np.zeros((300, 270), np.int32)
    labels[5, 7], labels[-1, -1] = highest, 3
    write_labels(tmp_path / "labels.tif", labels)
    back = tifffile.imread(tmp_path / "labels.tif")
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, labels)


def test_bytes_do_not_depend_on_the_place_or_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(RNG_SEED)
    rgb, counts = rng.integers(0, 255, (300, 300, 3), np.uint8), rng.integers(0, 4000, (16, 300, 300), np.uint16)
    written = []
    for place, zone in (("a", "UTC"), ("b/c", "Asia/Tokyo")):
        monkeypatch.setitem(os.environ, "TZ", zone)
        folder = tmp_path / place
        write_he(folder / "x.svs", rgb)
        write_sp(folder / "x.ome.tif", counts)
        written.append([(folder / name).read_bytes() for name in ("x.svs", "x.ome.tif")])
        assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["x.ome.tif", "x.svs"]
    assert written[0] == written[1]

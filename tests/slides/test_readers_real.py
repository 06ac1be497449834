"""Real slides, sound and broken, read against OpenSlide, tifffile, Pillow and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from slideloom.errors import SlideError
from slideloom.slides.image import Level, SlideImage
from slideloom.slides.open import open_image
from slideloom.slides.read_openslide import open_openslide
from slideloom.slides.source import Source


@pytest.fixture
def data(shared: Path) -> Path:
    return shared / "data"


def everything(image: SlideImage, level: int = 0) -> NDArray[Any]:
    at = image.levels[level]
    return image.read(level, 0, 0, at.height_px, at.width_px)


def test_aperio_slide_equals_openslide_and_tifffile(data: Path) -> None:
    path = data / "wsi_cmu1_small_region" / "CMU-1-Small-Region.svs"
    with openslide.OpenSlide(path) as slide:
        expected = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).transpose(2, 0, 1)
        mpp = float(slide.properties["openslide.mpp-y"]), float(slide.properties["openslide.mpp-x"])
    with open_image(Source(path), "he") as image:
        assert image.reader == "tifffile/aperio"
        assert image.mpp_um == mpp == (0.499, 0.499)
        assert image.levels == (Level(2967, 2220, 1.0),)
        assert image.warnings == ()
        np.testing.assert_array_equal(everything(image), expected)
        bands = [image.read(0, y, 0, min(300, 2967 - y), 2220) for y in range(0, 2967, 300)]
        np.testing.assert_array_equal(np.concatenate(bands, 1), expected)
        np.testing.assert_array_equal(image.read(0, 1234, 567, 89, 101), expected[:, 1234:1323, 567:668])
    np.testing.assert_array_equal(tifffile.imread(path).transpose(2, 0, 1), expected)


def test_openslide_reader_on_the_same_slide(data: Path) -> None:
    path = data / "wsi_cmu1_small_region" / "CMU-1-Small-Region.svs"
    slow, quick = open_openslide(Source(path)), open_image(Source(path), "he")
    assert slow.header.reader == "openslide/aperio"
    assert slow.header.mpp_um == quick.mpp_um
    assert slow.header.levels == quick.levels
    np.testing.assert_array_equal(slow.read(0, 700, 300, 500, 600), quick.read(0, 700, 300, 500, 600))
    slow.close()
    quick.close()


def test_he_ome_tiff_of_jpeg_tiles(data: Path) -> None:
    path = data / "instanseg_examples" / "HE_example.tif"
    with open_image(Source(path), "he") as image:
        assert (image.height_px, image.width_px) == (1484, 1380)
        assert image.mpp_um == pytest.approx((0.50008, 0.50008), abs=1e-5)
        np.testing.assert_array_equal(everything(image), tifffile.imread(path).transpose(2, 0, 1))


def test_mibi_pyramid_of_41_channels(data: Path) -> None:
    path = data / "mibi_dcis_41plex" / "Point2303_pt1047_20672.ome.tif"
    with tifffile.TiffFile(path) as file:
        expected = [level.asarray() for level in file.series[0].levels]
    with open_image(Source(path), "sp") as image:
        assert image.n_channels == 41
        assert image.channel_names is not None
        assert {"HH3", "Nuc", "ECAD", "CD45"} <= set(image.channel_names)
        assert image.mpp_um == pytest.approx((0.48828125, 0.48828125))
        assert [level.downsample for level in image.levels] == [1.0, 2.0, 4.0]
        for level, pixels in enumerate(expected):
            np.testing.assert_array_equal(everything(image, level), pixels)


def test_cycif_tonsil(data: Path) -> None:
    path = data / "cycif_tonsil_4ch" / "tonsil_cycle1.ome.tif"
    with open_image(Source(path), "sp") as image:
        assert (image.n_channels, image.dtype, image.channel_names) == (4, np.uint16, None)
        assert image.mpp_um == pytest.approx((0.65, 0.65))
        np.testing.assert_array_equal(everything(image), tifffile.imread(path))


def test_paired_fields(data: Path) -> None:
    folder = data / "paired_he_mif_crc"
    with open_image(Source(folder / "f12152_57535_p01_mif.ome.tif"), "sp") as image:
        assert image.channel_names == ("DAPI", "CD3", "unlabelled_2", "panCK")
        assert image.mpp_um is None
        np.testing.assert_array_equal(everything(image), tifffile.imread(folder / "f12152_57535_p01_mif.ome.tif"))
    with open_image(Source(folder / "f12152_57535_p01_he.jpg"), "he") as image:
        expected = np.asarray(Image.open(folder / "f12152_57535_p01_he.jpg"))
        np.testing.assert_array_equal(everything(image), expected.transpose(2, 0, 1))


def test_multiplex_tagged_as_printing_inks(data: Path) -> None:
    folder = data / "paired_he_mif_crc"
    path = folder / "original_layout_cmyk_f17681_52463_p13.tif"
    with pytest.raises(SlideError) as caught:
        open_image(Source(path), "he")
    assert caught.value.code == "not_rgb"
    with open_image(Source(path), "sp") as image:
        assert image.n_channels == 4
        assert image.mpp_um is None
        said = " ".join(image.warnings)
        assert "CMYK" in said
        assert "352.8" in said  # 72 dpi
        # The same field, saved as an OME-TIFF by whoever gathered the data.
        expected = tifffile.imread(folder / "f17681_52463_p13_mif.ome.tif")
        np.testing.assert_array_equal(everything(image), expected)


@pytest.mark.parametrize(
    ("name", "modality", "dtype"),
    [
        ("he", "he", np.uint8),
        ("tenx_he", "he", np.uint8),
        ("dapi", "sp", np.uint16),
        ("ssdna", "sp", np.uint16),
        ("mif", "sp", np.uint8),
    ],
)
def test_cellbindb(data: Path, name: str, modality: Any, dtype: Any) -> None:
    path = data / "cellbindb_demo" / f"{name}_image.tif"
    expected = tifffile.imread(path)
    with open_image(Source(path), modality) as image:
        assert image.dtype == np.dtype(dtype)
        assert image.mpp_um is None
        read = everything(image)
        np.testing.assert_array_equal(read, expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1))
        assert read.dtype.isnative


def test_imagej_composite(data: Path) -> None:
    path = data / "instanseg_examples" / "Fluorescence_example.tif"
    with open_image(Source(path), "sp") as image:
        assert image.warnings == ()
        np.testing.assert_array_equal(everything(image), tifffile.imread(path))


def test_stack_member(data: Path) -> None:
    path = data / "dsb2018_brightfield" / "dsb2018_brightfield_256x320.npz"
    with np.load(path) as archive:
        expected = archive["images"][[0, 106]]
    for index, pixels in zip((0, 106), expected, strict=True):
        with open_image(Source(path, f"images[{index}]"), "he") as image:
            np.testing.assert_array_equal(everything(image), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("empty.svs", "empty_file"),
        ("header_only.svs", "truncated"),
        ("truncated_half.svs", "truncated"),
        ("ome_metadata_mismatch.ome.tiff", "metadata_mismatch"),
    ],
)
@pytest.mark.parametrize("modality", ["he", "sp"])
def test_broken_files_are_refused_at_opening(data: Path, name: str, code: str, modality: Any) -> None:
    with pytest.raises(SlideError) as caught:
        open_image(Source(data / "wsi_broken" / name), modality)
    assert caught.value.code == code
    assert name in caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize("reader", ["openslide", "tifffile"])
def test_a_corrupt_tile_is_named_and_does_not_spread(data: Path, reader: str) -> None:
    broken = Source(data / "wsi_broken" / "corrupt_tile.svs")
    with open_image(Source(data / "wsi_cmu1_small_region" / "CMU-1-Small-Region.svs"), "he") as sound:
        expected = everything(sound)
    image = open_openslide(broken) if reader == "openslide" else open_image(broken, "he")
    for _ in range(2):
        with pytest.raises(SlideError) as caught:
            image.read(0, 1200, 0, 600, 2220)
        assert caught.value.code == "corrupt_data"
        # The damaged tile lies at y 1440 to 1680, x 1200 to 1440.
        numbers = [int(word.strip(",")) for word in str(caught.value).split() if word.strip(",").isdigit()]
        y0, y1, x0, x1 = numbers[-4:]
        assert y0 < 1680
        assert y1 > 1440
        assert x0 < 1440
        assert x1 > 1200
        assert max(y1 - y0, x1 - x0) <= 256
        for y, x, height, width in [(0, 0, 1440, 2220), (1440, 0, 240, 1200), (1680, 0, 1287, 2220)]:
            read = image.read(0, y, x, height, width)
            np.testing.assert_array_equal(read, expected[:, y : y + height, x : x + width])
    image.close()

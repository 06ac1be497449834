"""The OpenSlide reader on made Aperio files, and how files are shared out between the readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.modality import flatten_alpha
from slideloom.slides.open import open_image
from slideloom.slides.read_openslide import open_openslide
from slideloom.slides.source import Source

HEIGHT, WIDTH = 3001, 2803  # the second level is 4.0056 and 4.0013 times smaller


def picture() -> NDArray[np.uint8]:
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (HEIGHT // 8 + 1, WIDTH // 8 + 1, 3), dtype=np.uint8)
    return small.repeat(8, 0).repeat(8, 1)[:HEIGHT, :WIDTH]


def write_svs(path: Path, compression: str = "jpeg") -> Path:
    data = picture()
    text = f"Aperio Image Library v11.2.1 \n{WIDTH}x{HEIGHT} (256x256) JPEG/RGB Q=70|AppMag = 20|MPP = 0.2520"
    options: dict[str, Any] = {"photometric": "rgb", "compression": compression, "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(data, tile=(256, 256), description=text, **options)
        file.write(data[::16, ::16], rowsperstrip=16, description=text, **options)
        file.write(data[::4, ::4][: HEIGHT // 4, : WIDTH // 4], tile=(256, 256), description=text, **options)
    return path


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("svs") / "a.svs")


def test_jpeg_slides_are_read_by_tifffile_exactly_on_every_level(svs: Path) -> None:
    with tifffile.TiffFile(svs) as file:
        expected = [file.pages[0].asarray(), file.pages[2].asarray()]
    with open_image(Source(svs), "he") as image, openslide.OpenSlide(svs) as slide:
        assert image.reader == "tifffile/aperio"
        assert image.mpp_um == (0.252, 0.252)
        assert [(level.width_px, level.height_px) for level in image.levels] == list(slide.level_dimensions)
        assert [level.downsample for level in image.levels] == [1.0, 4.0]
        for level, pixels in enumerate(expected):
            read = image.read(level, 3, 5, *(size - 9 for size in pixels.shape[:2]))
            np.testing.assert_array_equal(read, pixels.transpose(2, 0, 1)[:, 3:-6, 5:-4])


def test_other_compressions_and_missing_tiles_go_to_openslide(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "b.svs", "zlib")
    expected = picture().transpose(2, 0, 1)
    with open_image(Source(path), "he") as image:
        assert image.reader == "openslide/aperio"
        np.testing.assert_array_equal(image.read(0, 100, 200, 500, 400), expected[:, 100:600, 200:600])
    path = write_svs(tmp_path / "c.svs")
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = list(file.pages.first.databytecounts)
        file.pages.first.tags["TileByteCounts"].overwrite([*counts[:-1], 0])
    with open_image(Source(path), "he") as image:
        assert image.reader == "openslide/aperio"
        read = image.read(0, HEIGHT - 400, WIDTH - 400, 400, 400)
    assert read.std() > 0


def test_level_0_is_exact_and_lower_levels_do_not_depend_on_the_window(svs: Path) -> None:
    with tifffile.TiffFile(svs) as file:
        exact = [file.pages[0].asarray().transpose(2, 0, 1), file.pages[2].asarray().transpose(2, 0, 1)]
    image = open_openslide(Source(svs))
    np.testing.assert_array_equal(image.read(0, 11, 13, 301, 203), exact[0][:, 11:312, 13:216])
    at = image.header.levels[1]
    whole = image.read(1, 0, 0, at.height_px, at.width_px)
    rng = np.random.default_rng(0)
    for _ in range(20):
        y, x = int(rng.integers(0, at.height_px - 60)), int(rng.integers(0, at.width_px - 60))
        np.testing.assert_array_equal(image.read(1, y, x, 60, 50), whole[:, y : y + 60, x : x + 50])
    # OpenSlide itself shifts by a part of a pixel; the lattice keeps that below half a level-0 pixel.
    assert np.abs(whole.astype(int) - exact[1]).mean() < 3
    image.close()


def test_opacity() -> None:
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 256, (3, 40, 50), dtype=np.uint8)
    alpha = rng.integers(0, 256, (40, 50), dtype=np.uint8)
    shares = alpha / 255
    read = flatten_alpha(colour, alpha, premultiplied=False)
    assert np.abs(read - (colour * shares + 255 * (1 - shares))).max() <= 0.5 + 1e-9
    opaque = np.full_like(alpha, 255)
    np.testing.assert_array_equal(flatten_alpha(colour, opaque, premultiplied=False), colour)
    assert (flatten_alpha(colour, np.zeros_like(alpha), premultiplied=False) == 255).all()
    dimmed = np.floor(colour * shares).astype(np.uint8)
    again = flatten_alpha(dimmed, alpha, premultiplied=True)
    assert np.abs(again.astype(int) - read).max() <= 1


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"not a slide at all" * 100)
    with pytest.raises(SlideError) as caught:
        open_image(Source(path), "he")
    assert caught.value.code == "unsupported_format"
    with pytest.raises(SlideError) as caught:
        open_image(Source(tmp_path), "he")
    assert caught.value.code == "unsupported_format"
    with pytest.raises(SlideError) as caught:
        open_image(Source(tmp_path / "absent.svs"), "he")
    assert caught.value.code == "missing_file"


def test_a_slide_cut_short_behind_its_directories_is_refused(tmp_path: Path, svs: Path) -> None:
    data = svs.read_bytes()
    with tifffile.TiffFile(svs) as file:
        last = max(max(page.dataoffsets) for page in file.pages)
    path = tmp_path / "cut.svs"
    path.write_bytes(data[: last + 10])
    with pytest.raises(SlideError) as caught:
        open_image(Source(path), "he")
    assert caught.value.code == "truncated"


def test_closed_slides_refuse(svs: Path) -> None:
    image = open_openslide(Source(svs))
    image.close()
    image.close()
    with pytest.raises(ValueError, match="closed"):
        image.read(0, 0, 0, 5, 5)

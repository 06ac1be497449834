"""Windows of the grid frame: against plain averages, OpenCV, SciPy, and against themselves in other windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from slideloom.slides import region
from slideloom.slides.grid import grid_size
from slideloom.slides.image import Header, check_window, make_levels
from slideloom.slides.modality import ModalityImage, as_modality
from slideloom.slides.open import open_image
from slideloom.slides.region import choose_level, read_region
from slideloom.slides.source import Source


class Held:
    """A raw image held in memory, that counts what is read."""

    def __init__(self, levels: list[NDArray[Any]]) -> None:
        self.levels = levels
        self.read_px: list[int] = []
        self.header = Header(
            source=Source(Path("held")),
            reader="held",
            levels=make_levels([level.shape[1:] for level in levels]),  # type: ignore[misc]
            n_channels=len(levels[0]),
            dtype=levels[0].dtype,
            colour="channels",
        )

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        check_window(self.header.levels, level, y, x, height, width)
        self.read_px.append(height * width)
        return self.levels[level][:, y : y + height, x : x + width].copy()

    def close(self) -> None:
        pass


def held(*levels: NDArray[Any]) -> ModalityImage:
    return as_modality(Held(list(levels)), "sp")


def make(seed: int, channels: int, height: int, width: int, dtype: Any) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(size=(channels, height, width)).astype(kind)
    return rng.integers(0, np.iinfo(kind).max, (channels, height, width), endpoint=True).astype(kind)


def shares(n: int, scale: float, size: int) -> NDArray[np.float64]:
    """Share of every pixel in every grid pixel, the long way."""
    table = np.zeros((n, size))
    for i in range(n):
        for k in range(size):
            table[i, k] = max(0.0, min((i + 1) * scale, k + 1) - max(i * scale, k))
    return table / table.sum(1, keepdims=True)


@pytest.mark.parametrize("scale", [1.002, 1.37, 2.0, 2.5, 3.0, 6.0, 7.31, 40.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_going_down_is_an_average_over_the_square_covered(scale: float, dtype: Any) -> None:
    data = make(1, 2, 37, 53, dtype)
    height, width = grid_size(37, 53, scale)
    read = read_region(held(data), 0, 0, height, width, scale)
    expected = shares(height, scale, 37) @ data.astype(np.float64) @ shares(width, scale, 53).T
    assert read.dtype == np.dtype(dtype)
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(read, expected, rtol=1e-5, atol=1e-6)
    else:
        # Weights are whole 65536ths: two of them off by one half each is the most that can be.
        slack = np.iinfo(dtype).max * 4 / 65536
        assert np.abs(read - expected).max() <= 0.5 + slack


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_whole_factors_equal_opencv_and_a_plain_mean(factor: int) -> None:
    data = make(2, 3, 24 * factor, 17 * factor, np.uint8)
    read = read_region(held(data), 0, 0, 24, 17, float(factor))
    mean = data.reshape(3, 24, factor, 17, factor).mean((2, 4))
    assert np.abs(read - mean).max() <= 0.51
    for plane, done in zip(data, read, strict=True):
        other = cv2.resize(plane, (17, 24), interpolation=cv2.INTER_AREA)
        assert np.abs(done.astype(int) - other).max() <= 1
    if factor & (factor - 1) == 0:
        np.testing.assert_array_equal(read, np.rint(mean))


def test_broken_factor_equals_opencv() -> None:
    data = make(3, 1, 90, 120, np.float32)
    read = read_region(held(data), 0, 0, 60, 80, 1.5)
    np.testing.assert_allclose(read[0], cv2.resize(data[0], (80, 60), interpolation=cv2.INTER_AREA), atol=1e-5)


@pytest.mark.parametrize("scale", [0.9, 0.5, 0.31])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_going_up_is_linear_between_pixel_centres(scale: float, dtype: Any) -> None:
    data = make(4, 2, 21, 30, dtype)
    height, width = grid_size(21, 30, scale)
    read = read_region(held(data), 0, 0, height, width, scale)
    y, x = ((np.arange(n) + 0.5) * scale - 0.5 for n in (height, width))
    at = np.stack(np.meshgrid(y, x, indexing="ij"))
    for plane, done in zip(data, read, strict=True):
        expected = ndimage.map_coordinates(plane.astype(np.float64), at, order=1, mode="nearest")
        slack = 1e-5 if np.dtype(dtype).kind == "f" else 0.5 + np.iinfo(dtype).max * 4 / 65536
        assert np.abs(done - expected).max() <= slack


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_scale_1_is_a_copy(dtype: Any) -> None:
    data = make(5, 3, 40, 50, dtype)
    image = held(data)
    np.testing.assert_array_equal(read_region(image, 0, 0, 40, 50), data)
    np.testing.assert_array_equal(read_region(image, 7, 9, 20, 30, 1.0 + 1e-9), data[:, 7:27, 9:39])


def test_outside_is_filled() -> None:
    data = make(6, 2, 40, 50, np.uint8)
    image = held(data)
    read = read_region(image, -3, 45, 10, 20, fill=255)
    assert (read[:, :3] == 255).all()
    assert (read[:, :, 5:] == 255).all()
    np.testing.assert_array_equal(read[:, 3:, :5], data[:, :7, 45:])
    assert (read_region(image, 100, 0, 5, 5, 2.0, fill=7) == 7).all()
    assert (read_region(image, 0, -5, 5, 5, fill=7) == 7).all()
    rows, columns = grid_size(40, 50, 3.0)
    read = read_region(image, 0, 0, rows + 2, columns + 2, 3.0, fill=0)
    assert (read[:, rows:] == 0).all()
    assert (read[:, :, columns:] == 0).all()


@pytest.mark.parametrize("value", [0, 1, 200, 255])
@pytest.mark.parametrize("scale", [0.37, 1.01, 2.0, 3.7, 11.3, 300.0])
def test_a_flat_image_stays_flat(value: int, scale: float) -> None:
    for dtype in (np.uint8, np.uint16, np.float32):
        level = value * 257 if dtype == np.uint16 else value
        image = held(np.full((1, 61, 47), level, dtype))
        read = read_region(image, 0, 0, *grid_size(61, 47, scale), scale)
        np.testing.assert_allclose(read, level, rtol=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_pixel_does_not_depend_on_the_window(data: st.DataObject) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.float32]))
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    pixels = make(draw(st.integers(0, 999)), draw(st.integers(1, 3)), height, width, dtype)
    factors = [factor for factor in (2, 5) if min(height, width) > factor and draw(st.booleans())]
    levels = [pixels, *(np.ascontiguousarray(pixels[:, f - 1 :: f, f - 1 :: f]) for f in factors)]
    image = held(*levels)
    scale = draw(st.one_of(st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0, 6.0]), st.floats(0.2, 13)))
    rows, columns = grid_size(height, width, scale)
    y, x = draw(st.integers(-3, rows + 2)), draw(st.integers(-3, columns + 2))
    high, wide = draw(st.integers(1, rows + 5)), draw(st.integers(1, columns + 5))
    window = read_region(image, y, x, high, wide, scale, fill=9)
    large = read_region(image, -10, -10, rows + 40, columns + 40, scale, fill=9)
    crop = np.full_like(window, 9)
    part = large[:, y + 10 : y + 10 + high, x + 10 : x + 10 + wide]
    crop[:, : part.shape[1], : part.shape[2]] = part
    assert window.tobytes() == crop.tobytes()


@pytest.mark.parametrize("scale", [0.6, 1.7, 6.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_blocks_do_not_show(scale: float, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Held([make(8, 3, 211, 307, dtype)])
    image = as_modality(source, "sp")
    size = grid_size(211, 307, scale)
    whole = read_region(image, 0, 0, *size, scale)
    monkeypatch.setattr(region, "_BLOCK_BYTES", 4000)
    monkeypatch.setattr(region, "_BAND_PX", 20)
    monkeypatch.setattr(region, "_CACHED_SUMS", 50)
    source.read_px.clear()
    assert read_region(image, 0, 0, *size, scale).tobytes() == whole.tobytes()
    assert len(source.read_px) > 10
    assert max(source.read_px) * 3 * np.dtype(dtype).itemsize <= 3 * 4000, "blocks stay about as small as asked"


def test_nan_stays_where_it_is() -> None:
    data = np.ones((1, 30, 30), np.float32)
    data[0, 10, 10] = np.nan
    for scale in (0.5, 1.5, 2.0, 3.0, 3.1):
        rows, columns = grid_size(30, 30, scale)
        read = read_region(held(data), 0, 0, rows, columns, scale)[0]
        bad = np.argwhere(np.isnan(read))
        assert len(bad)
        reach = 1 if scale < 1 else 0
        for row, column in bad:
            for at in (row, column):
                assert (at - reach) * scale < 11 + reach
                assert (at + 1 + reach) * scale > 10 - reach


def test_the_level_is_the_smallest_that_is_fine_enough() -> None:
    image = held(*(np.zeros((1, 640 // f, 320 // f), np.uint8) for f in (1, 2, 4, 16)))
    for scale, level in [(0.5, 0), (1, 0), (1.9, 0), (2, 1), (3.99, 2), (3.9, 1), (5, 2), (16, 3), (100, 3)]:
        assert choose_level(image, scale) == level, scale


def test_a_pyramid_by_averages_gives_what_level_0_gives() -> None:
    data = ndimage.gaussian_filter(make(9, 2, 128, 96, np.float32), (0, 4, 4))
    small = data.reshape(2, 64, 2, 48, 2).mean((2, 4)).astype(np.float32)
    smaller = data.reshape(2, 32, 4, 24, 4).mean((2, 4)).astype(np.float32)
    for scale in (2.0, 4.0, 8.0, 5.3, 9.1):
        size = grid_size(128, 96, scale)
        one = read_region(held(data), 0, 0, *size, scale)
        other = read_region(held(data, small, smaller), 0, 0, *size, scale)
        if scale in (2.0, 4.0, 8.0):
            np.testing.assert_allclose(other, one, atol=1e-6)
        else:
            assert np.abs(other - one).mean() < 0.1 * one.std()


def test_a_level_that_is_a_pixel_short_still_covers_the_slide() -> None:
    data = make(10, 1, 101, 63, np.uint8)
    short = data[:, : 2 * 50 : 2, : 2 * 31 : 2]
    image = held(data, np.ascontiguousarray(short))
    assert image.levels[1].downsample == 2.0
    rows, columns = grid_size(101, 63, 2.0)
    assert (rows, columns) == (50, 32)
    read = read_region(image, 0, 0, rows, columns, 2.0)
    np.testing.assert_array_equal(read[:, :50, :31], short)
    np.testing.assert_array_equal(read[:, :, 31], short[:, :, 30])


def test_what_cannot_be_asked() -> None:
    image = held(np.zeros((1, 10, 10), np.uint8))
    for height, width, scale in [
        (0, 5, 1.0),
        (5, -1, 1.0),
        (5, 5, 0.0),
        (5, 5, float("nan")),
        (5, 5, float("inf")),
        (5, 5, -2.0),
    ]:
        with pytest.raises(ValueError, match="window of"):
            read_region(image, 0, 0, height, width, scale)


def test_real_slide_at_half_resolution(shared: Path) -> None:
    path = shared / "data" / "wsi_cmu1_small_region" / "CMU-1-Small-Region.svs"
    with open_image(Source(path), "he") as image:
        whole = read_region(image, 0, 0, *grid_size(2967, 2220, 2.004), 2.004)
        assert read_region(image, 500, 300, 256, 256, 2.004).tobytes() == whole[:, 500:756, 300:556].tobytes()
        full = image.read(0, 0, 0, 2967, 2220)
    assert np.abs(whole.mean((1, 2)) - full.mean((1, 2))).max() < 0.2

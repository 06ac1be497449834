"""What is told of the pixels of channels while tiles are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.patches.watch import ChannelWatch
from slideloom.slides.grid import TileGrid
from slideloom.slides.tables import Channel


def watch(pixels: NDArray[Any], tile_px: int, tissue: shapely.Geometry | None = None) -> ChannelWatch:
    """Cut a slide into tiles, zeros behind its border, and look at all of them."""
    _, height, width = pixels.shape
    tiles = TileGrid.make(height, width, tile_px, tile_px)
    outline = shapely.box(0, 0, width, height) if tissue is None else tissue
    share = np.full(tiles.n, 1 if tissue is None else 0.5, np.float32)
    if outline.is_empty:
        share[:] = 0
    patches = np.zeros((tiles.n, len(pixels), tile_px, tile_px), pixels.dtype)
    for patch, y, x in zip(patches, tiles.y_px, tiles.x_px, strict=True):
        part = pixels[:, y : y + tile_px, x : x + tile_px]
        patch[:, : part.shape[1], : part.shape[2]] = part
    channels = [Channel(f"c{index}", f"m{index}") for index in range(len(pixels))]
    made = ChannelWatch(channels, pixels.dtype, "slide, sp image", tiles, share, outline)
    for start in range(0, tiles.n, 2):
        made.add(patches[start : start + 2], np.arange(start, min(start + 2, tiles.n)))
    return made


def counts(*shape: int, dtype: Any = np.uint16) -> NDArray[Any]:
    return np.random.default_rng(3).integers(1, 200, shape).astype(dtype)


def test_nothing_is_told_of_measurements() -> None:
    for dtype in (np.uint8, np.uint16, np.float32):
        assert watch(counts(3, 50, 70, dtype=dtype), 16).warnings() == ()


def test_padding_is_no_pixel() -> None:
    pixels = counts(2, 50, 70)
    pixels[1] = 9
    assert watch(pixels, 16).warnings() == ("one value everywhere in channel 'c1' (9)",)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_saturation_is_a_share_of_the_pixels_on_the_slide(dtype: Any, top: int) -> None:
    pixels = counts(2, 40, 50, dtype=dtype)
    pixels[0, :10, :50] = top
    pixels[1, 0, :19] = top  # below 1 %
    (warning,) = watch(pixels, 16).warnings()
    assert f"{top}, in channel 'c0' (25%)" in warning
    assert "c1" not in warning


def test_a_few_are_named_and_all_are_counted() -> None:
    (warning,) = watch(np.ones((20, 16, 16), np.uint8), 16).warnings()
    assert "'c7' (1), … (20 in all)" in warning
    assert "c8" not in warning


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_in_tissue(value: float) -> None:
    pixels = counts(3, 40, 50, dtype=np.float32)
    pixels[1, 39, 49] = value  # in the smallest tile, of 8 x 2 pixels
    with pytest.raises(SlideError, match="channel 'c1'") as caught:
        watch(pixels, 16)
    assert (caught.value.code, caught.value.where) == ("non_finite_pixels", "slide, sp image")
    assert caught.value.hint
    with pytest.raises(SlideError):
        watch(pixels, 16, shapely.box(48, 38, 50, 40))


def test_what_is_no_number_counts_everywhere_without_tissue() -> None:
    pixels = counts(1, 20, 20, dtype=np.float32)
    pixels[0, 3, 3] = np.nan
    with pytest.raises(SlideError):
        watch(pixels, 16, shapely.Polygon())


def test_beside_the_tissue_it_is_told() -> None:
    pixels = counts(2, 40, 50, dtype=np.float32)
    pixels[0, 0, :20] = np.nan
    pixels[1] = 4
    pixels[1, 39, 0] = np.inf
    told = watch(pixels, 16, shapely.box(0, 10, 50, 30)).warnings()
    assert told == (
        "one value everywhere in channel 'c1' (4)",
        "NaN or infinite pixels outside the tissue in 3 tiles",
    )

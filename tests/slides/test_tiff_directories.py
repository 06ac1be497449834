"""Walking the directories of TIFF files."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.bad_inputs.raw_tiff import picture, tiff, tile_page

from slideloom.errors import SlideError
from slideloom.slides.tiff_file import count_pages

SUB = 330


def pages(path: Path, raw: bytes) -> int:
    path.write_bytes(raw)
    return count_pages(path, "a.tif")


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_and_sub_resolutions_of_tifffile(tmp_path: Path, big: bool, order: str) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as file:
        for _ in range(5):
            file.write(np.zeros((64, 64), np.uint8), subifds=2, metadata=None)
            file.write(np.zeros((32, 32), np.uint8), subfiletype=1, metadata=None)
            file.write(np.zeros((16, 16), np.uint8), subfiletype=1, metadata=None)
    assert count_pages(path, "a.tif") == 5


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("n_below", [1, 3])
def test_sub_directories_that_lead_back(tmp_path: Path, big: bool, n_below: int) -> None:
    page = tile_page(picture())
    kind, form = (18, "<Q") if big else (13, "<I")
    page = replace(page, tags={**page.tags, SUB: (kind, [7] * n_below)})
    raw = bytearray(tiff([page], big=big))
    start = struct.unpack_from(form, raw, 8 if big else 4)[0]
    # The places of the sub-directories: written as 7 above, each now the directory's own.
    word = struct.calcsize(form)
    mark = struct.pack(form, 7) * n_below
    raw[raw.index(mark) : raw.index(mark) + n_below * word] = struct.pack(form, start) * n_below
    with pytest.raises(SlideError, match="circle") as caught:
        pages(tmp_path / "a.tif", bytes(raw))
    assert caught.value.code == "unreadable"


def test_a_sub_directory_outside_the_file(tmp_path: Path) -> None:
    page = tile_page(picture())
    raw = tiff([replace(page, tags={**page.tags, SUB: (4, [1 << 30])})])
    with pytest.raises(SlideError) as caught:
        pages(tmp_path / "a.tif", raw)
    assert caught.value.code == "truncated"


def test_sub_directories_by_the_thousand(tmp_path: Path) -> None:
    page = tile_page(picture())
    with pytest.raises(SlideError) as caught:
        pages(tmp_path / "a.tif", tiff([replace(page, tags={**page.tags, SUB: (4, [8] * 20_000)})]))
    assert caught.value.code == "too_large"


def test_hamamatsu_is_left_to_itself(tmp_path: Path) -> None:
    page = tile_page(picture())
    raw = tiff([replace(page, tags={**page.tags, 65420: (4, [1])})] * 3, last_leads_to=0)
    assert pages(tmp_path / "a.tif", raw) == 1

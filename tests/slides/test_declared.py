"""What a file declares against what it stores: hostile files are refused, blank and sparse ones are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bad_inputs.hostile import npz_of_zeros
from tests.bad_inputs.raw_tiff import tiff, tile_page

from slideloom.errors import SlideError
from slideloom.slides.declared import refuse_hollow, refuse_hollow_piece
from slideloom.slides.image import Header, Level
from slideloom.slides.open import open_raw
from slideloom.slides.source import Source

MIB = 1 << 20


@pytest.mark.parametrize(
    ("declared", "stored", "bounded", "refused"),
    [
        (256 * MIB, 1, True, False),
        (256 * MIB + 1, 1, True, True),
        (1000 * MIB, 2 * MIB, True, False),
        (1000 * MIB, 2 * MIB - 1, True, True),
        (2049 * MIB, 2000 * MIB, True, True),
        (8000 * MIB, 2000 * MIB, False, False),
        (0, 0, True, False),
    ],
)
def test_pieces(declared: int, stored: int, bounded: bool, refused: bool) -> None:
    if refused:
        with pytest.raises(SlideError, match="a strip of") as caught:
            refuse_hollow_piece(declared, stored, "a.tif", "a strip", bounded=bounded)
        assert caught.value.code == "too_large"
        assert caught.value.hint
    else:
        refuse_hollow_piece(declared, stored, "a.tif", "a strip", bounded=bounded)


def header(path: Path, reader: str, side: int, samples: int = 3, dtype: Any = np.uint8) -> Header:
    levels = (Level(side, side, 1.0),)
    return Header(
        source=Source(path), reader=reader, levels=levels, n_channels=samples, dtype=np.dtype(dtype), colour="rgb"
    )


def test_slides_in_many_files_are_not_judged_by_the_one_that_the_sheet_names(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(bytes(1000))
    refuse_hollow(header(tmp_path / "scan", "openslide/mirax", 100_000))
    with pytest.raises(SlideError, match="30 GB is declared, 1 KB are stored"):
        refuse_hollow(header(tmp_path / "scan", "openslide/aperio", 100_000))


def test_blank_slides_are_read(tmp_path: Path) -> None:
    path = tmp_path / "blank.tif"
    page = tile_page(np.full((256, 256, 3), 255, np.uint8), 256)
    tags = {**page.tags, 256: (4, [24_576]), 257: (4, [24_576])}
    path.write_bytes(tiff([replace(page, tags=tags, segments=list(page.segments) * 96 * 96)]))
    assert path.stat().st_size < 4e6
    raw = open_raw(Source(path))
    assert raw.header.levels[0] == Level(24_576, 24_576, 1.0), "1.8 GB"
    assert (raw.read(0, 20_000, 20_000, 300, 300) == 255).all()
    raw.close()


def zarr(place: Path, shape: list[int], chunk: list[int], codecs: list[dict[str, Any]]) -> Path:
    place.mkdir()
    body = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": ["y", "x"],
    }
    (place / "zarr.json").write_text(json.dumps(body))
    return place


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def test_sparse_zarr_is_read_and_an_empty_one_of_terabytes_is_not(tmp_path: Path) -> None:
    small = zarr(tmp_path / "a.zarr", [10_000, 10_000], [1000, 1000], [BYTES])
    open_raw(Source(small)).close()
    large = zarr(tmp_path / "b.zarr", [1 << 20, 1 << 20], [1000, 1000], [BYTES])
    with pytest.raises(SlideError, match="an image of") as caught:
        open_raw(Source(large))
    assert caught.value.code == "too_large"
    (large / "c" / "0").mkdir(parents=True)
    (large / "c" / "0" / "0").write_bytes(bytes(4_000_000))
    (large / "c" / "0" / "1").write_bytes(bytes(50_000_000))
    open_raw(Source(large)).close()


def test_shards_are_judged_by_their_inner_chunks(tmp_path: Path) -> None:
    inner = {"chunk_shape": [1000, 1000], "codecs": [BYTES], "index_codecs": [BYTES], "index_location": "end"}
    sharding = [{"name": "sharding_indexed", "configuration": inner}]
    open_raw(Source(zarr(tmp_path / "a.zarr", [10_000, 10_000], [10_000, 10_000], sharding))).close()
    with pytest.raises(SlideError, match="a chunk of 400 MB") as caught:
        open_raw(Source(zarr(tmp_path / "b.zarr", [10_000, 10_000], [10_000, 10_000], [BYTES])))
    assert caught.value.code == "too_large"


def test_the_version_2_form_of_zarr(tmp_path: Path) -> None:
    place = tmp_path / "a.zarr"
    place.mkdir()
    body = {
        "zarr_format": 2,
        "shape": [20_000, 20_000],
        "chunks": [20_000, 20_000],
        "dtype": "<u2",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }
    (place / ".zarray").write_text(json.dumps(body))
    with pytest.raises(SlideError, match="a chunk of 800 MB"):
        open_raw(Source(place))


def test_members_of_archives_are_judged_by_their_whole_stack(tmp_path: Path) -> None:
    path = tmp_path / "stack.npz"
    path.write_bytes(npz_of_zeros(300, (300, 1024, 1024)))
    with pytest.raises(SlideError, match="an array of 315 MB is declared") as caught:
        open_raw(Source(path, "image[3]"))
    assert caught.value.code == "too_large"
    path.write_bytes(npz_of_zeros(200, (200, 1024, 1024)))
    raw = open_raw(Source(path, "image[3]"))
    assert raw.header.levels[0] == Level(1024, 1024, 1.0)
    raw.close()

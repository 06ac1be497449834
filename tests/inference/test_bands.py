"""Bands of a slide's maps joined to one store, against the store that is written at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideloom.artefacts.zarrio import create_array, create_group, open_array, read_array, read_attributes
from slideloom.errors import SlideError
from slideloom.inference import bands as bands_module
from slideloom.inference.bands import SHARD_ROWS_PX, band_rows, join_bands

HEIGHT, WIDTH, SHARD = 45, 37, 8
ABOUT: dict[str, Any] = {"slide_id": "s1", "height_px": HEIGHT, "width_px": WIDTH, "units": {"hv": "distance · 127"}}


@given(height=st.integers(1, 20_000), bands=st.integers(1, 40), shard=st.sampled_from([1, 7, 256, 1024]))
def test_bands_tile_the_slide_evenly_in_whole_shards(height, bands, shard):
    rows = band_rows(height, bands, shard)
    assert rows[0][0] == 0
    assert rows[-1][1] == height
    assert [bottom for _, bottom in rows[:-1]] == [top for top, _ in rows[1:]]
    shards = [-(-bottom // shard) - top // shard for top, bottom in rows]
    assert all(top % shard == 0 for top, _ in rows)
    assert min(shards) >= 1
    assert max(shards) - min(shards) <= 1
    assert len(rows) == min(bands, -(-height // shard))


def test_bands_by_hand():
    assert SHARD_ROWS_PX == 1024
    assert band_rows(5000, 2) == [(0, 2048), (2048, 5000)]
    assert band_rows(3000, 8) == [(0, 1024), (1024, 2048), (2048, 3000)]
    assert band_rows(10, 4) == [(0, 10)]
    with pytest.raises(ValueError, match="at least 1"):
        band_rows(10, 0)


def write_store(place: Path, rows: tuple[int, int] | None = None, **more: Any) -> Path:
    """Maps of the slide, of some rows of it; the last array holds 0 in a whole shard."""
    top, bottom = rows or (0, HEIGHT)
    own = {} if rows is None else {"rows": list(rows)}
    for folder, seed in ((place, 0), (place / "shifted", 1)):
        rng = np.random.default_rng(seed)
        create_group(folder, {**ABOUT, **more, **own})
        for name, lead, dtype in (("nucleus", (), np.uint8), ("hv", (2,), np.int8), ("covered", (), np.uint8)):
            data = rng.integers(0, 100, (*lead, HEIGHT, WIDTH)).astype(dtype)
            if name == "covered":
                data[SHARD : 2 * SHARD] = 0
            array = create_array(
                folder / name,
                data.shape,
                dtype,
                chunk=(*(1 for _ in lead), 4, 4),
                shard=(*lead, SHARD, 16),
                codec="labels",
                dimension_names=("axis", "y", "x")[-data.ndim :],
            )
            array[..., top:bottom, :].write(data[..., top:bottom, :]).result()
    return place


def files_of(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    rows = band_rows(HEIGHT, 3, SHARD)
    return [write_store(tmp_path / "bands" / f"{number}.zarr", each) for number, each in enumerate(rows)]


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("bands", [1, 2, 3, 6])
def test_joined_bands_are_what_is_written_at_once(
    bands: int, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_store(tmp_path / "whole.zarr")
    rows = band_rows(HEIGHT, bands, SHARD)
    assert len(rows) == bands
    parts = [write_store(tmp_path / "bands" / f"{number}.zarr", each) for number, each in enumerate(rows)]
    before = [files_of(part) for part in parts]
    if not linked:

        def refuse(*_: Any) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(bands_module.os, "link", refuse)
    place = tmp_path / "joined" / "s1.zarr"
    join_bands(parts[::-1], place)
    assert files_of(place) == files_of(whole)
    assert [files_of(part) for part in parts] == before, "bands stay as they are"
    assert (place / "nucleus" / "c" / "0" / "0").stat().st_nlink == (2 if linked else 1)
    assert not (place / "covered" / "c" / "1").exists(), "what is not stored in a band is not stored"
    np.testing.assert_array_equal(read_array(place / "shifted" / "hv"), read_array(whole / "shifted" / "hv"))
    assert "rows" not in read_attributes(place)
    assert [path.name for path in place.parent.iterdir()] == ["s1.zarr"]


def test_an_older_store_is_replaced_and_the_bands_outlive_it(parts: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "s1.zarr"
    write_store(place, slide_id="old")
    join_bands(parts, place)
    assert read_attributes(place)["slide_id"] == "s1"
    shutil.rmtree(place)
    assert np.asarray(open_array(parts[0] / "nucleus")[:16]).any()


def _refused(parts: list[Path], tmp_path: Path, match: str) -> None:
    with pytest.raises(SlideError, match=match) as caught:
        join_bands(parts, tmp_path / "s1.zarr")
    assert caught.value.code == "bands_disagree"
    assert caught.value.hint
    assert not (tmp_path / "s1.zarr").exists()
    assert not list(tmp_path.glob(".*")), "nothing half made is left"


def test_bands_must_tile_the_rows(parts: list[Path], tmp_path: Path) -> None:
    for wrong in (parts[:2], parts[1:], [parts[0], parts[2]], [*parts, parts[1]]):
        _refused(wrong, tmp_path, "every row of 0 to 45 once")
    _refused([], tmp_path, "no band")
    _refused([*parts, tmp_path / "absent.zarr"], tmp_path, "rows is None")
    _refused([write_store(tmp_path / "whole.zarr")], tmp_path, "rows is None")


def test_bands_must_end_where_shards_end(tmp_path: Path) -> None:
    parts = [write_store(tmp_path / str(top), (top, bottom)) for top, bottom in ((0, 12), (12, HEIGHT))]
    _refused(parts, tmp_path, "end where shards end")


def test_bands_must_be_made_alike(parts: list[Path], tmp_path: Path) -> None:
    shutil.rmtree(parts[1])
    write_store(parts[1], band_rows(HEIGHT, 3, SHARD)[1], model_digest="other")
    _refused(parts, tmp_path, "metadata of the group, shifted differ")
    shutil.rmtree(parts[1])
    write_store(parts[1], band_rows(HEIGHT, 3, SHARD)[1])
    shutil.rmtree(parts[1] / "hv")
    _refused(parts, tmp_path, "metadata of hv differ")
    shutil.rmtree(parts[1])
    write_store(parts[1], band_rows(HEIGHT, 3, SHARD)[1])
    metadata = json.loads((parts[1] / "hv" / "zarr.json").read_text())
    metadata["data_type"] = "uint8"
    (parts[1] / "hv" / "zarr.json").write_text(json.dumps(metadata))
    _refused(parts, tmp_path, "metadata of hv differ")


def test_bands_must_hold_their_own_shards_only(parts: list[Path], tmp_path: Path) -> None:
    array = parts[0] / "shifted" / "hv" / "c" / "0"
    shutil.copytree(array / "0", array / "5")
    _refused(parts, tmp_path, "a shard of the rows from 40 on")

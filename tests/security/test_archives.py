"""Archives and stores from elsewhere: nothing is written, nothing outside of them is read, nothing fills the memory."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from slideloom.artefacts.zarrio import write_array
from slideloom.encoders.checkpoints.files import read_archive
from slideloom.encoders.checkpoints.weights import read_weights
from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.geojson_text import read_features
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source, parse_source
from slideloom.training.resume import load_state

SOURCE = Path(__file__).resolve().parents[2] / "src"
SECRET = np.full((32, 32), 77, np.uint8)


class Call:
    """Runs something when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(folder.rglob("*"))}


def code(source: Source) -> str:
    with pytest.raises(SlideError) as caught, open_image(source, "sp") as image:
        image.read(0, 0, 0, image.height_px, image.width_px)
    assert "Traceback" not in str(caught.value)
    return caught.value.code


def ome_zarr(place: Path, level: str = "0") -> Path:
    """A group whose one level lies where ``level`` says; the level itself is not made."""
    place.mkdir(parents=True)
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    body = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": level}]}]}
    told = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": body}}
    (place / "zarr.json").write_text(json.dumps(told))
    return place


# ---- Zarr ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image that the store may not lead to."""
    write_array(tmp_path / "secret.zarr", SECRET)
    return tmp_path / "secret.zarr"


@pytest.mark.parametrize(
    "level",
    ["../secret.zarr", "0/../../secret.zarr", "{absolute}", "./../secret.zarr", "..", "../store.zarr/../secret.zarr"],
)
def test_a_level_does_not_lie_outside_of_its_store(tmp_path: Path, secret: Path, level: str) -> None:
    store = ome_zarr(tmp_path / "store.zarr", level.format(absolute=secret))
    (store / "0").mkdir()
    before = tree(tmp_path)
    assert code(Source(store)) == "metadata_mismatch"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("member", ["../secret.zarr", "0/../../secret.zarr", "{absolute}", "link"])
def test_a_member_does_not_lie_outside_of_its_store(tmp_path: Path, secret: Path, member: str) -> None:
    store = ome_zarr(tmp_path / "store.zarr")
    (store / "link").symlink_to(secret)
    (store / "0").mkdir()
    assert code(Source(store, member.format(absolute=secret))) == "bad_member"


def test_a_link_does_not_lead_out_of_a_store(tmp_path: Path, secret: Path) -> None:
    store = ome_zarr(tmp_path / "store.zarr")
    (store / "0").symlink_to(secret)
    assert code(Source(store)) == "metadata_mismatch"
    several = tmp_path / "several.zarr"
    several.mkdir()
    told = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"bioformats2raw.layout": 3}}}
    (several / "zarr.json").write_text(json.dumps(told))
    (several / "0").symlink_to(ome_zarr(tmp_path / "elsewhere.zarr"))
    assert code(Source(several)) == "metadata_mismatch"


def test_a_store_may_itself_be_a_link(tmp_path: Path) -> None:
    """Data sets are often folders of links; that one points at the store a person's own sheet names."""
    store = ome_zarr(tmp_path / "data" / "store.zarr")
    write_array(store / "0", SECRET)
    (tmp_path / "slide.zarr").symlink_to(store)
    with open_image(Source(tmp_path / "slide.zarr"), "sp") as image:
        np.testing.assert_array_equal(image.read(0, 0, 0, 32, 32)[0], SECRET)


def test_objects_in_a_store_are_not_unpickled(tmp_path: Path) -> None:
    pwned, store = tmp_path / "pwned", tmp_path / "store.zarr"
    zarr.create_array(str(store), shape=(32, 32), chunks=(32, 32), dtype="uint8", zarr_format=2)
    told = json.loads((store / ".zarray").read_text())
    told |= {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None, "fill_value": None}
    (store / ".zarray").write_text(json.dumps(told))
    (store / "0.0").write_bytes(pickle.dumps([Call(pwned)] * 1024))
    assert code(Source(store)) in ("unreadable", "unsupported_layout")
    assert not pwned.exists()


# ---- NumPy --------------------------------------------------------------------------------------------------------


def test_objects_in_arrays_are_not_unpickled(tmp_path: Path) -> None:
    pwned = tmp_path / "pwned"
    objects = np.full((32, 32), None, object)
    objects[0, 0] = Call(pwned)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", image=objects)
    for name, member in (("a.npy", ""), ("a.npz", "image"), ("a.npz", "")):
        assert code(Source(tmp_path / name, member)) in ("unsupported_layout", "truncated")
    assert not pwned.exists()


def test_members_of_an_npz_are_read_where_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(tmp_path / "x.npy", SECRET)
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        for name in ("../../x.npy", "/tmp/x.npy", "..\\x.npy"):
            archive.write(tmp_path / "x.npy", name)
            archive.filelist[-1].filename = name
    (tmp_path / "x.npy").unlink()
    before = tree(tmp_path)
    with open_image(Source(folder / "a.npz", "../../x"), "sp") as image:
        np.testing.assert_array_equal(image.read(0, 0, 0, 32, 32)[0], SECRET)
    assert tree(tmp_path) == before
    assert not Path("/tmp/x.npy").exists()


# ---- GeoJSON ------------------------------------------------------------------------------------------------------


def test_members_of_a_zip_are_read_where_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    text = json.dumps({"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}})
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in ("../../x.geojson", "/etc/x.geojson"):
            archive.writestr(name, text)
        link = zipfile.ZipInfo("link.geojson")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, text)
    (tmp_path / "x.geojson").write_text("no JSON")
    before = tree(tmp_path)
    assert len(list(read_features(Source(folder / "a.zip")))) == 3
    assert tree(tmp_path) == before


# ---- weights ------------------------------------------------------------------------------------------------------


def packed_zeros(place: Path, mib: int) -> None:
    """A checkpoint whose one tensor is packed a thousandfold."""
    torch.save({"a": torch.zeros(4)}, place.with_suffix(".plain"))
    block = bytes(1 << 20)
    with (
        zipfile.ZipFile(place.with_suffix(".plain")) as plain,
        zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed,
    ):
        for name in plain.namelist():
            if name.endswith("data/0"):
                with packed.open(name, "w", force_zip64=True) as member:
                    for _ in range(mib):
                        member.write(block)
            else:
                packed.writestr(name, plain.read(name))


def test_a_checkpoint_that_unpacks_a_thousandfold_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "bomb.pth"
    packed_zeros(place, 96)
    assert place.stat().st_size < 1 << 20
    for read in (read_archive, read_weights):
        with pytest.raises(SlideloomError, match="would unpack to") as caught:
            read(place)
        assert caught.value.code == "unreadable_checkpoint"
    torch.save({"a": torch.zeros(1 << 20)}, place)
    assert read_archive(place).stored


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_saved_state_runs_nothing(tmp_path: Path) -> None:
    pwned, place = tmp_path / "pwned", tmp_path / "resume.pt"
    for save in (
        lambda: torch.save({"state": Call(pwned)}, place),
        lambda: place.write_bytes(pickle.dumps(Call(pwned))),
    ):
        save()
        assert load_state(place, "key", {}) is None
        assert not pwned.exists()
    # The attack itself is sound.
    pickle.loads(pickle.dumps(Call(pwned)))
    assert pwned.exists()


# ---- memory -------------------------------------------------------------------------------------------------------

_PEAK = """
import resource, sys
from pathlib import Path
from slideloom.errors import SlideError
from slideloom.slides.open import open_image
from slideloom.slides.source import Source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with open_image(Source(Path(sys.argv[1]), sys.argv[2]), "sp") as image:
        image.read(0, 0, 0, 64, 64)
    print("read", end=" ")
except SlideError as error:
    print(error.code, end=" ")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def declared_zarr(folder: Path) -> Path:
    """A terabyte by its metadata, none of it stored, in one chunk."""
    store = folder / "declared.zarr"
    zarr.create_array(str(store), shape=(1 << 20, 1 << 20), chunks=(1 << 20, 1 << 20), dtype="uint8", zarr_format=3)
    return store


def packed_chunk(folder: Path) -> Path:
    """A chunk of a few kilobytes that unpacks to a gigabyte."""
    store = folder / "packed.zarr"
    side = 1 << 15
    zarr.create_array(
        str(store),
        shape=(side, side),
        chunks=(side, side),
        dtype="uint8",
        zarr_format=3,
        compressors=[zarr.codecs.GzipCodec()],
    )
    chunk = store / "c" / "0" / "0"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(1024 * gzip.compress(bytes(1 << 20)))
    assert chunk.stat().st_size < 2 << 20
    return store


@pytest.mark.parametrize("make", [declared_zarr, packed_chunk])
def test_a_store_that_declares_more_than_memory_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    store = make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(store), ""],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told, grown = done.stdout.split()
    assert told != "read"
    assert int(grown) < 400, "megabytes"


# ---- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell", ["https://example.org/x.tif", "s3://bucket/x.zarr", "file:///etc/passwd", "//host/x.svs"]
)
def test_an_address_is_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    row = SlideRow("s", sp=cell)
    assert code(parse_source(row.sp or "", tmp_path)) == "missing_file"
    assert list(tmp_path.iterdir()) == []

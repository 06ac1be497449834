from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from slideloom.errors import SlideError
from slideloom.slides.layouts import arrays
from slideloom.slides.layouts.arrays import map_npy, read_npz


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.place,)


def test_npy_is_mapped_and_objects_are_not_run(tmp_path: Path) -> None:
    place = tmp_path / "a.npy"
    np.save(place, np.arange(24.0).reshape(2, 3, 4))
    found = map_npy(place, 3, "f", "three axes", "")
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert np.array_equal(found[1], np.arange(12.0, 24).reshape(3, 4))
    with pytest.raises(SlideError, match=r"shape \(2, 3, 4\) float64 \(expected a list\)"):
        map_npy(place, 1, "U", "a list", "")
    place.write_bytes(place.read_bytes()[:-8])
    with pytest.raises(SlideError) as caught:
        map_npy(place, 3, "f", "three axes", "")
    assert caught.value.code == "unreadable"
    np.save(place, np.array([Trap(tmp_path / "ran")], object), allow_pickle=True)
    with pytest.raises(SlideError, match="SAVE AGAIN") as caught:
        map_npy(place, 1, "U", "a list", "SAVE AGAIN")
    assert caught.value.code == "pickled"
    assert not (tmp_path / "ran").exists()
    broken = b"\x93NUMPY\x01\x00\x20\x00" + b"{'descr': '<f8', 'shape': (2,".ljust(32)
    for held in (b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x02\x00" + b"\xff" * 4, broken):
        place.write_bytes(held)
        with pytest.raises(SlideError):
            map_npy(place, 1, "U", "a list", "")


def test_npz_is_bounded_and_objects_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a.npz"
    np.savez_compressed(place, a=np.eye(3), b=np.ones(4))
    found = read_npz(place, ("a", "c"))
    assert list(found) == ["a"]
    assert np.array_equal(found["a"], np.eye(3))
    monkeypatch.setattr(arrays, "_MOST_BYTES", 71)
    with pytest.raises(SlideError) as caught:
        read_npz(place, ("a",))
    assert caught.value.code == "too_large"
    monkeypatch.undo()
    np.savez(place, a=np.array([Trap(tmp_path / "ran")], object), allow_pickle=True)
    with pytest.raises(SlideError) as caught:
        read_npz(place, ("a",))
    assert caught.value.code == "pickled"
    assert not (tmp_path / "ran").exists()
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.npy", b"no array")
    place.write_bytes(held.getvalue())
    with pytest.raises(SlideError, match="cannot be read"):
        read_npz(place, ("a",))
    announced = io.BytesIO()
    np.lib.format.write_array_header_1_0(announced, {"descr": "<f8", "fortran_order": False, "shape": (9000, 9000)})
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("a.npy", announced.getvalue())
    with pytest.raises(SlideError, match=r"\(9000, 9000\) float64 in"):
        read_npz(place, ("a",))

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from slideloom.errors import SlideError
from slideloom.slides.layouts import mat
from slideloom.slides.layouts.mat import read_mat

KINDS = ("float64", "float32", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def mat_bytes(tmp_path: Path, variables: dict[str, object], packed: bool = False) -> bytes:
    """What SciPy, which others write such files with, makes of variables."""
    place = tmp_path / "made.mat"
    scipy.io.savemat(place, variables, do_compression=packed)
    return place.read_bytes()


def refused(tmp_path: Path, held: bytes) -> SlideError:
    place = tmp_path / "bad.mat"
    place.write_bytes(held)
    with pytest.raises(SlideError) as caught:
        read_mat(place, ("inst_map",))
    assert caught.value.where == "bad.mat"
    return caught.value


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (3, 1), (0, 4), (2, 3, 4)])
def test_arrays_are_what_was_saved(tmp_path: Path, packed: bool, dtype: str, shape: tuple[int, ...]) -> None:
    drawn = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    other = {"text": "words", "struct": {"a": 1}, "cell": np.array([np.eye(2), "b"], object), "z": np.eye(3) * 1j}
    (tmp_path / "a.mat").write_bytes(mat_bytes(tmp_path, {**other, "inst_map": drawn, "last": np.eye(2)}, packed))
    found = read_mat(tmp_path / "a.mat", ("inst_map", "type_map", "last"))
    assert list(found) == ["inst_map", "last"]
    assert found["inst_map"].dtype == dtype
    assert np.array_equal(found["inst_map"], drawn)
    assert np.array_equal(found["last"], np.eye(2))


def element(kind: int, data: bytes, order: str) -> bytes:
    if 0 < len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [True, False])
def test_doubles_that_matlab_stores_as_bytes_in_either_order(tmp_path: Path, order: str, packed: bool) -> None:
    drawn = np.array([[1, 2, 200], [4, 5, 6]])
    body = element(6, struct.pack(f"{order}II", 6, 0), order)
    body += element(5, struct.pack(f"{order}2i", *drawn.shape), order)
    body += element(1, b"ids", order)
    body += element(2, drawn.T.astype(np.uint8).tobytes(), order)
    whole = struct.pack(f"{order}II", 14, len(body)) + body
    if packed:
        held = zlib.compress(whole)
        whole = struct.pack(f"{order}II", 15, len(held)) + held
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + mark + whole)
    found = read_mat(tmp_path / "a.mat", ("ids",))["ids"]
    assert found.dtype == np.float64
    assert np.array_equal(found, drawn)
    assert np.array_equal(scipy.io.loadmat(tmp_path / "a.mat")["ids"], drawn)


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    whole = mat_bytes(tmp_path, {"inst_map": np.eye(9)})
    assert refused(tmp_path, b"").code == "unreadable"
    assert refused(tmp_path, whole[:100]).code == "unreadable"
    assert "'-v7'" in refused(tmp_path, whole[:124] + b"\x00\x02" + whole[126:]).hint  # HDF5, -v7.3
    assert "an element of type 14" in refused(tmp_path, whole[:-50]).what
    cells = mat_bytes(tmp_path, {"inst_map": np.array([np.eye(2), "text"], object)})
    assert "'inst_map' is a cell" in refused(tmp_path, cells).what
    assert "is a struct" in refused(tmp_path, mat_bytes(tmp_path, {"inst_map": {"a": 1}})).what
    assert "is a complex array" in refused(tmp_path, mat_bytes(tmp_path, {"inst_map": np.eye(2) * 1j})).what
    assert "is a text" in refused(tmp_path, mat_bytes(tmp_path, {"inst_map": "words"})).what
    place = tmp_path / "old.mat"
    scipy.io.savemat(place, {"inst_map": np.eye(3)}, format="4")
    assert refused(tmp_path, place.read_bytes()).code == "unreadable"
    with pytest.raises(SlideError, match="No such file"):
        read_mat(tmp_path / "none.mat", ("inst_map",))


def test_no_more_is_unpacked_than_the_announced_size_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = mat_bytes(tmp_path, {"inst_map": np.eye(9)})
    bomb = zlib.compress(plain[128:] + bytes(256 << 20), 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    place = tmp_path / "bomb.mat"
    place.write_bytes(plain[:128] + struct.pack("<II", 15, len(bomb)) + bomb)
    assert np.array_equal(read_mat(place, ("inst_map",))["inst_map"], np.eye(9)), "what it says it holds, it holds"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10, "kB"
    monkeypatch.setattr(mat, "MOST_NUMBERS", 99)
    assert refused(tmp_path, mat_bytes(tmp_path, {"inst_map": np.zeros((10, 10))}, packed=True)).code == "too_large"


@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files_give_numbers_or_a_refusal(tmp_path: Path, packed: bool) -> None:
    rng = np.random.default_rng(int(packed))
    whole = mat_bytes(tmp_path, {"inst_map": rng.integers(0, 9, (20, 20)), "id": np.arange(5.0)}, packed)
    codes, kinds = set(), set()
    for _ in range(300):
        held = bytearray(whole)
        for place in rng.integers(116, len(held), rng.integers(1, 6)):
            held[place] = rng.integers(256)
        (tmp_path / "hurt.mat").write_bytes(bytes(held[: rng.integers(1, 2 * len(held))]))
        try:
            kinds |= {values.dtype.kind for values in read_mat(tmp_path / "hurt.mat", ("inst_map", "id")).values()}
        except SlideError as error:
            codes.add(error.code)
    assert "unreadable" in codes
    assert codes <= {"unreadable", "unsupported_layout", "too_large"}
    assert kinds <= set("uif")

"""NumPy arrays and pictures."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from slideloom.errors import SlideError
from slideloom.slides import read_array
from slideloom.slides.open import open_image, open_raw
from slideloom.slides.source import Source

RNG = np.random.default_rng(5)


def everything(path: Path, modality: Any = "sp", member: str = "") -> NDArray[Any]:
    with open_image(Source(path, member), modality) as image:
        return image.read(0, 0, 0, image.height_px, image.width_px)


def code(path: Path, modality: Any = "sp", member: str = "") -> str:
    with pytest.raises(SlideError) as caught, open_image(Source(path, member), modality) as image:
        image.read(0, 0, 0, 1, 1)
    return caught.value.code


@pytest.mark.parametrize("dtype", [np.uint8, ">u2", np.float32])
@pytest.mark.parametrize("shape", [(40, 50), (7, 40, 50), (40, 50, 3), (100, 40, 70), (65, 66, 64)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, shape: tuple[int, ...], dtype: Any, order: Any) -> None:
    data = np.asarray(RNG.integers(0, 256, shape), dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", data)
    trailing = shape in [(40, 50, 3), (65, 66, 64)]
    expected = data[None] if len(shape) == 2 else data.transpose(2, 0, 1) if trailing else data
    with open_image(Source(tmp_path / "a.npy"), "sp") as image:
        assert image.reader == "numpy/npy"
        assert image.dtype.isnative
        assert (image.n_channels, image.height_px, image.width_px) == expected.shape
        read = image.read(0, 3, 5, 20, 30)
        np.testing.assert_array_equal(read, expected[:, 3:23, 5:35])
        assert read.dtype == image.dtype
        assert read.flags.c_contiguous
        assert read.flags.writeable


def test_npy_stack_member(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", data)
    np.testing.assert_array_equal(everything(tmp_path / "a.npy", "he", "[2]"), data[2].transpose(2, 0, 1))
    assert code(tmp_path / "a.npy") == "unsupported_layout"
    for member in ("[4]", "images[0]", "[-1]", "[x]", "[0][0]"):
        assert code(tmp_path / "a.npy", member=member) == "bad_member", member


def test_npy_is_mapped_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 30, 40), np.uint8))
    raw = open_raw(Source(tmp_path / "a.npy"))
    raw.read(0, 0, 0, 1, 1)
    view: Any = raw._view  # type: ignore[attr-defined]
    while not isinstance(view, np.memmap):
        assert view.base is not None
        view = view.base
    raw.close()


def test_npz_members(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (5, 30, 40), dtype=np.uint8)
    labels = RNG.integers(0, 9, (5, 30, 40)).astype(np.int32)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=labels)
    path = tmp_path / "a.npz"
    np.testing.assert_array_equal(everything(path, member="images[3]")[0], images[3])
    np.testing.assert_array_equal(everything(path, member="images"), images)
    assert code(path, member="labels[0]") == "unsupported_dtype"
    assert open_raw(Source(path, "labels[4]")).read(0, 1, 2, 3, 4).tolist() == labels[4:5, 1:4, 2:6].tolist()
    assert code(path) == "bad_member"
    assert code(path, member="absent[0]") == "bad_member"
    assert code(path, member="images[5]") == "bad_member"
    np.savez(tmp_path / "one.npz", only=images[0])
    np.testing.assert_array_equal(everything(tmp_path / "one.npz")[0], images[0])


def test_npz_is_decoded_once_for_a_stack_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.zeros((3, 20, 20), np.uint8))
    loads: list[object] = []
    original = np.load
    monkeypatch.setattr(read_array.np, "load", lambda *a, **k: loads.append(a) or original(*a, **k))  # type: ignore[func-returns-value]
    with open_image(Source(path, "images[0]"), "sp"):
        assert not loads, "opening reads the header alone"
    for index in range(3):
        assert everything(path, member=f"images[{index}]").max() == 0
    assert len(loads) == 1
    np.savez_compressed(path, images=np.ones((4, 20, 20), np.uint8))
    assert everything(path, member="images[0]").min() == 1


def test_arrays_that_are_no_images(tmp_path: Path) -> None:
    cases = {
        "object": np.array([None]),
        "text": np.array([["a", "b"]]),
        "line": np.arange(5),
        "complex": np.zeros((4, 5), complex),
        "empty": np.zeros((0, 5), np.uint8),
    }
    for name, data in cases.items():
        np.save(tmp_path / f"{name}.npy", data)
        assert code(tmp_path / f"{name}.npy") == "unsupported_layout", name


def test_broken_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.random((50, 60)).astype(np.float32))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-5])
    assert code(tmp_path / "a.npy") == "truncated"
    (tmp_path / "a.npy").write_bytes(whole[:20])
    assert code(tmp_path / "a.npy") == "unreadable"
    np.savez_compressed(tmp_path / "a.npz", a=RNG.integers(0, 256, (500, 600), dtype=np.uint8))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(data[:-30])
    assert code(tmp_path / "cut.npz") == "unreadable"
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "bad.npz").write_bytes(data)
    assert code(tmp_path / "bad.npz") == "corrupt_data"


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
def test_png(tmp_path: Path, mode: str) -> None:
    rgba = RNG.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    path = tmp_path / "a.png"
    if mode == "I;16":
        deep = RNG.integers(0, 65536, (30, 40)).astype(np.uint16)
        Image.fromarray(deep).save(path)
        np.testing.assert_array_equal(everything(path)[0], deep)
        assert code(path, "he") == "unsupported_dtype"
        return
    picture = Image.fromarray(rgba).convert(mode)
    picture.save(path)
    stored = np.asarray(Image.open(path))
    if mode == "1":
        np.testing.assert_array_equal(everything(path)[0], stored.astype(np.uint8))
        return
    expected = stored[None] if stored.ndim == 2 else stored.transpose(2, 0, 1)
    np.testing.assert_array_equal(everything(path, "sp"), expected)
    white = Image.new("RGBA", picture.size, "white")
    shown = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    difference = everything(path, "he").astype(int) - np.asarray(shown).transpose(2, 0, 1)
    assert np.abs(difference).max() <= (1 if "A" in mode else 0)


def test_png_of_16_bit_colour_keeps_its_bits(tmp_path: Path) -> None:
    data = RNG.integers(0, 65536, (30, 40, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(data))
    np.testing.assert_array_equal(everything(tmp_path / "a.png", "sp"), data.transpose(2, 0, 1))
    assert code(tmp_path / "a.png", "he") == "unsupported_dtype"


def test_jpeg_and_its_dpi(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(data).save(tmp_path / "a.jpg", dpi=(300, 300))
    with open_image(Source(tmp_path / "a.jpg"), "he") as image:
        assert image.mpp_um is None
        assert "not believed" in " ".join(image.warnings)
        expected = np.asarray(Image.open(tmp_path / "a.jpg")).transpose(2, 0, 1)
        np.testing.assert_array_equal(image.read(0, 4, 5, 20, 30), expected[:, 4:24, 5:35])
    Image.fromarray(data).save(tmp_path / "a.png", dpi=(50800, 25400))
    with open_image(Source(tmp_path / "a.png"), "he") as image:
        assert image.mpp_um == pytest.approx((1.0, 0.5), rel=1e-3)


def test_a_picture_of_many_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RNG.integers(0, 256, (50, 40, 4), dtype=np.uint8)
    monkeypatch.setattr("slideloom.slides.read_picture._BAND_BYTES", 7 * 40 * 4)
    Image.fromarray(data).save(tmp_path / "a.png")
    np.testing.assert_array_equal(everything(tmp_path / "a.png", "sp"), data.transpose(2, 0, 1))


_CHILD = """
import sys
from pathlib import Path
from tests.bad_inputs.kinds import peak_mb
from slideloom.slides.open import open_image
from slideloom.slides.source import Source
for place in map(Path, sys.argv[1:]):
    with open_image(Source(place), "he") as image:
        image.read(0, 0, 0, 64, 64)
        print(image.height_px, int(peak_mb()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_the_largest_pictures_take_less_than_500_mb(tmp_path: Path) -> None:
    """Just within the bound; nothing is said on the screen, whatever Pillow thinks of the size."""
    Image.new("RGB", (6_900, 6_900), "pink").save(tmp_path / "colour.jpg")
    Image.new("RGB", (5_750, 5_750), "pink").save(tmp_path / "turns.jpg", progressive=True, subsampling=0)
    files = [str(tmp_path / name) for name in ("colour.jpg", "turns.jpg")]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    arguments = [sys.executable, "-c", _CHILD, *files]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [height for height, _ in told] == [6_900, 5_750]
    assert max(peak for _, peak in told) < 500, told


@pytest.mark.parametrize(("mode", "side"), [("RGB", 7_000), ("L", 13_000), ("CMYK", 6_500)])
def test_larger_pictures_are_refused_by_their_header(tmp_path: Path, mode: str, side: int) -> None:
    Image.new(mode, (16, 16)).save(tmp_path / "a.jpg")
    raw = bytearray((tmp_path / "a.jpg").read_bytes())
    struct.pack_into(">HH", raw, raw.index(b"\xff\xc0") + 5, side, side)
    (tmp_path / "a.jpg").write_bytes(raw)
    with warnings.catch_warnings(), pytest.raises(SlideError, match=f"{side} x {side} px") as caught:
        warnings.simplefilter("error")
        open_image(Source(tmp_path / "a.jpg"), "he")
    assert caught.value.code == "too_large"
    assert "tiled, pyramidal TIFF" in caught.value.hint


def test_broken_pictures(tmp_path: Path) -> None:
    data = Image.fromarray(RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for kind, keep in (("png", "truncated"), ("jpeg", "truncated")):
        buffer = io.BytesIO()
        data.save(buffer, kind)
        path = tmp_path / f"a.{kind}"
        path.write_bytes(buffer.getvalue()[:2000])
        assert code(path, "he") == keep
        path.write_bytes(buffer.getvalue()[:20])
        assert code(path, "he") == "unreadable"
    buffer = io.BytesIO()
    data.save(buffer, "png")
    garbled = bytearray(buffer.getvalue())
    garbled[len(garbled) // 2] ^= 0xFF
    (tmp_path / "b.png").write_bytes(garbled)
    assert code(tmp_path / "b.png", "he") == "corrupt_data"

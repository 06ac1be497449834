"""Many slides through one decoder: what they share, what fails alone, bands, memory, and what is left behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.zarrio import read_array, read_attributes
from slideloom.errors import SlideError, SlideloomError
from slideloom.inference import writer
from slideloom.inference.bands import band_rows, join_bands
from slideloom.inference.forward import BatchSize
from slideloom.inference.predict import Predictor, SlideTask, predict_slide
from slideloom.inference.tiles import TileSource

from .toys import ArrayTiles, Slopes

CPU = torch.device("cpu")


def picture(seed: int, height: int = 70, width: int = 90) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((1, height, width), dtype=np.float32)


def task(name: str, folder: Path, tiles: TileSource | Exception, **options: Any) -> SlideTask:
    def open_tiles() -> TileSource:
        if isinstance(tiles, Exception):
            raise tiles
        return tiles

    return SlideTask(name, folder / f"{name}.zarr", {"slide_id": name}, open_tiles, **options)


def run(tasks: Iterable[SlideTask], decoder: Any = None, **options: Any) -> dict[str, Path | Exception]:
    options = {"batch_size": 4} | options
    return dict(Predictor(decoder or Slopes(), **options).run(tasks))


def digests(folder: Path) -> dict[str, str]:
    return {place.name: digest_tree(place) for place in sorted(folder.iterdir())}


def test_many_slides_are_as_each_alone(tmp_path: Path) -> None:
    """To the byte, and in full batches over the borders of slides."""
    sizes = [(70, 90), (16, 16), (5, 200), (33, 31), (128, 20)]
    tiles = [ArrayTiles(picture(n, *size), 16, 12) for n, size in enumerate(sizes)]
    decoder = Slopes()
    together = run([task(f"s{n}", tmp_path / "together", one) for n, one in enumerate(tiles)], decoder)
    assert list(together) == [f"s{n}" for n in range(5)]
    assert set(decoder.sizes) == {4}
    assert len(decoder.sizes) == -(-sum(one.n for one in tiles) // 4)
    for n, one in enumerate(tiles):
        predict_slide(Slopes(), one, tmp_path / "alone" / f"s{n}.zarr", {"slide_id": f"s{n}"}, batch_size=4)
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_a_network_gives_many_slides_the_same_bytes(slide: Callable[..., Any], decoder: Any, tmp_path: Path) -> None:
    """Place in the batch and neighbours change no bit of what a real decoder says."""
    sources = {"one": slide(32).stored(), "two": slide(24).stored(), "live": slide(32).live(8)}
    run([task(name, tmp_path / "together", one) for name, one in sources.items()], decoder)
    for name, one in sources.items():
        run([task(name, tmp_path / "alone", one)], decoder)
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_threads_change_no_more_than_a_rounding(slide: Callable[..., Any], decoder: Any, tmp_path: Path) -> None:
    """Some processors add up a product otherwise with more threads: a code of 8 bits, now and then."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            run([task("a", tmp_path / str(threads), slide(32).stored())], decoder)
    finally:
        torch.set_num_threads(before)
    places = [place.name for place in (tmp_path / "1" / "a.zarr").iterdir() if place.is_dir()]
    assert {"nucleus", "hv", "class_id"} <= set(places)
    for name in places:
        one, two = (read_array(tmp_path / threads / "a.zarr" / name).astype(int) for threads in ("1", "2"))
        assert np.abs(one - two).max() <= 1
        assert (one != two).mean() < 1e-3


def test_a_slide_that_fails_fails_alone(tmp_path: Path) -> None:
    def gone(number: int) -> None:
        if number == 9:
            raise OSError("the disk is gone")

    def damaged(number: int) -> None:
        if number == 3:
            raise SlideError("a shard is damaged", code="unreadable_patches")

    good = [ArrayTiles(picture(n), 16, 12) for n in range(3)]
    narrow = ArrayTiles(picture(7), 16, 16)
    narrow.normalise = lambda pixels: pixels.float()[:, :, :8]  # type: ignore[method-assign]
    found = run(
        [
            task("first", tmp_path, good[0]),
            task("unreadable", tmp_path, FileNotFoundError("no such file")),
            task("gone", tmp_path, ArrayTiles(picture(5), 16, 12, watch=gone)),
            task("second", tmp_path, good[1]),
            task("damaged", tmp_path, ArrayTiles(picture(6), 16, 12, watch=damaged)),
            task("narrow", tmp_path, narrow),
            task("third", tmp_path, good[2]),
        ]
    )
    assert {name for name, outcome in found.items() if isinstance(outcome, Path)} == {"first", "second", "third"}
    assert isinstance(found["unreadable"], FileNotFoundError)
    assert str(found["gone"]) == "the disk is gone"
    assert isinstance(found["damaged"], SlideError)
    assert found["damaged"].code == "unreadable_patches"
    assert isinstance(found["narrow"], Exception)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["first.zarr", "second.zarr", "third.zarr"]
    for n, name in enumerate(("first", "second", "third")):
        predict_slide(Slopes(), good[n], tmp_path / "alone" / f"{name}.zarr", {"slide_id": name}, batch_size=4)
        assert digest_tree(tmp_path / f"{name}.zarr") == digest_tree(tmp_path / "alone" / f"{name}.zarr")


def test_tiles_that_a_network_cannot_take_stop_their_own_slide(tmp_path: Path) -> None:
    """They share batches with tiles of other slides, which are computed all the same."""

    class Choosy(Slopes):
        def forward(self, tokens: Any, image: Any, size: Any) -> Any:
            if image.max() > 50:
                raise ValueError("too bright")
            return super().forward(tokens, image, size)

    images = [picture(n, 40, 40) for n in range(3)]
    images[1][0, 38, 38] = 99
    tiles = {f"s{n}": ArrayTiles(image, 16, 16) for n, image in enumerate(images)}
    found = run([task(name, tmp_path / "together", one) for name, one in tiles.items()], Choosy())
    assert str(found.pop("s1")) == "too bright"
    assert all(isinstance(outcome, Path) for outcome in found.values())
    run([task(name, tmp_path / "alone", tiles[name]) for name in found])
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_a_mistake_of_the_house_ends_the_job(tmp_path: Path) -> None:
    class Wrong(Slopes):
        def forward(self, tokens: Any, image: Any, size: Any) -> Any:
            raise SlideloomError("this cannot be", code="internal")

    before = set(threading.enumerate())
    with pytest.raises(SlideloomError, match="this cannot be"):
        run([task("a", tmp_path, ArrayTiles(picture(1), 16, 12))], Wrong())
    assert set(threading.enumerate()) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows_ahead", [1, 4])
def test_errors_of_the_writer_end_their_slide(rows_ahead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slideloom.inference.engine._ROWS_AHEAD", rows_ahead)
    add = writer.MapWriter.add

    def full(self: writer.MapWriter, count: int, maps: Any) -> None:
        if "wrong.zarr" in str(self._arrays["nucleus"].kvstore.path) and self._filled > 20:
            raise PermissionError("not allowed")
        add(self, count, maps)

    monkeypatch.setattr(writer.MapWriter, "add", full)
    found = run([task(name, tmp_path, ArrayTiles(picture(1), 16, 12)) for name in ("a", "wrong", "c")])
    assert isinstance(found["wrong"], PermissionError)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a.zarr", "c.zarr"]


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    big = ArrayTiles(picture(1, 400, 300), 16, 16)
    running = Predictor(Slopes(), batch_size=4).run([task(name, tmp_path, big) for name in ("a", "b", "c")])
    assert next(running)[0] == "a"
    running.close()
    assert set(threading.enumerate()) == before
    assert not [place for place in tmp_path.iterdir() if place.name.startswith(".")]
    run([task("d", tmp_path, OSError("no"))])
    assert set(threading.enumerate()) == before

    def broken() -> Iterable[SlideTask]:
        yield task("e", tmp_path, big)
        raise RuntimeError("the list of slides is broken")

    with pytest.raises(RuntimeError, match="list of slides"):
        run(broken())
    assert set(threading.enumerate()) == before
    assert not [place for place in tmp_path.iterdir() if place.name.startswith(".")]


def test_the_next_slide_is_opened_and_read_while_one_is_computed(tmp_path: Path) -> None:
    """The decoder waits, at its first tiles, until the second slide's tiles have been read."""
    read_second = threading.Event()

    class Waiting(Slopes):
        def forward(self, *inputs: Any) -> Any:
            assert read_second.wait(20), "the second slide is not read while the first is computed"
            return super().forward(*inputs)

    tiles = [ArrayTiles(picture(0), 32, 32), ArrayTiles(picture(1), 32, 32, watch=lambda number: read_second.set())]
    found = run([task(f"s{n}", tmp_path, one) for n, one in enumerate(tiles)], Waiting())
    assert all(isinstance(outcome, Path) for outcome in found.values())


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is never further ahead than its queue is long."""
    monkeypatch.setattr("slideloom.inference.engine._PIECE_TILES", 1)
    read: list[int] = []
    ahead: list[int] = []

    class Counting(Slopes):
        def forward(self, *inputs: Any) -> Any:
            ahead.append(len(read) - 2 * (len(self.sizes) + 1))
            return super().forward(*inputs)

    run([task("a", tmp_path, ArrayTiles(picture(1, 200, 200), 16, 16, watch=read.append))], Counting(), batch_size=2)
    assert len(read) == 169
    assert max(ahead) <= 10  # eight pieces that wait, one in the reader's hands, one in the feeder's


@pytest.mark.parametrize("bands", [2, 3, 7])
@pytest.mark.parametrize("shifted", [False, True])
def test_bands_joined_are_the_whole(bands: int, shifted: bool, tmp_path: Path) -> None:
    image = picture(3, 2500, 40)
    about = {"slide_id": "a"}

    def predict(place: Path, rows: tuple[int, int] | None, **options: Any) -> None:
        grids = [ArrayTiles(image, 64, 48, rows=rows, shifted=one) for one in (False, True)]
        predict_slide(Slopes(), grids[0], place, about, shifted=grids[1] if shifted else None, batch_size=4)

    predict(tmp_path / "whole.zarr", None)
    places = []
    for number, rows in enumerate(band_rows(2500, bands)):
        places.append(tmp_path / f"{number}.zarr")
        predict(places[-1], rows)
        assert read_attributes(places[-1])["rows"] == list(rows)
        nucleus = read_array(places[-1] / "nucleus")
        assert nucleus.shape == (2500, 40)
        assert nucleus[slice(*rows)].any(1).all()
        assert not nucleus[: rows[0]].any()
        assert not nucleus[rows[1] :].any()
    join_bands(places, tmp_path / "joined.zarr")
    assert digest_tree(tmp_path / "joined.zarr") == digest_tree(tmp_path / "whole.zarr")
    assert (tmp_path / "whole.zarr" / "shifted").exists() == shifted


def test_shifted_tiles_go_to_a_group_of_their_own(tmp_path: Path) -> None:
    image = picture(3)
    plain, shifted = (ArrayTiles(image, 16, 16, shifted=one) for one in (False, True))
    predict_slide(Slopes(), plain, tmp_path / "maps.zarr", {"slide_id": "a"}, shifted=shifted)
    predict_slide(Slopes(), shifted, tmp_path / "other.zarr", {"slide_id": "a"})
    for name in ("nucleus", "hv", "boundary", "covered"):
        found = read_array(tmp_path / "maps.zarr" / "shifted" / name)
        np.testing.assert_array_equal(found, read_array(tmp_path / "other.zarr" / name))
    hv = read_array(tmp_path / "maps.zarr" / "hv")
    assert (hv != read_array(tmp_path / "maps.zarr" / "shifted" / "hv")).any()


@pytest.mark.parametrize("most", [1, 3, 5])
def test_where_memory_runs_out_smaller_batches_give_the_same_maps(
    most: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiles = {name: ArrayTiles(picture(n), 16, 12) for n, name in enumerate("ab")}
    run([task(name, tmp_path / "plenty", one) for name, one in tiles.items()])
    decoder = Slopes(most)
    with caplog.at_level(logging.WARNING):
        run([task(name, tmp_path / "little", one) for name, one in tiles.items()], decoder, batch_size=16)
    assert digests(tmp_path / "plenty") == digests(tmp_path / "little")
    tried = [16, 8, 4, 2, 1]
    stop = next(number for number, size in enumerate(tried) if size <= most)
    assert decoder.sizes[: stop + 1] == tried[: stop + 1]
    assert set(decoder.sizes[stop:]) == {tried[stop]}
    assert f"{tried[stop]} tiles a batch" in caplog.text


def test_where_not_one_tile_fits_each_slide_says_so(tmp_path: Path) -> None:
    found = run([task(name, tmp_path, ArrayTiles(picture(1), 16, 12)) for name in "ab"], Slopes(most=0))
    for name in "ab":
        error = found[name]
        assert isinstance(error, SlideError)
        assert (error.code, error.where) == ("out_of_memory", name)
        assert "one tile of 16 px" in error.what
        assert "smaller tiles" in error.hint
    assert not list(tmp_path.iterdir())


def test_automatic_batches() -> None:
    assert BatchSize("auto", CPU).now == 16
    assert BatchSize(5, CPU).now == 5
    size = BatchSize("auto", torch.device("cuda"))
    assert size.now == 8
    size._each = 1e9
    assert [size.fitting(free) for free in (1, 10**10, 25 * 10**9, 10**12)] == [8, 8, 16, 32]
    size.now = 128
    assert size.fitting(10**12) == 256


def test_an_empty_slide_has_empty_maps(tmp_path: Path) -> None:
    tiles = ArrayTiles(picture(1, 300, 20), 16, 16)
    tiles.n, tiles._indices = 0, tiles._indices[:0]
    account = predict_slide(Slopes(), tiles, tmp_path / "a.zarr", {})
    assert account["n_tiles"] == 0
    for name in ("nucleus", "hv", "boundary", "covered"):
        assert not read_array(tmp_path / "a.zarr" / name).any()


def test_a_slide_smaller_than_a_tile(tmp_path: Path) -> None:
    image = picture(2, 5, 9)
    predict_slide(Slopes(), ArrayTiles(image, 16, 16), tmp_path / "a.zarr", {})
    expected = np.rint(255 / (1 + np.exp(2 - 4 * image[0].astype(float))))
    assert np.abs(read_array(tmp_path / "a.zarr" / "nucleus") - expected).max() <= 1


def test_accounts_add_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiles = {name: ArrayTiles(picture(n), 16, 12) for n, name in enumerate("abc")}
    predictor = Predictor(Slopes(), batch_size=4)
    with caplog.at_level(logging.INFO, logger="slideloom.inference.predict"):
        list(predictor.run([task(name, tmp_path, one) for name, one in tiles.items()]))
    spent = predictor.account.as_dict()
    assert spent["n_tiles"] == sum(one.n for one in tiles.values())
    assert 0 < spent["forward_s"] < spent["seconds"]
    assert [record.message.split(":")[0] for record in caplog.records] == ["a", "b", "c", "all slides"]
    assert "tiles/s" in caplog.text

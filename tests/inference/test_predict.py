"""Maps of a slide against its tiles decoded one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import read_array, read_attributes
from slideloom.config.model import DecoderConfig
from slideloom.decoders.build import build_decoder
from slideloom.decoders.cellvit import CellViTDecoder, expand_blocks
from slideloom.inference.predict import predict_slide
from slideloom.inference.tiles import RawTiles, TileSource, joined, normalised

ABOUT = {"slide_id": "a", "image": "sp", "mpp_um": 0.5}
NAMES = ("nucleus", "hv", "class_id", "class_probability", "boundary", "covered")
Maps = dict[str, NDArray[Any]]


def _predict(decoder: CellViTDecoder, tiles: TileSource, place: Path, **options: Any) -> Maps:
    predict_slide(decoder, tiles, place, ABOUT, **options)
    return {name: read_array(place / name) for name in NAMES}


def _tile_by_tile(decoder: CellViTDecoder, tiles: TileSource) -> NDArray[np.float64]:
    """Mean of the tiles' probabilities with tent weights, in double precision, on full arrays."""
    reach = tiles.tile_px
    total = np.zeros((1 + 2 + decoder.n_classes + 1, tiles.height_px + reach, tiles.width_px + reach))
    weight = np.zeros(total.shape[1:])
    place = np.arange(tiles.tile_px)
    line = np.minimum(np.minimum(place + 1, tiles.tile_px - place) / (tiles.tile_px - tiles.stride_px + 1), 1)
    for raw in tiles.read(1, (0,)):
        with torch.inference_mode():
            inputs = joined([normalised(tiles, raw)], 1)
            tokens = [level.float() for level in expand_blocks(tiles.levels(inputs, 0))]
            out = decoder(tokens, inputs.images, (tiles.tile_px, tiles.tile_px))
        parts = [
            out["nucleus"].softmax(1)[:, 1:],
            out["hv"].clamp(-1, 1),
            out["classes"].softmax(1),
            out["boundary"].sigmoid(),
        ]
        y, x = int(raw.y_px[0]), int(raw.x_px[0])
        where = (slice(y, y + reach), slice(x, x + reach))
        total[(slice(None), *where)] += torch.cat(parts, 1)[0].double().numpy() * line[:, None] * line
        weight[where] += line[:, None] * line
    total /= np.where(weight > 0, weight, 1)
    return total[:, : tiles.height_px, : tiles.width_px]


def _close(first: Maps, second: Maps) -> None:
    """Equal up to one quantum; classes may differ where the two likeliest are that close."""
    for name in ("nucleus", "hv", "class_probability", "boundary"):
        assert np.abs(first[name].astype(int) - second[name]).max() <= 1, name
    assert (first["class_id"] == second["class_id"]).mean() > 0.999
    np.testing.assert_array_equal(first["covered"], second["covered"])


@pytest.mark.parametrize("stride_px", [32, 24])
def test_maps_are_the_blended_tiles(
    stride_px: int, slide: Callable[..., Any], decoder: CellViTDecoder, tmp_path: Path
) -> None:
    tiles = slide(stride_px).stored()
    expected = _tile_by_tile(decoder, tiles)
    found = _predict(decoder, tiles, tmp_path / "maps.zarr", batch_size=4)
    assert np.ptp(found["nucleus"]) > 50
    assert len(np.unique(found["class_id"])) > 1
    coded = {
        "nucleus": np.rint(255 * expected[0]),
        "hv": np.rint(127 * expected[1:3]),
        "class_id": expected[3:-1].argmax(0),
        "class_probability": np.rint(255 * expected[3:-1].max(0)),
        "boundary": np.rint(255 * expected[-1]),
        "covered": np.ones(expected.shape[1:], np.uint8),
    }
    _close(found, coded)
    assert {name: values.dtype.name for name, values in found.items()} == {
        **dict.fromkeys(NAMES, "uint8"),
        "hv": "int8",
    }


def test_without_a_nucleus_head_nuclei_are_what_is_not_background(slide: Callable[..., Any], tmp_path: Path) -> None:
    tiles = slide(24).stored()
    one = build_decoder(DecoderConfig(width=0.1, branches="shared"), ["classes"], 4, 3, 8, 3, seed=5).eval()
    one.get_submodule(one.last_layer("classes")).weight.data *= 40
    predict_slide(one, tiles, tmp_path / "maps.zarr", ABOUT)
    found = {name: read_array(tmp_path / "maps.zarr" / name) for name in ("nucleus", "class_id", "class_probability")}
    background = found["class_id"] == 0
    assert np.ptp(found["nucleus"]) > 20
    assert np.abs(255 - found["class_probability"].astype(int) - found["nucleus"])[background].max(initial=0) <= 1
    assert (found["nucleus"][~background].astype(int) >= found["class_probability"][~background] - 1).all()
    assert not (tmp_path / "maps.zarr" / "hv").exists()


@pytest.mark.parametrize("stride_px", [32, 24])
def test_batches_change_nothing(
    stride_px: int, slide: Callable[..., Any], decoder: CellViTDecoder, tmp_path: Path
) -> None:
    first, *others = (
        _predict(decoder, slide(stride_px).stored(), tmp_path / f"{size}.zarr", batch_size=size) for size in (1, 3, 16)
    )
    for other in others:
        _close(first, other)


def test_live_tiles_are_the_stored_ones(slide: Callable[..., Any], decoder: CellViTDecoder, tmp_path: Path) -> None:
    # The stored tokens are float16; live tiles differ where they lie flush with the border.
    for stride_px in (32, 24):
        stored = _predict(decoder, slide(stride_px).stored(), tmp_path / f"stored{stride_px}.zarr")
        live = _predict(
            decoder, slide(stride_px).live(32 - stride_px), tmp_path / f"live{stride_px}.zarr", batch_size=5
        )
        alike = np.s_[:48, :96]
        assert np.abs(stored["nucleus"][alike].astype(int) - live["nucleus"][alike]).max() <= 3
        np.testing.assert_array_equal(stored["covered"], live["covered"])


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("overlap_px", [0, 10])
def test_live_maps_are_the_blended_tiles(
    overlap_px: int, shifted: bool, slide: Callable[..., Any], decoder: CellViTDecoder, tmp_path: Path
) -> None:
    tiles = slide(32).live(overlap_px, shifted=shifted)
    expected = _tile_by_tile(decoder, tiles)
    found = _predict(decoder, tiles, tmp_path / "maps.zarr", batch_size=4)
    assert np.abs(np.rint(255 * expected[0]) - found["nucleus"]).max() <= 1
    assert np.abs(np.rint(127 * expected[1:3]) - found["hv"]).max() <= 1
    assert found["covered"].all()


def test_account_and_attributes(slide: Callable[..., Any], decoder: CellViTDecoder, tmp_path: Path) -> None:
    tiles = slide(32).stored()
    account = predict_slide(decoder, tiles, tmp_path / "maps.zarr", ABOUT)
    assert account["n_tiles"] == 15
    parts = ("read_s", "copy_s", "forward_s", "write_s", "idle_s")
    assert all(account[name] >= 0 for name in parts)
    assert account["forward_s"] > 0
    assert account["blend_s"] > 0  # meanwhile, on a CPU
    assert sum(account[name] for name in parts) == pytest.approx(account["seconds"])
    about = read_attributes(tmp_path / "maps.zarr")
    assert about["heads"] == ["nucleus", "hv", "classes", "boundary"]
    assert (about["height_px"], about["width_px"], about["scale"], about["mpp_um"]) == (90, 150, 1.0, 0.5)


def test_half_precision_stays_close(slide: Callable[..., Any], decoder: CellViTDecoder, tmp_path: Path) -> None:
    full, half = (
        _predict(decoder, slide(32).stored(), tmp_path / f"{kind}.zarr", precision=kind) for kind in ("fp32", "bf16")
    )
    assert np.abs(full["nucleus"].astype(int) - half["nucleus"]).mean() < 4


SOURCE = (
    *("tile_px", "stride_px", "height_px", "width_px", "scale", "rows", "kind"),
    *("normalise", "levels", "bytes_each"),
)


class _Some:
    """A few tiles of a source."""

    def __init__(self, tiles: TileSource, chosen: set[int], fail: bool = False) -> None:
        vars(self).update({name: getattr(tiles, name) for name in SOURCE})
        self.n, self._tiles, self._chosen, self._fail = len(chosen), tiles, chosen, fail

    def read(self, count: int, poses: Sequence[int]) -> Iterator[RawTiles]:
        for number, raw in enumerate(self._tiles.read(1, poses)):
            if self._fail and number == 7:
                raise OSError("the disk is gone")
            if number in self._chosen:
                yield raw


def test_tiles_that_were_left_out_are_not_covered(
    slide: Callable[..., Any], decoder: CellViTDecoder, tmp_path: Path
) -> None:
    whole = _predict(decoder, slide(32).stored(), tmp_path / "whole.zarr", batch_size=1)
    some = _predict(decoder, _Some(slide(32).stored(), {1, 5, 14}), tmp_path / "some.zarr")
    covered = np.zeros((90, 150), bool)
    for number in (1, 5, 14):
        row, col = divmod(number, 5)
        covered[row * 32 : row * 32 + 32, col * 32 : col * 32 + 32] = True
    np.testing.assert_array_equal(some["covered"], covered)
    for name in NAMES[:-1]:
        np.testing.assert_array_equal(some[name], np.where(covered, whole[name], 0))


def test_an_error_while_reading_ends_the_work_and_leaves_nothing(
    slide: Callable[..., Any], decoder: CellViTDecoder, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        predict_slide(decoder, _Some(slide(32).stored(), set(range(15)), fail=True), tmp_path / "maps.zarr", ABOUT)
    assert not list(tmp_path.iterdir())

"""Predictions in several poses, turned back and averaged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.artefacts.zarrio import read_array
from slideloom.encoders.dihedral import transform
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.inference.forward import POSES, Networks
from slideloom.inference.layout import MapLayout
from slideloom.inference.predict import predict_slide
from slideloom.inference.tiles import StoredTiles, joined, normalised
from slideloom.training.symmetry import transform_hv

from .conftest import ENCODER
from .toys import ArrayTiles, Slopes, cone

NAMES = ("nucleus", "hv", "boundary")


def predict(place: Path, decoder: Any, tiles: Any, **options: Any) -> dict[str, Any]:
    predict_slide(decoder, tiles, place, {}, **options)
    return {name: read_array(place / name).astype(int) for name in NAMES}


@pytest.mark.parametrize("symmetries", ["flips", "turns", "all"])
def test_poses_change_nothing_for_a_decoder_that_turns_with_its_input(symmetries: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((1, 50, 70), dtype=np.float32)
    plain = predict(tmp_path / "plain.zarr", Slopes(), ArrayTiles(image, 16, 12))
    posed = predict(tmp_path / "posed.zarr", Slopes(), ArrayTiles(image, 16, 12), symmetries=symmetries)
    for name in NAMES:
        assert np.ptp(plain[name]) > 50
        assert np.abs(plain[name] - posed[name]).max() <= 1, name


def test_what_is_no_slope_of_the_image_averages_out(tmp_path: Path) -> None:
    """A decoder that always points a little to the right points nowhere on the mean of the poses."""
    image = cone(32) * 4
    plain = predict(tmp_path / "plain.zarr", Slopes(), ArrayTiles(image, 32, 32))
    biased = predict(tmp_path / "biased.zarr", Slopes(bias=0.3), ArrayTiles(image, 32, 32))
    assert np.abs(plain["hv"] - biased["hv"]).max() > 30
    for symmetries in ("flips", "turns", "all"):
        place = tmp_path / f"{symmetries}.zarr"
        found = predict(place, Slopes(bias=0.3), ArrayTiles(image, 32, 32), symmetries=symmetries)
        assert np.abs(plain["hv"] - found["hv"]).max() <= 1


def test_a_cone_slopes_to_its_middle(tmp_path: Path) -> None:
    """x falls to the right of the middle and rises to its left; y likewise downwards."""
    for symmetries in POSES:
        place = tmp_path / f"{symmetries}.zarr"
        hv = predict(place, Slopes(), ArrayTiles(cone(32) * 4, 32, 32), symmetries=symmetries)["hv"]
        assert (hv[0, 16, 4:12] > 10).all()
        assert (hv[0, 16, 20:28] < -10).all()
        assert (hv[1, 4:12, 16] > 10).all()
        assert (hv[1, 20:28, 16] < -10).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 7), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_turned_back_is_as_it_was(pose: int, side: int, seed: int) -> None:
    layout = MapLayout(["nucleus", "hv", "classes"], 3)
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 6, side, side)))
    turned = transform(values, pose).contiguous()
    turned[:, 1:3] = transform_hv(values[:, 1:3], pose)
    torch.testing.assert_close(layout.turn_back(turned, pose), values, rtol=0, atol=0)


def test_stored_poses_are_those_of_live_tiles(slide: Callable[..., Any], decoder: Any, tmp_path: Path) -> None:
    one = slide(32)
    config = ENCODER.model_copy(update={"symmetries": True})
    embed_slide(one.encoder, config, one.patches, None, tmp_path / "tokens.zarr")
    tokens = EmbeddingStore(tmp_path / "tokens.zarr")
    stored = StoredTiles(one.patches, tokens, tokens.blocks, image=True)
    posed = predict(tmp_path / "stored.zarr", decoder, stored, symmetries="all")
    live = predict(tmp_path / "live.zarr", decoder, one.live(0), symmetries="all")
    plain = predict(tmp_path / "plain.zarr", decoder, one.stored())
    inside = np.s_[..., :58, :118]  # where both have the same tiles alone
    for name in NAMES:
        assert np.abs(posed[name][inside] - live[name][inside]).max() <= 3
    assert np.abs(posed["nucleus"] - plain["nucleus"]).max() > 5


def test_a_decoder_that_cannot_be_compiled_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(*inputs: Any) -> Any:
        raise RuntimeError("no compiler is at hand")

    monkeypatch.setattr(torch, "compile", lambda module, **options: compiled)
    tiles = ArrayTiles(np.random.default_rng(0).random((1, 50, 70), dtype=np.float32), 16, 12)
    with caplog.at_level(logging.WARNING):
        found = predict(tmp_path / "compiled.zarr", Slopes(), tiles, compile=True)
    plain = predict(tmp_path / "plain.zarr", Slopes(), tiles)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], plain[name])
    assert [record.message for record in caplog.records] == [
        "the decoder cannot be compiled here and runs as it is: no compiler is at hand"
    ]


def test_a_compiled_decoder_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[int] = []

    def compile_(module: Any, **options: Any) -> Any:
        def run(*inputs: Any) -> Any:
            calls.append(1)
            return module(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    tiles = ArrayTiles(np.ones((1, 16, 32), np.float32), 16, 16)
    predict(tmp_path / "a.zarr", Slopes(), tiles, compile=True, batch_size=1)
    assert len(calls) == 2


def test_half_precision_reaches_the_decoder() -> None:
    kinds: list[torch.dtype] = []

    class Convolving(Slopes):
        def forward(self, tokens: Any, image: Any, size: Any) -> Any:
            kinds.append(torch.nn.functional.conv2d(image, torch.ones(1, 1, 1, 1)).dtype)
            return super().forward(tokens, image, size)

    tiles = ArrayTiles(np.ones((1, 16, 16), np.float32), 16, 16)
    raw = next(tiles.read(1, (0,)))
    inputs = joined([normalised(tiles, raw)], 1)
    for precision in ("fp32", "bf16"):
        values = Networks(Convolving(), torch.device("cpu"), precision)(tiles, inputs)
        assert values.dtype == torch.float32
    assert kinds == [torch.float32, torch.bfloat16]

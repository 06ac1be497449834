"""Tokens of flipped and turned tiles: what is stored, what is taken over, what is refused."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slideloom.artefacts import zarrio
from slideloom.artefacts.keys import digest_tree
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import Encoder
from slideloom.encoders.dihedral import N_SYMMETRIES, transform
from slideloom.encoders.embedding import token_writer
from slideloom.encoders.embedding.account import Account
from slideloom.encoders.embedding.batches import tiles_per_batch
from slideloom.encoders.embedding.embed import Embedder, Request
from slideloom.encoders.embedding.store import EmbeddingStore, TokenArray, token_arrays
from slideloom.encoders.fused import FusedEmbeddings
from slideloom.encoders.mean_marker import MeanMarker
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import ChannelStatistics

PANEL = ("DNA", "CD3", "CD8")
POOLED = ChannelStatistics(PANEL, (3000.0,) * 3, (7.0, 6.5, 6.0), (1.0, 0.5, 2.0), True)
PLAIN = EncoderConfig(model="mean_marker", grid="g")
EIGHT = PLAIN.model_copy(update={"symmetries": True})
KEY = {"config": "c", "patches": "p"}
EVERY = range(N_SYMMETRIES)


class Directed(MeanMarker):
    """Its tokens know directions: means of a square, and what lies to the right less what lies to the left."""

    def __init__(self, blocks: tuple[int, ...] = (1, 2)) -> None:
        super().__init__(PANEL)
        self.blocks, self.width = blocks, 2
        self.passes: list[tuple[int, tuple[int, ...]]] = []
        self.preprocessed = 0
        self.hook: Callable[[Tensor], None] = lambda images: None

    def preprocess(self, pixels: Tensor, statistics: ChannelStatistics | None) -> Tensor:
        self.preprocessed += len(pixels)
        return super().preprocess(pixels, statistics)

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        assert images.is_contiguous()
        self.passes.append((len(images), self.blocks))
        self.hook(images)
        squares = images.mean(1).unfold(1, 8, 8).unfold(2, 8, 8)
        slope = squares[..., 4:].mean((-1, -2)) - squares[..., :4].mean((-1, -2))
        tokens = torch.stack([squares.mean((-1, -2)), slope], -1)
        return {block: tokens * block for block in self.blocks}


class Bench:
    """Slides in memory and stores in a folder."""

    def __init__(self, folder: Path, make: Callable[..., Any]) -> None:
        self.folder, self._make = folder, make
        self.slides: dict[str, Any] = {}

    def slide(self, name: str, n: int) -> Any:
        patches = self.slides[name] = self._make(PANEL, n)
        seed = sum(map(ord, name))
        patches.data = np.random.default_rng(seed).integers(0, 4000, patches.data.shape, dtype=np.uint16)
        patches.slide_id = name
        return patches

    def place(self, name: str) -> Path:
        return self.folder / f"{name}.zarr"

    def store(self, name: str) -> EmbeddingStore:
        return EmbeddingStore(self.place(name))

    def run(
        self, encoder: Encoder, config: EncoderConfig = EIGHT, names: Iterable[str] = (), **settings: Any
    ) -> dict[str, Account | Exception]:
        embedder = Embedder(config, lambda panel: encoder, statistics=POOLED, **{"batch_size": 4, **settings})
        wanted = tuple(names) or tuple(self.slides)
        requests = [
            Request(name, lambda name=name: self.slides[name], self.place(name), KEY)  # type: ignore[misc]
            for name in wanted
        ]
        outcomes = dict(embedder.run(requests))
        assert not list(self.folder.glob(".*")), "a half-written store was left"
        self.account = embedder.account
        return outcomes

    def digests(self) -> dict[str, str]:
        return {name: digest_tree(self.place(name)) for name in self.slides if self.place(name).exists()}

    def fresh(self, encoder: Encoder, config: EncoderConfig = EIGHT) -> dict[str, str]:
        """Digests of the stores of the same slides, each made alone in an empty folder."""
        other = Bench(self.folder / "fresh", self._make)
        other.slides = self.slides
        for name in self.slides:
            other.run(encoder, config, [name])
        return other.digests()


@pytest.fixture
def bench(tmp_path: Path, marker_patches: Callable[..., Any]) -> Bench:
    return Bench(tmp_path / "stores", marker_patches)


# ---- what is stored -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tile_px", "precision"),
    [("timm/test_vit", 48, "fp32"), ("timm/test_vit", 32, "bf16"), ("cellvit/vit256", 32, "fp32")],
)
def test_tokens_are_those_of_the_flipped_and_turned_tile(
    model: str, tile_px: int, precision: Any, tmp_path: Path, rgb_patches: Callable[..., Any]
) -> None:
    """To the last bit, at one size of batch; and those of the tile as it is are what a plain store holds."""
    config = EncoderConfig(model=model, grid="g", random=1, symmetries=True, off_resolution=True)
    patches = rgb_patches(5, tile_px)
    encoder = build_encoder(config, patches.channels)
    encoder.blocks = encoder.blocks[-2:]
    size = min(4, tiles_per_batch(tile_px, 3, "cpu"))
    for name, asked in (("eight", config), ("plain", config.model_copy(update={"symmetries": False}))):
        embedder = Embedder(asked, lambda panel: encoder, precision=precision, batch_size=size)
        outcomes = list(embedder.run([Request("a", lambda: patches, tmp_path / name)]))
        assert isinstance(outcomes[0][1], Account)
    eight, plain = EmbeddingStore(tmp_path / "eight"), EmbeddingStore(tmp_path / "plain")
    assert (eight.has_symmetries, plain.has_symmetries) == (True, False)
    assert (eight.attributes["symmetries"], plain.attributes["symmetries"]) == (True, False)
    padded = torch.from_numpy(patches.data)[[0, 1, 2, 3, 4, *[4] * (-5 % size)]]
    images = encoder.preprocess(padded, None)
    for symmetry in EVERY:
        turned = transform(images, symmetry).contiguous().split(size)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            found = [encoder.encode(part) for part in turned]
        for block in encoder.blocks:
            wanted = torch.cat([part[block] for part in found])[:5].to(torch.float16).numpy()
            assert np.array_equal(eight.tokens(block, slice(None), symmetry), wanted)
            if symmetry == 0:
                assert np.array_equal(plain.tokens(block, slice(None)), wanted)
                continue
            back = np.stack([np.rot90(one, -(symmetry % 4)) for one in wanted])
            back = np.flip(back, 2) if symmetry >= 4 else back
            assert not np.array_equal(back, eight.tokens(block, slice(None))), "a transformer knows directions"


def test_directions_are_right(bench: Bench) -> None:
    """A slope to the right is one to the left when mirrored, and one up or down when turned."""
    patches = bench.slide("a", 6)
    bench.run(Directed())
    images = POOLED.apply(patches.data).mean(1)
    for symmetry in EVERY:
        turned = np.rot90(images[..., ::-1] if symmetry >= 4 else images, symmetry % 4, axes=(1, 2))
        squares = turned.reshape(6, 3, 8, 3, 8).transpose(0, 1, 3, 2, 4)
        slope = squares[..., 4:].mean((-1, -2)) - squares[..., :4].mean((-1, -2))
        wanted = np.stack([squares.mean((-1, -2)), slope], -1)
        for block in (1, 2):
            got = bench.store("a").tokens(block, [4, 0, 5], symmetry)
            np.testing.assert_allclose(got, block * wanted[[4, 0, 5]], rtol=2e-3, atol=2e-3)


def test_a_tile_is_read_and_preprocessed_once_and_encoded_eight_times(bench: Bench) -> None:
    for name, n in zip("abc", (3, 5, 1), strict=True):
        bench.slide(name, n)
    encoder = Directed()
    bench.run(encoder, threads=1)
    assert encoder.preprocessed == 9
    assert encoder.passes == [(4, (1, 2))] * 3 * 8, "one size of batch"
    assert (bench.account.n_tiles, bench.account.n_padding) == (9, 3)
    assert [len(patches.reads) for patches in bench.slides.values()] == [1, 1, 1]
    assert bench.digests() == bench.fresh(Directed())


def test_neither_job_nor_cores_change_a_bit(bench: Bench) -> None:
    for name, n in zip("abcd", (2, 7, 0, 4), strict=True):
        bench.slide(name, n)
    bench.run(Directed(), threads=3)
    assert bench.digests() == bench.fresh(Directed())
    assert bench.store("c").tokens(2, slice(None), 5).shape == (0, 3, 3, 2)


def test_shards_of_turned_tiles_are_smaller_and_hold_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    row = 3 * 3 * 2 * 2
    monkeypatch.setattr(zarrio, "_INNER_BYTES", row)
    monkeypatch.setattr(zarrio, "_SHARD_BYTES", 6 * row)
    monkeypatch.setattr(token_writer, "_TURNED_SHARD_BYTES", 2 * row)
    patches = bench.slide("a", 7)
    bench.run(Directed((1,)))
    for array in token_arrays((1,), True):
        shards = len(list((bench.place("a") / array.folder / "c").iterdir()))
        assert shards == (4 if array.symmetry else 2)
    means = POOLED.apply(patches.data).mean(1).reshape(7, 3, 8, 3, 8).mean((2, 4))
    for symmetry in EVERY:
        turned = np.rot90(means[..., ::-1] if symmetry >= 4 else means, symmetry % 4, axes=(1, 2))
        got = bench.store("a").tokens(1, slice(None), symmetry)[..., 0]
        np.testing.assert_allclose(got, turned, rtol=2e-3, atol=2e-3)


def test_the_largest_magnitude_of_each_array_is_recorded(bench: Bench) -> None:
    bench.slide("a", 5)
    bench.run(Directed())
    recorded = bench.store("a").attributes["max_abs"]
    arrays = token_arrays((1, 2), True)
    assert set(recorded) == {array.label for array in arrays}
    for array in arrays:
        tokens = bench.store("a").tokens(array.block, slice(None), array.symmetry)
        assert recorded[array.label] == pytest.approx(np.abs(tokens.astype(float)).max(), rel=1e-3)


def test_names_of_arrays() -> None:
    assert [array.folder for array in token_arrays((3, 12), False)] == ["block_3", "block_12"]
    eight = token_arrays((3,), True)
    assert [array.folder for array in eight] == ["block_3", *(f"block_3_s{symmetry}" for symmetry in range(1, 8))]
    assert eight[0] == TokenArray(3)


# ---- what is taken over -------------------------------------------------------------------------------------------


def inodes(bench: Bench, pattern: str) -> dict[Path, int]:
    found = {path: path.stat().st_ino for path in bench.folder.rglob(pattern) if path.is_file()}
    assert found
    return found


def test_a_plain_store_gives_its_blocks_to_one_with_symmetries(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        bench.slide(name, 5)
    bench.run(Directed(), PLAIN)
    nodes = inodes(bench, "block_[12]/c/**/*")
    encoder = Directed()
    with caplog.at_level(logging.INFO):
        bench.run(encoder)
    assert encoder.passes == [(4, (1, 2))] * 3 * 7
    assert "a: blocks 1 (symmetries), 2 (symmetries) computed, 1, 2 taken over" in caplog.text
    assert inodes(bench, "block_[12]/c/**/*") == nodes, "linked, not copied"
    assert bench.digests() == bench.fresh(Directed())


def test_a_plain_store_takes_over_from_one_with_symmetries(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.slide("a", 5)
    bench.run(Directed())
    nodes = inodes(bench, "block_[12]/c/**/*")
    encoder = Directed()
    with caplog.at_level(logging.INFO):
        bench.run(encoder, PLAIN)
    assert encoder.passes == []
    assert "a: blocks 1, 2 taken over, 1 (symmetries), 2 (symmetries) dropped" in caplog.text
    assert inodes(bench, "block_[12]/c/**/*") == nodes
    assert not list(bench.place("a").glob("*_s*"))
    assert not bench.store("a").has_symmetries
    assert bench.digests() == bench.fresh(Directed(), PLAIN)


def test_a_block_is_added_with_its_symmetries(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.slide("a", 5)
    bench.run(Directed((1,)))
    encoder = Directed((1, 2))
    with caplog.at_level(logging.INFO):
        bench.run(encoder)
    assert encoder.passes == [(4, (2,))] * 2 * 8
    assert "a: blocks 2 with symmetries computed, 1 with symmetries taken over" in caplog.text
    assert bench.digests() == bench.fresh(Directed((1, 2)))


def test_a_block_and_symmetries_are_added_at_once(bench: Bench) -> None:
    """Every pass goes through what it lacks only."""
    bench.slide("a", 4)
    bench.run(Directed((1,)), PLAIN)
    encoder = Directed((1, 2))
    bench.run(encoder)
    assert encoder.passes == [(4, (2,)), *[(4, (1, 2))] * 7]
    assert bench.digests() == bench.fresh(Directed((1, 2)))


def test_one_array_that_is_not_whole_is_computed_again(bench: Bench) -> None:
    bench.slide("a", 5)
    bench.run(Directed())
    shard = next(path for path in (bench.place("a") / "block_2_s5" / "c").rglob("*") if path.is_file())
    shard.unlink()
    encoder = Directed()
    bench.run(encoder)
    assert encoder.passes == [(4, (2,))] * 2
    assert bench.digests() == bench.fresh(Directed())


def test_a_store_from_before_there_were_symmetries(bench: Bench) -> None:
    bench.slide("a", 5)
    bench.run(Directed(), PLAIN)
    about = zarrio.read_attributes(bench.place("a"))
    del about["symmetries"]
    zarrio.create_group(bench.place("a"), about)
    assert not bench.store("a").has_symmetries
    encoder = Directed()
    bench.run(encoder)
    assert encoder.passes == [(4, (1, 2))] * 2 * 7
    assert bench.digests() == bench.fresh(Directed())


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_a_store_without_says_how_to_get_them(bench: Bench) -> None:
    bench.slide("a", 2)
    bench.run(Directed(), PLAIN)
    store = bench.store("a")
    assert store.tokens(1, [0], symmetry=0).shape == (1, 3, 3, 2)
    with pytest.raises(SlideloomError, match=r"encoders\.<name>\.symmetries") as caught:
        store.tokens(1, [0], symmetry=3)
    assert caught.value.code == "encoder_symmetries"


@pytest.mark.parametrize("symmetry", [-1, 8])
def test_there_are_eight(bench: Bench, symmetry: int) -> None:
    bench.slide("a", 2)
    bench.run(Directed())
    with pytest.raises(ValueError, match="expected 0 to 7"):
        bench.store("a").tokens(1, [0], symmetry)


def test_several_encoders_have_none(bench: Bench) -> None:
    patches = bench.slide("a", 2)
    patches.y_px = patches.x_px = np.zeros(2, np.int32)
    bench.run(Directed())
    fused = FusedEmbeddings(bench.store("a"), patches, ())
    assert not fused.has_symmetries
    assert not fused.attributes["symmetries"]
    assert np.array_equal(fused.tokens(1, [1], symmetry=0), bench.store("a").tokens(1, [1]))
    with pytest.raises(SlideloomError, match="flips") as caught:
        fused.tokens(1, [1], 2)
    assert caught.value.code == "encoder_symmetries"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_what_float16_cannot_hold_under_one_symmetry_alone(bench: Bench, bad: float) -> None:
    """The encoder stumbles over a bright left half: only mirrored and half-turned tiles have one."""
    for name in "abc":
        bench.slide(name, 3)
    bench.slides["b"].data[:, :, :, :12] = 0
    bench.slides["b"].data[:, :, :, 12:] = 60000

    class Picky(Directed):
        def encode(self, images: Tensor) -> dict[int, Tensor]:
            found = super().encode(images)
            left, right = images[..., :12].mean((1, 2, 3)), images[..., 12:].mean((1, 2, 3))
            found[1][(left > 0) & (right < -2)] = bad
            return found

    outcomes = bench.run(Picky())
    error = outcomes["b"]
    assert isinstance(error, SlideError)
    assert error.code == "non_finite_embedding"
    assert "block 1 gives" in str(error)
    assert "tile 0 (row 0, column 0), turned by symmetry 2" in str(error)
    assert not bench.place("b").exists()
    del bench.slides["b"]
    assert bench.digests() == bench.fresh(Directed())


def test_a_slide_over_which_a_later_pass_stumbles_fails_alone(bench: Bench) -> None:
    for name in "abc":
        bench.slide(name, 2)
    bench.slides["b"].data[1] = 0
    bench.slides["b"].data[1, :, 0, 0] = 60000
    encoder = Directed()

    def stumble(images: Tensor) -> None:
        # The bright corner comes to lie at the lower right, which is so after a half turn only.
        if (images[:, 0, -1, -1] > images[:, 0, 0, 0] + 7).any():
            raise RuntimeError("stumbled")

    encoder.hook = stumble
    outcomes = bench.run(encoder)
    assert str(outcomes["b"]) == "stumbled"
    assert all(isinstance(outcomes[name], Account) for name in "ac")
    del bench.slides["b"]
    assert bench.digests() == bench.fresh(Directed())


def test_a_killed_process_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    program = f"""
        import os, sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parents[3] / "src"), *map(str, Path(__file__).parents[:2])]}
        import numpy as np
        from conftest import MemoryPatches, _channels
        from test_symmetries import Directed, EIGHT, KEY, PANEL, POOLED
        from slideloom.encoders.embedding.embed import Embedder, Request
        patches = MemoryPatches(np.zeros((9, 3, 24, 24), np.uint16), _channels(*PANEL))
        encoder = Directed()
        encoder.hook = lambda images: os._exit(9) if len(encoder.passes) == 13 else None
        list(Embedder(EIGHT, lambda panel: encoder, statistics=POOLED, batch_size=4).run(
            [Request("a", lambda: patches, Path({str(tmp_path / "a.zarr")!r}), KEY)]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, env=os.environ)
    assert done.returncode == 9
    assert not (tmp_path / "a.zarr").exists()
    left = list(tmp_path.iterdir())
    assert all(place.name.startswith(".") and not (place / "zarr.json").exists() for place in left)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_tokens(bench: Bench) -> None:
    for name, n in zip("ab", (3, 6), strict=True):
        bench.slide(name, n)
    bench.run(Directed(), device="cuda")
    assert bench.account.parts["forward_s"] > 0
    assert bench.account.parts["copy_s"] > 0
    ours = {one: bench.store("b").tokens(one.block, slice(None), one.symmetry) for one in token_arrays((1, 2), True)}
    bench.fresh(Directed())
    theirs = EmbeddingStore(bench.folder / "fresh" / "b.zarr")
    for one, tokens in ours.items():
        np.testing.assert_allclose(tokens, theirs.tokens(one.block, slice(None), one.symmetry), rtol=2e-3, atol=2e-3)

"""Embedding many slides: full batches, failures that stay alone, blocks that are taken over."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slideloom.artefacts.keys import digest_tree
from slideloom.config.model import EncoderConfig, NormalisationConfig
from slideloom.encoders.base import EncoderSpec
from slideloom.encoders.embedding import batches
from slideloom.encoders.embedding.account import Account
from slideloom.encoders.embedding.embed import Embedder, Panel, Request
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import ChannelStatistics

PANEL = ("DNA", "CD3", "CD8")
POOLED = ChannelStatistics(PANEL, (3000.0,) * 3, (7.0, 6.5, 6.0), (1.0, 0.5, 2.0), True)
CONFIG = EncoderConfig(model="mean_marker", grid="g")
KEY = {"config": "c", "code": "d", "patches": "p"}
Outcomes = dict[str, Account | Exception]


class Fake:
    """An encoder of nine blocks that are easily told apart; remembers its passes and stops after the deepest block."""

    def __init__(self, markers: Sequence[str] = PANEL, blocks: tuple[int, ...] = (3, 6), **spec: Any) -> None:
        about = {"patch_px": 8, "width": 2, "depth": 9, "blocks": (3, 6, 9), "tile_multiple_px": 8}
        self.spec = EncoderSpec("fake", "markers", **{**about, **spec})
        self.markers, self.blocks, self.dropped = tuple(markers), blocks, ()
        self.width, self.patch_px, self.image_channels = 2, 8, len(self.markers)
        self.weights, self.notes = "none", ("a note",)
        self.passes: list[tuple[int, tuple[int, ...]]] = []
        self.hook: Callable[[Tensor], None] = lambda images: None

    def to(self, device: str) -> Fake:
        return self

    def preprocess(self, pixels: Tensor, statistics: ChannelStatistics | None) -> Tensor:
        assert statistics is not None
        assert statistics.markers == self.markers
        return torch.from_numpy(statistics.apply(pixels.cpu().numpy())).to(pixels.device)

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        self.passes.append((len(images), self.blocks))
        self.hook(images)
        means = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1)
        tokens = torch.stack([means.mean(-1), means.amax(-1)], -1)
        normed = {self.spec.depth: 100.0} if self.spec.final_norm else {}
        return {block: tokens * block + normed.get(block, 0.0) for block in self.blocks}


class Bench:
    """Slides in memory and stores in a folder."""

    def __init__(self, folder: Path, make: Callable[..., Any]) -> None:
        self.folder, self._make = folder, make
        self.slides: dict[str, Any] = {}

    def slide(self, name: str, n: int, markers: tuple[str, ...] = PANEL, **changes: Any) -> Any:
        patches = self.slides[name] = self._make(markers, n)
        seed = sum(map(ord, name))
        patches.data = np.random.default_rng(seed).integers(0, 4000, patches.data.shape, dtype=np.uint16)
        patches.slide_id = name
        for key, value in changes.items():
            setattr(patches, key, value)
        return patches

    def place(self, name: str) -> Path:
        return self.folder / f"{name}.zarr"

    def run(
        self,
        encoder: Any,
        names: Iterable[str] = (),
        *,
        config: EncoderConfig = CONFIG,
        statistics: ChannelStatistics | None = POOLED,
        base_key: Mapping[str, str] = KEY,
        **settings: Any,
    ) -> Outcomes:
        build = encoder if callable(encoder) else lambda panel: encoder
        embedder = Embedder(config, build, statistics=statistics, **{"batch_size": 4, **settings})
        names = tuple(names) or tuple(self.slides)
        requests = [
            Request(name, lambda name=name: self.slides[name], self.place(name), base_key)  # type: ignore[misc]
            for name in names
        ]
        outcomes = list(embedder.run(requests))
        assert sorted(name for name, _ in outcomes) == sorted(names), "each slide once"
        assert not list(self.folder.glob(".*")), "a half-written store was left"
        self.account = embedder.account
        return dict(outcomes)

    def digests(self) -> dict[str, str]:
        return {name: digest_tree(self.place(name)) for name in self.slides if self.place(name).exists()}

    def fresh(self, encoder: Any, **settings: Any) -> dict[str, str]:
        """Digests of the stores of the same slides, each made alone in an empty folder."""
        other = Bench(self.folder / "fresh", self._make)
        other.slides = self.slides
        for name in self.slides:
            other.run(encoder, [name], **settings)
        return other.digests()


@pytest.fixture
def bench(tmp_path: Path, marker_patches: Callable[..., Any]) -> Bench:
    return Bench(tmp_path / "stores", marker_patches)


def failure(outcome: Account | Exception) -> SlideloomError:
    assert isinstance(outcome, SlideloomError)
    return outcome


# ---- batches ------------------------------------------------------------------------------------------------------


def test_batches_are_full_over_the_borders_of_slides(bench: Bench) -> None:
    for name, n in zip("abcdef", (1, 4, 0, 2, 3, 1), strict=True):
        bench.slide(name, n)
    encoder = Fake()
    outcomes = bench.run(encoder)
    assert encoder.passes == [(4, (3, 6))] * 3
    assert (bench.account.n_tiles, bench.account.n_padding) == (11, 1)
    assert {name: account.n_tiles for name, account in outcomes.items()} == {  # type: ignore[union-attr]
        name: patches.n for name, patches in bench.slides.items()
    }
    assert bench.digests() == bench.fresh(Fake())
    cells = POOLED.apply(bench.slides["e"].data).reshape(3, 3, 3, 8, 3, 8).mean(axis=(3, 5)).transpose(0, 2, 3, 1)
    got = EmbeddingStore(bench.place("e")).tokens(6, slice(None))
    np.testing.assert_allclose(got, 6 * np.stack([cells.mean(-1), cells.max(-1)], -1), rtol=2e-3)


@pytest.mark.parametrize("tile_px", [32, 48])
def test_job_and_cores_change_no_bit_of_a_real_encoder(
    tile_px: int, tmp_path: Path, rgb_patches: Callable[..., Any]
) -> None:
    """Sizes at which the same tile's tokens do differ in their last bits between batches of one and of four."""
    config = EncoderConfig(model="timm/vit_tiny_patch16_224", grid="g", random=1, blocks=[2, 5])
    encoder = build_encoder(config, rgb_patches().channels)
    slides = {name: rgb_patches(n, tile_px) for name, n in zip("abcd", (1, 4, 7, 2), strict=True)}
    for seed, patches in enumerate(slides.values()):
        patches.data = np.random.default_rng(seed).integers(0, 256, patches.data.shape, dtype=np.uint8)

    def run(folder: str, names: str, **settings: Any) -> None:
        requests = [
            Request(name, lambda name=name: slides[name], tmp_path / folder / f"{name}.zarr")  # type: ignore[misc]
            for name in names
        ]
        for _, outcome in Embedder(config, lambda panel: encoder, **settings).run(requests):
            assert isinstance(outcome, Account)

    run("together", "abcd", threads=1)
    run("cores", "dbca", threads=3)
    for name in "abcd":
        run("alone", name)
    whole = [{name: digest_tree(tmp_path / f / f"{name}.zarr") for name in "abcd"} for f in ("together", "cores")]
    assert whole[0] == whole[1] == {name: digest_tree(tmp_path / "alone" / f"{name}.zarr") for name in "abcd"}


def test_each_slide_is_normalised_with_its_own_statistics(bench: Bench) -> None:
    for name, factor in (("dim", 1), ("bright", 9)):
        patches = bench.slide(name, 3)
        patches.data *= factor
    config = CONFIG.model_copy(update={"normalisation": NormalisationConfig(scope="slide")})
    bench.run(Fake(), config=config, statistics=None)
    dim, bright = (EmbeddingStore(bench.place(name)).statistics for name in ("dim", "bright"))
    assert dim is not None
    assert bright is not None
    assert dim != bright
    assert bench.digests() == bench.fresh(Fake(), config=config, statistics=None)


def test_pooled_statistics_are_narrowed_and_each_slide_clips_for_itself(bench: Bench) -> None:
    bench.slide("a", 3, ("CD8", "DNA", "CD3"))
    wide = ChannelStatistics(("CD20", *PANEL), (), (9.0, 7.0, 6.5, 6.0), (9.0, 1.0, 0.5, 2.0), True)
    config = CONFIG.model_copy(
        update={"normalisation": NormalisationConfig(clip="slide", clip_quantile=0.9), "markers": list(PANEL)}
    )
    bench.run(Fake(), config=config, statistics=wide)
    used = EmbeddingStore(bench.place("a")).statistics
    assert used is not None
    assert (used.markers, used.mean) == (PANEL, (7.0, 6.5, 6.0))
    pixels = bench.slides["a"].data[:, [1, 2, 0]]
    assert used.clip == pytest.approx(np.quantile(pixels, 0.9, axis=(0, 2, 3)))


def test_one_encoder_for_each_panel(bench: Bench) -> None:
    """Without pooled statistics a slide's own panel is the encoder's."""
    bench.slide("a", 3)
    bench.slide("b", 2, ("DNA", "CD20"))
    bench.slide("c", 2)
    built: list[Panel] = []

    def build(panel: Panel) -> Fake:
        built.append(panel)
        return Fake([channel.marker for channel in panel])

    config = CONFIG.model_copy(update={"normalisation": NormalisationConfig(scope="slide")})
    bench.run(build, config=config, statistics=None, uniprot={"DNA": "P68431"})
    assert [[(channel.marker, channel.uniprot) for channel in panel] for panel in built] == [
        [("DNA", "P68431"), ("CD3", ""), ("CD8", "")],
        [("DNA", "P68431"), ("CD20", "")],
    ]
    assert bench.account.n_tiles == 7
    assert EmbeddingStore(bench.place("b")).markers == ("DNA", "CD20")


def test_every_thread_computes_on_one_core(bench: Bench) -> None:
    bench.slide("a", 24)
    seen: set[tuple[str, int]] = set()
    meet = threading.Barrier(3, timeout=20)
    encoder = Fake()

    def hook(images: Tensor) -> None:
        meet.wait()
        seen.add((threading.current_thread().name, torch.get_num_threads()))

    encoder.hook = hook
    before = torch.get_num_threads()
    bench.run(encoder, threads=3)
    assert len(seen) == 3
    assert {cores for _, cores in seen} == {1}
    assert torch.get_num_threads() == before


def test_the_account_says_where_the_time_went(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.slide("a", 8)
    bench.slide("b", 4)
    with caplog.at_level(logging.INFO):
        outcomes = bench.run(Fake(), threads=2)
    whole = bench.account.as_dict()
    assert whole["seconds"] == pytest.approx(sum(v for k, v in whole.items() if k.endswith("_s")))
    slides = [outcome for outcome in outcomes.values() if isinstance(outcome, Account)]
    for part in ("read_s", "preprocess_s", "forward_s", "copy_s"):
        assert sum(account.parts[part] for account in slides) == pytest.approx(whole[part], rel=1e-6)
    lines = [record.message for record in caplog.records if "in the encoder's forward" in record.message]
    assert [line.split(":")[0] for line in lines] == ["a", "b", "all slides"]
    assert "12 tiles in" in lines[-1]


def test_reading_goes_on_while_the_encoder_computes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 1)
    for name in "abcde":
        patches = bench.slide(name, 16)

        def slowly(indices: slice, whole: Callable[[slice], Any] = patches.pixels) -> Any:
            time.sleep(0.02)
            return whole(indices)

        patches.pixels = slowly
    encoder = Fake()
    encoder.hook = lambda images: time.sleep(0.03)
    seconds = []
    for k in range(3):  # the least of three: what else the machine does takes time, too
        bench.run(encoder, threads=1, base_key={**KEY, "again": str(k)})
        seconds.append(bench.account.seconds)
    assert 20 * 0.03 < min(seconds) < 20 * (0.03 + 0.02), seconds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_tokens_and_whole_batches(bench: Bench) -> None:
    for name, n in zip("abc", (1, 9, 6), strict=True):
        bench.slide(name, n)
    bench.run(Fake(), device="cuda")
    assert bench.account.parts["forward_s"] > 0
    assert bench.digests() == bench.fresh(Fake(), device="cuda")
    found = {name: EmbeddingStore(bench.place(name)).tokens(6, slice(None)) for name in "abc"}
    bench.run(Fake())
    for name, tokens in found.items():
        np.testing.assert_allclose(tokens, EmbeddingStore(bench.place(name)).tokens(6, slice(None)), rtol=2e-3)


# ---- failures -----------------------------------------------------------------------------------------------------


def _unreadable(patches: Any) -> None:
    whole = patches.pixels

    def pixels(indices: slice) -> Any:
        if indices.start >= 4:
            raise ValueError("bad chunk")
        return whole(indices)

    patches.pixels = pixels


def _not_a_number(patches: Any) -> None:
    patches.data = patches.data.astype(np.float32)
    patches.dtype = patches.data.dtype
    patches.data[3, 0, 1, 1] = np.nan


def _resolution(patches: Any) -> None:
    patches.mpp_um = 1.0


def _marker(patches: Any) -> None:
    patches.channels[1] = replace(patches.channels[1], marker="CD20")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_unreadable, "unreadable_patches"),
        (_not_a_number, "non_finite_embedding"),
        (_resolution, "encoder_resolution"),
        (_marker, "missing_marker"),
    ],
)
def test_a_slide_fails_alone_in_the_middle_of_batches(
    bench: Bench, spoil: Callable[[Any], None], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 1)
    spec = {"mpp_um": (0.4, 0.6)}
    for name, n in zip("abc", (2, 9, 5), strict=True):
        bench.slide(name, n)
    spoil(bench.slides["b"])
    outcomes = bench.run(Fake(**spec), threads=2)
    found = outcomes["b"]
    assert isinstance(found, Exception)
    assert getattr(found, "code", type(found).__name__) == code
    assert not bench.place("b").exists()
    del bench.slides["b"]
    assert bench.digests() == bench.fresh(Fake(**spec))


def test_a_failed_slide_leaves_its_older_store_as_it_was(bench: Bench) -> None:
    _not_a_number(bench.slide("a", 5))
    bench.slides["a"].data[3] = 1.0
    bench.run(Fake())
    before = bench.digests()
    _not_a_number(bench.slides["a"])
    outcome = failure(bench.run(Fake(), base_key={})["a"])
    assert "tile 3 (row 1, column 0)" in str(outcome)
    assert bench.digests() == before


def test_a_slide_that_the_encoder_stumbles_over_is_found(bench: Bench) -> None:
    for name in "abc":
        bench.slide(name, 2)
    bench.slides["b"].data[1, 0, 0, 0] = 60000
    encoder = Fake()

    def stumble(images: Tensor) -> None:
        if (images[:, 0, 0, 0] > 50000).any():
            raise RuntimeError("stumbled")

    encoder.hook = stumble
    raw = ChannelStatistics(PANEL, (1e9,) * 3, (0.0,) * 3, (1.0,) * 3, False)
    outcomes = bench.run(encoder, statistics=raw)
    assert str(outcomes["b"]) == "stumbled"
    del bench.slides["b"]
    assert bench.digests() == bench.fresh(Fake(), statistics=raw)


def test_a_panel_whose_encoder_cannot_be_built_fails_with_its_slides(bench: Bench) -> None:
    bench.slide("a", 3)
    bench.slide("b", 2, ("DNA", "CD20"))

    def build(panel: Panel) -> Fake:
        if len(panel) == 2:
            raise SlideloomError("no embedding of CD20", code="unknown_marker")
        return Fake()

    config = CONFIG.model_copy(update={"normalisation": NormalisationConfig(scope="slide")})
    outcomes = bench.run(build, config=config, statistics=None)
    assert isinstance(outcomes["a"], Account)
    assert isinstance(outcomes["b"], SlideError)
    assert outcomes["b"].code == "unknown_marker"


@pytest.mark.parametrize("error", [MemoryError("full"), KeyboardInterrupt()])
def test_what_is_no_slides_fault_ends_everything(bench: Bench, error: BaseException) -> None:
    for name in "abc":
        bench.slide(name, 9)
    encoder = Fake()

    def hook(images: Tensor) -> None:
        if len(encoder.passes) > 3:
            raise error

    encoder.hook = hook
    with pytest.raises(type(error)):
        bench.run(encoder, threads=2)
    assert not list(bench.folder.glob(".*"))
    assert set(bench.digests()) <= {"a"}


def test_whoever_stops_listening_stops_the_work(bench: Bench) -> None:
    for name in "abcdefgh":
        bench.slide(name, 4)
    encoder = Fake()
    requests = [Request(name, lambda name=name: bench.slides[name], bench.place(name)) for name in bench.slides]  # type: ignore[misc]
    stream = Embedder(CONFIG, lambda panel: encoder, statistics=POOLED, batch_size=4, threads=1).run(requests)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == 1 or not any("embed" in t.name for t in threading.enumerate())
    assert not list(bench.folder.glob(".*"))


def test_a_killed_process_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    program = f"""
        import os, sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parents[3] / "src"), *map(str, Path(__file__).parents[:2])]}
        import numpy as np
        from conftest import MemoryPatches, _channels
        from test_embed import CONFIG, Fake, KEY, PANEL, POOLED
        from slideloom.encoders.embedding.embed import Embedder, Request
        patches = MemoryPatches(np.zeros((9, 3, 24, 24), np.uint16), _channels(*PANEL))
        encoder = Fake()
        encoder.hook = lambda images: os._exit(9) if len(encoder.passes) == 3 else None
        list(Embedder(CONFIG, lambda panel: encoder, statistics=POOLED, batch_size=4).run(
            [Request("a", lambda: patches, Path({str(tmp_path / "a.zarr")!r}), KEY)]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == 9
    assert not (tmp_path / "a.zarr").exists()
    left = list(tmp_path.iterdir())
    assert all(place.name.startswith(".") and not (place / "zarr.json").exists() for place in left)


# ---- blocks of an older store -------------------------------------------------------------------------------------


def test_an_added_block_is_computed_and_the_others_are_taken_over(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        bench.slide(name, 5)
    bench.run(Fake(blocks=(3, 6)))
    shards = [path for path in bench.folder.rglob("block_[36]/c/**/*") if path.is_file()]
    nodes = {path: path.stat().st_ino for path in shards}
    assert nodes
    encoder = Fake(blocks=(3, 6, 9))
    with caplog.at_level(logging.INFO):
        bench.run(encoder)
    assert encoder.passes == [(4, (9,))] * 3
    assert "a: blocks 9 computed, 3, 6 taken over" in caplog.text
    assert {path: path.stat().st_ino for path in shards} == nodes, "linked, not copied"
    assert bench.digests() == bench.fresh(Fake(blocks=(3, 6, 9)))


def test_slides_may_lack_different_blocks(bench: Bench) -> None:
    for name in "abc":
        bench.slide(name, 5)
    bench.run(Fake(blocks=(3, 6)), "a")
    bench.run(Fake(blocks=(6,)), "b")
    encoder = Fake(blocks=(3, 6))
    bench.run(encoder)
    assert sorted(encoder.passes) == [(4, (3,))] * 2 + [(4, (3, 6))] * 2
    assert bench.digests() == bench.fresh(Fake(blocks=(3, 6)))


def test_a_removed_block_is_dropped_without_computing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.slide("a", 5)
    bench.run(Fake(blocks=(3, 6, 9)))
    encoder = Fake(blocks=(3, 9))
    with caplog.at_level(logging.INFO):
        bench.run(encoder)
    assert encoder.passes == []
    assert "a: blocks 3, 9 taken over, 6 dropped" in caplog.text
    assert not (bench.place("a") / "block_6").exists()
    assert bench.digests() == bench.fresh(Fake(blocks=(3, 9)))


def test_arrays_are_copied_where_nothing_can_be_linked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.slide("a", 5)
    bench.run(Fake(blocks=(3,)))

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    bench.run(Fake(blocks=(3, 6)))
    assert bench.digests() == bench.fresh(Fake(blocks=(3, 6)))


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ({**KEY, "code": "e"}, "other code than"),
        ({**KEY, "weights": "w", "patches": "q"}, "other patches, weights than"),
        ({}, "does not say what it was made from"),
    ],
)
def test_another_key_computes_everything_and_says_why(
    bench: Bench, key: dict[str, str], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.slide("a", 5)
    bench.run(Fake(blocks=(3,)))
    encoder = Fake(blocks=(3, 6))
    with caplog.at_level(logging.INFO):
        bench.run(encoder, base_key=key)
    assert encoder.passes == [(4, (3, 6))] * 2
    assert why in caplog.text


def test_an_array_that_is_not_whole_is_computed_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.slide("a", 5)
    bench.run(Fake(blocks=(3, 6)))
    shard = next(path for path in (bench.place("a") / "block_3" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    encoder = Fake(blocks=(3, 6))
    bench.run(encoder)
    assert encoder.passes == [(4, (3,))] * 2
    assert bench.digests() == bench.fresh(Fake(blocks=(3, 6)))


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"attributes": {"base_key": {"config": "c", "code": "d", "patches": "p"}}}']
)
def test_an_older_store_that_makes_no_sense_is_replaced(bench: Bench, text: str) -> None:
    bench.slide("a", 5)
    bench.place("a").mkdir(parents=True)
    (bench.place("a") / "zarr.json").write_text(text)
    bench.run(Fake())
    assert bench.digests() == bench.fresh(Fake())


def test_the_final_normalisation_belongs_to_the_last_block(bench: Bench) -> None:
    bench.slide("a", 5)
    bench.run(Fake(blocks=(6, 9)))
    encoder = Fake(blocks=(6, 9), final_norm=True)
    bench.run(encoder)
    assert encoder.passes == [(4, (9,))] * 2
    assert EmbeddingStore(bench.place("a")).final_norm
    assert bench.digests() == bench.fresh(Fake(blocks=(6, 9), final_norm=True))


def test_clipping_points_of_the_older_store_are_used_again(bench: Bench) -> None:
    config = CONFIG.model_copy(update={"normalisation": NormalisationConfig(scope="slide")})
    patches = bench.slide("a", 5)
    bench.run(Fake(blocks=(3,)), config=config, statistics=None)
    patches.reads.clear()
    bench.run(Fake(blocks=(3, 6)), config=config, statistics=None)
    assert len(patches.reads) == 1, "the pixels are read once, for the encoder"
    assert bench.digests() == bench.fresh(Fake(blocks=(3, 6)), config=config, statistics=None)


# ---- channels and resolution --------------------------------------------------------------------------------------


def test_dropped_markers_may_be_there_and_are_listed(bench: Bench) -> None:
    bench.slide("a", 3, ("DAPI", *PANEL))
    bench.slide("b", 3, ("CD8", "CD3", "DAPI", "DNA"))
    bench.slide("c", 3)
    bench.slide("d", 3, (*PANEL, "CD20"))
    encoder = Fake()
    encoder.dropped = ("DAPI",)
    outcomes = bench.run(encoder)
    assert failure(outcomes["d"]).code == "panel_mismatch"
    assert "does not read CD20" in str(outcomes["d"])
    for name, indices in (("a", [1, 2, 3]), ("b", [3, 1, 0]), ("c", [0, 1, 2])):
        store = EmbeddingStore(bench.place(name))
        assert store.attributes["channel_indices"] == indices
        assert store.dropped == ("DAPI",)


def test_another_resolution_on_purpose_is_recorded(bench: Bench) -> None:
    bench.slide("a", 3)
    encoder = Fake(mpp_um=(0.9, 1.1))
    assert failure(bench.run(encoder)["a"]).code == "encoder_resolution"
    bench.run(encoder, config=CONFIG.model_copy(update={"off_resolution": True}))
    notes = EmbeddingStore(bench.place("a")).attributes["notes"]
    assert notes[0] == "a note"
    assert "0.5 um/px" in notes[1]
    assert "0.9 to 1.1" in notes[1]

"""Encoders that run in every step: the same tokens as stored ones, and weights that train when they should."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slideloom.config.model import EncoderConfig, NormalisationConfig
from slideloom.encoders.base import Encoder
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import channel_statistics
from slideloom.patches.store import PatchStore
from slideloom.training import loop
from slideloom.training.checkpoint import load_decoder, load_tuned_encoder, read_meta
from slideloom.training.data import PatchData, batches_in_order
from slideloom.training.feed import Feed
from slideloom.training.job import TrainJob
from slideloom.training.live import make_front
from slideloom.training.loop import train
from slideloom.training.resume import save_state
from slideloom.training.stored import SlideData, open_slides

from .conftest import ENCODER
from .live_cohort import CPU, NEEDS, SAM, TIMM, UNIPROT, VIRTUES, VIT, Live, build, embedded, live_job, raw, rgb_slide

#: What no token depends on, or none that is asked for; the bias of keys drops out of every softmax.
UNUSED = {
    "virtues/tiny": {"masked_token", "norm.weight", "norm.bias"},
    "timm/vit_tiny_patch16_224": {"norm.weight", "norm.bias"},
    "cellvit/vit256": {"norm.weight", "norm.bias"},
    "cellvit/sam_b": set(),
}
TRAINABLE = [VIRTUES, TIMM, VIT, SAM]


@pytest.fixture(scope="module")
def rgb(tmp_path_factory: pytest.TempPathFactory) -> list[SlideData]:
    folder = tmp_path_factory.mktemp("rgb")
    return [rgb_slide(folder, "r", 7), rgb_slide(folder, "s", 8)]


@pytest.fixture
def slides(cohort: dict[str, SlideData], rgb: list[SlideData]) -> Any:
    """The slides that an encoder reads."""

    def give(config: EncoderConfig) -> list[SlideData]:
        return [cohort["a"], cohort["c"]] if config.grid == "g" else rgb

    return give


def mixed(data: PatchData) -> list[np.ndarray]:
    """Batches that hold patches of several slides."""
    return np.array_split(np.random.default_rng(0).permutation(data.n), 3)


@pytest.mark.parametrize("config", [ENCODER, *TRAINABLE], ids=lambda config: config.model)
def test_live_tokens_are_the_stored_ones(config: EncoderConfig, slides: Any, tmp_path: Path) -> None:
    used = slides(config)
    live = Live.open(used, config, tmp_path)
    kept = [embedded(slide, config, tmp_path) for slide in used]
    data = PatchData(open_slides(kept, NEEDS, "training"))
    stored = Feed(data, dataclasses.replace(live.job, live=None), CPU)
    assert live.feed.geometry == stored.geometry
    pairs = [feed.batches(mixed(data), 0, training=True) for feed in (live.feed, stored)]
    for made, read in zip(*pairs, strict=True):
        assert made.pixels is None
        for ours, theirs in zip(made.tokens, read.tokens, strict=True):
            assert ours.dtype == torch.float32
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, rtol=2**-10, atol=2e-4)
        assert made.image is not None
        assert read.image is not None
        assert made.image.stride() == read.image.stride()
        torch.testing.assert_close(made.image, read.image, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(values, read.targets[name]) for name, values in made.targets.items())
    assert live.feed.encoded_s > 0 == stored.encoded_s
    live.feed.encoded_s = 0.0
    assert live.feed.encoded_s == 0


@pytest.mark.parametrize("scope", [{"scope": "training"}, {"scope": "training", "clip": "slide"}])
def test_statistics_of_the_training_slides_and_clipping_points_of_each(
    scope: dict[str, Any], cohort: dict[str, SlideData], tmp_path: Path
) -> None:
    full = NormalisationConfig(clip_quantile=0.99, log1p=True, **{"clip": "training"} | scope)
    config = ENCODER.model_copy(update={"normalisation": full})
    used = [cohort["a"], cohort["c"]]
    pooled = channel_statistics([PatchStore(slide.patches) for slide in used], (), full)
    place = tmp_path / "statistics.json"
    place.write_text(json.dumps(pooled.as_dict()))
    live = Live.open(used, config, tmp_path, statistics=place)
    assert (live.feed.geometry.statistics is None) == (full.clip == "slide")
    batches = list(live.feed.batches(mixed(live.data), 0, training=False))
    for batch, indices in zip(batches, mixed(live.data), strict=True):
        for image, index in zip(batch.image if batch.image is not None else (), indices.tolist(), strict=True):
            slide, place_in = (live.data.slides[0], index) if index < 12 else (live.data.slides[1], index - 12)
            pixels = slide.patches.pixels([place_in])
            own = channel_statistics([slide.patches], (), full.model_copy(update={"scope": "slide"}))
            used_here = pooled if pooled.clip else dataclasses.replace(pooled, clip=own.clip)
            np.testing.assert_allclose(image.numpy(), used_here.apply(pixels)[0], rtol=1e-5, atol=1e-6)


def loss_of(live: Live, training: bool = True) -> torch.Tensor:
    """A figure that every token has its part in, other parts for other tokens."""
    batch = next(live.feed.batches(batches_in_order(live.data.n, 3), 0, training=training))
    drawn = torch.Generator().manual_seed(1)
    return torch.stack([(part * torch.randn(part.shape, generator=drawn)).mean() for part in batch.tokens]).sum()


@pytest.mark.parametrize("config", TRAINABLE, ids=lambda config: config.model)
def test_gradients_reach_every_weight_and_are_right(config: EncoderConfig, slides: Any, tmp_path: Path) -> None:
    live = Live.open(slides(config), config, tmp_path, training={"unfreeze_epoch": 1})
    assert not live.front.train_from(0)
    assert not live.front.trained
    assert not loss_of(live).requires_grad
    assert live.front.train_from(1)
    assert live.front.trained
    assert not loss_of(live, training=False).requires_grad, "validation wants no gradients"
    loss_of(live).backward()  # type: ignore[no-untyped-call]
    named = dict(live.front.module.named_parameters())
    without = {name for name, value in named.items() if value.grad is None}
    beyond = {name for name in named if config.blocks and name.startswith("blocks.")
              and int(name.split(".")[1]) >= max(config.blocks)}  # fmt: skip
    assert without == (UNUSED[config.model] & named.keys()) | beyond
    assert not live.front.module.training
    # Along a random direction, the loss grows as the gradient says.
    drawn = torch.Generator().manual_seed(2)
    steps = {
        name: torch.randn(value.shape, generator=drawn) * 1e-3 * value.detach().std().clamp(min=1e-2)
        for name, value in named.items()
        if value.grad is not None and value.numel()
    }
    foretold = sum(float((named[name].grad * step).sum()) for name, step in steps.items())
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, step in steps.items():
                named[name].add_(step, alpha=sign)
            found.append(float(loss_of(live)))
            for name, step in steps.items():
                named[name].sub_(step, alpha=sign)
    assert (found[0] - found[1]) / 2 == pytest.approx(foretold, rel=0.03, abs=1e-7)


@pytest.mark.parametrize("config", TRAINABLE, ids=lambda config: config.model)
def test_a_step_changes_the_encoder_and_nothing_of_it_goes_stale(
    config: EncoderConfig, slides: Any, tmp_path: Path
) -> None:
    live = Live.open(slides(config), config, tmp_path, training={"unfreeze_epoch": 1})
    before = {name: value.clone() for name, value in live.front.state_dict().items()}
    frozen = loss_of(live)
    for epoch in (0, 1):
        optimiser = torch.optim.AdamW(live.front.module.parameters(), lr=1e-2, fused=True)
        live.front.train_from(epoch)
        loss = loss_of(live)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        same = all(torch.equal(value, before[name]) for name, value in live.front.state_dict().items())
        assert same == (epoch == 0)
    assert loss_of(live) != frozen
    live.front.module.requires_grad_(False)
    after = loss_of(live)
    # A fresh encoder, which has cached what it derives from its first weights, and then gets the tuned ones.
    fresh = Live.open(slides(config), config, tmp_path)
    assert torch.equal(loss_of(fresh), frozen)
    fresh.front.load_state_dict(live.front.state_dict())
    torch.testing.assert_close(loss_of(fresh), after, rtol=0, atol=0)
    assert not torch.equal(after, frozen)


def test_markers_of_virtues_follow_their_weights_also_into_inference_mode(tmp_path: Path) -> None:
    from slideloom.encoders.fit import marker_panel

    encoder: Any = build(VIRTUES, marker_panel(("DNA", "CD3"), UNIPROT))
    images = torch.randn(2, 2, 16, 16)
    first = encoder.encode(images)[8]
    with torch.no_grad():
        encoder.module.marker_encoder.bias += 1.0
    moved = encoder.encode(images)[8]
    assert not torch.allclose(first, moved)
    assert not encoder._markers.is_inference()
    encoder.module.requires_grad_(True)
    torch.testing.assert_close(encoder.tokens(images)[8], moved, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder._panel().dtype == torch.float32


def test_half_precision_is_the_encoders_too(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    full, half = (
        Live.open([cohort["a"]], VIRTUES, tmp_path, training={"precision": precision}) for precision in ("fp32", "bf16")
    )
    one, other = (next(live.feed.batches([np.arange(3)], 0, training=False)).tokens[3] for live in (full, half))
    assert other.dtype == torch.float32
    assert 0 < float((one - other).abs().max()) < 0.1
    assert half.feed.geometry.encoder_record["precision"] == "bf16"


def test_what_no_decoder_reads_is_not_given(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    needs = dataclasses.replace(NEEDS, skips=False, image=False)
    live = Live.open([cohort["a"]], VIRTUES, tmp_path, needs=needs)
    assert live.feed.geometry.blocks == (8,)
    batch = next(live.feed.batches([np.arange(3)], 0, training=False))
    assert batch.image is None
    assert all(level is batch.tokens[0] for level in batch.tokens)


def test_channels_that_are_left_out_tell_nothing(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    """They are 0 after normalisation, in what the encoder and the image skip get; the others are as they were."""
    whole = Live.open([cohort["a"]], ENCODER, tmp_path)
    some = Live.open([cohort["a"]], ENCODER, tmp_path, augmentation={"channel_dropout": 0.5})
    rows = [np.arange(12)]
    kept, left = (next(iter(live.feed.batches(rows, 0, training=True))) for live in (whole, some))
    assert kept.image is not None
    assert left.image is not None
    gone = (left.image == 0).flatten(2).all(2)
    assert 0 < int(gone.sum()) < gone.numel()
    assert torch.equal(left.image[~gone], kept.image[~gone])
    # The mean marker's tokens are its channels: those that are out are 0, all others what they were.
    for ours, theirs in zip(left.tokens, kept.tokens, strict=True):
        assert torch.equal(ours, torch.where(gone[:, :, None, None], 0.0, theirs))
    assert next(iter(some.feed.batches(rows, 0, training=False))).tokens[3].eq(kept.tokens[3]).all()


def test_what_cannot_be_trained_is_told(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    with pytest.raises(SlideloomError, match="mean_marker has no weights") as caught:
        Live.open([cohort["a"]], ENCODER, tmp_path, training={"unfreeze_epoch": 0})
    assert caught.value.code == "encoder_untrainable"
    fused = dataclasses.replace(raw(cohort["a"]), fused=((cohort["a"].patches, cohort["a"].embeddings),))  # type: ignore[arg-type]
    with pytest.raises(SlideloomError) as caught:
        Live.open([fused], VIRTUES, tmp_path)
    assert caught.value.code == "live_fused"


def test_slides_that_do_not_fit_are_told_by_name(
    cohort: dict[str, SlideData], rgb: list[SlideData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fewer = EncoderConfig(**VIRTUES.model_dump() | {"markers": ["DNA", "CD3"]})
    live = Live.open([cohort["a"]], fewer, tmp_path)
    assert (live.feed.geometry.image_channels, live.data.slides[0].channels) == (2, [0, 1])
    with pytest.raises(SlideloomError) as caught:
        Live.open([cohort["a"]], TIMM, tmp_path)
    assert caught.value.code == "encoder_channels"
    with pytest.raises(SlideloomError) as caught:
        PatchData(open_slides([cohort["a"], raw(cohort["c"])], NEEDS, "training"))
    assert caught.value.code == "mixed_slides"
    job = live_job([raw(cohort["a"])], ENCODER, tmp_path)
    stored = open_slides([cohort["a"]], NEEDS, "training")
    with pytest.raises(SlideloomError) as caught:
        Feed(PatchData(stored), job, CPU, make_front(job, stored, CPU))
    assert caught.value.code == "mixed_slides"
    assert make_front(dataclasses.replace(job, live=None), stored, CPU) is None
    front = Live.open([cohort["a"]], ENCODER, tmp_path).front
    with pytest.raises(SlideError) as told:
        Feed(PatchData(open_slides([raw(rgb[0])], NEEDS, "validation")), job, CPU, front)
    assert told.value.code == "missing_marker"
    both = open_slides([raw(cohort["c"]), raw(rgb[0])], NEEDS, "training")
    with caplog.at_level(logging.WARNING):
        assert front.fitting(both, "training") == both[:1]
    assert "1 of 2 training slides are left out: r (no channel shows DNA, CD3, CD20)" in caplog.text


def test_a_slide_that_does_not_fit_leaves_the_training_to_the_others(
    cohort: dict[str, SlideData], rgb: list[SlideData], tmp_path: Path
) -> None:
    both = live_job([raw(cohort["c"]), raw(rgb[0])], ENCODER, tmp_path / "both")
    alone = live_job([raw(cohort["c"])], ENCODER, tmp_path / "alone")
    first, second = train(both), train(alone)
    assert read_meta(first).training["n_train_slides"] == 1
    assert first.read_bytes() == second.read_bytes()


def test_notes_of_slides_reach_the_record(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    used = [cohort["a"], cohort["c"]]
    config = VIRTUES.model_copy(update={"model": "virtues/sp31", "off_resolution": True})

    def tiny(_: EncoderConfig, channels: Any) -> Encoder:
        encoder: Any = build(VIRTUES, channels)
        encoder.spec = dataclasses.replace(encoder.spec, mpp_um=(0.9, 1.1))
        return encoder  # type: ignore[no-any-return]

    notes = Live.open(used, config, tmp_path, build=tiny).feed.geometry.encoder_record["notes"]
    assert len([note for note in notes if note.startswith("off resolution on purpose")]) == 1
    assert any("DRAWN" in note for note in notes)
    with pytest.raises(SlideError) as told:
        Live.open(used, config.model_copy(update={"off_resolution": False}), tmp_path, build=tiny)
    assert (told.value.code, told.value.where) == ("encoder_resolution", "a")


def test_training_tunes_the_encoder_and_the_file_brings_it_back(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "training": {"epochs": 2, "unfreeze_epoch": 1, "encoder_lr": 1e-3, "keep": "last", "batch_size": 6},
        "augmentation": {"flips": 0.5, "channel_dropout": 0.3},
        "val": (raw(cohort["c"]),),
    }
    live = Live.open([cohort["a"]], VIRTUES, tmp_path / "m", **changes)
    place = train(live.job)
    meta = read_meta(place)
    assert meta.encoder_trained
    assert meta.encoder["weights"].startswith("random:0 tuned:")
    decoder, _ = load_decoder(place)
    assert not any(name.startswith("encoder.") for name in decoder.state_dict())
    encoder: Encoder = build(VIRTUES, live_panel(meta.encoder))
    untuned = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    load_tuned_encoder(place, encoder)
    assert encoder.weights == meta.encoder["weights"]
    changed = [name for name, value in encoder.module.state_dict().items() if not torch.equal(value, untuned[name])]
    assert {"marker_encoder.weight", "patch_encoder.weight", "blocks.0.qkv.weight"} <= set(changed)
    again = train(dataclasses.replace(live.job, place=tmp_path / "again"))
    assert again.read_bytes() == place.read_bytes(), "equal seeds, equal weights"
    frozen = live_job(live.job.train, VIRTUES, tmp_path / "frozen", **changes | {"training": {"epochs": 1}})
    assert not read_meta(train(frozen)).encoder_trained


class Killed(Exception):
    """The machine goes down."""


@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_training_goes_on_to_the_same_encoder(
    cohort: dict[str, SlideData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    def job(name: str) -> TrainJob:
        training = {"epochs": 3, "unfreeze_epoch": 1, "encoder_lr": 1e-3, "keep": "last", "batch_size": 6}
        moves = {"flips": 0.5, "intensity_scaling": 0.5}
        given: dict[str, Any] = {"training": training, "augmentation": moves, "save_every_s": 0.0}
        return live_job([raw(cohort["a"])], VIRTUES, tmp_path / name, **given)

    whole = train(job("whole"))
    calls = iter(range(9))

    def dies(*given: Any) -> None:
        save_state(*given)
        if next(calls) == after - 1:
            raise Killed

    monkeypatch.setattr(loop, "save_state", dies)
    with pytest.raises(Killed):
        train(job("broken"))
    assert train(job("broken")).read_bytes() == whole.read_bytes()


def live_panel(record: dict[str, Any]) -> Any:
    from slideloom.encoders.fit import marker_panel

    return marker_panel([*record["markers"], *record["dropped"]], UNIPROT)

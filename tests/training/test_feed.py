"""What lies between the patches and the decoder: augmentation in training only, and always the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slideloom.config.model import AugmentationConfig, EncoderConfig
from slideloom.errors import SlideloomError
from slideloom.training.batch import Batch
from slideloom.training.data import PatchData, batches_in_order, epoch_order
from slideloom.training.feed import Feed
from slideloom.training.job import TrainJob
from slideloom.training.stored import SlideData, open_slides
from slideloom.training.symmetry import draw_symmetries, transform_targets

from .conftest import ENCODER
from .live_cohort import CPU, NEEDS, TIMM, VIRTUES, Live, embedded, live_job, raw, rgb_slide

ALL = {"flips": 0.5, "turns": 0.5, "channel_dropout": 0.3, "intensity_scaling": 0.5}
COLOURS = {"flips": 0.5, "turns": 0.5, "colour_jitter": 1.0, "stain_jitter": 1.0}


def stored_job(slides: Sequence[SlideData], place: Path, **changes: Any) -> TrainJob:
    return dataclasses.replace(live_job(slides, ENCODER, place, **changes), live=None)


def stored_feed(slides: Sequence[SlideData], place: Path, held: int = 0, **changes: Any) -> Feed:
    job = stored_job(slides, place, **changes)
    data = PatchData(open_slides(slides, NEEDS, "training"), 0 if job.training.shuffle_targets else None)
    data.hold(held, symmetries=True)
    return Feed(data, job, CPU)


def every(feed: Feed, epoch: int = 0, *, training: bool = True) -> list[Batch]:
    return list(feed.batches(batches_in_order(feed.n, 5), epoch, training=training))


def same(one: Batch, other: Batch) -> bool:
    if not all(torch.equal(a, b) for a, b in zip(one.tokens, other.tokens, strict=True)):
        return False
    assert one.image is not None
    assert other.image is not None
    return torch.equal(one.image, other.image) and all(
        torch.equal(values, other.targets[name]) for name, values in one.targets.items()
    )


@pytest.fixture(scope="module")
def turned(cohort: dict[str, SlideData], tmp_path_factory: pytest.TempPathFactory) -> dict[str, SlideData]:
    """Slides a and b with the tokens of all flips and turns, of an encoder that knows directions."""
    place = tmp_path_factory.mktemp("turned")
    config = VIRTUES.model_copy(update={"symmetries": True, "blocks": [2, 8]})
    return {name: embedded(cohort[name], config, place) for name in "ab"}


def test_stored_batches_are_those_of_the_stores(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    feed = stored_feed([cohort["a"], cohort["b"]], tmp_path)
    order = epoch_order(feed.n, 4, 0, 0)
    for batch, indices in zip(feed.batches(order, 0, training=True), order, strict=True):
        assert same(batch, feed.data.batch(indices).to(CPU))
    assert feed.waited_s > 0 == feed.encoded_s
    geometry = feed.geometry
    assert geometry[:4] == (3, 8, 3, (1,))
    assert geometry.encoder_record["markers"] == ["DNA", "CD3", "CD20"]
    assert geometry.statistics is None, "each slide has its own"
    assert stored_feed([cohort["a"]], tmp_path).geometry.statistics is not None


def test_nothing_is_asked_of_the_patches_that_is_not_needed(
    cohort: dict[str, SlideData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = stored_feed([cohort["a"]], tmp_path)
    asked: list[tuple[Any, ...]] = []
    real = feed.data.batch
    monkeypatch.setattr(feed.data, "batch", lambda *given: asked.append(given) or real(*given))  # type: ignore[func-returns-value]
    monkeypatch.setattr(np.random, "default_rng", None)
    every(feed)
    assert all(len(given) == 1 for given in asked), "without augmentation, patches are read as they always were"


@pytest.mark.parametrize("config", [VIRTUES, TIMM], ids=lambda config: config.model)
def test_augmentation_is_for_training_and_follows_from_seed_epoch_and_step(
    config: EncoderConfig, cohort: dict[str, SlideData], tmp_path: Path
) -> None:
    slides = [cohort["a"]] if config is VIRTUES else [rgb_slide(tmp_path, "r", 7)]
    plain = Live.open(slides, config, tmp_path).feed
    settings = ALL if config is VIRTUES else COLOURS
    one, two, other = (
        Live.open(slides, config, tmp_path, augmentation=settings, training={"seed": seed}, read_threads=threads).feed
        for seed, threads in ((0, 1), (0, 3), (1, 1))
    )
    two.data.hold(1 << 30)
    assert all(same(a, b) for a, b in zip(every(plain), every(one, training=False), strict=True))
    first = every(one)
    assert all(same(a, b) for a, b in zip(first, every(two), strict=True))
    assert not any(same(a, b) for a, b in zip(first, every(plain), strict=True))
    for changed in (every(other), every(one, 1)):
        assert not any(same(a, b) for a, b in zip(first, changed, strict=True))
    # Two steps of the same patches are two draws.
    again = list(one.batches([np.arange(5)] * 2, 0, training=True))
    assert same(again[0], first[0])
    assert not same(again[0], again[1])
    for batch in first:
        assert batch.image is not None
        assert torch.isfinite(batch.image).all()
        assert all(torch.isfinite(tokens).all() for tokens in batch.tokens)


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_stored_and_live_tokens_are_flipped_and_turned_alike(
    turned: dict[str, SlideData], tmp_path: Path, held: int
) -> None:
    moves: dict[str, Any] = {"augmentation": {"flips": 0.5, "turns": 0.75}, "training": {"seed": 4}}
    stored = stored_feed(list(turned.values()), tmp_path, held, **moves)
    config = VIRTUES.model_copy(update={"blocks": [2, 8]})
    live = Live.open(list(turned.values()), config, tmp_path, **moves).feed
    order = epoch_order(live.n, 6, 0, 0)
    seen: set[int] = set()
    for step, (read, made) in enumerate(
        zip(stored.batches(order, 2, training=True), live.batches(order, 2, training=True), strict=True)
    ):
        assert read.image is not None
        assert made.image is not None
        torch.testing.assert_close(read.image, made.image, rtol=1e-6, atol=1e-6)
        assert read.image.stride() == made.image.stride()
        for ours, theirs in zip(read.tokens, made.tokens, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2**-9, atol=1e-3)
        assert all(torch.equal(values, made.targets[name]) for name, values in read.targets.items())
        rng = np.random.default_rng([4, 2, step, 0xA6])
        drawn = draw_symmetries(AugmentationConfig(flips=0.5, turns=0.75), read.n, rng)
        plain = stored.data.batch(order[step])
        moved = transform_targets(plain.targets, drawn)
        assert all(torch.equal(values, moved[name]) for name, values in read.targets.items())
        # The image shows that inputs went the way of the targets: nuclei are bright in the first channel.
        shown = read.image[:, 0][read.targets["nucleus"].bool()].mean()
        assert shown > read.image[:, 0][~read.targets["nucleus"].bool() & read.targets["valid"]].mean() + 0.5
        seen |= set(drawn.tolist())
    assert seen == set(range(8))


def test_shuffled_targets_move_as_their_new_patches_do(turned: dict[str, SlideData], tmp_path: Path) -> None:
    feed = stored_feed(list(turned.values()), tmp_path, augmentation={"flips": 1.0}, training={"shuffle_targets": True})
    for indices, batch in zip(batches_in_order(feed.n, 5), every(feed), strict=True):
        still = feed.data.batch(indices)
        for name, values in transform_targets(still.targets, np.full(len(indices), 2, np.uint8)).items():
            assert torch.equal(batch.targets[name], values)


def test_memory_for_flips_and_turns_is_foretold_and_falls_back(turned: dict[str, SlideData]) -> None:
    data = PatchData(open_slides([turned["a"]], NEEDS, "training"))
    slide = data.slides[0]
    tokens = 2 * 4 * 4 * 64 * 2
    assert slide.bytes_each(True) - slide.bytes_each(False) == 7 * tokens
    assert data.hold(1 << 30, symmetries=True) == slide.n * slide.bytes_each(True)
    assert data.hold(slide.n * slide.bytes_each(True) - 1, symmetries=True) == slide.n * slide.bytes_each(False)
    indices, symmetries = np.array([3, 1, 7]), np.array([0, 5, 3], np.uint8)
    partly = data.batch(indices, symmetries)
    data.hold(1 << 30, symmetries=True)
    wholly = data.batch(indices, symmetries)
    assert same(partly, wholly)
    assert same(data.batch(indices), data.batch(indices, np.zeros(3, np.uint8)))


def test_what_stored_tokens_cannot_do_is_refused(
    cohort: dict[str, SlideData], turned: dict[str, SlideData], tmp_path: Path
) -> None:
    with pytest.raises(SlideloomError, match=r"training\.input: live") as caught:
        stored_feed([turned["a"]], tmp_path, augmentation={"flips": 0.5, "channel_dropout": 0.1})
    assert caught.value.code == "augmentation_stored"
    feed = stored_feed([cohort["a"]], tmp_path, augmentation={"turns": 0.5})
    assert len(every(feed, training=False)) == 3
    with pytest.raises(SlideloomError, match="stored of a") as caught:
        feed.batches([np.arange(2)], 0, training=True)
    assert caught.value.code == "augmentation_stored"
    assert "symmetries: true" in caught.value.hint
    # Colours of markers cannot change, so they are nothing to refuse.
    assert stored_feed([cohort["a"]], tmp_path, augmentation={"colour_jitter": 1.0}).n == 12


def test_raw_patches_are_held_as_the_encoder_reads_them(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    config = EncoderConfig(**VIRTUES.model_dump() | {"markers": ["CD20", "DNA"]})
    data = PatchData(open_slides([raw(cohort["a"])], NEEDS, "training"))
    slide = data.slides[0]
    before = data.hold(1 << 30)
    assert before == slide.n * slide.bytes_each()
    disk = Live.open([cohort["a"]], config, tmp_path)
    disk.front.fit(data.slides)
    assert slide.channels == [2, 0]
    assert before - slide.n * slide.bytes_each() == slide.n * 32 * 32 * 2
    held = Feed(data, disk.job, CPU, disk.front)
    assert all(same(a, b) for a, b in zip(every(disk.feed), every(held), strict=True))


def test_an_early_end_and_an_error_leave_no_reader(
    cohort: dict[str, SlideData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    live = Live.open([cohort["a"]], ENCODER, tmp_path)
    batches = live.feed.batches(batches_in_order(12, 2), 0, training=True)
    next(batches)
    batches.close()  # type: ignore[attr-defined]

    def fail(*_: object) -> object:
        raise OSError("disk gone")

    monkeypatch.setattr(live.data, "batch", fail)
    with pytest.raises(OSError, match="disk gone"):
        every(live.feed)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]

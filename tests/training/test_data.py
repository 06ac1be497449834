from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.artefacts.zarrio import read_array, write_array
from slideloom.config.model import Head
from slideloom.errors import SlideloomError
from slideloom.patches.store import PatchStore
from slideloom.patches.target_store import TargetStore
from slideloom.training.data import PatchData, batches_in_order, derangement, epoch_order, prefetched
from slideloom.training.stored import Needs, PixelTable, SlideData, StoredSlide, open_slides

CPU = torch.device("cpu")
HEADS: tuple[Head, ...] = ("nucleus", "hv", "classes", "boundary")
NEEDS = Needs(HEADS, skips=True, image=True, n_classes=3)


def data_of(cohort: dict[str, SlideData], names: str = "abc", seed: int | None = None, held: int = 0) -> PatchData:
    data = PatchData(open_slides([cohort[name] for name in names], NEEDS, "training"), seed)
    data.hold(held)
    return data


def test_a_batch_is_what_the_stores_hold(cohort: dict[str, SlideData]) -> None:
    data = data_of(cohort)
    assert [slide.n for slide in data.slides] == [12, 9, 12]
    picked = np.array([14, 0, 32, 11, 12])  # b2 a0 c11 a11 b0
    batch = data.batch(picked)
    assert batch.n == 5
    for spot, (name, index) in enumerate([("b", 2), ("a", 0), ("c", 11), ("a", 11), ("b", 0)]):
        patches, targets = PatchStore(cohort[name].patches), TargetStore(cohort[name].targets)
        slide = next(slide for slide in data.slides if slide.slide_id == name)
        pixels = patches.pixels([index])
        statistics = slide.embeddings.statistics
        assert statistics is not None
        assert batch.image is not None
        np.testing.assert_array_equal(batch.image[spot].numpy(), statistics.apply(pixels)[0])
        stored = targets.read([index])
        for head in ("classes", "hv", "boundary"):
            np.testing.assert_array_equal(batch.targets[head][spot].numpy(), stored[head][0])
        np.testing.assert_array_equal(batch.targets["nucleus"][spot].numpy(), stored["instances"][0] > 0)
        np.testing.assert_array_equal(batch.targets["valid"][spot].numpy(), patches.valid([index])[0])
        tokens = slide.embeddings.tokens(1, [index])[0]
        for level in batch.tokens:
            np.testing.assert_array_equal(level[spot].permute(1, 2, 0).numpy(), tokens)
    assert len(batch.tokens) == 4
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in batch.tokens)
    assert batch.image is not None
    assert batch.image.is_contiguous(memory_format=torch.channels_last)


def test_padding_is_not_valid_and_unknown_classes_are_marked(cohort: dict[str, SlideData]) -> None:
    data = data_of(cohort)
    batch = data.batch(np.arange(data.n))
    valid = batch.targets["valid"]
    assert valid.sum() == 80 * 112 * 2 + 96 * 96
    assert not batch.targets["classes"][~valid].any()
    unknown = batch.targets["classes"] == 255
    assert unknown[12:21].any()
    assert not unknown[:12].any()
    assert batch.targets["nucleus"][unknown].all()


@pytest.mark.parametrize("held", [1 << 30, 200_000])
@pytest.mark.parametrize("seed", [None, 5])
def test_memory_and_disk_give_the_same_batches(cohort: dict[str, SlideData], held: int, seed: int | None) -> None:
    disk, memory = data_of(cohort, seed=seed), data_of(cohort, seed=seed, held=held)
    assert disk.hold(0) == 0
    for indices in epoch_order(disk.n, 7, 0, 0):
        one, two = disk.batch(indices), memory.batch(indices)
        assert one.image is not None
        assert two.image is not None
        assert torch.equal(one.image, two.image)
        assert all(torch.equal(a, b) for a, b in zip(one.tokens, two.tokens, strict=True))
        assert all(torch.equal(one.targets[name], two.targets[name]) for name in one.targets)


def test_memory_taken_is_what_was_foretold(cohort: dict[str, SlideData]) -> None:
    slides = open_slides(list(cohort.values()), NEEDS, "training")
    assert all(slide.hold() == slide.n * slide.bytes_each() for slide in slides)
    assert data_of(cohort).hold(slides[0].n * slides[0].bytes_each()) == slides[0].n * slides[0].bytes_each()


def test_only_what_the_decoder_reads_is_read(cohort: dict[str, SlideData]) -> None:
    slides = open_slides([cohort["a"]], Needs(("nucleus",), skips=False, image=False, n_classes=1), "training")
    batch = PatchData(slides).batch(np.arange(3))
    assert batch.image is None
    assert set(batch.targets) == {"nucleus", "valid"}
    only_hv = open_slides([cohort["a"]], Needs(("hv",), skips=False, image=False, n_classes=1), "training")
    assert set(PatchData(only_hv).batch(np.arange(3)).targets) == {"hv", "nucleus", "valid"}


def test_a_class_beyond_the_table_is_refused(cohort: dict[str, SlideData]) -> None:
    data = PatchData(open_slides([cohort["a"]], Needs(HEADS, skips=True, image=True, n_classes=2), "training"))
    with pytest.raises(SlideloomError, match="class 2 in the targets") as caught:
        data.batch(np.arange(12))
    assert caught.value.code == "unknown_class"


def test_class_pixels_count_valid_known_pixels(cohort: dict[str, SlideData]) -> None:
    data = data_of(cohort)
    batch = data.batch(np.arange(data.n))
    classes = batch.targets["classes"][batch.targets["valid"]]
    wanted = [int((classes == k).sum()) for k in range(3)]
    assert data.class_pixels().tolist() == wanted
    data.hold(1 << 30)
    assert data.class_pixels().tolist() == wanted


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_presence_and_nuclei_are_those_of_the_stores(cohort: dict[str, SlideData], held: int) -> None:
    data = data_of(cohort, held=held)
    rows, nuclei = [], 0
    for name in "abc":
        patches, stored = PatchStore(cohort[name].patches), TargetStore(cohort[name].targets).read(slice(None))
        valid = patches.valid(slice(None))
        ids: set[int] = set()
        for inside, instances, classes in zip(valid, stored["instances"], stored["classes"], strict=True):
            there = inside & (instances > 0)
            rows.append([bool((classes[there] == number).any()) for number in (1, 2)])
            ids |= set(instances[there].tolist())
        nuclei += len(ids)
    presence = data.class_presence()
    assert (presence.dtype, presence.shape) == (np.bool_, (33, 2))
    assert presence.tolist() == rows
    assert not presence.all()
    assert data.n_nuclei() == nuclei
    shuffled = data_of(cohort, seed=3, held=held)
    assert shuffled.class_presence().tolist() == presence[derangement(data.n, 3)].tolist()
    assert shuffled.n_nuclei() == nuclei


def test_presence_without_classes_and_beyond_the_slide(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    needs = Needs(("nucleus",), skips=True, image=True, n_classes=1)
    plain = PatchData(open_slides([cohort["a"]], needs, "training"))
    assert plain.class_presence().shape == (12, 0)
    assert plain.n_nuclei() == data_of(cohort, "a").n_nuclei()
    # What lies in the padding is nobody's: ids and classes put there are not counted.
    place = tmp_path / "targets.zarr"
    shutil.copytree(cohort["a"].targets, place)
    outside = ~PatchStore(cohort["a"].patches).valid(slice(None))
    assert outside.any()
    for name, value in (("instances", 10_000_000), ("classes", 1)):
        values = read_array(place / name).copy()
        values[outside] = value
        shutil.rmtree(place / name)
        write_array(place / name, values)
    spoilt = PatchData(open_slides([dataclasses.replace(cohort["a"], targets=place)], NEEDS, "training"))
    assert spoilt.n_nuclei() == plain.n_nuclei()
    assert spoilt.class_presence().tolist() == data_of(cohort, "a").class_presence().tolist()


def test_shuffled_targets_are_another_patchs_and_always_the_same(cohort: dict[str, SlideData]) -> None:
    plain, shuffled = data_of(cohort), data_of(cohort, seed=3)
    everything = np.arange(plain.n)
    true, moved = plain.batch(everything), shuffled.batch(everything)
    assert true.image is not None
    assert moved.image is not None
    assert torch.equal(true.image, moved.image)
    target_of = derangement(plain.n, 3)
    assert torch.equal(moved.targets["hv"], true.targets["hv"][target_of])
    both = true.targets["valid"] & true.targets["valid"][target_of]
    assert torch.equal(moved.targets["valid"], both)
    assert torch.equal(data_of(cohort, seed=3).batch(everything).targets["hv"], moved.targets["hv"])
    owner = np.searchsorted([12, 21], everything, side="right")
    assert (owner != owner[target_of]).any(), "targets also move between slides"


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.integers(0, 2**32))
def test_a_derangement_leaves_nothing_in_place(count: int, seed: int) -> None:
    target_of = derangement(count, seed)
    assert sorted(target_of.tolist()) == list(range(count))
    assert (target_of != np.arange(count)).all()


def test_one_patch_cannot_be_shuffled() -> None:
    with pytest.raises(SlideloomError) as caught:
        derangement(1, 0)
    assert caught.value.code == "too_few_patches"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_every_patch_comes_once_an_epoch_and_never_alone(count: int, size: int, epoch: int) -> None:
    order = epoch_order(count, size, 7, epoch)
    assert sorted(np.concatenate(order).tolist()) == list(range(count))
    assert all(part.size == size for part in order[:-1])
    assert order[-1].size <= size + 1
    if count > 1 and size > 1:
        assert order[-1].size > 1
    again = epoch_order(count, size, 7, epoch)
    assert all((a == b).all() for a, b in zip(order, again, strict=True))
    assert np.concatenate(batches_in_order(count, size)).tolist() == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [np.concatenate(epoch_order(50, 8, seed, epoch)).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetched_batches_come_in_order(cohort: dict[str, SlideData], workers: int) -> None:
    data = data_of(cohort)
    order = epoch_order(data.n, 4, 0, 0)
    got = list(prefetched(data, order, CPU, workers=workers))
    assert [batch.n for batch in got] == [part.size for part in order]
    for batch, indices in zip(got, order, strict=True):
        assert torch.equal(batch.targets["hv"], data.batch(indices).targets["hv"])
        assert all(level.dtype == torch.float32 for level in batch.tokens)
        assert all(level is batch.tokens[0] for level in batch.tokens), "one block stays one tensor"


def test_at_most_a_few_batches_wait_and_an_early_end_leaves_no_thread(
    cohort: dict[str, SlideData], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(cohort)
    made: list[int] = []
    real = data.batch
    monkeypatch.setattr(data, "batch", lambda indices: made.append(1) or real(indices))  # type: ignore[func-returns-value]
    batches = prefetched(data, epoch_order(data.n, 1, 0, 0), CPU, workers=1, ahead=2)
    next(batches)
    assert len(made) <= 4
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_an_error_while_reading_reaches_the_caller(
    cohort: dict[str, SlideData], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(cohort)

    def fail(indices: object) -> object:
        raise OSError("disk gone")

    monkeypatch.setattr(data, "batch", fail)
    with pytest.raises(OSError, match="disk gone"):
        list(prefetched(data, batches_in_order(data.n, 8), CPU))


def test_slides_without_their_stores_are_left_out_aloud(
    cohort: dict[str, SlideData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    absent = dataclasses.replace(cohort["b"], targets=tmp_path / "none.zarr")
    gone = SlideData("ghost", tmp_path / "p", tmp_path / "t", tmp_path / "e")
    with caplog.at_level(logging.WARNING):
        opened = open_slides([cohort["a"], absent, gone], NEEDS, "training")
    assert [slide.slide_id for slide in opened] == ["a"]
    assert "2 of 3 training slides are left out: b (no targets); ghost (no patches, targets, embeddings)" in caplog.text


def test_stores_that_do_not_belong_together_are_refused(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    with pytest.raises(SlideloomError) as caught:
        StoredSlide(dataclasses.replace(cohort["a"], targets=cohort["b"].targets), NEEDS)
    assert caught.value.code == "store_mismatch"
    other = tmp_path / "other.zarr"
    shutil.copytree(cohort["b"].embeddings, other)
    text = (other / "zarr.json").read_text().replace('"weights": "none"', '"weights": "random:1"')
    (other / "zarr.json").write_text(text)
    slides = open_slides([cohort["a"], dataclasses.replace(cohort["b"], embeddings=other)], NEEDS, "training")
    with pytest.raises(SlideloomError, match="random:1") as caught:
        PatchData(slides)
    assert caught.value.code == "mixed_slides"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_looking_pixels_up_is_working_them_out(dtype: type[np.generic]) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (3, 4, 8, 10)).astype(dtype)
    scale = np.arange(1, 5, dtype=np.float32)[:, None, None]

    def normalise(values: np.ndarray) -> np.ndarray:
        return np.log1p(values.astype(np.float32)) / scale  # type: ignore[no-any-return]

    got = PixelTable(normalise, 4, np.dtype(dtype))(pixels)
    np.testing.assert_array_equal(got, normalise(pixels).transpose(0, 2, 3, 1))

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slideloom.training.losses import pixel_map
from slideloom.training.lovasz import _falling, jaccard_slopes, lovasz_hinge, lovasz_softmax

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Way = Callable[[Floats, Bools], float]


def jaccard_loss(wrong: Bools, truth: Bools) -> float:
    """The set function: one minus |truth minus wrong| / |truth or wrong|."""
    return 1 - float((truth & ~wrong).sum()) / float((truth | wrong).sum())


def by_definition(errors: Floats, truth: Bools) -> float:
    """The Lovász extension of the Jaccard loss, pixel after pixel by falling error."""
    wrong = np.zeros(errors.shape, bool)
    total, before = 0.0, 0.0
    for pixel in np.argsort(-errors):
        wrong[pixel] = True
        now = jaccard_loss(wrong, truth)
        total += errors[pixel] * (now - before)
        before = now
    return total


def by_levels(errors: Floats, truth: Bools) -> float:
    """The same as an integral: the Jaccard loss of the pixels whose error is above t, over all t."""
    levels = np.concatenate([[0.0], np.sort(errors)])
    return sum(
        float(above - below) * jaccard_loss(errors > below, truth)
        for below, above in itertools.pairwise(levels)
        if above > below
    )


@pytest.mark.parametrize("way", [by_definition, by_levels])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_and_hinge_are_the_lovasz_extension(way: Way, dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 4, 6, 7), generator=drawn, dtype=torch.float64).to(dtype)
    target = torch.randint(0, 3, (2, 6, 7), generator=drawn)  # class 3 is absent
    usable = torch.rand((2, 6, 7), generator=drawn) > 0.2
    counted, label = usable.numpy().ravel(), target.numpy().ravel()
    p = logits.double().softmax(1).transpose(0, 1).reshape(4, -1).numpy()
    values = []
    for number in range(3):
        truth = label == number
        values.append(way(np.where(truth, 1 - p[number], p[number])[counted], truth[counted]))
    near = 1e-12 if dtype == torch.float64 else 1e-6
    here = pixel_map(logits, target, usable)
    assert lovasz_softmax(here).item() == pytest.approx(np.mean(values), rel=near)
    assert lovasz_softmax(here, first=1).item() == pytest.approx(np.mean(values[1:]), rel=near)
    margin = logits[:, 1].double().numpy().ravel()
    errors = np.maximum(0, 1 - margin * np.where(label == 1, 1, -1))
    got = lovasz_hinge(logits[:, 1], target, usable)
    assert got.item() == pytest.approx(way(errors[counted], (label == 1)[counted]), rel=near)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_on_sure_maps_both_are_the_jaccard_loss(pixels: list[tuple[bool, bool]]) -> None:
    truth, wrong = (np.array(part) for part in zip(*pixels, strict=True))
    target = torch.from_numpy(truth.astype(np.int64)).reshape(1, 1, -1)
    says = torch.from_numpy(truth != wrong).reshape(1, 1, -1)
    wanted = jaccard_loss(wrong, truth) if truth.any() else 0.0
    # a margin of 1 has the error 0, a margin of 0 the error 1
    margin = torch.where(target == 1, 1.0, -1.0) * torch.from_numpy(~wrong).reshape(1, 1, -1)
    assert lovasz_hinge(margin, target).item() == pytest.approx(wanted, abs=1e-6)
    logits = 200.0 * torch.stack([~says, says], dim=1)
    wanted = float(np.mean([jaccard_loss(wrong, part) for part in (truth, ~truth) if part.any()]))
    assert lovasz_softmax(pixel_map(logits, target)).item() == pytest.approx(wanted, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_slopes_share_out_one_over_the_pixels_that_count(seed: int, n: int, dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(seed)
    errors = (torch.rand((3, n), generator=drawn) * 4).round().to(dtype) / 4  # with many equal ones
    counted = torch.rand(n, generator=drawn) > 0.3
    here = (torch.rand((3, n), generator=drawn) > 0.5) & counted
    slopes = jaccard_slopes(errors, here, counted)
    assert (slopes >= 0).all()
    assert not slopes[:, ~counted].any()
    assert slopes.sum(1).tolist() == pytest.approx(here.any(1).double().tolist(), abs=1e-5)
    cropped = jaccard_slopes(errors[:, counted], here[:, counted])
    assert (slopes * errors).sum(1).tolist() == pytest.approx((cropped * errors[:, counted]).sum(1).tolist(), abs=1e-5)


def test_no_pixel_at_all_loses_nothing() -> None:
    assert jaccard_slopes(torch.zeros((2, 0)), torch.zeros((2, 0), dtype=torch.bool)).shape == (2, 0)
    target, nothing = torch.ones((1, 3, 3), dtype=torch.long), torch.zeros((1, 3, 3), dtype=torch.bool)
    assert lovasz_hinge(torch.zeros((1, 3, 3)), target, nothing).item() == 0
    assert lovasz_hinge(torch.full((1, 3, 3), 9.0), 0 * target).item() == 0  # no foreground


def test_single_precision_sorts_as_double_does_and_breaks_ties_by_place() -> None:
    drawn = torch.Generator().manual_seed(2)
    errors = torch.rand((4, 5000), generator=drawn)
    assert torch.equal(_falling(errors), _falling(errors.double()))
    assert torch.equal(_falling(torch.tensor([[0.5, 0.0, 0.5, 2.0]])), torch.tensor([[3, 0, 2, 1]]))
    wide = torch.rand((3, 8), generator=drawn).T  # not contiguous
    assert torch.equal(_falling(wide), _falling(wide.double()))


def test_slopes_of_a_large_batch_keep_their_digits() -> None:
    drawn = torch.Generator().manual_seed(3)
    errors = torch.rand((1, 200_000), generator=drawn)
    here = torch.rand((1, 200_000), generator=drawn) > 0.6
    single, double = jaccard_slopes(errors, here), jaccard_slopes(errors.double(), here)
    assert torch.allclose(single.double(), double, rtol=1e-6, atol=0)


def test_hinge_stops_at_the_margin() -> None:
    margin = torch.tensor([[[2.0, 0.2, -3.0, -0.5]]], requires_grad=True)
    target = torch.tensor([[[1, 1, 0, 0]]])
    lovasz_hinge(margin, target).backward()  # type: ignore[no-untyped-call]
    assert margin.grad is not None
    # 0.8 misses half of the truth; then 0.5 makes it one of three.
    assert margin.grad.flatten().tolist() == pytest.approx([0, -1 / 2, 0, 1 / 6])

"""The attention modules against attention written out, pixel by pixel; memory; what a window may and may not see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from slideloom.decoders import attention
from slideloom.decoders.attention import GlobalContext, MaskedAttention, attention_heads, predicted_foreground


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every weight drawn, the last projection's too, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return module.eval()


def maps_of(count: int, channels: int, high: int, wide: int, seed: int = 1) -> Tensor:
    return torch.randn(count, channels, high, wide, generator=torch.Generator().manual_seed(seed))


def some_foreground(count: int, high: int, wide: int, share: float = 0.4, seed: int = 2) -> Tensor:
    return torch.rand(count, high, wide, generator=torch.Generator().manual_seed(seed)) < share


def written_out(module: Any, rows: Tensor, may: Tensor) -> Tensor:
    """Attention of rows (p, c) in float64, a query and a head at a time; ``may`` (p, p): who may see whom."""
    rows = rows.double()
    state = {name: value.double() for name, value in module.state_dict().items()}
    mean, variance = rows.mean(1, keepdim=True), rows.var(1, unbiased=False, keepdim=True)
    normed = (rows - mean) / (variance + module.norm.eps).sqrt() * state["norm.weight"] + state["norm.bias"]
    query, key, value = (normed @ state["qkv.weight"].T + state["qkv.bias"]).chunk(3, dim=1)
    width = rows.shape[1] // module.heads
    mixed = torch.zeros_like(rows)
    for head in range(module.heads):
        own = slice(head * width, (head + 1) * width)
        for k in range(len(rows)):
            seen = may[k].nonzero()[:, 0]
            if len(seen):
                weights = torch.softmax(key[seen, own] @ query[k, own] / math.sqrt(width), dim=0)
                mixed[k, own] = weights @ value[seen, own]
    return rows + mixed @ state["out.weight"].T + state["out.bias"]


# ---- equal to attention written out -------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "high", "wide"), [(4, 1, 1), (8, 3, 5), (64, 4, 4), (40, 2, 7)])
def test_global_context_is_attention_over_all_positions(channels: int, high: int, wide: int) -> None:
    module = drawn(GlobalContext(channels))
    maps = maps_of(2, channels, high, wide)
    with torch.inference_mode():
        got = module(maps)
    for tile, expected in zip(got, maps, strict=True):
        rows = written_out(module, expected.flatten(1).T, torch.ones(high * wide, high * wide, dtype=torch.bool))
        torch.testing.assert_close(tile.flatten(1).T.double(), rows, atol=2e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    high=st.integers(1, 11),
    wide=st.integers(1, 11),
    window=st.integers(2, 8),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    channels=st.sampled_from([4, 8, 64]),
    seed=st.integers(0, 99),
)
def test_masked_attention_is_dense_attention_within_windows_and_foreground(
    high: int, wide: int, window: int, share: float, channels: int, seed: int
) -> None:
    """Every tile size, windows that do not fit, windows without foreground; background comes out as it went in."""
    module = drawn(MaskedAttention(channels, window), seed)
    maps, inside = maps_of(2, channels, high, wide, seed), some_foreground(2, high, wide, share, seed + 1)
    with torch.inference_mode():
        got = module(maps, inside)
    row, column = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    number = (row // window * 100 + column // window).flatten()
    for k in range(2):
        keys = inside[k].flatten()
        rows = written_out(module, maps[k].flatten(1).T, (number[:, None] == number[None, :]) & keys[None, :])
        expected = torch.where(keys[:, None], rows, maps[k].flatten(1).T.double())
        torch.testing.assert_close(got[k].flatten(1).T.double(), expected, atol=2e-5, rtol=0)
        assert torch.equal(got[k][:, ~inside[k]], maps[k][:, ~inside[k]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), side=st.integers(3, 13), window=st.integers(2, 6))
def test_foreground_knows_nothing_of_the_background(seed: int, side: int, window: int) -> None:
    module = drawn(MaskedAttention(8, window), seed)
    maps, inside = maps_of(2, 8, side, side, seed), some_foreground(2, side, side, seed=seed)
    other = torch.where(inside[:, None], maps, 100 * maps_of(2, 8, side, side, seed + 1))
    with torch.inference_mode():
        one, two = module(maps, inside), module(other, inside)
    there = inside[:, None].expand_as(one)
    assert torch.equal(one[there], two[there])
    assert torch.equal(two[~there], other[~there])


def test_a_window_does_not_see_its_neighbours() -> None:
    module = drawn(MaskedAttention(8, 4))
    maps, inside = maps_of(1, 8, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool)
    other = maps.clone()
    other[..., 4:] += 1
    with torch.inference_mode():
        one, two = module(maps, inside), module(other, inside)
    assert torch.equal(one[..., :4], two[..., :4])
    assert not torch.equal(one[..., 4:], two[..., 4:])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_gradients_are_finite_and_background_passes_them_on_whole(share: float) -> None:
    module = drawn(MaskedAttention(8, 4))
    maps, inside = maps_of(2, 8, 7, 9).requires_grad_(), some_foreground(2, 7, 9, share)
    module(maps, inside).sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()
    alone = (~inside)[:, None].expand_as(maps)
    assert torch.equal(maps.grad[alone], torch.ones_like(maps.grad[alone]))
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A key's bias moves all scores of a query alike: its gradient is 0 but for rounding.
        assert bool((parameter.grad != 0).any()) == (share > 0), name


@pytest.mark.parametrize("count", [1, 3, 5])
def test_few_windows_a_call_change_nothing(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = drawn(MaskedAttention(8, 4))
    maps, inside = maps_of(2, 8, 8, 12), some_foreground(2, 8, 12)
    with torch.inference_mode():
        expected = module(maps, inside)
        monkeypatch.setattr(attention, "_MOST_WINDOWS", count)
        torch.testing.assert_close(module(maps, inside), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [GlobalContext, lambda channels: MaskedAttention(channels, 4)])
def test_the_block_starts_as_if_it_were_not_there(make: Any) -> None:
    module = make(8).train()
    maps = maps_of(2, 8, 6, 6)
    arguments = (maps, some_foreground(2, 6, 6)) if isinstance(module, MaskedAttention) else (maps,)
    assert torch.equal(module(*arguments), maps)


@pytest.mark.parametrize("make", [GlobalContext, lambda channels: MaskedAttention(channels, 4)])
def test_formats_and_half_precision(make: Any) -> None:
    module = drawn(make(64))
    maps = maps_of(2, 64, 6, 9)
    more = (some_foreground(2, 6, 9),) if isinstance(module, MaskedAttention) else ()
    with torch.inference_mode():
        plain = module(maps, *more)
        last = module(maps.contiguous(memory_format=torch.channels_last), *more)
        with torch.autocast("cpu", torch.bfloat16):
            half = module(maps.bfloat16(), *more)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=0)
    assert half.dtype == torch.bfloat16
    # Eight bits of mantissa through four products of 64 terms.
    assert float((half - plain).square().mean().sqrt()) < 0.03 * float(plain.square().mean().sqrt())


# ---- heads and foreground -----------------------------------------------------------------------------------------


@given(channels=st.integers(1, 600).map(lambda k: 4 * k))
def test_heads_divide_the_channels(channels: int) -> None:
    heads = attention_heads(channels)
    assert channels % heads == 0
    assert (channels // heads) % 4 == 0


@pytest.mark.parametrize(("channels", "width"), [(512, 32), (312, 24), (64, 32), (40, 40), (20, 20), (8, 8), (4, 4)])
def test_width_of_a_head(channels: int, width: int) -> None:
    assert channels // attention_heads(channels) == width


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_foreground_is_where_background_has_less_than_one_half(classes: int) -> None:
    logits = 3 * maps_of(2, classes, 9, 9)
    expected = 1 - torch.softmax(logits.double(), 1)[:, 0] > 0.5
    assert torch.equal(predicted_foreground(logits), expected)
    assert 0 < int(expected.sum()) < expected.numel()
    assert not predicted_foreground(torch.full((1, classes, 2, 2), math.nan)).any()


# ---- memory -------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def largest(module: nn.Module, side: int, *more: Tensor) -> int:
    """Of one pass over a tile, where torch has no fused kernel and writes every score down."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Largest() as seen:
        module(maps_of(1, 8, side, side), *more)
    return seen.elements


def test_scores_of_masked_attention_grow_with_the_pixels_and_not_with_their_square() -> None:
    """Even at its worst: a score a pixel and pixel of its window. What all positions ask for grows with the square."""
    module = MaskedAttention(8, 8)
    assert [largest(module, side, some_foreground(1, side, side)) / side**2 for side in (16, 32, 64)] == [64] * 3
    assert [largest(GlobalContext(8), side) / side**2 for side in (16, 32)] == [16**2, 32**2]


def test_memory_of_masked_attention_is_that_of_its_maps_where_kernels_are_fused() -> None:
    """Query, key and value of each pixel, three times the map, are the largest thing that is made."""
    module, inside = MaskedAttention(64, 16).eval(), some_foreground(1, 64, 64)
    with torch.no_grad(), Largest() as seen:
        module(maps_of(1, 64, 64, 64), inside)
    assert seen.elements == 3 * 64 * 64**2

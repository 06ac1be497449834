"""The linear decoder: one convolution, no looking around."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.decoders.variants import CHANNELS, CLASSES, HEADS, SUBSETS, inputs
from torch import Tensor
from torch.nn import functional

from slideloom.config.model import DecoderConfig
from slideloom.decoders.build import build_decoder, decoder_from_recipe
from slideloom.decoders.cellvit import expand_blocks
from slideloom.decoders.linear import LinearDecoder
from slideloom.errors import SlideloomError


def linear(patch_px: int = 8, heads: Any = HEADS, seed: int = 1, n_blocks: int = 4, **settings: Any) -> Any:
    config = DecoderConfig(kind="linear", **settings)
    return build_decoder(config, heads, CLASSES, 12, patch_px, 3, seed=seed, n_blocks=n_blocks)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("patch_px", [8, 16, 14])
def test_maps_are_a_matrix_times_the_tokens_brought_up(patch_px: int, skips: bool) -> None:
    tokens, image = inputs(patch_px)
    size = (int(image.shape[-2]), int(image.shape[-1]))
    joined = torch.cat(tokens, 1) if skips else tokens[3]
    for heads in SUBSETS:
        decoder = linear(patch_px, heads, skips=skips).eval()
        state = decoder.state_dict()
        with torch.inference_mode():
            outputs = decoder(tokens, None, size)
        assert tuple(outputs) == heads
        assert len([name for name in state if not name.startswith("pixel_classifier.")]) == 2 * len(heads)
        for head, value in outputs.items():
            layer = decoder.last_layer(head)
            matrix = state[f"{layer}.weight"][:, :, 0, 0]
            small = torch.einsum("od,ndhw->nohw", matrix, joined) + state[f"{layer}.bias"][:, None, None]
            expected = functional.interpolate(small, size, mode="bilinear")
            assert value.shape == (2, CHANNELS[head], *size)
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)


def test_the_image_is_not_read() -> None:
    decoder = linear(image_skip=True).eval()
    assert not decoder.needs_image
    tokens, image = inputs()
    wrong = torch.full((1, 7, *image.shape[-2:]), torch.nan)
    with torch.inference_mode():
        results = [decoder(tokens), decoder(tokens, image), decoder(tokens, wrong)]
    for head in HEADS:
        assert torch.equal(results[0][head], results[1][head])
        assert torch.equal(results[0][head], results[2][head])


@pytest.mark.parametrize(("n_blocks", "places"), [(1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])])
def test_each_block_is_read_once(n_blocks: int, places: list[int]) -> None:
    """Of fewer than four blocks the neighbours among z1 … z4 are one: what the second is does not matter."""
    decoder = linear(n_blocks=n_blocks).eval()
    layer = decoder.get_submodule(decoder.last_layer("hv"))
    assert layer.weight.shape[1] == 12 * n_blocks
    blocks = [torch.randn(1, 12, 2, 3, generator=torch.Generator().manual_seed(k)) for k in range(n_blocks)]
    with torch.inference_mode():
        got = decoder(expand_blocks(blocks))["hv"]
        expected = functional.interpolate(layer(torch.cat(blocks, 1)), got.shape[-2:], mode="bilinear")
    assert torch.equal(got, expected)
    tokens = [token.requires_grad_() for token in inputs()[0]]
    grads = torch.autograd.grad(decoder(tokens)["hv"].square().sum(), tokens, allow_unused=True)
    assert [place for place, grad in enumerate(grads) if grad is not None] == places


def test_blocks_other_than_one_to_four_are_refused() -> None:
    with pytest.raises(SlideloomError) as caught:
        linear(n_blocks=5)
    assert caught.value.code == "decoder_blocks"


@pytest.mark.parametrize("more", [{}, {"patch_px": 14, "upsampling": 16, "regression": True, "n_blocks": 2}])
def test_recipe_round_trip(more: dict[str, Any]) -> None:
    sizes = {"upsampling": 8, "image_channels": 5, "seed": 9} | more
    decoder = build_decoder(DecoderConfig(kind="linear"), ["nucleus", "boundary"], 6, 12, **sizes)
    again = decoder_from_recipe(json.loads(json.dumps(decoder.recipe())))
    again.load_state_dict(decoder.state_dict(), strict=True)
    assert again.recipe() == decoder.recipe()
    assert isinstance(again, LinearDecoder)


def test_regression_is_two_more_channels() -> None:
    decoder = build_decoder(DecoderConfig(kind="linear"), ["nucleus"], 2, 12, 8, 3, seed=1, regression=True).eval()
    outputs = decoder(inputs()[0])
    assert {name: value.shape[1] for name, value in outputs.items()} == {"nucleus": 2, "regression": 2}


@pytest.mark.parametrize("branches", ["separate", "shared"])
def test_every_weight_learns_and_half_precision_is_near(branches: str) -> None:
    decoder = linear(branches=branches, dropout=0.5, width=0.1).train()
    tokens, _ = inputs()
    outputs: dict[str, Tensor] = decoder(tokens)
    torch.stack([value.square().sum() for value in outputs.values()]).sum().backward()
    assert all(bool((parameter.grad != 0).all()) for parameter in decoder.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half = decoder(tokens)
    for head, value in outputs.items():
        torch.testing.assert_close(half[head].float(), value, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("wanted", [("global_context",), ("masked_attention",), ("global_context", "masked_attention")])
def test_attention_has_no_place_in_it(wanted: tuple[str, ...]) -> None:
    # Past the config's own check, should it have one.
    config = DecoderConfig.model_construct(
        **(DecoderConfig().model_dump() | {"kind": "linear"} | dict.fromkeys(wanted, True))
    )
    with pytest.raises(SlideloomError, match=" and ".join(wanted)) as caught:
        build_decoder(config, ["nucleus"], 2, 12, 8, 3)
    assert caught.value.code == "decoder_kind"


def test_a_cellvits_config_is_not_taken_for_a_linear_one() -> None:
    with pytest.raises(SlideloomError) as caught:
        LinearDecoder(DecoderConfig(), ["nucleus"], 2, 12, 8, 3)
    assert caught.value.code == "decoder_kind"


def test_inputs_are_checked_as_everywhere() -> None:
    decoder = linear().eval()
    tokens, _ = inputs()
    for wrong, size in [(tokens[:3], None), ([token[:, :11] for token in tokens], None), (tokens, (16, 23))]:
        with pytest.raises(SlideloomError) as caught:
            decoder(wrong, None, size)
        assert caught.value.code == "decoder_input"

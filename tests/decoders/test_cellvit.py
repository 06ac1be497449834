"""The decoder against the originals' key lists (numbers: test_cellvit_model), and against itself written naively."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.base import HEADS as EVERY_HEAD
from slideloom.decoders.blocks import scaled_channels
from slideloom.decoders.build import build_decoder, decoder_from_recipe
from slideloom.decoders.cellvit import CellViTDecoder, expand_blocks
from slideloom.errors import SlideloomError

CELLVIT: tuple[Head, ...] = ("nucleus", "hv", "classes")
#: The heads that the published models have, and boundaries.
HEADS = EVERY_HEAD[:4]
CHANNELS: dict[Head, int] = {"nucleus": 2, "hv": 2, "classes": 6, "boundary": 1}
NARROW = 1 / 16


def narrow(**settings: Any) -> DecoderConfig:
    return DecoderConfig(**{"width": NARROW, **settings})


def inputs(
    width: int = 12, upsampling: int = 16, high: int = 2, wide: int = 3, image_channels: int = 3, count: int = 2
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = [torch.randn(count, width, high, wide, generator=generator) for _ in range(4)]
    image = torch.randn(count, image_channels, high * upsampling, wide * upsampling, generator=generator)
    return tokens, image


# ---- the originals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "width", "branches"),
    [
        ("CellViT256", 384, "separate"),
        ("CellViTSAM-H", 1280, "separate"),
        ("CellViTUNI", 1024, "separate"),
        ("CellViTShared", 384, "shared"),
    ],
)
def test_state_dict_has_the_published_names_and_shapes(shared: Path, model: str, width: int, branches: str) -> None:
    listed = json.loads((shared / "fixtures" / "cellvit" / f"keys_{model}.json").read_text())["keys"]
    expected = [entry for entry in listed if not entry[0].startswith(("encoder.", "classifier_head."))]
    with torch.device("meta"):
        decoder = build_decoder(DecoderConfig(branches=branches), CELLVIT, 6, width, 16, 3)
    got = [[name, list(value.shape), str(value.dtype)[6:]] for name, value in decoder.state_dict().items()]
    assert got == expected


def test_8x_changes_only_the_first_convolution_of_each_way() -> None:
    with torch.device("meta"):
        at = {k: build_decoder(DecoderConfig(), HEADS, 6, 512, k, 3).state_dict() for k in (8, 16)}
    assert list(at[8]) == list(at[16])
    changed = {name for name in at[8] if at[8][name].shape != at[16][name].shape}
    first = {f"decoder{k}.0.block.0.weight" for k in (1, 2, 3)}
    branches = ("nuclei_binary_map", "hv_map", "nuclei_type_maps", "boundary_map")
    assert changed == first | {f"{branch}_decoder.bottleneck_upsampler.weight" for branch in branches}
    for name in changed:
        assert at[8][name].shape[2:] == (1, 1)
        assert at[16][name].shape[2:] == (2, 2)
        assert at[8][name].shape[:2] == at[16][name].shape[1::-1]


# ---- shapes -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    width=st.floats(0.003, 0.12),
    heads=st.lists(st.sampled_from(HEADS), min_size=1, unique=True),
    upsampling=st.sampled_from([8, 16]),
    skips=st.booleans(),
    image_skip=st.booleans(),
    branches=st.sampled_from(["separate", "shared"]),
    channels=st.integers(1, 9),
    high=st.integers(1, 3),
    wide=st.integers(1, 3),
)
def test_every_variant_gives_every_head_at_the_image_size(
    width: float,
    heads: list[Head],
    upsampling: int,
    skips: bool,
    image_skip: bool,
    branches: str,
    channels: int,
    high: int,
    wide: int,
) -> None:
    config = DecoderConfig(width=width, skips=skips, image_skip=image_skip, branches=branches, dropout=0.1)
    decoder = build_decoder(config, heads, 6, 12, upsampling, channels).eval()
    tokens, image = inputs(12, upsampling, high, wide, channels)
    with torch.inference_mode():
        outputs = decoder(tokens, image if image_skip else None)
    assert set(outputs) == set(heads)
    for head, value in outputs.items():
        assert value.shape == (2, CHANNELS[head], upsampling * high, upsampling * wide)
    names = list(decoder.state_dict())
    assert any(".decoder0_skip." in f".{name}" or name.startswith("decoder0.") for name in names) == image_skip
    assert any(".decoder3_skip." in f".{name}" or name.startswith("decoder3.") for name in names) == skips


@given(channels=st.sampled_from([32, 64, 128, 256, 312, 512]), width=st.floats(1e-3, 4))
def test_scaled_channels(channels: int, width: float) -> None:
    got = scaled_channels(channels, width)
    assert got % 4 == 0
    assert got >= 4
    assert abs(got - channels * width) <= 2 or got == 4
    assert scaled_channels(channels, 1.0) == channels


def test_receptive_way_of_each_input() -> None:
    """Every input that the config feeds reaches every head, and no other does."""
    for skips, image_skip in [(True, True), (True, False), (False, True), (False, False)]:
        decoder = build_decoder(narrow(skips=skips, image_skip=image_skip), HEADS, 6, 12, 16, 3, seed=1).eval()
        tokens, image = inputs()
        leaves = [t.requires_grad_() for t in tokens] + [image.requires_grad_()]
        for value in decoder(tokens, image).values():
            grads = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
            reached = [grad is not None and bool(grad.abs().sum() > 0) for grad in grads]
            assert reached == [skips, skips, skips, True, image_skip]


@pytest.mark.parametrize("branches", ["separate", "shared"])
@pytest.mark.parametrize("side", [28, 34])
def test_tokens_of_14_pixels_are_brought_to_the_size_before_the_header(branches: str, side: int) -> None:
    decoder = build_decoder(narrow(branches=branches), ["nucleus", "hv"], 2, 12, 14, 3, seed=1).eval()
    assert (decoder.upsampling, decoder.patch_px) == (16, 14)
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randn(2, 12, 2, 3, generator=generator) for _ in range(4)]
    image = torch.randn(2, 3, side, side + 14, generator=generator)
    home, suffix = (decoder.decoder, "_skip") if branches == "shared" else (decoder, "")

    def skip(stage: int, maps: Tensor) -> Tensor:
        out: Tensor = home.get_submodule(f"decoder{stage}{suffix}")(maps)
        return out

    def brought(maps: Tensor) -> Tensor:
        return functional.interpolate(maps, image.shape[-2:], mode="bilinear", align_corners=False)

    def way(branch: torch.nn.Module) -> Tensor:
        maps = branch.get_submodule("bottleneck_upsampler")(tokens[3])
        for stage in (3, 2, 1):
            both = torch.cat([skip(stage, tokens[stage - 1]), maps], 1)
            maps = branch.get_submodule(f"decoder{stage}_upsampler")(both)
        seen = functional.adaptive_avg_pool2d(image, (28, 42))
        out: Tensor = branch.get_submodule("decoder0_header")(torch.cat([brought(skip(0, seen)), brought(maps)], 1))
        return out

    with torch.inference_mode():
        outputs = decoder(tokens, image, (side, side + 14))
        for head, name in (("nucleus", "nuclei_binary_map_decoder"), ("hv", "hv_map_decoder")):
            branch = decoder.get_submodule(name)
            expected = branch(way(decoder.decoder)) if branches == "shared" else way(branch)
            assert expected.shape[-2:] == image.shape[-2:]
            torch.testing.assert_close(outputs[head], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("branches", ["separate", "shared"])
def test_regression_is_two_more_channels_of_the_nucleus_branch(branches: str) -> None:
    decoder = build_decoder(narrow(branches=branches), ["nucleus", "hv"], 2, 12, 16, 3, seed=1, regression=True).eval()
    plain = build_decoder(narrow(branches=branches), ["nucleus", "hv"], 2, 12, 16, 3, seed=1).eval()
    state = decoder.state_dict()
    layer = decoder.last_layer("nucleus")
    assert layer == plain.last_layer("nucleus")
    assert state[f"{layer}.weight"].shape[0] == 4
    plain.load_state_dict(state | {f"{layer}.{part}": state[f"{layer}.{part}"][:2] for part in ("weight", "bias")})
    tokens, image = inputs()
    with torch.inference_mode():
        outputs, expected = decoder(tokens, image), plain(tokens, image)
    assert set(outputs) == {"nucleus", "hv", "regression"}
    assert outputs["regression"].shape == outputs["nucleus"].shape == (2, 2, 32, 48)
    for head, value in expected.items():
        torch.testing.assert_close(outputs[head], value, atol=1e-6, rtol=0)
    with pytest.raises(SlideloomError, match="without the nucleus head"):
        build_decoder(narrow(), ["hv"], 2, 12, 16, 3, regression=True)


# ---- behaviour ----------------------------------------------------------------------------------------------------


def naive(decoder: CellViTDecoder, tokens: Sequence[Tensor], image: Tensor) -> dict[Head, Tensor]:
    """The original's way: every branch computes the skips anew."""
    outputs: dict[Head, Tensor] = {}
    branches = ("nuclei_binary_map_decoder", "hv_map_decoder", "nuclei_type_maps_decoder", "boundary_map_decoder")
    for head, name in zip(HEADS, branches, strict=True):
        branch = decoder.get_submodule(name)
        maps = branch.get_submodule("bottleneck_upsampler")(tokens[3])
        maps = branch.get_submodule("decoder3_upsampler")(torch.cat([decoder.decoder3(tokens[2]), maps], 1))
        maps = branch.get_submodule("decoder2_upsampler")(torch.cat([decoder.decoder2(tokens[1]), maps], 1))
        maps = branch.get_submodule("decoder1_upsampler")(torch.cat([decoder.decoder1(tokens[0]), maps], 1))
        outputs[head] = branch.get_submodule("decoder0_header")(torch.cat([decoder.decoder0(image), maps], 1))
    return outputs


@pytest.mark.parametrize("upsampling", [8, 16])
def test_skips_once_equals_skips_once_a_branch(upsampling: int) -> None:
    decoder = build_decoder(narrow(), HEADS, 6, 12, upsampling, 3, seed=2).eval()
    tokens, image = inputs(upsampling=upsampling)
    with torch.inference_mode():
        once, often = decoder(tokens, image), naive(decoder, tokens, image)
    for head in HEADS:
        assert torch.equal(once[head], often[head])


def test_skips_are_computed_once_a_step() -> None:
    decoder = build_decoder(narrow(), HEADS, 6, 12, 16, 3, seed=2).train()
    decoder(*inputs())
    counts = {int(v) for name, v in decoder.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {1}


@pytest.mark.parametrize("upsampling", [8, 16])
@pytest.mark.parametrize("branches", ["separate", "shared"])
def test_channels_last_equals_contiguous(upsampling: int, branches: str) -> None:
    decoder = build_decoder(narrow(branches=branches), HEADS, 6, 12, upsampling, 16, seed=3).eval()
    tokens, image = inputs(upsampling=upsampling, image_channels=16)
    with torch.inference_mode():
        plain = decoder(tokens, image)
        decoder.to(memory_format=torch.channels_last)
        last = decoder(
            [token.contiguous(memory_format=torch.channels_last) for token in tokens],
            image.contiguous(memory_format=torch.channels_last),
        )
    for head in HEADS:
        assert last[head].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(last[head], plain[head], atol=1e-5, rtol=0)


@pytest.mark.parametrize("branches", ["separate", "shared"])
def test_every_head_trains_every_weight_on_its_way(branches: str) -> None:
    decoder = build_decoder(narrow(branches=branches, dropout=0.2), HEADS, 6, 12, 8, 3, seed=4).train()
    tokens, image = inputs(upsampling=8)
    generator = torch.Generator().manual_seed(0)
    outputs = decoder(tokens, image)
    for head, value in outputs.items():
        decoder.zero_grad(set_to_none=True)
        # Random weights: a plain sum has no gradient before a batch normalisation.
        (value * torch.randn(value.shape, generator=generator)).sum().backward(retain_graph=True)
        others = [
            n for h, n in zip(HEADS, ("nuclei_binary", "hv", "nuclei_type", "boundary"), strict=True) if h != head
        ]
        for name, parameter in decoder.named_parameters():
            if name.startswith(tuple(others)):
                assert parameter.grad is None, name
            else:
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name
                assert name.endswith("bias") or bool(parameter.grad.abs().sum() > 0), name


def test_tiles_of_a_batch_do_not_touch_each_other() -> None:
    decoder = build_decoder(narrow(), HEADS, 6, 12, 16, 3, seed=6).eval()
    tokens, image = inputs()
    with torch.inference_mode():
        both = decoder(tokens, image)
        alone = decoder([token[1:] for token in tokens], image[1:])
    for head in HEADS:
        torch.testing.assert_close(both[head][1:], alone[head], atol=1e-5, rtol=0)


def test_seed_gives_the_same_weights_and_leaves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (build_decoder(narrow(), ["hv"], 2, 12, 8, 1, seed=seed) for seed in (9, 9, 10))
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("more", [{}, {"upsampling": 16, "patch_px": 14, "regression": True}])
def test_recipe_round_trip(more: dict[str, Any]) -> None:
    config, sizes = narrow(skips=False, branches="shared"), {"upsampling": 8, "image_channels": 5, "seed": 9} | more
    decoder = build_decoder(config, ["nucleus", "boundary"], 6, 12, **sizes)
    text = json.dumps(decoder.recipe())
    again = decoder_from_recipe(json.loads(text))
    again.load_state_dict(decoder.state_dict(), strict=True)
    assert again.recipe() == decoder.recipe()


def test_recipes_of_before_tokens_of_14_pixels_still_count() -> None:
    recipe = build_decoder(narrow(), ["nucleus"], 2, 12, 16, 3).recipe()
    old = {name: value for name, value in recipe.items() if name not in ("patch_px", "regression")}
    assert decoder_from_recipe(old).recipe() == recipe


def test_heads_come_in_one_order_whatever_the_config_says() -> None:
    decoder = build_decoder(narrow(), ["boundary", "classes", "nucleus"], 6, 12, 8, 3)
    assert decoder.heads == ("nucleus", "classes", "boundary")


# ---- inputs and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "order"), [(1, [0, 0, 0, 0]), (2, [0, 0, 1, 1]), (3, [0, 1, 2, 2]), (4, [0, 1, 2, 3])]
)
def test_expand_blocks(count: int, order: list[int]) -> None:
    tokens = [torch.full((1, 1, 1, 1), float(k)) for k in range(count)]
    assert [int(token) for token in expand_blocks(tokens)] == order


@pytest.mark.parametrize("count", [0, 5])
def test_expand_blocks_refuses(count: int) -> None:
    with pytest.raises(SlideloomError, match=f"{count} encoder blocks"):
        expand_blocks([torch.zeros(1, 1, 1, 1)] * count)


@pytest.mark.parametrize(
    ("upsampling", "heads", "classes", "code"),
    [
        (12, ["nucleus"], 2, "decoder_upsampling"),
        (8, [], 2, "decoder_heads"),
        (8, ["hv", "hv"], 2, "decoder_heads"),
        (8, ["nuclei"], 2, "decoder_heads"),
        (8, ["classes"], 1, "decoder_heads"),
    ],
)
def test_refused_arguments(upsampling: int, heads: list[Any], classes: int, code: str) -> None:
    with pytest.raises(SlideloomError) as caught:
        build_decoder(narrow(), heads, classes, 12, upsampling, 3)
    assert caught.value.code == code


def test_refused_inputs() -> None:
    decoder = build_decoder(narrow(), ["nucleus"], 2, 12, 16, 3).eval()
    tokens, image = inputs()
    bad: list[tuple[list[Tensor], Tensor | None]] = [
        (tokens[:3], image),
        ([*tokens[:3], tokens[3][..., :1]], image),
        ([token[:, :11] for token in tokens], image),
        (tokens, image[..., :-1]),
        (tokens, image[:, :2]),
        (tokens, None),
    ]
    for wrong_tokens, wrong_image in bad:
        with pytest.raises(SlideloomError, match="decoder") as caught:
            decoder(wrong_tokens, wrong_image)
        assert caught.value.code == "decoder_input"


@pytest.mark.parametrize(
    ("patch_px", "size", "message"),
    [
        (16, (32, 47), "expected 32 by 48 pixels"),
        (16, (48, 48), "expected 32 by 48 pixels"),
        (8, (17, 24), "expected 16 by 24 pixels"),
        (14, (27, 42), "expected about 28 by 42 pixels"),
        (14, (28, 56), "expected about 28 by 42 pixels"),
        (14, None, "neither an image nor a size"),
    ],
)
def test_refused_sizes(patch_px: int, size: tuple[int, int] | None, message: str) -> None:
    decoder = build_decoder(narrow(image_skip=False), ["nucleus"], 2, 12, patch_px, 3).eval()
    with pytest.raises(SlideloomError, match=message) as caught:
        decoder(inputs()[0], None, size)
    assert caught.value.code == "decoder_input"


@pytest.mark.parametrize(("upsampling", "patch_px"), [(8, 16), (16, 8), (8, 14), (14, 8), (32, 32)])
def test_refused_sides(upsampling: int, patch_px: int) -> None:
    with pytest.raises(SlideloomError) as caught:
        build_decoder(narrow(), ["nucleus"], 2, 12, upsampling, 3, patch_px=patch_px)
    assert caught.value.code == "decoder_upsampling"

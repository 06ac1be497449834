"""Attention in the whole decoder: every variant, token side, kind of branches and choice of heads."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.decoders.variants import ATTENTIONS, BRANCH, CHANNELS, CLASSES, HEADS, SUBSETS, awake, inputs, narrow
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.attention import GlobalContext, MaskedAttention
from slideloom.decoders.build import build_decoder, decoder_from_recipe
from slideloom.decoders.cellvit import CellViTDecoder
from slideloom.errors import SlideloomError

everywhere = pytest.mark.parametrize("patch_px", [8, 16, 14])
both_ways = pytest.mark.parametrize("branches", ["separate", "shared"])
each_attention = pytest.mark.parametrize("attention", list(ATTENTIONS))


def build(attention: str, branches: str, patch_px: int = 8, heads: Any = HEADS, seed: int = 1, **more: Any) -> Any:
    config = narrow(branches=branches, **ATTENTIONS.get(attention, {}), **more)
    return build_decoder(config, heads, CLASSES, 12, patch_px, 3, seed=seed)


def run(decoder: nn.Module, tokens: list[Tensor], image: Tensor | None) -> dict[str, Tensor]:
    with torch.inference_mode():
        outputs: dict[str, Tensor] = decoder(tokens, image)
    return outputs


# ---- shapes and names ---------------------------------------------------------------------------------------------


@everywhere
@both_ways
@each_attention
def test_every_choice_of_heads_has_its_maps(attention: str, branches: str, patch_px: int) -> None:
    tokens, image = inputs(patch_px)
    for heads in SUBSETS:
        if attention != "global" and not {"nucleus", "classes"} & set(heads):
            continue  # refused: see test_masked_attention_needs_a_head_that_finds_nuclei
        outputs = run(build(attention, branches, patch_px, heads).eval(), tokens, image)
        assert tuple(outputs) == heads
        for head, value in outputs.items():
            assert value.shape == (2, CHANNELS[head], *image.shape[-2:])
            assert torch.isfinite(value).all()


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("image_skip", [True, False])
@each_attention
def test_attention_goes_with_and_without_skips(attention: str, image_skip: bool, skips: bool) -> None:
    tokens, image = inputs()
    decoder = awake(build(attention, "separate", skips=skips, image_skip=image_skip))
    outputs = run(decoder, tokens, image if image_skip else None)
    assert {head: value.shape for head, value in outputs.items()} == {
        head: (2, CHANNELS[head], *image.shape[-2:]) for head in HEADS
    }


@everywhere
@both_ways
@each_attention
def test_a_variant_starts_as_the_decoder_without_it(attention: str, branches: str, patch_px: int) -> None:
    """Same names, same weights, same maps; what is new has names of its own."""
    plain, variant = build("none", branches, patch_px), build(attention, branches, patch_px)
    old, new = plain.state_dict(), variant.state_dict()
    assert [name for name in new if name in old] == list(old)
    assert all(torch.equal(new[name], value) for name, value in old.items())
    wanted = {name for name, on in ATTENTIONS[attention].items() if on}
    homes = ["decoder"] if branches == "shared" else [BRANCH[head] for head in HEADS]
    parts = ("norm.weight", "norm.bias", "qkv.weight", "qkv.bias", "out.weight", "out.bias")
    assert set(new) - set(old) == {f"{home}.{name}.{part}" for home in homes for name in wanted for part in parts}
    tokens, image = inputs(patch_px)
    before, after = run(plain.train(), tokens, image), run(variant.train(), tokens, image)
    assert all(torch.equal(before[head], after[head]) for head in HEADS)


@both_ways
def test_weights_of_the_plain_decoder_are_those_of_ever(branches: str) -> None:
    names = list(build("none", branches).state_dict())
    assert not [name for name in names if "attention" in name or "context" in name]


# ---- the way through ----------------------------------------------------------------------------------------------


def naive(decoder: CellViTDecoder, tokens: list[Tensor], image: Tensor) -> dict[Head, Tensor]:
    """Stage by stage: bottleneck, global context, ..., features, foreground, masked attention, last layer."""
    config = decoder.config
    skips = decoder.skip_maps(tokens, image)

    def features(home: nn.Module) -> Tensor:
        maps = home.get_submodule("bottleneck_upsampler")(tokens[3])
        if config.global_context:
            maps = home.get_submodule("global_context")(maps)
        for stage in (3, 2, 1):
            maps = home.get_submodule(f"decoder{stage}_upsampler")(torch.cat([skips[stage], maps], 1))
        maps = torch.cat([skips[0], maps], 1)
        for k in (0, 1):
            maps = home.get_submodule(f"decoder0_header.{k}")(maps)
        return maps

    shared = config.branches == "shared"
    homes = {head: decoder.get_submodule("decoder" if shared else BRANCH[head]) for head in decoder.heads}
    before = {head: features(home) for head, home in homes.items()}
    finder: Head = "nucleus" if "nucleus" in decoder.heads else "classes"
    p = torch.softmax(decoder.get_submodule(decoder.last_layer(finder))(before[finder]), 1)
    foreground = 1 - p[:, 0] > 0.5
    assert 0 < int(foreground.sum()) < foreground.numel()
    after = before
    if config.masked_attention:
        after = {head: homes[head].get_submodule("masked_attention")(before[head], foreground) for head in before}
    return {head: decoder.get_submodule(decoder.last_layer(head))(after[head]) for head in decoder.heads}


@pytest.mark.parametrize("heads", [HEADS, ("hv", "classes", "boundary"), ("nucleus", "boundary"), ("classes",)])
@both_ways
@each_attention
def test_the_decoder_is_its_stages_one_after_the_other(attention: str, branches: str, heads: tuple[Head, ...]) -> None:
    """With a nucleus head its branch finds the foreground for all; without one the class branch does."""
    decoder = awake(build(attention, branches, heads=heads, seed=3))
    tokens, image = inputs()
    with torch.inference_mode():
        expected = naive(decoder, tokens, image)
    outputs = run(decoder, tokens, image)
    plain = run(awake(build("none", branches, heads=heads, seed=3)), tokens, image)
    for head in heads:
        torch.testing.assert_close(outputs[head], expected[head], atol=1e-6, rtol=0)
        assert not torch.allclose(outputs[head], plain[head], atol=1e-4), "attention that is awake should be felt"


def test_foreground_of_a_regression_is_that_of_its_first_two_channels() -> None:
    config = narrow(masked_attention=True)
    decoder = awake(build_decoder(config, ["nucleus", "hv"], 2, 12, 8, 3, seed=3, regression=True))
    seen: list[Tensor] = []
    for module in decoder.modules():
        if isinstance(module, MaskedAttention):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0:2]))  # type: ignore[arg-type]
    tokens, image = inputs()
    outputs = run(decoder, tokens, image)
    assert set(outputs) == {"nucleus", "hv", "regression"}
    (features, foreground), (_, other) = seen
    with torch.inference_mode():
        logits = decoder.get_submodule(decoder.last_layer("nucleus"))(features)  # type: ignore[operator]
    assert torch.equal(foreground, logits[:, 1] > logits[:, 0])
    assert foreground is other


# ---- training -----------------------------------------------------------------------------------------------------


@everywhere
@both_ways
def test_every_weight_of_every_variant_comes_to_learn(branches: str, patch_px: int) -> None:
    """At first nothing moves behind a projection of zeros; after a few steps everything does."""
    decoder = build("both", branches, patch_px).train()
    tokens, image = inputs(patch_px)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    aims = {
        head: torch.randn(2, CHANNELS[head], *image.shape[-2:], generator=generator).sign() for head in decoder.heads
    }
    for step in range(4):
        optimiser.zero_grad(set_to_none=True)
        outputs = decoder(tokens, image)
        torch.stack([(outputs[head] - aim).square().mean() for head, aim in aims.items()]).sum().backward()
        for name, parameter in decoder.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            moves = bool((parameter.grad != 0).any())
            if step == 0 and (".qkv." in name or ".norm." in name):
                assert not moves, name
            elif step == 3 and not name.endswith("bias"):
                assert moves, name
        optimiser.step()


def test_no_head_trains_the_branch_that_finds_its_foreground() -> None:
    decoder = build("both", "separate", seed=3).train()
    tokens, image = inputs()
    generator = torch.Generator().manual_seed(0)
    value = decoder(tokens, image)["hv"]
    (value * torch.randn(value.shape, generator=generator)).sum().backward()
    for name, parameter in decoder.named_parameters():
        own = name.startswith(("decoder", "hv_map_decoder"))
        assert (parameter.grad is not None) == own, name


# ---- evaluation ---------------------------------------------------------------------------------------------------


@both_ways
@each_attention
def test_a_tile_has_the_same_maps_in_any_batch(attention: str, branches: str) -> None:
    """Bit for bit at any place of a batch of one size; but for rounding in one of another size."""
    decoder = awake(build(attention, branches, dropout=0.3))
    tokens, image = inputs(count=3)
    order = [2, 0, 1]
    here, again = run(decoder, tokens, image), run(decoder, tokens, image)
    turned = run(decoder, [token[order] for token in tokens], image[order])
    alone = run(decoder, [token[1:2] for token in tokens], image[1:2])
    for head in HEADS:
        assert torch.equal(here[head], again[head])
        assert torch.equal(here[head][order], turned[head])
        torch.testing.assert_close(here[head][1:2], alone[head], atol=1e-5, rtol=0)


@both_ways
@each_attention
def test_channels_last_equals_contiguous(attention: str, branches: str) -> None:
    decoder = awake(build(attention, branches, 14))
    tokens, image = inputs(14)
    plain = run(decoder, tokens, image)
    decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = run(
        decoder,
        [token.contiguous(memory_format=torch.channels_last) for token in tokens],
        image.contiguous(memory_format=torch.channels_last),
    )
    for head in HEADS:
        assert last[head].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(last[head], plain[head], atol=2e-5, rtol=0)


@both_ways
def test_half_precision_trains_and_predicts(branches: str) -> None:
    decoder = build("both", branches).train()
    tokens, image = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = decoder(tokens, image)
    torch.stack([value.float().square().mean() for value in outputs.values()]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)
    decoder = awake(decoder)
    whole = run(decoder, tokens, image)
    with torch.autocast("cpu", torch.bfloat16):
        half = run(decoder, tokens, image)
    for head in HEADS:
        # A pixel whose foreground tips over may go far; the maps as a whole may not.
        away = float((half[head].float() - whole[head]).abs().median() / whole[head].abs().median())
        assert away < 0.05


# ---- recipes and refusals -----------------------------------------------------------------------------------------


@both_ways
@each_attention
def test_recipe_round_trip(attention: str, branches: str) -> None:
    decoder = awake(build(attention, branches, attention_window_px=4))
    again = decoder_from_recipe(json.loads(json.dumps(decoder.recipe())))
    again.load_state_dict(decoder.state_dict(), strict=True)
    assert again.recipe() == decoder.recipe()
    tokens, image = inputs()
    first, second = run(decoder, tokens, image), run(again.eval(), tokens, image)
    assert all(torch.equal(first[head], second[head]) for head in HEADS)


def test_recipes_of_before_the_variants_still_count() -> None:
    decoder = build("none", "separate")
    recipe = json.loads(json.dumps(decoder.recipe()))
    new = {"kind", "global_context", "masked_attention", "attention_window_px"}
    old = recipe | {"config": {name: value for name, value in recipe["config"].items() if name not in new}}
    again = decoder_from_recipe(old)
    again.load_state_dict(decoder.state_dict(), strict=True)
    assert not any(isinstance(module, GlobalContext | MaskedAttention) for module in again.modules())


@pytest.mark.parametrize("heads", [("hv",), ("boundary",), ("hv", "boundary")])
def test_masked_attention_needs_a_head_that_finds_nuclei(heads: tuple[Head, ...]) -> None:
    with pytest.raises(SlideloomError, match="nucleus or classes") as caught:
        build("masked", "separate", heads=heads)
    assert caught.value.code == "decoder_heads"


def test_a_linear_config_is_not_taken_for_a_cellvits() -> None:
    with pytest.raises(SlideloomError, match="kind linear") as caught:
        CellViTDecoder(DecoderConfig(kind="linear"), ["nucleus"], 2, 12, 8, 3)
    assert caught.value.code == "decoder_kind"

"""The refinement network: nothing at first, and able to mend what the decoder got wrong."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from slideloom.config.model import DecoderConfig, Head, LossConfig
from slideloom.decoders.base import Decoder
from slideloom.decoders.build import build_decoder
from slideloom.decoders.refinement import RefinedDecoder, Refinement, refine_decoder, refined_from_recipe
from slideloom.errors import SlideloomError
from slideloom.training.terms import total_loss

SMALL = Refinement(width=8, depth=2, token_channels=4)
CLASSES, WIDTH = 3, 12


EVERY = get_args(Head)


def linear(heads: Any = EVERY, **more: Any) -> Decoder:
    return build_decoder(DecoderConfig(kind="linear"), heads, CLASSES, WIDTH, 16, 3, seed=1, **more)


def reads(side: int = 32, seed: int = 3) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(2, WIDTH, side // 16, side // 16, generator=generator) for _ in range(4)]
    return tokens, torch.randn(2, 3, side, side, generator=generator)


def cellvit() -> Decoder:
    return build_decoder(DecoderConfig(width=0.125), ["nucleus", "hv"], CLASSES, WIDTH, 16, 3, seed=1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [linear, lambda: linear(regression=True), cellvit])
def test_begins_as_the_identity_to_the_bit(make: Any, training: bool) -> None:
    inner = make().eval()
    refined = refine_decoder(inner, SMALL, seed=2).train(training)
    tokens, image = reads()
    plain, mended = inner(tokens, image), refined(tokens, image)
    assert list(mended) == list(plain)
    for name, maps in plain.items():
        assert torch.equal(mended[name], maps)
        assert maps.std() > 0.01
    with torch.no_grad():
        refined.last.weight.add_(0.1)
    changed = refined(tokens, image)
    assert all(name == "regression" or not torch.equal(changed[name], maps) for name, maps in plain.items())


@pytest.mark.parametrize("size", [(33, 37), (16, 18), (1, 5)])
def test_any_size_behind_a_network_without_tokens(size: tuple[int, int]) -> None:
    config = DecoderConfig(kind="instanseg", widths=(4, 8))
    inner = build_decoder(config, ["instanseg"], 2, 0, 16, 2, seed=1).eval()
    refined = refine_decoder(inner, Refinement(width=4, depth=3, token_channels=0), seed=2).eval()
    image = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        plain, mended = inner([], image), refined([], image)
    assert torch.equal(mended["instanseg"], plain["instanseg"])
    assert mended["instanseg"].shape == (1, 5, *size)
    assert refined.pixel_classifier is inner.pixel_classifier
    assert not refined.reads_tokens
    assert getattr(refine_decoder(linear(("nucleus",)), SMALL), "pixel_classifier", None) is None


def test_recipe_and_weights_come_back() -> None:
    refined = refine_decoder(linear(("nucleus", "hv", "classes"), n_blocks=3), SMALL, seed=2).eval()
    with torch.no_grad():
        refined.last.weight.normal_(generator=torch.Generator().manual_seed(1))
    again = refined_from_recipe(json.loads(json.dumps(refined.recipe())))
    assert again.recipe() == refined.recipe()
    again.load_state_dict(refined.state_dict())
    tokens, image = reads()
    for name, maps in refined(tokens, image).items():
        assert torch.equal(again.eval()(tokens, image)[name], maps)
    assert set(refined.state_dict()) > {f"inner.{key}" for key in refined.inner.state_dict()}
    for head in refined.heads:
        assert refined.get_submodule(refined.last_layer(head)).weight.shape[0] == refined.head_channels[head]


def targets(side: int = 32) -> dict[str, Tensor]:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    nucleus, hv = torch.zeros(2, side, side, dtype=torch.long), torch.zeros(2, 2, side, side)
    for tile in range(2):
        for row, column, radius in ((8, 9 + 6 * tile, 5), (22, 8, 6), (20 + 2 * tile, 24, 4)):
            inside = (y - row) ** 2 + (x - column) ** 2 <= radius**2
            nucleus[tile][inside] = 1
            hv[tile, :, inside] = (torch.stack([x - column, y - row]) / radius)[:, inside]
    return {"nucleus": nucleus, "hv": hv, "valid": torch.ones(2, side, side, dtype=torch.bool)}


@pytest.mark.parametrize("frozen", [True, False])
def test_learns_two_tiles_that_the_decoder_got_wrong(frozen: bool) -> None:
    """Below 10 % of the loss that it began with; 60 steps of Adam do it on the machine where this was written."""
    inner = linear(("nucleus", "hv"))
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    settings = Refinement(width=12, depth=2, token_channels=4, frozen=frozen)
    refined = refine_decoder(inner, settings, seed=2).train()
    loss_config = LossConfig(cross_entropy=1, dice=1, focal_tversky=0, hv_mse=10, hv_msge=0)
    tokens, image = reads()
    wanted = targets()
    learning = [weight for weight in refined.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(learning, lr=1e-2)
    values: list[float] = []
    for _ in range(150):
        optimiser.zero_grad(set_to_none=True)
        loss, _ = total_loss(refined(tokens, image), wanted, loss_config)
        values.append(loss.item())
        if values[-1] < 0.1 * values[0]:
            break
        loss.backward()
        optimiser.step()
    assert min(values) < 0.1 * values[0]
    same = all(torch.equal(inner.state_dict()[name], value) for name, value in before.items())
    assert same is frozen
    assert refined.inner.training is not frozen


def test_equal_seeds_give_equal_weights_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    one = refine_decoder(linear(), SMALL, seed=2)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    other = refine_decoder(linear(), SMALL, seed=2)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_refuses_what_cannot_be() -> None:
    whole = build_decoder(DecoderConfig(kind="instanseg", widths=(4, 8)), ["instanseg"], 2, 0, 16, 2, seed=1)
    for inner, settings in ((whole, SMALL), (linear(), Refinement(depth=0))):
        with pytest.raises(SlideloomError) as caught:
            RefinedDecoder(inner, settings)
        assert caught.value.code == "refinement"
    with pytest.raises(SlideloomError, match="no image"):
        refine_decoder(linear(), SMALL)(reads()[0], None, (32, 32))

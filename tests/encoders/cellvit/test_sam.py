"""SAM's image encoder against the original and against a plain formulation of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests.cellvit_recipe import encoder, golden, image, key_list, keys_of, models, weight, weights
from torch import Tensor, nn
from torch.nn import functional

from slideloom.encoders.cellvit.sam import SAMEncoder
from slideloom.errors import SlideloomError

#: Tolerances of the fixtures' README.
GOLDEN = {"tiny_sam": 3e-5, "cellvit_sam_b_real": 2e-4, "cellvit_sam_h_real": 5e-4}


@pytest.fixture(scope="module")
def small() -> SAMEncoder:
    """Three blocks, the second global; its tables are of other lengths than the images below ask for."""
    module = SAMEncoder(24, 3, 3, global_blocks=(2,), window=4, grid=12, neck=16)
    module.load_state_dict({key: weight(key, tuple(value.shape)) for key, value in module.state_dict().items()})
    return module.eval().requires_grad_(False)


def picture(rows: int, columns: int, count: int = 1) -> Tensor:
    return image("test_sam", f"{rows}x{columns}", (count, 3, 16 * rows, 16 * columns))


@pytest.mark.parametrize("model", list(GOLDEN))
def test_tokens_and_tissue_of_the_original(shared: Path, model: str) -> None:
    if model.endswith("sam_h_real") and os.environ.get("SLIDELOOM_SLOW") != "1":
        pytest.skip("SAM-H draws 0.6 G weights; set SLIDELOOM_SLOW=1")
    module, expected = encoder(shared, model), golden(shared, model)
    head = weights(key_list(shared, keys_of(model), "classifier_head."), strip="classifier_head.")
    for case, about in models(shared)[model]["cases"].items():
        with torch.inference_mode():
            maps, pooled = module.run_all(image(model, case, tuple(about["input_shape"])), [module.depth])
        tokens = maps[module.depth].permute(0, 3, 1, 2)
        assert list(tokens.shape) == about["outputs"]["tokens"]["shape"]
        stored = expected[f"{case}/tokens"]
        stride = -(-tokens.shape[-1] // stored.shape[-1])
        torch.testing.assert_close(tokens[..., ::stride, ::stride], stored, rtol=0, atol=GOLDEN[model])
        tissue = functional.linear(pooled, head["weight"], head["bias"])
        torch.testing.assert_close(tissue, expected[f"{case}/tissue_types"], rtol=0, atol=GOLDEN[model])


def _plain_attention(attention: nn.Module, tokens: Tensor) -> Tensor:
    """Every pair of tokens, one after the other: the published formula, nothing fused."""
    count, rows, columns, width = tokens.shape
    heads, size = attention.heads, width // attention.heads
    qkv = attention.qkv(tokens).reshape(count, rows, columns, 3, heads, size)
    query, key, value = qkv.permute(3, 0, 4, 1, 2, 5)
    scores = torch.einsum("bnhwc,bnxyc->bnhwxy", query * size**-0.5, key)
    for name, length, axes in (("rel_pos_h", rows, "bnhwc,hxc->bnhwx"), ("rel_pos_w", columns, "bnhwc,wyc->bnhwy")):
        table = getattr(attention, name)
        if len(table) != 2 * length - 1:
            table = functional.interpolate(table.T[None], size=2 * length - 1, mode="linear")[0].T
        by_pair = torch.stack([torch.stack([table[q - k + length - 1] for k in range(length)]) for q in range(length)])
        term = torch.einsum(axes, query, by_pair)
        scores = scores + (term[..., None] if name == "rel_pos_h" else term[..., None, :])
    shares = scores.flatten(4).softmax(-1).view_as(scores)
    mixed = torch.einsum("bnhwxy,bnxyc->bhwnc", shares, value)
    out: Tensor = attention.proj(mixed.reshape(count, rows, columns, width))
    return out


def _plain_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """Zeros appended below and to the right after the norm; each window for itself; cut off again."""
    _, rows, columns, _ = tokens.shape
    normed = block.norm1(tokens)
    if block.window:
        side = block.window
        padded = functional.pad(normed, (0, 0, 0, -columns % side, 0, -rows % side))
        mixed = torch.zeros_like(padded)
        for top in range(0, padded.shape[1], side):
            for left in range(0, padded.shape[2], side):
                here = (slice(None), slice(top, top + side), slice(left, left + side))
                mixed[here] = _plain_attention(block.attn, padded[here])
        mixed = mixed[:, :rows, :columns]
    else:
        mixed = _plain_attention(block.attn, normed)
    tokens = tokens + mixed
    return tokens + block.mlp.lin2(functional.gelu(block.mlp.lin1(block.norm2(tokens))))


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (5, 9), (10, 3), (1, 1), (12, 12)])
def test_any_oblong_is_the_plain_formulation(small: SAMEncoder, rows: int, columns: int) -> None:
    images = picture(rows, columns, 2)
    tokens = small.patch_embed(images) + small.pos_embed[:, :rows, :columns]
    maps = small.run(images, [1, 2, 3])
    for number, block in enumerate(small.blocks, 1):
        tokens = _plain_block(block, tokens)
        torch.testing.assert_close(maps[number], tokens, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("size", [(200, 64), (64, 40), (13 * 16, 64), (0, 64)])
def test_refuses_what_its_positions_do_not_reach(small: SAMEncoder, size: tuple[int, int]) -> None:
    with pytest.raises(SlideloomError, match="at most 192 px") as caught:
        small.run(torch.zeros(1, 3, *size), [1])
    assert caught.value.code == "encoder_tile_px"


def test_runs_neither_deeper_blocks_nor_the_neck(small: SAMEncoder) -> None:
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in small.named_modules()
        if (name.count(".") == 1 and name.startswith("blocks")) or name == "neck"
    ]
    small.run(picture(4, 4), [1, 2])
    for hook in hooks:
        hook.remove()
    assert ran == ["blocks.0", "blocks.1"]


def test_each_image_is_encoded_for_itself(small: SAMEncoder) -> None:
    images = picture(6, 5, 3)
    together = small.run(images, [3])[3]
    for k in range(3):
        torch.testing.assert_close(small.run(images[k : k + 1], [3])[3][0], together[k], rtol=0, atol=1e-5)


def test_bfloat16_autocast_stays_near(small: SAMEncoder) -> None:
    images = picture(6, 5)
    with torch.inference_mode():
        exact = small.run(images, [3])[3]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = small.run(images, [3])[3]
        assert torch.equal(small.run(images, [3])[3], exact)
    assert float((rounded - exact).norm() / exact.norm()) < 0.02


def test_gradients_reach_every_weight(small: SAMEncoder) -> None:
    module = SAMEncoder(24, 3, 3, global_blocks=(2,), window=4, grid=12, neck=16).train()
    module.load_state_dict(small.state_dict())
    maps, pooled = module.run_all(picture(5, 6), [3])
    (pooled.square().sum() + maps[3].square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())

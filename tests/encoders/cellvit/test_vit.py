"""The plain vision transformer against the original CellViT and CellViT++ encoders, and its own promises."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.cellvit_recipe import encoder, golden, image, models, weight
from torch import Tensor

from slideloom.encoders.cellvit.encoder import encoder_module
from slideloom.encoders.cellvit.vit import ViT
from slideloom.encoders.timm_models.torchvision_guard import ensure_torchvision
from slideloom.errors import SlideloomError

#: Tolerances of the fixtures' README.
GOLDEN = {
    "tiny_vit": 2e-5,
    "tiny_vit_224": 2e-5,
    "tiny_vit_regression": 2e-5,
    "tiny_uni": 2e-5,
    "tiny_virchow": 2e-5,
    "tiny_virchow2": 2e-5,
    "cellvit256_real": 1e-4,
}


def tiny(positions: str = "dino", registers: int = 0, **settings: object) -> ViT:
    """A seeded transformer of two blocks, not frozen."""
    module = ViT(24, 2, 3, positions=positions, registers=registers, tissue_classes=4, **settings)  # type: ignore[arg-type]
    module.load_state_dict({key: weight(key, tuple(value.shape)) for key, value in module.state_dict().items()})
    return module.eval()


def picture(high: int, wide: int, count: int = 1) -> Tensor:
    return image("test_vit", f"{high}x{wide}", (count, 3, high, wide))


@pytest.mark.parametrize("model", list(GOLDEN))
def test_tokens_and_tissue_of_the_original(shared: Path, model: str) -> None:
    module, expected = encoder(shared, model), golden(shared, model)
    for case, about in models(shared)[model]["cases"].items():
        with torch.inference_mode():
            maps, tissue = module.run_all(image(model, case, tuple(about["input_shape"])), [module.depth])
        tokens = maps[module.depth].permute(0, 3, 1, 2)
        assert list(tokens.shape) == about["outputs"]["tokens"]["shape"]
        stored = expected[f"{case}/tokens"]
        stride = -(-tokens.shape[-1] // stored.shape[-1])
        torch.testing.assert_close(tokens[..., ::stride, ::stride], stored, rtol=0, atol=GOLDEN[model])
        torch.testing.assert_close(tissue, expected[f"{case}/tissue_types"], rtol=0, atol=GOLDEN[model])


def test_every_block_of_the_original_under_its_own_weights(shared: Path) -> None:
    stored = load_file(shared / "fixtures" / "cellvit" / "tiny_vit_encoder_seed0.safetensors")
    module = encoder_module("vit", embed_dim=48, depth=4, heads=3, tissue_classes=19).eval()
    assert isinstance(module, ViT)
    module.load_state_dict({key.removeprefix("encoder."): value for key, value in stored.items() if key[:2] != "__"})
    normed: list[Tensor] = []
    module.norm.register_forward_hook(lambda _module, _given, out: normed.append(out))
    with torch.inference_mode():
        maps, tissue = module.run_all(stored["__input"], [1, 2, 3, 4])
    for block, tokens in maps.items():
        torch.testing.assert_close(tokens.flatten(1, 2), stored[f"__z{block}"][:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(normed[0], stored["__cls_normed"], rtol=0, atol=1e-5)
    torch.testing.assert_close(tissue, stored["__tissue_logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (9, 20), (7, 28), (18, 18)])
def test_positions_are_timms(registers: int, rows: int, columns: int) -> None:
    ensure_torchvision()
    from timm.layers.pos_embed import resample_abs_pos_embed

    module = tiny("timm", registers)
    expected = resample_abs_pos_embed(module.pos_embed, [rows, columns], num_prefix_tokens=1 + registers)
    torch.testing.assert_close(module._resample(module.pos_embed, rows, columns), expected, rtol=0, atol=1e-6)


def test_runs_no_further_than_asked() -> None:
    module, ran = tiny(), []
    for number, block in enumerate(module.blocks, 1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    assert set(module.run(picture(32, 48), [1])) == {1}
    assert ran == [1]


def test_final_normalisation_is_of_the_last_block_only() -> None:
    module = tiny()
    plain, normed = (module.run(picture(32, 48), [1, 2], final_norm=flag) for flag in (False, True))
    assert torch.equal(plain[1], normed[1])
    torch.testing.assert_close(normed[2], module.norm(plain[2]))


def test_each_image_is_encoded_for_itself() -> None:
    module, images = tiny(), picture(48, 32, 3)
    together = module.run(images, [2])[2]
    for k in range(3):
        torch.testing.assert_close(module.run(images[k : k + 1], [2])[2][0], together[k], rtol=0, atol=1e-5)


def test_images_are_reduced_to_whole_tokens_where_the_model_does_so() -> None:
    module = tiny("timm", patch_px=14, grid=3, resize=True, gated=True)
    images = picture(44, 58)
    reduced = torch.nn.functional.interpolate(images, size=(42, 56), mode="area")
    assert module.run(images, [2])[2].shape == (1, 3, 4, 24)
    assert torch.equal(module.run(images, [2])[2], module.run(reduced, [2])[2])
    with pytest.raises(SlideloomError, match="at least 14 px"):
        module.run(picture(13, 58), [1])


def test_other_models_refuse_odd_sizes() -> None:
    with pytest.raises(SlideloomError, match="multiples of 16 px") as caught:
        tiny().run(picture(32, 40), [1])
    assert caught.value.code == "encoder_tile_px"


def test_positions_are_kept_while_frozen_and_only_then() -> None:
    module = tiny().requires_grad_(False)
    images = picture(32, 48)
    made: list[tuple[int, int]] = []
    original = module._resample
    module._resample = lambda learned, rows, columns: made.append((rows, columns)) or original(learned, rows, columns)  # type: ignore[method-assign,func-returns-value]

    def run() -> Tensor:
        return module.run(images, [2])[2]

    with torch.inference_mode():
        first = run()
        assert torch.equal(run(), first)
    module.run(picture(48, 48), [2])
    assert made == [(2, 3), (3, 3)]
    state = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        module.pos_embed.mul_(2)
    assert not torch.allclose(run(), first), "a change in place counts"
    module.load_state_dict(state)
    assert torch.equal(run(), first), "so does loading"
    module.load_state_dict({**state, "pos_embed": state["pos_embed"] * 2}, assign=True)
    assert not torch.allclose(run(), first)
    made.clear()
    module.requires_grad_(True)
    run().sum().backward()
    run()
    assert len(made) == 2
    assert module.pos_embed.grad is not None
    assert bool(module.pos_embed.grad.any())


def test_trains_after_inference() -> None:
    """What inference kept does not stand in a gradient's way."""
    module = tiny().requires_grad_(False)
    with torch.inference_mode():
        module.run_all(picture(32, 48), [2])
    module.train()
    module.blocks.requires_grad_(True)
    _, logits = module.run_all(picture(32, 48), [2])
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in module.blocks.parameters())


@pytest.mark.parametrize("positions", ["dino", "timm"])
def test_bfloat16_autocast_stays_near(positions: str) -> None:
    module = tiny(positions)
    images = picture(64, 64)
    with torch.inference_mode():
        exact = module.run(images, [2])[2]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module.run(images, [2])[2]
        assert torch.equal(module.run(images, [2])[2], exact), "what autocast kept is exact"
    assert float((rounded - exact).norm() / exact.norm()) < 0.02

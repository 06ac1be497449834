"""timm encoders: weights, tokens, refusals. Models are timm's own tiny test models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from slideloom.config.catalogue import find_entry
from slideloom.config.model import EncoderConfig
from slideloom.encoders.timm_models import vit as timm_vit
from slideloom.encoders.timm_models.vit import TimmViT
from slideloom.errors import SlideloomError

MODEL = "timm/test_vit"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3] / "src")}


def config(**settings: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": MODEL, "grid": "g", **settings})


def build_timm(settings: EncoderConfig) -> TimmViT:
    entry = find_entry(settings.model)
    assert entry is not None
    return timm_vit.build_timm(settings, entry)


@pytest.fixture(scope="module")
def encoder() -> TimmViT:
    return build_timm(config(random=7))


def states(encoder: TimmViT) -> dict[str, torch.Tensor]:
    return encoder.module.state_dict()


def image(high: int = 64, wide: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, high, wide, generator=torch.Generator().manual_seed(1))


def test_torchvision_imports_in_a_fresh_interpreter() -> None:
    code = (
        "import torch; from slideloom.encoders.timm_models.torchvision_guard import ensure_torchvision as e;"
        "first = e(); import torchvision, timm; from torchvision import transforms;"
        "print(not e(), torchvision.extension._has_ops() != first)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert run.stdout.split() == ["True", "True"]


def test_spec_and_defaults(encoder: TimmViT) -> None:
    assert (encoder.patch_px, encoder.width, encoder.spec.depth) == (16, 64, 6)
    assert encoder.blocks == (2, 3, 5, 6)
    assert encoder.weights == "random:7"
    assert encoder.markers == ("red", "green", "blue")
    assert encoder.dropped == ()
    assert (encoder.spec.prefix_tokens, encoder.spec.final_norm) == (1, False)
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_same_seed_same_weights_and_global_generator_untouched() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (states(build_timm(config(random=seed))) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_tokens_are_unnormed_block_outputs_without_prefix(encoder: TimmViT) -> None:
    """An oracle of hooks: what each block put out, its class token dropped, row by row."""
    seen: dict[int, torch.Tensor] = {}
    blocks: Any = encoder.module.get_submodule("blocks")
    hooks = [
        block.register_forward_hook(lambda _m, _i, out, k=k: seen.__setitem__(k, out))
        for k, block in enumerate(blocks, 1)
    ]
    tokens = encoder.encode(image())
    for hook in hooks:
        hook.remove()
    assert tuple(tokens) == encoder.blocks
    prefix = encoder.module.num_prefix_tokens
    assert prefix == 1
    for block, value in tokens.items():
        assert value.shape == (2, 4, 6, 64)
        assert torch.equal(value, seen[block][:, prefix:].reshape(2, 4, 6, 64))


def test_place_of_a_token_is_its_place_in_the_image(encoder: TimmViT) -> None:
    """A change of one square moves that square's token of block 1 most."""
    one = build_timm(config(random=7, blocks=[1]))
    plain = image()
    changed = plain.clone()
    changed[:, :, 16:32, 64:80] += 3
    difference = (one.encode(changed)[1] - one.encode(plain)[1]).norm(dim=-1)
    for row in difference.flatten(1):
        assert int(row.argmax()) == 1 * 6 + 4


def test_chosen_blocks_equal_those_of_the_default(encoder: TimmViT) -> None:
    tokens = encoder.encode(image())
    few = build_timm(config(random=7, blocks=[3, 5])).encode(image())
    assert list(few) == [3, 5]
    for block in few:
        torch.testing.assert_close(few[block], tokens[block])


@pytest.mark.parametrize("name", ["test_vit2", "test_vit3", "vit_small_patch16_dinov3", "deit_tiny_patch16_224"])
def test_other_families(name: str) -> None:
    """Register tokens, rotary positions, class-less models: shapes and finiteness."""
    encoder = build_timm(config(model=f"timm/{name}", random=0))
    tokens = encoder.encode(image(64, 32))
    for value in tokens.values():
        assert value.shape == (2, 64 // encoder.patch_px, 32 // encoder.patch_px, encoder.width)
        assert torch.isfinite(value).all()


def test_preprocess_uses_the_models_own_mean_and_std() -> None:
    dino = build_timm(config(model="timm/vit_tiny_patch16_224", random=0))
    assert dino.spec.mean == (0.5, 0.5, 0.5)
    pixels = np.random.default_rng(2).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    got = dino.preprocess(torch.from_numpy(pixels)).numpy()
    mean, std = (np.array(v)[:, None, None] for v in (dino.spec.mean, dino.spec.std))
    np.testing.assert_allclose(got, (pixels / 255 - mean) / std, atol=1e-6)
    for wrong in (torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 16, 16, dtype=torch.uint8)):
        with pytest.raises(SlideloomError, match="uint8"):
            dino.preprocess(wrong)


# ---- the final normalisation, and tokens of 14 px -------------------------------------------------------------------


def test_final_norm_is_the_models_own_on_the_last_block_only(encoder: TimmViT) -> None:
    normed = build_timm(config(random=7, final_norm=True))
    assert normed.spec.final_norm
    module: Any = encoder.module
    plain, got = encoder.encode(image()), normed.encode(image())
    with torch.inference_mode():
        wanted = module.forward_features(image())[:, 1:]
    torch.testing.assert_close(got[6].flatten(1, 2), wanted)
    assert not torch.equal(got[6], plain[6])
    for block in (2, 3, 5):
        torch.testing.assert_close(got[block], plain[block])


def test_final_norm_needs_the_last_block_and_a_norm_of_tokens() -> None:
    with pytest.raises(SlideloomError, match="block 6, the last") as caught:
        build_timm(config(random=0, blocks=[3], final_norm=True))
    assert caught.value.code == "encoder_final_norm"
    with pytest.raises(SlideloomError, match="no final normalisation of its tokens"):
        build_timm(config(model="timm/test_vit2", random=0, final_norm=True))


def test_tokens_of_14_px_take_tiles_of_any_size() -> None:
    """A tile of 40 x 50 px is reduced to 28 x 42, every pixel the mean over its area."""
    encoder = build_timm(config(model="timm/vit_small_patch14_dinov2", random=0, blocks=[1, 2]))
    picture = image(40, 50)
    tokens = encoder.encode(picture)
    assert encoder.spec.tile_multiple_px == 1
    assert "no multiple of 14 px" in encoder.notes[0]

    def means(values: torch.Tensor, side: int) -> torch.Tensor:
        """Means over the last axis in ``side`` steps, each from floor to ceiling of its share."""
        size = values.shape[-1]
        parts = [values[..., k * size // side : -(-(k + 1) * size // side)].mean(-1) for k in range(side)]
        return torch.stack(parts, -1)

    small = means(means(picture, 42).mT, 28).mT
    for block, value in encoder.encode(small).items():
        assert value.shape == (2, 2, 3, encoder.width)
        torch.testing.assert_close(tokens[block], value, atol=1e-5, rtol=1e-5)
    with pytest.raises(SlideloomError, match="at least 14 px") as caught:
        encoder.encode(image(13, 28))
    assert caught.value.code == "encoder_tile_px"


# ---- checkpoints --------------------------------------------------------------------------------------------------


def test_checkpoint_gives_the_same_tokens(encoder: TimmViT, tmp_path: Path) -> None:
    import hashlib

    wanted = encoder.encode(image())
    save_file(states(encoder), tmp_path / "a.safetensors")
    torch.save(states(encoder), tmp_path / "b.pth")
    torch.save({"epoch": 3, "model": states(encoder)}, tmp_path / "c.pth")
    for file in sorted(tmp_path.iterdir()):
        loaded = build_timm(config(checkpoint=file))
        assert loaded.weights == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
        got = loaded.encode(image())
        assert all(torch.equal(got[block], wanted[block]) for block in wanted)


def test_head_of_a_checkpoint_is_left_aside_and_noted(encoder: TimmViT, tmp_path: Path) -> None:
    with_head = states(encoder) | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    save_file(with_head, tmp_path / "a.safetensors")
    loaded = build_timm(config(checkpoint=tmp_path / "a.safetensors"))
    assert loaded.notes == ("left aside, for it is no part of the encoder: head.bias, head.weight",)


def test_every_wrong_key_is_listed(encoder: TimmViT, tmp_path: Path) -> None:
    wrong = dict(states(encoder))
    del wrong["blocks.0.attn.qkv.weight"]
    wrong["decoder.weight"] = torch.zeros(1)
    wrong["heady"] = torch.zeros(1)
    wrong["norm.weight"] = torch.zeros(63)
    save_file(wrong, tmp_path / "a.safetensors")
    with pytest.raises(SlideloomError) as caught:
        build_timm(config(checkpoint=tmp_path / "a.safetensors"))
    assert caught.value.code == "checkpoint_keys"
    for part in (
        "1 missing: blocks.0.attn.qkv.weight",
        "2 unexpected: decoder.weight, heady",
        "(63,) instead of (64,)",
    ):
        assert part in str(caught.value)


def test_positions_of_another_grid_are_kept_as_they_are(encoder: TimmViT, tmp_path: Path) -> None:
    """A checkpoint trained at 64 px: tokens at 64 px need no resampling, and get none."""
    import timm

    trained: Any = timm.create_model("test_vit", num_classes=0, img_size=64)
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    loaded = build_timm(config(checkpoint=tmp_path / "a.safetensors", blocks=[6]))
    assert torch.equal(states(loaded)["pos_embed"], trained.pos_embed)
    picture = image(64, 64)
    with torch.inference_mode():
        wanted = trained.eval().forward_intermediates(picture, indices=[5], output_fmt="NLC", intermediates_only=True)
    assert torch.equal(loaded.encode(picture)[6].flatten(1, 2), wanted[0])


def test_a_model_with_computed_buffers_loads_whole(tmp_path: Path) -> None:
    """Rotary positions lie in no checkpoint: they are computed, not left empty."""
    made = build_timm(config(model="timm/vit_small_patch16_dinov3", random=1, blocks=[12]))
    save_file(states(made), tmp_path / "a.safetensors")
    loaded = build_timm(
        config(model="timm/vit_small_patch16_dinov3", checkpoint=tmp_path / "a.safetensors", blocks=[12])
    )
    assert not any(tensor.is_meta for tensor in (*loaded.module.parameters(), *loaded.module.buffers()))
    assert torch.equal(loaded.encode(image(32, 48))[12], made.encode(image(32, 48))[12])


def test_half_precision_checkpoints_become_float32(encoder: TimmViT, tmp_path: Path) -> None:
    save_file({key: value.half() for key, value in states(encoder).items()}, tmp_path / "a.safetensors")
    loaded = build_timm(config(checkpoint=tmp_path / "a.safetensors"))
    assert {value.dtype for value in states(loaded).values()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_unsafe_missing_and_broken_checkpoints(encoder: TimmViT, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("ran",))

    unsafe, broken, text, empty = (tmp_path / f"{name}.pth" for name in ("unsafe", "broken", "text", "empty"))
    unsafe.write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    torch.save(states(encoder), broken)
    broken.write_bytes(broken.read_bytes()[:5000])
    text.write_text("<html>not found</html>")
    torch.save({"epoch": 3}, empty)
    short = tmp_path / "short.safetensors"
    save_file(states(encoder), short)
    short.write_bytes(short.read_bytes()[:-100])
    expected = {
        unsafe: "unsafe_checkpoint",
        broken: "unreadable_checkpoint",
        text: "unreadable_checkpoint",
        empty: "unreadable_checkpoint",
        short: "unreadable_checkpoint",
        tmp_path / "absent.pth": "missing_checkpoint",
    }
    for path, code in expected.items():
        with pytest.raises(SlideloomError) as caught:
            build_timm(config(checkpoint=path))
        assert caught.value.code == code, path


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "code", "told"),
    [
        ("timm/vit_base_patch32_224", "encoder_patch_px", "32 px"),
        ("timm/vit_tiny_patch16_223", "encoder_model", "vit_tiny_patch16_224"),
        ("timm/resnet18", "encoder_model", "not a plain vision transformer"),
        ("timm/hf-hub:some/model", "encoder_model", "no model of timm"),
        ("timm/test_vit_relpos", "encoder_model", "not a plain vision transformer"),
    ],
)
def test_refused_models(model: str, code: str, told: str) -> None:
    with pytest.raises(SlideloomError, match=told) as caught:
        build_timm(config(model=model, random=0))
    assert caught.value.code == code


def test_refused_settings(encoder: TimmViT) -> None:
    with pytest.raises(SlideloomError, match="Leave patch_px out"):
        build_timm(config(random=0, patch_px=8))
    with pytest.raises(SlideloomError, match="rising numbers from 1 to 6"):
        build_timm(config(random=0, blocks=[7]))
    with pytest.raises(SlideloomError, match="a multiple of 16 px"):
        encoder.encode(image(64, 100))

"""The pathology foundation models: sizes as published, tokens as a plain forward gives them, transformers' layout."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from slideloom.config.catalogue import CATALOGUE, EncoderEntry
from slideloom.config.model import EncoderConfig
from slideloom.encoders.cellvit.encoder import encoder_module
from slideloom.encoders.timm_models.vit import build_timm, make_module
from slideloom.errors import SlideloomError

NAMED = [entry for entry in CATALOGUE.values() if entry.family == "timm" and not entry.name.startswith("timm/")]
#: As the authors state it, or as counted over the published file; H0-mini is stated as 86 million.
PUBLISHED_PARAMS = {
    "uni": 303_350_784,
    "uni2_h": 681_394_176,
    "virchow": 631_229_184,
    "virchow2": 631_239_424,
    "h_optimus_0": 1_134_774_272,
    "h_optimus_1": 1_134_774_272,
    "prov_gigapath": 1_134_953_984,
    "h0_mini": 85_739_520,
    "phikon": 85_798_656,
    "phikon_v2": 303_351_808 - 1024,  # without the mask token, which plays no part
}
#: Length of the published positional embedding.
POSITIONS = {
    "uni": 197, "uni2_h": 256, "virchow": 257, "virchow2": 261, "h_optimus_0": 256, "h_optimus_1": 256,
    "prov_gigapath": 197, "h0_mini": 256, "phikon": 197, "phikon_v2": 197,
}  # fmt: skip
#: Width of the first linear layer of the feed-forward part.
HIDDEN = {
    "uni": 4096, "uni2_h": 8192, "virchow": 6832, "virchow2": 6832, "h_optimus_0": 8192, "h_optimus_1": 8192,
    "prov_gigapath": 8192, "h0_mini": 4096, "phikon": 3072, "phikon_v2": 4096,
}  # fmt: skip


def shrunk(entry: EncoderEntry, **more: Any) -> EncoderEntry:
    """The same model, two blocks deep and 24 wide."""
    settings = {**entry.settings, "embed_dim": 24, "depth": 2, "num_heads": 3, **more}
    return replace(entry, settings=settings, width=24, depth=2, heads=3)


def config(entry: EncoderEntry, **settings: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": entry.name, "grid": "g", **settings})


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter far from its initial value, so that none can go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def image(high: int, wide: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, high, wide, generator=torch.Generator().manual_seed(1))


# ---- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", NAMED, ids=lambda entry: entry.name)
def test_the_model_has_the_published_sizes(entry: EncoderEntry) -> None:
    module: Any = make_module(entry, device="meta")
    assert all(parameter.is_meta for parameter in module.parameters())
    assert sum(parameter.numel() for parameter in module.parameters()) == entry.params == PUBLISHED_PARAMS[entry.name]
    assert (module.embed_dim, len(module.blocks)) == (entry.width, entry.depth)
    assert module.blocks[0].attn.num_heads == entry.heads
    assert module.num_prefix_tokens == entry.prefix_tokens
    assert module.patch_embed.patch_size == (entry.token_px, entry.token_px)
    assert module.pos_embed.shape[1] == POSITIONS[entry.name]
    assert module.blocks[0].mlp.fc1.out_features == HIDDEN[entry.name]
    scaled = entry.name != "phikon"
    assert ("blocks.0.ls1.gamma" in module.state_dict()) == scaled
    gated = entry.name in ("uni2_h", "virchow", "virchow2", "h_optimus_0", "h_optimus_1", "prov_gigapath", "h0_mini")
    assert isinstance(module.blocks[0].mlp.act, torch.nn.SiLU if gated else torch.nn.GELU)
    assert module.blocks[0].mlp.fc2.in_features == HIDDEN[entry.name] // (2 if gated else 1)
    assert module.norm.eps == module.blocks[0].norm1.eps == (1e-12 if entry.name == "phikon" else 1e-6)


@pytest.mark.parametrize("name", ["vit256", "sam_b", "sam_l", "sam_h", "uni", "virchow", "virchow2"])
def test_the_cellvit_encoders_have_the_catalogues_sizes(name: str) -> None:
    """Without tissue head and SAM's neck, which play no part in the tokens."""
    entry = CATALOGUE[f"cellvit/{name}"]
    with torch.device("meta"):
        module = encoder_module(name)
    assert sum(parameter.numel() for parameter in module.parameters()) == entry.params
    assert (module.width, module.depth, module.patch_px) == (entry.width, entry.depth, entry.token_px)
    assert module.prefix_tokens == entry.prefix_tokens


# ---- tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", NAMED, ids=lambda entry: entry.name)
def test_token_maps_are_what_the_blocks_put_out(entry: EncoderEntry, tmp_path: Path) -> None:
    """Through a checkpoint, at the size it was trained at and at another, against hooks on a plain forward."""
    small = shrunk(entry)
    module: Any = make_module(small).eval()
    randomise(module)
    save_file(module.state_dict(), tmp_path / "a.safetensors")
    encoder = build_timm(config(entry, checkpoint=tmp_path / "a.safetensors", blocks=[1, 2]), small)
    assert (encoder.spec.prefix_tokens, encoder.spec.mean, encoder.spec.std) == (
        entry.prefix_tokens, entry.mean, entry.std,
    )  # fmt: skip
    assert (encoder.spec.mpp_um, encoder.spec.licence, encoder.spec.source) == (
        entry.mpp_um, entry.licence, entry.source,
    )  # fmt: skip
    seen: list[Tensor] = []
    for block in module.blocks:
        block.register_forward_hook(lambda _module, _given, out: seen.append(out))
    side = entry.token_px or 0
    for high, wide in ((224, 224), (3 * side, 5 * side)):
        seen.clear()
        picture = image(high, wide, n=1)
        with torch.inference_mode():
            module(picture)
        for block, tokens in encoder.encode(picture).items():
            assert tokens.shape == (1, high // side, wide // side, 24)
            wanted = seen[block - 1][:, entry.prefix_tokens :].reshape(tokens.shape)
            torch.testing.assert_close(tokens, wanted)


# ---- the layout of transformers -----------------------------------------------------------------------------------


class PlainVit:
    """A vision transformer written straight from the layout of transformers, in double precision.

    ``dinov2``: with layer scale and that layout's names. ``gated``: with SiLU gates in the feed-forward part.
    """

    def __init__(
        self, *, dinov2: bool, gated: bool = False, registers: int = 0, width: int = 24, side: int = 16
    ) -> None:
        self.dinov2, self.gated, self.registers, self.width, self.heads, self.side = (
            dinov2,
            gated,
            registers,
            width,
            3,
            side,
        )
        self.eps = 1e-6 if dinov2 else 1e-12
        generator = torch.Generator().manual_seed(5)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) * 0.3

        state = {
            "embeddings.cls_token": draw(1, 1, width),
            "embeddings.position_embeddings": draw(1, 1 + (224 // side) ** 2, width),
            "embeddings.patch_embeddings.projection.weight": draw(width, 3, side, side),
            "embeddings.patch_embeddings.projection.bias": draw(width),
        }
        if registers:
            state["embeddings.register_tokens"] = draw(1, registers, width)
        self.names = (
            ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
            if dinov2
            else ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
        )
        if gated:
            self.names = ("norm1", "norm2", "mlp.weights_in", "mlp.weights_out")
        for layer in range(2):
            linears = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
            linears["attention.output.dense"] = (width, width)
            linears[self.names[2]] = (4 * width * (2 if gated else 1), width)
            linears[self.names[3]] = (width, 4 * width)
            for name, shape in linears.items():
                state[f"encoder.layer.{layer}.{name}.weight"] = draw(*shape)
                state[f"encoder.layer.{layer}.{name}.bias"] = draw(shape[0])
            for norm in self.names[:2]:
                state[f"encoder.layer.{layer}.{norm}.weight"] = draw(width)
                state[f"encoder.layer.{layer}.{norm}.bias"] = draw(width)
            if dinov2:
                state[f"encoder.layer.{layer}.layer_scale1.lambda1"] = draw(width)
                state[f"encoder.layer.{layer}.layer_scale2.lambda1"] = draw(width)
        state["layernorm.weight"], state["layernorm.bias"] = draw(width), draw(width)
        self.state = state

    def get(self, name: str) -> Tensor:
        return self.state[name].double()

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.get(f"{name}.weight").T + self.get(f"{name}.bias")

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        return (x - mean) / (variance + self.eps).sqrt() * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def attention(self, x: Tensor, layer: str) -> Tensor:
        size = self.width // self.heads
        q, k, v = (self.linear(x, f"{layer}.attention.attention.{part}") for part in ("query", "key", "value"))
        out = torch.empty_like(x)
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            weights = (q[..., part] @ k[..., part].mT / math.sqrt(size)).softmax(-1)
            out[..., part] = weights @ v[..., part]
        return self.linear(out, f"{layer}.attention.output.dense")

    def feed_forward(self, x: Tensor, layer: str) -> Tensor:
        hidden = self.linear(x, f"{layer}.{self.names[2]}")
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = gate * gate.sigmoid() * value
        else:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        return self.linear(hidden, f"{layer}.{self.names[3]}")

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Of each layer, without the class token, and the last one normed."""
        squares = functional.unfold(images.double(), self.side, stride=self.side).mT
        x = squares @ self.get("embeddings.patch_embeddings.projection.weight").flatten(1).T
        x = x + self.get("embeddings.patch_embeddings.projection.bias")
        first = self.get("embeddings.cls_token").expand(len(x), -1, -1)
        x = torch.cat([first, x], 1) + self.get("embeddings.position_embeddings")
        if self.registers:
            x = torch.cat([x[:, :1], self.get("embeddings.register_tokens").expand(len(x), -1, -1), x[:, 1:]], 1)
        found = []
        for index in range(2):
            layer = f"encoder.layer.{index}"
            for norm, part, scale in (
                (self.names[0], self.attention, "layer_scale1"),
                (self.names[1], self.feed_forward, "layer_scale2"),
            ):
                step = part(self.norm(x, f"{layer}.{norm}"), layer)
                x = x + step * (self.get(f"{layer}.{scale}.lambda1") if self.dinov2 else 1)
            found.append(x[:, 1 + self.registers :])
        return [*found, self.norm(found[-1], "layernorm")]


def check_equal(plain: PlainVit, entry: EncoderEntry, file: Path) -> tuple[str, ...]:
    encoder = build_timm(config(entry, checkpoint=file, blocks=[1, 2]), entry)
    normed = build_timm(config(entry, checkpoint=file, blocks=[2], final_norm=True), entry)
    picture = image(224, 224)
    wanted = plain.tokens(picture)
    got = [encoder.encode(picture)[1], encoder.encode(picture)[2], normed.encode(picture)[2]]
    for value, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(value.flatten(1, 2).double(), right, atol=2e-5, rtol=2e-5)
    return encoder.notes


def test_phikons_layout(tmp_path: Path) -> None:
    plain = PlainVit(dinov2=False)
    pooler = {"pooler.dense.weight": torch.zeros(24, 24), "pooler.dense.bias": torch.zeros(24)}
    save_file(plain.state | pooler, tmp_path / "a.safetensors")
    notes = check_equal(plain, shrunk(CATALOGUE["phikon"]), tmp_path / "a.safetensors")
    assert notes == ("left aside, for it is no part of the encoder: pooler.dense.bias, pooler.dense.weight",)
    torch.save({f"vit.{key}": value for key, value in plain.state.items()}, tmp_path / "b.bin")
    assert check_equal(plain, shrunk(CATALOGUE["phikon"]), tmp_path / "b.bin") == ()


def test_phikon_v2s_layout(tmp_path: Path) -> None:
    plain = PlainVit(dinov2=True)
    save_file(plain.state | {"embeddings.mask_token": torch.zeros(1, 24)}, tmp_path / "a.safetensors")
    notes = check_equal(plain, shrunk(CATALOGUE["phikon_v2"]), tmp_path / "a.safetensors")
    assert notes == ("left aside, for it is no part of the encoder: embeddings.mask_token",)


@pytest.mark.parametrize("registers", [0, 4])
def test_gated_and_register_variants_of_the_layout(registers: int, tmp_path: Path) -> None:
    """Models with registers give them no position: the class token's is added to the token itself."""
    plain = PlainVit(dinov2=True, gated=True, registers=registers)
    save_file(plain.state, tmp_path / "a.safetensors")
    gated = {"patch_size": 16, "mlp_ratio": 8.0, "mlp_layer": "swiglu_packed", "act_layer": "silu"}
    more = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    check_equal(plain, shrunk(CATALOGUE["phikon_v2"], **gated, **more), tmp_path / "a.safetensors")


def test_every_key_of_the_layout_is_accounted_for(tmp_path: Path) -> None:
    wrong = dict(PlainVit(dinov2=False).state)
    del wrong["encoder.layer.1.attention.attention.key.bias"]
    wrong["encoder.layer.2.output.dense.weight"] = torch.zeros(1)
    wrong["language.weight"] = torch.zeros(1)
    save_file(wrong, tmp_path / "a.safetensors")
    with pytest.raises(SlideloomError) as caught:
        entry = shrunk(CATALOGUE["phikon"])
        build_timm(config(entry, checkpoint=tmp_path / "a.safetensors"), entry)
    assert caught.value.code == "checkpoint_keys"
    told = str(caught.value)
    assert "1 missing: blocks.1.attn.qkv.bias" in told
    for name in ("language.weight", "blocks.2.mlp.fc2.weight", "blocks.1.attention.attention.query.bias"):
        assert name in told


def test_the_wrong_foundation_model_is_refused(tmp_path: Path) -> None:
    """Virchow2's registers in a Virchow."""
    save_file(make_module(shrunk(CATALOGUE["virchow2"])).state_dict(), tmp_path / "a.safetensors")
    entry = shrunk(CATALOGUE["virchow"])
    with pytest.raises(SlideloomError, match="reg_token") as caught:
        build_timm(config(entry, checkpoint=tmp_path / "a.safetensors"), entry)
    assert caught.value.code == "checkpoint_keys"

"""Published key schemes of VirTues, and files that do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slideloom.encoders.checkpoints.weights import Weights
from slideloom.encoders.virtues.decoder import DecoderArchitecture, MAEDecoder
from slideloom.encoders.virtues.net import Architecture, VirTuesNet, drawn_net, initialise
from slideloom.encoders.virtues.schemes import FLEXDUAL, V1, VirTuesFile
from slideloom.encoders.virtues.weights import load_virtues, published_state
from slideloom.errors import SlideloomError

State = dict[str, Tensor]
SIZES = Architecture(width=64, heads=4, feedforward=128, pattern="hvhv", patch_px=8, registers=1)
TAIL = DecoderArchitecture(width=64, heads=2, feedforward=96, depth=2)


def weights(state: State) -> Weights:
    return Weights(state, "0" * 64, Path("model.safetensors"))


@pytest.fixture(scope="module")
def model() -> tuple[VirTuesNet, MAEDecoder]:
    net, tail = VirTuesNet(SIZES), MAEDecoder(TAIL)
    for seed, module in enumerate((net, tail)):
        initialise(module, seed)
        generator = torch.Generator().manual_seed(10 + seed)
        for name, part in module.named_parameters():
            if name.endswith("bias") or "norm" in name:
                part.data += 0.2 * torch.randn(part.shape, generator=generator)
    return net.eval(), tail.eval()


@pytest.fixture(scope="module")
def state(model: tuple[VirTuesNet, MAEDecoder]) -> State:
    return {key: value.clone() for key, value in published_state(VirTuesFile.of(SIZES, TAIL), *model).items()}


def outputs(net: VirTuesNet, tail: MAEDecoder | None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        markers = net.encode_markers(torch.randn(3, 640, generator=generator))
        tokens = net(torch.randn(2, 3, 16, 24, generator=generator), markers, blocks=(1, 2, 3, 4), channels=True)
        found = [*tokens.after.values(), tokens.final, *tokens.channels]
        return found + ([] if tail is None else tail(tokens.final, tokens.channels))


def same(got: list[Tensor], expected: list[Tensor]) -> None:
    # Some processors round a product by where its operands lie in memory: the last bits of values above 2.
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_real_size_keys(shared: Path) -> None:
    listed = json.loads((shared / "fixtures" / "virtues" / "real_size_keys.json").read_text())
    with torch.device("meta"):
        net, tail = VirTuesNet(Architecture()), MAEDecoder(DecoderArchitecture())
    state = published_state(VirTuesFile.of(Architecture(), DecoderArchitecture()), net, tail)
    assert [[key, list(value.shape)] for key, value in state.items()] == [entry[:2] for entry in listed["keys"]]
    assert len(state) == listed["total_keys"]
    assert sum(part.numel() for part in net.parameters()) == listed["encoder_parameters"]
    assert sum(part.numel() for part in tail.parameters()) == listed["decoder_parameters"]
    tables = sum(value.numel() for key, value in state.items() if "rope1d" in key)
    assert tables == listed["rope_buffer_elements"]
    # Read back from its keys alone, the same model.
    again = load_virtues(weights({k: torch.empty(v.shape) for k, v in _without_tables(state).items()}), "real")
    assert again.file.architecture == Architecture()


def _without_tables(state: State) -> State:
    return {key: value for key, value in state.items() if "rope1d" not in key}


def test_published_file_there_and_back(shared: Path) -> None:
    for name in ("tiny_model", "tiny_model_registers"):
        held = load_file(shared / "fixtures" / "virtues" / f"{name}.safetensors")
        loaded = load_virtues(weights(held), "tiny", decoder=True)
        again = published_state(loaded.file, loaded.net, loaded.decoder)
        assert again.keys() == held.keys()
        for key, value in held.items():
            torch.testing.assert_close(again[key], value, atol=2e-4 if "rope1d" in key else 0, rtol=0)


def test_sizes_are_read_off_the_tensors(model: tuple[VirTuesNet, MAEDecoder], state: State) -> None:
    loaded = load_virtues(weights(state), "x", decoder=True)
    assert (loaded.file.architecture, loaded.file.decoder) == (SIZES, TAIL)
    assert not any(part.requires_grad for part in (*loaded.net.parameters(), *loaded.decoder.parameters()))
    same(outputs(loaded.net, loaded.decoder), outputs(*model))
    without = load_virtues(weights(state), "x")
    assert without.decoder is None
    decoder = sum(key.startswith("decoder.") for key in state)
    assert f"{decoder} weights of the decoder" in without.notes[0]
    only = {key: value for key, value in state.items() if key.startswith("encoder.")}
    assert load_virtues(weights(only), "x").notes == ()


def flexdual(state: State, norm: bool = True, he: bool = True) -> State:
    old = ("encoder.prior_embedding_encoder.", "encoder.patch_encoder.", "decoder.")
    new = ("encoder.protein_encoder.", "encoder.multiplex_patch_encoder.", "mae_decoder.")
    renamed = rename(state, old, new)
    if not norm:
        renamed = {key: value for key, value in renamed.items() if "layer_norm" not in key}
    if he:
        renamed["encoder.he_patch_encoder.weight"] = torch.zeros(64, 192)
        renamed["encoder.he_patch_encoder.bias"] = renamed["encoder.he_marker"] = torch.zeros(64)
    return renamed


def v1(state: State) -> State:
    old = ("encoder.prior_embedding_encoder.", "decoder.multiplex_decoder_mlp.", "decoder.")
    new = ("encoder.protein_encoder.", "mae_decoder.decoder_mlp.", "mae_decoder.")
    renamed = {key: value for key, value in rename(state, old, new).items() if "layer_norm" not in key}
    for block in (1, 3):
        for end in ("sin", "cos"):
            key = "encoder.encoder.{}.encoder_layer.multi_head_attention.pos_emb.rope1d." + end
            renamed[key.format(block)] = renamed[key.format(0)]
    return renamed


def rename(state: State, old: tuple[str, ...], new: tuple[str, ...]) -> State:
    def name(key: str) -> str:
        for before, after in zip(old, new, strict=True):
            if key.startswith(before):
                return after + key.removeprefix(before)
        return key

    return {name(key): value for key, value in state.items()}


def grouped(state: State) -> State:
    """Blocks two by two."""
    found = {}
    for key, value in state.items():
        head, mark, rest = key.partition(".encoder_layer.")
        if mark:
            stem, _, index = head.rpartition(".")
            group, place = divmod(int(index), 2)
            key = f"{stem}.{group}.encoder_layer.layers.{place}.{rest}"
        found[key] = value
    return found


@pytest.mark.parametrize(
    ("change", "scheme"),
    [
        (flexdual, FLEXDUAL.name),
        (lambda state: flexdual(state, he=False), FLEXDUAL.name),
        (lambda state: {f"model.{key}": value for key, value in state.items()}, "VirTues"),
        (lambda state: {f"a.b.{key}": value for key, value in flexdual(state).items()}, FLEXDUAL.name),
        (grouped, "VirTues"),
        (lambda state: {key: value.double() for key, value in state.items()}, "VirTues"),
    ],
    ids=["flexdual", "flexdual without H&E", "prefix", "flexdual with prefix", "grouped", "float64"],
)
def test_other_schemes_are_the_same_model(
    change: Callable[[State], State], scheme: str, state: State, model: tuple[VirTuesNet, MAEDecoder]
) -> None:
    loaded = load_virtues(weights(change(state)), "x", decoder=True)
    assert loaded.file.scheme.name == scheme
    assert any("H&E" in note for note in loaded.notes) == loaded.file.he
    same(outputs(loaded.net, loaded.decoder), outputs(*model))


@pytest.mark.parametrize("change", [v1, lambda state: flexdual(state, norm=False)], ids=["v1", "flexdual"])
def test_schemes_without_final_norm(
    change: Callable[[State], State], state: State, model: tuple[VirTuesNet, MAEDecoder]
) -> None:
    loaded = load_virtues(weights(change(state)), "x", decoder=True)
    assert not loaded.file.architecture.final_norm
    got, expected = outputs(loaded.net, loaded.decoder), outputs(*model)
    same(got[:4], expected[:4])
    torch.testing.assert_close(got[4], got[3])
    with torch.inference_mode():
        same([model[0].norm(got[4])], expected[4:5])


def test_v1_as_its_authors_write_it() -> None:
    sizes = replace(SIZES, final_norm=False, registers=0)
    state = published_state(VirTuesFile.of(sizes, None, V1), VirTuesNet(sizes))
    assert sum(".sin" in key for key in state) == 4
    assert "encoder.protein_encoder.weight" in state


def test_without_tables_heads_are_64_wide() -> None:
    sizes = Architecture(width=128, heads=2, feedforward=64, pattern="hvhvh")
    net = drawn_net(sizes, 0)
    state = _without_tables(published_state(VirTuesFile.of(sizes, None), net))
    loaded = load_virtues(weights(state), "x")
    assert loaded.file.architecture == sizes
    same(outputs(loaded.net, None), outputs(net.eval(), None))


def test_another_order_of_blocks_is_read_and_told() -> None:
    sizes = replace(SIZES, pattern="hhvv")
    net = drawn_net(sizes, 0)
    loaded = load_virtues(weights(published_state(VirTuesFile.of(sizes, None), net)), "x")
    assert loaded.file.architecture.pattern == "hhvv"
    assert "hhvv" in loaded.notes[0]
    same(outputs(loaded.net, None), outputs(net.eval(), None))


def refused(state: State, **more: Any) -> str:
    with pytest.raises(SlideloomError) as caught:
        load_virtues(weights(state), "virtues/sp31", **more)
    assert caught.value.code == "checkpoint_keys"
    return str(caught.value)


@pytest.mark.parametrize("name", ["encoder.patch_encoder.bias", "encoder.encoder.2.encoder_layer.layernorm2.weight"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_missing_key_is_named_as_in_the_file(state: State, name: str, prefix: str) -> None:
    state = {prefix + key: value for key, value in state.items() if key != name}
    assert f"1 missing: {prefix}{name}" in refused(state)


def test_every_key_is_missed(state: State) -> None:
    # Whether there are registers only their own key tells. One block of each stands for the others.
    other = re.compile(r"encoder\.register_tokens|encoder\.encoder\.[013]\.|decoder\.decoder\.0\.")
    for name in (key for key in state if not other.match(key)):
        told = refused({key: value for key, value in state.items() if key != name}, pattern="hvhv")
        assert f"1 missing: {name}" in told


def test_a_missing_block_is_missed(state: State) -> None:
    told = refused({key: value for key, value in state.items() if ".1.encoder_layer" not in key})
    assert "missing: encoder.encoder.1.encoder_layer.multi_head_attention.W_q.weight" in told


def test_an_extra_key_is_named(state: State) -> None:
    assert "1 unexpected: encoder.cls_token" in refused({**state, "encoder.cls_token": torch.zeros(64)})
    told = refused({**state, "encoder.he_marker": torch.zeros(64)})
    assert "2 missing: encoder.he_patch_encoder.weight" in told


def test_a_wrong_shape_is_named(state: State) -> None:
    name = "encoder.encoder.1.encoder_layer.multi_head_attention.W_k.weight"
    told = refused({**state, name: torch.zeros(64, 32)})
    assert f"1 misshapen: {name} (64, 32) instead of (64, 64)" in told
    name = "decoder.decoder.1.encoder_layer.feedforward.0.weight"
    told = refused({**state, name: torch.zeros(80, 64)})
    assert f"1 misshapen: {name} (80, 64) instead of (96, 64)" in told


def test_tables_of_a_block_are_missed_where_its_kind_is_known(state: State) -> None:
    state = {key: value for key, value in state.items() if ".2.encoder_layer.multi_head_attention.pos" not in key}
    assert "2 missing: encoder.encoder.2.encoder_layer" in refused(state, pattern="hvhv")
    assert "hvvv" in load_virtues(weights(state), "x").notes[-1]


@pytest.mark.parametrize("change", [1.001, float("nan")])
def test_other_tables_are_refused(state: State, change: float) -> None:
    name = "encoder.encoder.2.encoder_layer.multi_head_attention.pos_emb.rope1d.cos"
    with pytest.raises(SlideloomError, match=r"2\.encoder_layer.*rope1d\.cos differs") as caught:
        load_virtues(weights({**state, name: state[name].clone() * (1 + (change - 1) * 10)}), "x")
    assert caught.value.code == "checkpoint_rope"


def test_half_precision_files_are_read(state: State) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        loaded = load_virtues(weights({key: value.to(dtype) for key, value in state.items()}), "x", decoder=True)
        assert {part.dtype for part in loaded.net.parameters()} == {torch.float32}


def test_another_models_file_is_refused() -> None:
    assert "unexpected: blocks.0.attn.qkv.weight" in refused({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)})
    bad = {"encoder.encoder.0.encoder_layer.multi_head_attention.pos_emb.rope1d.sin": torch.zeros(9, 7)}
    assert "heads of 14" in refused(bad)

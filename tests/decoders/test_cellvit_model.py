"""The whole CellViT against the original programs: their keys in their order, and their numbers."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cellvit_recipe import golden, image, key_list, models, weight
from torch import Tensor

from slideloom.decoders.cellvit import expand_blocks
from slideloom.decoders.cellvit_model import CellViT, cellvit_from_weights, load_cellvit
from slideloom.encoders.cellvit.file import CellViTFile
from slideloom.encoders.checkpoints.weights import Weights
from slideloom.errors import SlideloomError

CLASSES = ("Background", "Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
SETTINGS = {f"dataset_config.nuclei_types.{name}": number for number, name in enumerate(CLASSES)}
TINY_VIT = {"model.num_heads": 3, "model.extract_layers": [1, 2, 3, 4]}
#: Of each fixture: its list of keys, its class, its training's settings, its tolerance.
FIXTURES: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "tiny_vit": ("tiny_vit", "CellViT", TINY_VIT, 2e-5),
    "tiny_vit_224": ("tiny_vit", "CellViT", TINY_VIT, 2e-5),
    "tiny_vit_regression": ("tiny_vit_regression", "CellViT", TINY_VIT, 2e-5),
    "tiny_vit_shared": ("tiny_vit_shared", "CellViTShared", TINY_VIT, 2e-5),
    "tiny_sam": ("tiny_sam", "CellViTSAM", {"model.backbone": "SAM-B"}, 3e-5),
    "tiny_uni": ("tiny_uni", "CellViTUNI", {"model.num_heads": 3}, 2e-5),
    "tiny_virchow": ("tiny_virchow", "CellViTVirchow", {"model.num_heads": 3}, 2e-5),
    "tiny_virchow2": ("tiny_virchow2", "CellViTVirchow2", {"model.num_heads": 3}, 2e-5),
    "cellvit256_real": ("CellViT256", "CellViT256", {}, 1e-4),
    "cellvit_sam_b_real": ("CellViTSAM-B", "CellViTSAM", {"model.backbone": "SAM-B"}, 2e-4),
    "cellvit_sam_h_real": ("CellViTSAM-H", "CellViTSAM", {"model.backbone": "SAM-H"}, 5e-4),
}
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "CellViT256": ("CellViT256", {}),
    "CellViT256_regression": ("CellViT256", {}),
    "CellViTSAM-B": ("CellViTSAM", {"model.backbone": "SAM-B"}),
    "CellViTSAM-L": ("CellViTSAM", {"model.backbone": "SAM-L"}),
    "CellViTSAM-H": ("CellViTSAM", {"model.backbone": "SAM-H"}),
    "CellViTShared": ("CellViT256Shared", {}),
    "CellViTUNI": ("CellViTUNI", {}),
    "CellViTVirchow": ("CellViTVirchow", {}),
    "CellViTVirchow2": ("CellViTVirchow2", {}),
}
#: The tiny models have one decoder in common, which is most of their weights.
drawn = cache(weight)


def checkpoint(tensors: dict[str, Tensor], arch: str, settings: Mapping[str, Any]) -> Weights:
    """A training's checkpoint, as it is once read."""
    return Weights(tensors, "0" * 64, Path("CellViT-x40.pth"), arch, {**SETTINGS, **settings})


def shapes_only(shared: Path, keys: str, arch: str, settings: Mapping[str, Any]) -> Weights:
    """The same without values: enough to build a model, and to refuse one."""
    listed = key_list(shared, keys)
    kinds = {True: torch.int64, False: torch.float32}
    tensors = {key: torch.empty(shape, dtype=kinds[key.endswith("tracked")], device="meta") for key, shape in listed}
    return checkpoint(tensors, arch, settings)


def published(shared: Path, fixture: str) -> CellViT:
    keys, arch, settings, _ = FIXTURES[fixture]
    draw = drawn if fixture.startswith("tiny") else weight
    return cellvit_from_weights(checkpoint({k: draw(k, s) for k, s in key_list(shared, keys)}, arch, settings))[0]


@pytest.fixture(scope="module")
def tiny(shared: Path) -> CellViT:
    return published(shared, "tiny_vit")


# ---- the originals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "arch", "settings"),
    [
        *((keys, *about) for keys, about in REAL.items()),
        *((keys, arch, settings) for name, (keys, arch, settings, _) in FIXTURES.items() if name == keys),
    ],
)
def test_keys_shapes_and_their_order(shared: Path, keys: str, arch: str, settings: dict[str, Any]) -> None:
    weights = shapes_only(shared, keys, arch, settings)
    model, about = cellvit_from_weights(weights)
    got = [(key, tuple(value.shape), value.dtype) for key, value in model.state_dict().items()]
    assert got == [(key, tuple(value.shape), value.dtype) for key, value in weights.tensors.items()]
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    assert names == set(weights.tensors)
    assert (about.num_nuclei_classes, about.num_tissue_classes, about.class_names) == (6, 19, CLASSES)
    assert (about.regression, about.shared) == ("regression" in keys, "hared" in keys)


def check_fixture(shared: Path, name: str) -> None:
    model = published(shared, name)
    expected, tolerance = golden(shared, name), FIXTURES[name][3]
    for case, entry in models(shared)[name]["cases"].items():
        pixels = image(name, case, tuple(entry["input_shape"]))
        with torch.inference_mode():
            outputs = model(pixels, retrieve_tokens=True)
        assert set(outputs) == set(entry["outputs"])
        for output, value in outputs.items():
            assert list(value.shape) == entry["outputs"][output]["shape"]
            wanted = expected[f"{case}/{output}"]
            if value.ndim == 4:
                step = -(-value.shape[-1] // wanted.shape[-1])
                assert step in (1, 2, entry["stride"])
                value = value[..., ::step, ::step]
            torch.testing.assert_close(value, wanted, atol=tolerance, rtol=0, msg=lambda m, o=output: f"{o}: {m}")


@pytest.mark.parametrize("name", [name for name in FIXTURES if name.startswith("tiny")])
def test_tiny_models_give_the_original_numbers(shared: Path, name: str) -> None:
    check_fixture(shared, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cellvit256_real", "cellvit_sam_b_real"])
def test_real_sizes_give_the_original_numbers(shared: Path, name: str) -> None:
    check_fixture(shared, name)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SLIDELOOM_SLOW"), reason="3 GB and minutes; set SLIDELOOM_SLOW=1")
def test_sam_h_gives_the_original_numbers(shared: Path) -> None:
    check_fixture(shared, "cellvit_sam_h_real")


# ---- behaviour ----------------------------------------------------------------------------------------------------


def test_encoder_then_decoder_is_the_whole_model(tiny: CellViT) -> None:
    pixels = image("any", "two", (2, 3, 32, 48))
    with torch.inference_mode():
        whole = tiny(pixels)
        maps = tiny.encoder.run(pixels, tiny.about.extract_layers)
        parts = tiny.decoding(expand_blocks([m.permute(0, 3, 1, 2) for m in maps.values()]), pixels)
    for head, name in (("nucleus", "nuclei_binary_map"), ("hv", "hv_map"), ("classes", "nuclei_type_map")):
        assert torch.equal(parts[head], whole[name])


def test_skips_are_computed_once(tiny: CellViT) -> None:
    calls: list[str] = []
    hooks = [
        tiny.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
        for name in ("decoder0", "decoder1", "decoder2", "decoder3")
    ]
    with torch.inference_mode():
        tiny(image("any", "one", (1, 3, 32, 32)))
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == ["decoder0", "decoder1", "decoder2", "decoder3"]


def test_channels_last_and_bf16(tiny: CellViT) -> None:
    pixels = image("any", "one", (1, 3, 64, 64))
    fast = copy.deepcopy(tiny).to(memory_format=torch.channels_last)
    assert fast.decoding.get_submodule("decoder0") is fast.get_submodule("decoder0")
    assert fast.get_submodule("decoder0") is not tiny.get_submodule("decoder0")
    with torch.inference_mode():
        plain, last, half = tiny(pixels), fast(pixels), fast(pixels, precision="bf16")
    for name, value in plain.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(last[name], value, atol=1e-5, rtol=0)
        assert 0 < (half[name] - value).abs().max() < 0.1


def test_a_loaded_model_is_frozen_and_at_rest(tiny: CellViT) -> None:
    assert not any(module.training for module in [*tiny.modules(), tiny.decoding])
    assert not any(parameter.requires_grad for parameter in tiny.parameters())
    before = {name: value.clone() for name, value in tiny.named_buffers()}
    with torch.inference_mode():
        tiny(image("any", "one", (1, 3, 32, 32)))
    assert all(torch.equal(value, before[name]) for name, value in tiny.named_buffers())
    again = copy.deepcopy(tiny).train()
    assert again.decoding.training
    assert again.get_submodule("decoder1").training


# ---- files --------------------------------------------------------------------------------------------------------


def test_a_published_file_is_loaded(shared: Path, tiny: CellViT, tmp_path: Path) -> None:
    path = tmp_path / "CellViT-tiny-x20.pth"
    settings = {**SETTINGS, **TINY_VIT, "transformations.normalize.mean": [0.4, 0.5, 0.6]}
    torch.save(
        {"arch": "CellViT", "epoch": 1, "config": settings, "model_state_dict": tiny.state_dict(), "wandb_id": "x"},
        path,
    )
    model, about = load_cellvit(path)
    assert about.magnification == 20
    assert about.mean == (0.4, 0.5, 0.6)
    pixels = image("any", "one", (1, 3, 32, 32))
    with torch.inference_mode():
        for name, value in tiny(pixels).items():
            assert torch.equal(model(pixels)[name], value)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SlideloomError) as caught:
        load_cellvit(path)
    assert caught.value.code == "unreadable_checkpoint"
    with pytest.raises(SlideloomError) as caught:
        load_cellvit(tmp_path / "absent.pth")
    assert caught.value.code == "missing_checkpoint"


@pytest.mark.parametrize(
    "key",
    [
        "encoder.cls_token",
        "encoder.norm.bias",
        "decoder2.1.block.2.running_var",
        "hv_map_decoder.decoder1_upsampler.0.block.0.weight",
        "nuclei_type_maps_decoder.decoder0_header.2.bias",
    ],
)
def test_a_key_that_is_missing_extra_or_misshapen(shared: Path, key: str) -> None:
    weights = shapes_only(shared, "tiny_vit", "CellViT", TINY_VIT)
    given = weights.tensors
    cases = {
        f"1 missing: {key}": {name: value for name, value in given.items() if name != key},
        f"1 unexpected: {key}.more": given | {f"{key}.more": given[key]},
        f"1 misshapen: {key}": given | {key: torch.empty(5, 2, 3, device="meta")},
    }
    for message, tensors in cases.items():
        with pytest.raises(SlideloomError, match=message) as caught:
            cellvit_from_weights(replace(weights, tensors=tensors))
        assert caught.value.code == "checkpoint_keys"


def test_another_architecture(shared: Path) -> None:
    vit = shapes_only(shared, "CellViT256", "CellViT256", {})
    for wrong in ("CellViTUNI", "CellViTVirchow", "CellViT256Shared"):
        with pytest.raises(SlideloomError) as caught:
            cellvit_from_weights(replace(vit, arch=wrong))
        assert caught.value.code.startswith("checkpoint_")
        assert vit.path.name in str(caught.value)
    sam = shapes_only(shared, "CellViTSAM-B", "CellViTSAM", {"model.backbone": "SAM-L"})
    with pytest.raises(SlideloomError, match=r"encoder is that of cellvit/sam_b .*of cellvit/sam_l") as caught:
        cellvit_from_weights(sam)
    assert caught.value.code == "checkpoint_arch"
    with pytest.raises(SlideloomError, match="StarDist") as caught:
        cellvit_from_weights(replace(vit, arch="StarDistRN50"))
    assert caught.value.code == "checkpoint_arch"
    encoder = {key.removeprefix("encoder."): value for key, value in vit.tensors.items() if key.startswith("encoder.")}
    with pytest.raises(SlideloomError, match="no whole CellViT") as caught:
        cellvit_from_weights(replace(vit, tensors=encoder, arch=""))
    assert caught.value.code == "checkpoint_arch"


@pytest.mark.parametrize("layers", [(1, 2, 3), (1, 2, 4, 3), (1, 2, 3, 5), (0, 1, 2, 3), (1, 1, 2, 3)])
def test_layers_that_no_decoder_reads(layers: tuple[int, ...]) -> None:
    sizes = {"embed_dim": 48, "depth": 4, "heads": 3}
    with torch.device("meta"), pytest.raises(SlideloomError) as caught:
        CellViT(CellViTFile("vit", sizes, layers, 6, 19))
    assert caught.value.code == "cellvit_layers"

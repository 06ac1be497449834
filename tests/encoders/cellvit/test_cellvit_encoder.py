"""CellViT encoders from every published kind of file and from a seed; what files say of themselves; refusals."""

from __future__ import annotations

import argparse
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.cellvit_recipe import image, key_list, keys_of, weights
from torch import Tensor

from slideloom.config.catalogue import CATALOGUE
from slideloom.config.model import EncoderConfig
from slideloom.encoders.cellvit.encoder import CellViTEncoder, build_cellvit, describe_checkpoint, encoder_module
from slideloom.encoders.checkpoints.weights import Weights, read_weights
from slideloom.errors import SlideloomError

#: Key lists of the published sizes: architecture, class name in a checkpoint, backbone in its settings.
PUBLISHED = {
    "CellViT256": ("vit256", "CellViT256", "ViT256"),
    "CellViT256_regression": ("vit256", "CellViT256", "ViT256"),
    "CellViTShared": ("vit256", "CellViT256Shared", "ViT256"),
    "CellViTSAM-B": ("sam_b", "CellViTSAM", "SAM-B"),
    "CellViTSAM-L": ("sam_l", "CellViTSAM", "SAM-L"),
    "CellViTSAM-H": ("sam_h", "CellViTSAM", "SAM-H"),
    "CellViTUNI": ("uni", "CellViTUNI", None),
    "CellViTVirchow": ("virchow", "CellViTVirchow", None),
    "CellViTVirchow2": ("virchow2", "CellViTVirchow2", None),
}
#: Settings of a training of the tiny model of the fixtures.
TINY = {
    "model.embed_dim": 48,
    "model.depth": 4,
    "model.num_heads": 3,
    "model.extract_layers": [1, 2, 3, 4],
    "transformations.normalize.mean": [0.5, 0.4, 0.3],
    "transformations.normalize.std": [0.5, 0.6, 0.7],
    "dataset_config.nuclei_types.Background": 0,
    **{f"dataset_config.nuclei_types.{name}": k for k, name in enumerate("ABCDE", 1)},
}


def blank(keys: list[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Zeros of these shapes that take no room, in memory or in a PyTorch file."""
    return {key: torch.zeros(()).expand(shape) for key, shape in keys}


def config(model: str, **settings: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": f"cellvit/{model}", "grid": "g", **settings})


def build(model: str, checkpoint: Path | None = None, **settings: Any) -> CellViTEncoder:
    return build_cellvit(config(model, checkpoint=checkpoint, **settings), CATALOGUE[f"cellvit/{model}"])


def save(place: Path, tensors: dict[str, Tensor], arch: str = "", settings: dict[str, Any] | None = None) -> Path:
    """A checkpoint as a CellViT training writes it, its best metric a NumPy number."""
    content = {"arch": arch, "epoch": 130, "best_metric": np.float64(0.5), "config": settings or {}}
    torch.save({**content, "model_state_dict": tensors}, place)
    return place


@pytest.fixture(scope="module")
def whole(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny CellViT of the fixtures, its encoder's weights by recipe, its decoder blank."""
    tensors = blank(key_list(shared, "tiny_vit")) | weights(key_list(shared, "tiny_vit", "encoder."))
    return save(tmp_path_factory.mktemp("whole") / "CellViT-tiny-x20.pth", tensors, "CellViT", TINY)


@pytest.fixture(scope="module")
def vit256() -> CellViTEncoder:
    return build("vit256", random=5)


def pixels(side: int = 64, count: int = 2) -> Tensor:
    drawn = np.random.default_rng(side).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return torch.from_numpy(drawn)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_keys_and_shapes_of_the_published_models(shared: Path, name: str) -> None:
    with torch.device("meta"):
        module = encoder_module(PUBLISHED[name][0], tissue_classes=19)
        bare = encoder_module(PUBLISHED[name][0])
    own = [(f"encoder.{key}", tuple(value.shape)) for key, value in module.state_dict().items()]
    expected = key_list(shared, name, "encoder.")
    assert own == expected
    left = {key for key, _ in expected} - {f"encoder.{key}" for key in bare.state_dict()}
    assert {key.split(".")[1] for key in left} == {"neck" if "SAM" in name else "head"}


def test_sizes_of_ones_own_must_be_given() -> None:
    with pytest.raises(ValueError, match="embed_dim"):
        encoder_module("vit", embed_dim=48)


# --- what a file says of itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False], ids=["with settings", "bare tensors"])
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_describes_every_published_model(shared: Path, name: str, told: bool) -> None:
    arch, said, backbone = PUBLISHED[name]
    example = json.loads((shared / "fixtures" / "cellvit" / "checkpoint_config_example.json").read_text())
    settings = {**example["CellViT256"]["config"], "model.backbone": backbone} if told else {}
    given = Weights(blank(key_list(shared, name)), "", Path("a-x40-AMP.pth"), said if told else "", settings)
    about = describe_checkpoint(given)
    entry = CATALOGUE[f"cellvit/{arch}"]
    assert (about.arch, about.model) == (arch, entry.name)
    assert (about.sizes["embed_dim"], about.sizes["depth"], about.sizes["heads"]) == (
        entry.width,
        entry.depth,
        entry.heads,
    )
    assert (about.num_nuclei_classes, about.num_tissue_classes) == (6, 19)
    assert about.regression == name.endswith("regression")
    assert about.shared == name.endswith("Shared")
    assert about.mean == about.std == (0.5, 0.5, 0.5)
    assert (about.magnification, about.mpp_um) == (40, (0.20, 0.30))
    classes = ("Background", "Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
    assert about.class_names == (classes if told else ())
    layers = {12: (3, 6, 9, 12), 24: (6, 12, 18, 24), 32: (8, 16, 24, 32)}
    assert about.extract_layers == layers[entry.depth or 0]
    with torch.device("meta"):
        module = encoder_module(about.arch, **about.sizes, tissue_classes=about.num_tissue_classes)
    assert [f"encoder.{key}" for key in module.state_dict()] == [key for key, _ in key_list(shared, name, "encoder.")]


@pytest.mark.parametrize("model", ["tiny_vit", "tiny_vit_regression", "tiny_vit_shared", "tiny_sam"])
def test_describes_sizes_of_ones_own(shared: Path, model: str) -> None:
    sam = model == "tiny_sam"
    settings = {"model.backbone": "SAM-B"} if sam else TINY
    arch = "CellViTSAM" if sam else "CellViTShared" if model.endswith("shared") else "CellViT"
    about = describe_checkpoint(Weights(blank(key_list(shared, keys_of(model))), "", Path("a.pth"), arch, settings))
    assert {"embed_dim": 48, "depth": 4, "heads": 3}.items() <= dict(about.sizes).items()
    assert about.extract_layers == (1, 2, 3, 4)
    assert about.regression == model.endswith("regression")
    assert about.shared == model.endswith("shared")
    if sam:
        assert about.sizes["global_blocks"] == (2, 4)
        assert (about.sizes["window"], about.sizes["img_size"]) == (14, 1024)
    else:
        assert (about.mean, about.std) == ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
        assert about.class_names == ("Background", "A", "B", "C", "D", "E")


@pytest.mark.parametrize(
    ("name", "settings", "magnification"),
    [
        ("CellViT-SAM-H-x40.pth", {}, 40),
        ("CellViT-256-x20.pth", {}, 20),
        ("CellViT-256-x40-AMP.pth", {}, 40),
        ("CellViT-256-x400.pth", {}, None),
        ("best.pth", {}, None),
        ("CellViT-256-x40.pth", {"data.magnification": 20}, 20),
        ("best.pth", {"dataset_config.magnification": "x40"}, 40),
        ("CellViT-256-x40.pth", {"data.magnification": 10}, None),
    ],
)
def test_magnification(shared: Path, name: str, settings: dict[str, Any], magnification: int | None) -> None:
    given = Weights(blank(key_list(shared, "tiny_vit")), "", Path(name), "CellViT", TINY | settings)
    assert describe_checkpoint(given).magnification == magnification


def test_what_a_file_lacks_is_told(shared: Path) -> None:
    keys = key_list(shared, "tiny_vit")

    def refused(tensors: dict[str, Tensor], arch: str = "CellViT", settings: dict[str, Any] = TINY) -> SlideloomError:
        with pytest.raises(SlideloomError) as caught:
            describe_checkpoint(Weights(tensors, "", Path("a.pth"), arch, settings))
        return caught.value

    encoder_only = refused(blank([pair for pair in keys if pair[0].startswith("encoder.")]))
    assert encoder_only.code == "checkpoint_arch"
    assert "lacks nuclei_binary_map_decoder.decoder0_header.2.weight" in str(encoder_only)
    stranger = refused(blank(keys), "HoVerNet")
    assert (stranger.code, "says that it is a HoVerNet" in str(stranger)) == ("checkpoint_arch", True)
    for settings in ({}, {"model.num_heads": 5}, {**TINY, "transformations.normalize.mean": [0.5]}):
        assert refused(blank(keys), settings=settings).code == "checkpoint_config"
    no_size = refused(blank(key_list(shared, "tiny_sam")), "CellViTSAM", {"model.backbone": "SAM-XL"})
    assert (no_size.code, "SAM-H" in str(no_size)) == ("checkpoint_arch", True)


# --- whole checkpoints ------------------------------------------------------------------------------------------------


def test_takes_the_encoder_of_a_whole_checkpoint(shared: Path, whole: Path) -> None:
    encoder = build("vit", whole)
    spec = encoder.spec
    assert (spec.patch_px, spec.width, spec.depth, spec.prefix_tokens) == (16, 48, 4, 1)
    assert (spec.mean, spec.std, spec.mpp_um) == ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7), (0.40, 0.60))
    assert encoder.blocks == (1, 2, 3, 4)
    assert encoder.weights.startswith("sha256:")
    assert encoder.dropped == ()
    (note,) = encoder.notes
    assert note.startswith("left aside: encoder.head, decoder0")
    images = encoder.preprocess(pixels())
    expected = (pixels().numpy() / 255 - np.array(spec.mean)[:, None, None]) / np.array(spec.std)[:, None, None]
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    own = encoder_module("vit", embed_dim=48, depth=4, heads=3)
    own.load_state_dict(
        weights([pair for pair in key_list(shared, "tiny_vit", "encoder.") if ".head." not in pair[0]], "encoder.")
    )
    with torch.inference_mode():
        for block, tokens in own.run(images, [1, 2, 3, 4]).items():
            assert torch.equal(encoder.encode(images)[block], tokens)


def test_a_safetensors_file_is_as_good(shared: Path, whole: Path, tmp_path: Path) -> None:
    tensors = read_weights(whole).tensors
    keys = key_list(shared, "tiny_vit_shared")
    mine = {key: tensors.get(key, torch.zeros(())).expand(shape).contiguous() for key, shape in keys}
    place = tmp_path / "shared.safetensors"
    save_file(mine, place, {"arch": "CellViTShared", "config": json.dumps(TINY)})
    images = build("vit", whole).preprocess(pixels())
    assert torch.equal(build("vit", place).encode(images)[4], build("vit", whole).encode(images)[4])


def test_a_whole_published_size(shared: Path, tmp_path: Path, vit256: CellViTEncoder) -> None:
    own = {f"encoder.{key}": value for key, value in vit256.module.state_dict().items()}
    place = save(tmp_path / "CellViT-256-x40.pth", blank(key_list(shared, "CellViT256")) | own, "CellViT256")
    encoder = build("vit256", place, blocks=[2, 12], final_norm=True)
    assert encoder.spec.mpp_um == (0.20, 0.30)
    assert (encoder.blocks, encoder.spec.final_norm) == ((2, 12), True)
    images = encoder.preprocess(pixels())
    given, raw = encoder.encode(images), build("vit256", place, blocks=[2, 12]).encode(images)
    assert torch.equal(given[2], raw[2])
    torch.testing.assert_close(given[12], encoder.module.get_submodule("norm")(raw[12]))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "_" not in name])
@pytest.mark.parametrize("wanted", ["vit256", "sam_b"])
def test_another_model_is_named(shared: Path, tmp_path: Path, name: str, wanted: str) -> None:
    arch, said, backbone = PUBLISHED[name]
    place = save(tmp_path / "a.pth", blank(key_list(shared, name)), said, {"model.backbone": backbone})
    if wanted == arch:
        assert build(wanted, place).spec.name == f"cellvit/{arch}"
        return
    with pytest.raises(SlideloomError, match=f"holds the encoder of cellvit/{arch} ") as caught:
        build(wanted, place)
    assert caught.value.code == "checkpoint_arch"
    assert caught.value.hint.startswith(f"Set model: cellvit/{arch},")


def test_every_key_is_accounted_for(shared: Path, tmp_path: Path) -> None:
    tensors = blank(key_list(shared, "CellViT256"))

    def refused(changed: dict[str, Tensor]) -> str:
        with pytest.raises(SlideloomError) as caught:
            build("vit256", save(tmp_path / "a.pth", changed, "CellViT256"))
        assert caught.value.code == "checkpoint_keys"
        return str(caught.value)

    assert "1 missing: encoder.blocks.11.norm1.bias;" in refused(
        {k: v for k, v in tensors.items() if k != "encoder.blocks.11.norm1.bias"} | {"more": torch.zeros(1)}
    )
    assert "1 unexpected: decoder9.0.weight (" in refused(tensors | {"decoder9.0.weight": torch.zeros(1)})
    assert "encoder.pos_embed (1, 257, 384) instead of (1, 197, 384)" in refused(
        tensors | {"encoder.pos_embed": torch.zeros(()).expand(1, 257, 384)}
    )


# --- encoders published on their own ----------------------------------------------------------------------------------


def _dino(encoder: CellViTEncoder, prefix: str) -> dict[str, Tensor]:
    head = f"{prefix.removesuffix('backbone.')}head.last_layer.weight_g"
    return {f"{prefix}{key}": value for key, value in encoder.module.state_dict().items()} | {head: torch.ones(3, 1)}


@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone.", "module.", ""])
def test_plain_dino_files(tmp_path: Path, vit256: CellViTEncoder, prefix: str) -> None:
    place = tmp_path / "vit256_small_dino.pth"
    content = {"teacher": _dino(vit256, prefix), "student": {}, "epoch": 400, "args": argparse.Namespace(arch="vit")}
    torch.save(content, place)
    encoder = build("vit256", place)
    assert encoder.notes == (
        f"left aside: {prefix.removesuffix('backbone.')}head",
        "weights of the checkpoint's teacher",
    )
    assert encoder.spec.mean == (0.5, 0.5, 0.5)
    assert encoder.spec.mpp_um is None
    images = encoder.preprocess(pixels())
    assert torch.equal(encoder.encode(images)[12], vit256.encode(images)[12])


@pytest.mark.parametrize("form", ["whole", "bare", "bare without neck"])
def test_plain_sam_files(shared: Path, tmp_path: Path, form: str) -> None:
    own = [(key.removeprefix("encoder."), shape) for key, shape in key_list(shared, "CellViTSAM-B", "encoder.")]
    tensors = blank([pair for pair in own if "neck" not in pair[0] or "without" not in form])
    if form == "whole":
        tensors = {f"image_encoder.{key}": value for key, value in tensors.items()}
        tensors |= blank([("prompt_encoder.not_a_point_embed.weight", (1, 256)), ("mask_decoder.x.norm4.bias", (256,))])
    torch.save(tensors, tmp_path / "sam_vit_b.pth")
    encoder = build("sam_b", tmp_path / "sam_vit_b.pth")
    assert (encoder.spec.mean, encoder.spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (encoder.spec.prefix_tokens, encoder.blocks) == (0, (3, 6, 9, 12))
    aside = {"whole": "image_encoder.neck, prompt_encoder, mask_decoder", "bare": "neck"}.get(form)
    assert [note for note in encoder.notes if "left" in note] == ([f"left aside: {aside}"] if aside else [])
    assert "MedSAM" in encoder.notes[-1]
    with pytest.raises(SlideloomError, match="holds the encoder of cellvit/sam_b ") as caught:
        build("sam_h", tmp_path / "sam_vit_b.pth")
    assert caught.value.code == "checkpoint_arch"


@pytest.mark.parametrize("name", ["CellViTUNI", "CellViTVirchow2"])
def test_bare_foundation_models(shared: Path, tmp_path: Path, name: str) -> None:
    own = [(key.removeprefix("encoder."), shape) for key, shape in key_list(shared, name, "encoder.")]
    torch.save(blank([pair for pair in own if "head" not in pair[0]]), tmp_path / "pytorch_model.bin")
    encoder = build(PUBLISHED[name][0], tmp_path / "pytorch_model.bin")
    assert any("SiLU" in note for note in encoder.notes) == ("Virchow" in name)
    assert encoder.spec.tile_multiple_px == (1 if "Virchow" in name else 16)
    with pytest.raises(SlideloomError, match="holds the encoder"):
        build("vit", tmp_path / "pytorch_model.bin")


def test_a_file_of_no_known_size_is_told_key_by_key(shared: Path, tmp_path: Path) -> None:
    own = {
        key.removeprefix("encoder."): value for key, value in blank(key_list(shared, "tiny_vit", "encoder.")).items()
    }
    torch.save(own, tmp_path / "a.pth")
    with pytest.raises(SlideloomError, match=r"missing: blocks\.4") as caught:
        build("vit256", tmp_path / "a.pth")
    assert caught.value.code == "checkpoint_keys"
    with pytest.raises(SlideloomError, match="no whole CellViT") as caught:
        build("vit", tmp_path / "a.pth")
    assert caught.value.code == "checkpoint_arch"


# --- from a seed ------------------------------------------------------------------------------------------------------


def test_seeded_weights(vit256: CellViTEncoder, caplog: pytest.LogCaptureFixture) -> None:
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        same, other = build("vit256", random=5), build("vit256", random=6)
    assert torch.equal(before, torch.random.get_rng_state())
    assert "cellvit/vit256 runs WITHOUT trained weights, from random seed 5" in caplog.text
    assert same.weights == "random:5"
    images = vit256.preprocess(pixels())
    tokens = vit256.encode(images)
    assert list(tokens) == [3, 6, 9, 12]
    assert all(torch.equal(tokens[block], value) for block, value in same.encode(images).items())
    assert not torch.allclose(tokens[12], other.encode(images)[12])
    assert tokens[12].shape == (2, 4, 4, 384)
    assert bool(tokens[12].isfinite().all())
    assert float(tokens[12].std()) > 0.1
    assert not any(parameter.requires_grad for parameter in vit256.module.parameters())


def test_seeds_and_weights_that_cannot_be() -> None:
    with pytest.raises(SlideloomError, match="checkpoint, which also tells") as caught:
        build("vit", random=1)
    assert caught.value.code == "encoder_weights"
    with pytest.raises(SlideloomError, match="checkpoint or random"):
        build("vit256")


def test_settings_that_the_model_has_not(vit256: CellViTEncoder, shared: Path, tmp_path: Path) -> None:
    torch.save(blank(key_list(shared, "CellViTSAM-B")), tmp_path / "a.pth")
    refused = [
        ("sam_b", {"checkpoint": tmp_path / "a.pth", "final_norm": True}, "encoder_final_norm"),
        ("sam_b", {"checkpoint": tmp_path / "a.pth", "blocks": [13]}, "encoder_blocks"),
        ("sam_b", {"checkpoint": tmp_path / "a.pth", "patch_px": 8}, "encoder_patch_px"),
        ("vit256", {"random": 0, "final_norm": True, "blocks": [3]}, "encoder_final_norm"),
    ]
    for model, settings, code in refused:
        with pytest.raises(SlideloomError) as caught:
            build(model, **settings)
        assert caught.value.code == code
    with pytest.raises(SlideloomError, match="multiple of 16") as caught:
        vit256.encode(torch.zeros(1, 3, 64, 40))
    assert caught.value.code == "encoder_tile_px"
    with pytest.raises(SlideloomError) as caught:
        vit256.preprocess(torch.zeros(1, 3, 64, 64))
    assert caught.value.code == "encoder_channels"


def test_two_threads_at_once(whole: Path) -> None:
    encoder = build("vit", whole)
    given = [image("threads", str(k), (1, 3, 32 + 16 * (k % 3), 64)) for k in range(12)]
    alone = [encoder.encode(images)[4] for images in given]
    fresh = build("vit", whole)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda images: fresh.encode(images)[4], given))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slideloom.config.model import DecoderConfig, EncoderConfig
from slideloom.decoders.build import build_decoder
from slideloom.decoders.cellvit import CellViTDecoder
from slideloom.encoders.base import Encoder
from slideloom.encoders.fit import marker_panel
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideloomError
from slideloom.slides.tables import ClassTable
from slideloom.training.checkpoint import DecoderMeta, load_decoder, load_tuned_encoder, read_meta, save_decoder

TABLE = ClassTable((1, 2), ("tumour", "stroma"), ((255, 0, 0), (0, 255, 0)), (("0",), ()))


def decoder(seed: int = 0) -> CellViTDecoder:
    return build_decoder(DecoderConfig(width=0.05), ("nucleus", "classes"), 3, 12, 8, 5, seed=seed)


def meta_of(model: CellViTDecoder) -> DecoderMeta:
    return DecoderMeta(
        recipe=model.recipe(),
        classes=TABLE,
        blocks=(3, 6),
        encoder={"weights": "random:0", "markers": ["DAPI", "CD3ε"]},
        statistics={"mean": [0.1, 1e-17]},
        grid={"tile_px": 64},
        training={"seed": 0, "best": 0.5},
    )


def test_a_decoder_comes_back_with_its_weights_and_its_story(tmp_path: Path) -> None:
    model = decoder()
    model(list(torch.randn(1, 4, 12, 4, 4).unbind(1)), torch.randn(1, 5, 32, 32))  # moves running statistics
    model.eval()
    save_decoder(model.to(memory_format=torch.channels_last).state_dict(), meta_of(model), tmp_path / "d.safetensors")
    again, meta = load_decoder(tmp_path / "d.safetensors")
    assert meta == meta_of(model) == read_meta(tmp_path / "d.safetensors")
    assert (meta.n_classes, meta.token_width, meta.upsampling, meta.image_channels) == (3, 12, 8, 5)
    assert meta.heads == ("nucleus", "classes")
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    tokens, image = [torch.randn(2, 12, 4, 4)] * 4, torch.randn(2, 5, 32, 32)
    with torch.no_grad():
        for head, output in model(tokens, image).items():
            torch.testing.assert_close(again(tokens, image)[head], output, rtol=1e-5, atol=1e-6)


def test_equal_decoders_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = decoder()
        save_decoder(model.state_dict(), meta_of(model), tmp_path / f"{name}.safetensors")
    save_decoder(decoder(1).state_dict(), meta_of(decoder(1)), tmp_path / "c.safetensors")
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_wrong_files_are_refused_by_what_is_wrong(tmp_path: Path) -> None:
    model, place = decoder(), tmp_path / "d.safetensors"
    meta = meta_of(model)
    weights = model.state_dict()
    first = next(iter(weights))
    cases = {
        f"{first} is missing": {name: value for name, value in weights.items() if name != first},
        "extra.weight is unexpected": weights | {"extra.weight": torch.zeros(1)},
        f"{first} has shape \\(1,\\)": weights | {first: torch.zeros(1)},
    }
    for message, wrong in cases.items():
        save_decoder(wrong, meta, place)
        with pytest.raises(SlideloomError, match=message) as caught:
            load_decoder(place)
        assert caught.value.code == "decoder_file"
        assert caught.value.where == str(place)
    save_file(weights, place)
    with pytest.raises(SlideloomError, match="no description of a decoder"):
        read_meta(place)
    save_file(weights, place, metadata={"slideloom": json.dumps({"schema": 99})})
    with pytest.raises(SlideloomError, match="has schema 99"):
        load_decoder(place)
    place.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(SlideloomError, match="cannot be read"):
        load_decoder(place)
    with pytest.raises(SlideloomError, match="cannot be read"):
        read_meta(tmp_path / "absent.safetensors")


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    model, place = decoder(), tmp_path / "d.safetensors"
    save_decoder(model.state_dict(), meta_of(model), place)
    assert set(load_file(place)) == set(model.state_dict())


def virtues(seed: int = 0) -> Encoder:
    config = EncoderConfig(model="virtues/tiny", grid="g", random=seed, markers=["CD3"])
    return build_encoder(config, marker_panel(("CD3",), {"CD3": "P07766"}))


def tuned(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Weights that a training might leave behind."""
    drawn = torch.Generator().manual_seed(3)
    return {
        name: value + 0.01 * torch.randn(value.shape, generator=drawn)
        for name, value in encoder.module.state_dict().items()
    }


def test_a_tuned_encoder_comes_back_with_its_decoder(tmp_path: Path) -> None:
    model, place, weights = decoder(), tmp_path / "d.safetensors", tuned(virtues())
    images = torch.randn(2, 1, 16, 16)
    plain = virtues().encode(images)
    save_decoder(model.state_dict(), meta_of(model), place, weights)
    meta = read_meta(place)
    origin, digest = meta.encoder["weights"].split(" tuned:")
    assert (origin, len(digest)) == ("random:0", 64)
    assert meta.training == meta_of(model).training | {"encoder_trained": True}
    assert meta.encoder_trained
    assert not meta_of(model).encoder_trained
    again, _ = load_decoder(place)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    encoder = virtues()
    first = encoder.encode(images)  # what is derived from the first weights is cached
    load_tuned_encoder(place, encoder)
    assert encoder.weights == meta.encoder["weights"]
    assert all(torch.equal(value, weights[name]) for name, value in encoder.module.state_dict().items())
    wanted = virtues()
    wanted.module.load_state_dict(weights)
    for block, values in encoder.encode(images).items():
        assert torch.equal(values, wanted.encode(images)[block])
        assert torch.equal(first[block], plain[block])
        assert not torch.equal(values, plain[block])
    with pytest.raises(SlideloomError, match="tuned:"):
        load_tuned_encoder(place, encoder)


def test_equal_tuned_encoders_are_equal_bytes_and_others_have_other_names(tmp_path: Path) -> None:
    model, weights = decoder(), tuned(virtues())
    other = weights | {"patch_summary_token": weights["patch_summary_token"] + 1e-6}
    for name, part in (("a", weights), ("b", dict(reversed(weights.items()))), ("c", other)):
        save_decoder(model.state_dict(), meta_of(model), tmp_path / name, part)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    names = [read_meta(tmp_path / name).encoder["weights"] for name in "abc"]
    assert names[0] == names[1] != names[2]


def test_an_encoder_gets_no_weights_but_its_own(tmp_path: Path) -> None:
    model, place, weights = decoder(), tmp_path / "d.safetensors", tuned(virtues())
    save_decoder(model.state_dict(), meta_of(model), place)
    with pytest.raises(SlideloomError, match="no encoder's weights") as caught:
        load_tuned_encoder(place, virtues())
    assert caught.value.code == "decoder_file"
    save_decoder(model.state_dict(), meta_of(model), place, weights)
    with pytest.raises(SlideloomError, match="random:1") as caught:
        load_tuned_encoder(place, virtues(1))
    assert caught.value.code == "encoder_weights"
    cases: dict[str, dict[str, Any]] = {
        "masked_token is missing": {name: value for name, value in weights.items() if name != "masked_token"},
        "extra is unexpected": weights | {"extra": torch.zeros(1)},
        "masked_token has shape": weights | {"masked_token": torch.zeros(3)},
    }
    for message, wrong in cases.items():
        save_decoder(model.state_dict(), meta_of(model), place, wrong)
        encoder = virtues()
        with pytest.raises(SlideloomError, match=message) as caught:
            load_tuned_encoder(place, encoder)
        assert caught.value.code == "decoder_file"
        assert encoder.weights == "random:0"


def test_weights_that_are_not_those_of_the_header_are_refused(tmp_path: Path) -> None:
    model, place, weights = decoder(), tmp_path / "d.safetensors", tuned(virtues())
    save_decoder(model.state_dict(), meta_of(model), place, weights)
    header, held = read_meta(place), load_file(place)
    held["encoder.masked_token"] += 1
    save_file(held, place, metadata={"slideloom": json.dumps(header.as_dict())})
    with pytest.raises(SlideloomError, match="other encoder weights than its header says"):
        load_tuned_encoder(place, virtues())
    # Without the header's word, such keys are no part of a decoder.
    save_decoder(held, replace(meta_of(model), training={}), place)
    with pytest.raises(SlideloomError, match=r"encoder\..* is unexpected"):
        load_decoder(place)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slideloom.config.model import DecoderConfig
from slideloom.decoders.cellvit import CellViTDecoder, build_decoder
from slideloom.errors import SlideloomError
from slideloom.slides.tables import ClassTable
from slideloom.training.checkpoint import DecoderMeta, load_decoder, read_meta, save_decoder

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

"""Encoder and decoder together give the whole original model at 224 px, where no position is resampled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slideloom.config.model import DecoderConfig
from slideloom.decoders.cellvit import build_decoder, expand_blocks
from slideloom.encoders.base import EncoderSpec
from slideloom.encoders.timm_vit import TimmViT
from slideloom.encoders.torchvision_guard import ensure_torchvision


def test_timm_encoder_and_decoder_equal_the_original_model(
    shared: Path, recipe_weights: Callable[..., None], recipe_image: Callable[..., Tensor]
) -> None:
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    folder = shared / "fixtures" / "cellvit"
    case = json.loads((folder / "models.json").read_text())["tiny_vit_224"]["cases"]["sq224"]
    golden = np.load(folder / "model_tiny_vit_224.npz")
    module = VisionTransformer(embed_dim=48, depth=4, num_heads=3, num_classes=0, dynamic_img_size=True)
    recipe_weights(module, "encoder.")
    spec = EncoderSpec("timm/tiny", "rgb", 16, 48, 4, (1, 2, 3, 4), 16)
    encoder = TimmViT(module, spec, spec.blocks, "random:0")
    decoder = build_decoder(DecoderConfig(), ["nucleus", "hv", "classes"], 6, 48, 16, 3)
    recipe_weights(decoder, "")
    decoder.to(memory_format=torch.channels_last)

    image = recipe_image("tiny_vit_224/sq224", tuple(case["input_shape"]))
    tokens = [value.permute(0, 3, 1, 2) for value in encoder.encode(image).values()]
    with torch.inference_mode():
        outputs = decoder(expand_blocks(tokens), image.contiguous(memory_format=torch.channels_last))

    np.testing.assert_allclose(tokens[-1].numpy(), golden["sq224/tokens"], atol=2e-5, rtol=0)
    step = case["stride"]
    for head, name in (("nucleus", "nuclei_binary_map"), ("hv", "hv_map"), ("classes", "nuclei_type_map")):
        got = outputs[head][..., ::step, ::step].numpy()
        np.testing.assert_allclose(got, golden[f"sq224/{name}"], atol=2e-5, rtol=0)

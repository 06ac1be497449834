"""Encoder and decoder together give the whole original model at 224 px, where no position is resampled."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.cellvit_recipe import golden, image, key_list, models, weights

from slideloom.config.model import DecoderConfig
from slideloom.decoders.build import build_decoder
from slideloom.decoders.cellvit import expand_blocks
from slideloom.encoders.base import EncoderSpec
from slideloom.encoders.timm_models.torchvision_guard import ensure_torchvision
from slideloom.encoders.timm_models.vit import TimmViT


def test_timm_encoder_and_decoder_equal_the_original_model(shared: Path) -> None:
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    case = models(shared)["tiny_vit_224"]["cases"]["sq224"]
    drawn = weights(key_list(shared, "tiny_vit"))
    module = VisionTransformer(embed_dim=48, depth=4, num_heads=3, num_classes=0, dynamic_img_size=True)
    prefix = "encoder."
    own = {key.removeprefix(prefix): value for key, value in drawn.items() if key.startswith(prefix)}
    module.load_state_dict({key: value for key, value in own.items() if not key.startswith("head.")})
    spec = EncoderSpec("timm/tiny", "rgb", 16, 48, 4, (1, 2, 3, 4), 16)
    encoder = TimmViT(module.eval(), spec, spec.blocks, "random:0")
    decoder = build_decoder(DecoderConfig(), ["nucleus", "hv", "classes"], 6, 48, 16, 3)
    decoder.load_state_dict({key: value for key, value in drawn.items() if not key.startswith(prefix)})
    decoder.eval().to(memory_format=torch.channels_last)

    pixels = image("tiny_vit_224", "sq224", tuple(case["input_shape"]))
    tokens = [value.permute(0, 3, 1, 2) for value in encoder.encode(pixels).values()]
    with torch.inference_mode():
        outputs = decoder(expand_blocks(tokens), pixels.contiguous(memory_format=torch.channels_last))

    expected = golden(shared, "tiny_vit_224")
    torch.testing.assert_close(tokens[-1], expected["sq224/tokens"], atol=2e-5, rtol=0)
    step = case["stride"]
    for head, name in (("nucleus", "nuclei_binary_map"), ("hv", "hv_map"), ("classes", "nuclei_type_map")):
        got = outputs[head][..., ::step, ::step]
        torch.testing.assert_close(got, expected[f"sq224/{name}"], atol=2e-5, rtol=0)

"""The mean-marker baseline against plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from slideloom.config.model import EncoderConfig
from slideloom.encoders.mean_marker import MeanMarker
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.slides.tables import Channel

STATISTICS = ChannelStatistics(
    markers=("DNA", "CD3"), clip=(3000.0, 50.0), mean=(4.0, 1.5), std=(2.0, 0.25), log1p=True
)
PLAIN = ChannelStatistics(
    markers=("DNA", "CD3"), clip=(3000.0, 50.0), mean=(900.0, 20.0), std=(200.0, 5.0), log1p=False
)


@pytest.mark.parametrize("statistics", [STATISTICS, PLAIN])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_preprocess_is_what_the_statistics_do(statistics: ChannelStatistics, dtype: type) -> None:
    top = min(5000, np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 5000
    pixels = np.random.default_rng(0).integers(0, top, (2, 2, 16, 24)).astype(dtype)
    given = torch.from_numpy(pixels.copy())
    got = MeanMarker(statistics.markers).preprocess(given, statistics)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), statistics.apply(pixels), rtol=1e-5, atol=1e-5)
    assert np.array_equal(given.numpy(), pixels), "the caller's pixels were changed"


@pytest.mark.parametrize("patch_px", [8, 16])
def test_tokens_are_cell_means(patch_px: int) -> None:
    images = np.random.default_rng(1).normal(size=(3, 2, 32, 48)).astype(np.float32)
    encoder = MeanMarker(("DNA", "CD3"), patch_px)
    tokens = encoder.encode(torch.from_numpy(images))
    assert list(tokens) == [1]
    cells = images.reshape(3, 2, 32 // patch_px, patch_px, 48 // patch_px, patch_px).mean(axis=(3, 5))
    np.testing.assert_allclose(tokens[1].numpy(), cells.transpose(0, 2, 3, 1), atol=1e-6)
    assert tokens[1].shape == (3, 32 // patch_px, 48 // patch_px, encoder.width)


def test_built_from_config(channels: Callable[..., list[Channel]]) -> None:
    panel = channels("DNA", "CD3", "CD8")
    every = build_encoder(EncoderConfig(model="mean_marker", grid="g"), panel)
    assert (every.markers, every.width, every.image_channels, every.patch_px) == (("DNA", "CD3", "CD8"), 3, 3, 8)
    some = build_encoder(EncoderConfig(model="mean_marker", grid="g", markers=["CD8", "DNA"], patch_px=16), panel)
    assert (some.markers, some.width, some.patch_px, some.spec.patch_px) == (("CD8", "DNA"), 2, 16, 16)
    assert (some.blocks, some.weights, some.dropped) == ((1,), "none", ())


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"markers": ["CD99"]}, "missing_marker"),
        ({"patch_px": 12}, "encoder_patch_px"),
        ({"patch_px": 14}, "encoder_patch_px"),
        ({"blocks": [2]}, "encoder_blocks"),
    ],
)
def test_refused_configs(settings: dict[str, Any], code: str, channels: Callable[..., list[Channel]]) -> None:
    with pytest.raises((SlideError, SlideloomError)) as caught:
        build_encoder(EncoderConfig(model="mean_marker", grid="g", **settings), channels("DNA", "CD3"))
    assert caught.value.code == code


def test_statistics_of_other_markers_are_refused() -> None:
    encoder = MeanMarker(("CD3", "DNA"))
    pixels = torch.zeros(1, 2, 8, 8)
    for wrong in (None, STATISTICS, replace(STATISTICS.select(encoder.markers), clip=())):
        with pytest.raises(SlideloomError, match="CD3, DNA") as caught:
            encoder.preprocess(pixels, wrong)
        assert caught.value.code == "encoder_statistics"
    with pytest.raises(SlideloomError, match="3 channels"):
        MeanMarker(("DNA", "CD3")).preprocess(torch.zeros(1, 3, 8, 8), STATISTICS)
    assert encoder.preprocess(pixels, STATISTICS.select(encoder.markers)).shape == pixels.shape
    with pytest.raises(SlideloomError, match="12 px"):
        encoder.encode(torch.zeros(1, 2, 8, 12))

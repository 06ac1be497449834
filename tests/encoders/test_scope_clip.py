"""``normalisation: {scope: clip}``: whose quantile, and what a slide is then normalised with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slideloom.config.catalogue import complete
from slideloom.config.model import EncoderConfig, NormalisationConfig
from slideloom.encoders.fit import used_statistics
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideloomError
from slideloom.patches.statistics import channel_statistics


def config_of(**normalisation: Any) -> EncoderConfig:
    return EncoderConfig(
        model="mean_marker", grid="g", normalisation=NormalisationConfig(scope="clip", **normalisation)
    )


def test_a_slide_s_own_quantile_needs_no_other_slide(marker_patches: Callable[..., Any]) -> None:
    config, patches = config_of(clip="slide", clip_quantile=0.99, log1p=False), marker_patches()
    used = used_statistics(build_encoder(config, patches.channels), config, patches, None)
    assert used is not None
    pixels = patches.data.astype(np.float64)
    top = np.quantile(pixels.transpose(1, 0, 2, 3).reshape(3, -1), 0.99, axis=1)[:, None, None]
    np.testing.assert_allclose(used.apply(patches.data), np.minimum(pixels, top) / top, rtol=1e-6)


def test_a_quantile_of_the_training_slides_is_brought_along(marker_patches: Callable[..., Any]) -> None:
    config, patches = config_of(), marker_patches()
    assert complete(config).normalisation.clip == "training", "as mean_marker has it"
    encoder = build_encoder(config, patches.channels)
    with pytest.raises(SlideloomError, match=r"training slides \(clip: training\)"):
        used_statistics(encoder, config, patches, None)
    given = channel_statistics([patches, marker_patches(n=3)], [], complete(config).normalisation)
    assert used_statistics(encoder, config, patches, given) is given

"""How patches look: each change against another program's or its own definition, and what must never happen."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from skimage.color import hed2rgb, rgb2hed, rgb_from_hed
from torch import Tensor

from slideloom.config.model import AugmentationConfig
from slideloom.training.appearance import (
    STAINS,
    Appearance,
    apply_appearance,
    draw_appearance,
    has_appearance,
    leave_out,
)

EVERYTHING = AugmentationConfig(colour_jitter=1.0, stain_jitter=1.0, channel_dropout=0.5, intensity_scaling=0.5)
OF_RGB: list[dict[str, float]] = [{"colour_jitter": 0.5}, {"stain_jitter": 0.5}]
OF_MARKERS: list[dict[str, float]] = [{"channel_dropout": 0.5}, {"intensity_scaling": 0.5}]


def rgb(n: int = 4, side: int = 12, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


def counts(n: int = 4, channels: int = 5, side: int = 6, most: int = 65535) -> Tensor:
    shape = (n, channels, side, side)
    return torch.from_numpy(np.random.default_rng(1).integers(1, most, shape, dtype=np.uint16, endpoint=True))


def colour(brightness: float = 1, contrast: float = 1, saturation: float = 1, hue: float = 0, n: int = 1) -> Appearance:
    return Appearance(colours=np.tile([brightness, contrast, saturation, hue], (n, 1)).astype(float))


def stain(scale: Any = (1, 1, 1), shift: Any = (0, 0, 0), n: int = 1) -> Appearance:
    return Appearance(stains=np.tile(np.array([scale, shift], float), (n, 1, 1)))


def changed(pixels: Tensor, config: AugmentationConfig, generator: np.random.Generator, kind: Any) -> Tensor:
    """Drawn and changed, as a training does it."""
    return apply_appearance(pixels, draw_appearance(config, kind, len(pixels), pixels.shape[1], generator))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- off, and what is drawn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rgb", "markers"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"flips": 1.0, "turns": 1.0},
        {"colour_jitter": 1.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
        {"stain_jitter": 1.0, "stain_sigma": 0},
        {"intensity_scaling": 1.0, "intensity_sigma": 0},
    ],
)
def test_off_gives_the_very_same_tensor(kind: Any, config: dict[str, float]) -> None:
    asked, generator = AugmentationConfig(**config), rng()
    pixels = rgb() if kind == "rgb" else counts()
    assert not has_appearance(asked, kind)
    assert changed(pixels, asked, generator, kind) is pixels
    assert generator.random() == rng().random(), "nothing was drawn"


@pytest.mark.parametrize("config", OF_RGB + OF_MARKERS)
def test_each_kind_has_its_own_changes(config: dict[str, float]) -> None:
    asked = AugmentationConfig(**config)
    assert has_appearance(asked, "rgb") == (config in OF_RGB)
    assert has_appearance(asked, "markers") == (config in OF_MARKERS)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["rgb", "markers"])
def test_what_comes_in_stays_and_what_comes_out_is_raw_float32(kind: Any, dtype: torch.dtype) -> None:
    pixels = (rgb() if kind == "rgb" else counts(most=255)).to(dtype)
    before = pixels.clone()
    got = changed(pixels, EVERYTHING, rng(), kind)
    assert (got.dtype, got.shape) == (torch.float32, pixels.shape)
    assert torch.equal(pixels, before)
    assert not torch.equal(got, pixels.float())
    assert float(got.min()) >= 0
    assert kind == "markers" or float(got.max()) <= 255


def test_parameters_that_change_nothing() -> None:
    pixels, markers = rgb(3), counts(3)
    for still in (colour(n=3), stain(n=3)):
        assert torch.equal(apply_appearance(pixels, still), pixels.float())
    assert torch.equal(apply_appearance(markers, Appearance(channels=np.ones((3, 5)))), markers.float())
    # The arithmetic itself, which the same values would have been kept from.
    nearly = np.nextafter(1.0, 2)
    for still in (stain((nearly, 1, 1), n=3), colour(nearly, nearly, nearly, 5e-324, n=3)):
        torch.testing.assert_close(apply_appearance(pixels, still), pixels.float(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["rgb", "markers"])
def test_a_patch_looks_the_same_whatever_is_beside_it(kind: Any) -> None:
    pixels = rgb(6) if kind == "rgb" else counts(6)
    config = EVERYTHING.model_copy(update={"colour_jitter": 0.5, "stain_jitter": 0.5})
    drawn = draw_appearance(config, kind, 6, pixels.shape[1], rng(4))
    whole = apply_appearance(pixels, drawn)
    for rows in ([3], [5, 0], [1, 2, 4]):
        part = apply_appearance(pixels[rows], drawn.take(rows))
        torch.testing.assert_close(part, whole[rows], rtol=1e-6, atol=1e-4)
    assert torch.equal(whole, changed(pixels, config, rng(4), kind))
    assert not torch.equal(whole, changed(pixels, config, rng(5), kind))


def test_patches_that_were_not_drawn_keep_their_values() -> None:
    pixels = rgb(64, 4)
    config = AugmentationConfig(colour_jitter=0.3, stain_jitter=0.2)
    drawn = draw_appearance(config, "rgb", 64, 3, rng(2))
    assert drawn.colours is not None
    assert drawn.stains is not None
    chosen = (drawn.colours != [1, 1, 1, 0]).any(1) | (drawn.stains[:, 0] != 1).any(1)
    assert 10 < chosen.sum() < 54
    same = (apply_appearance(pixels, drawn) == pixels.float()).flatten(1).all(1)
    assert np.array_equal(same.numpy(), ~chosen)


def test_ranges_and_frequencies_of_colours_and_stains() -> None:
    n = 20_000
    config = AugmentationConfig(colour_jitter=0.4, stain_jitter=0.1, hue=0.02, stain_sigma=0.3)
    drawn = draw_appearance(config, "rgb", n, 3, rng())
    assert drawn.colours is not None
    assert drawn.stains is not None
    for column, (middle, largest) in enumerate([(1, 0.25), (1, 0.25), (1, 0.1), (0, 0.02)]):
        moved = drawn.colours[:, column] - middle
        assert (moved != 0).mean() == pytest.approx(0.4, abs=0.02)
        assert np.abs(moved).max() == pytest.approx(largest, rel=0.01)
        assert np.abs(moved[moved != 0]).mean() == pytest.approx(largest / 2, rel=0.03), "evenly"
    scale, shift = drawn.stains[:, 0], drawn.stains[:, 1]
    assert (scale != 1).any(1).mean() == (shift != 0).any(1).mean() == pytest.approx(0.1, abs=0.01)
    assert np.abs(scale - 1).max() == pytest.approx(0.3, rel=0.01)
    assert np.abs(shift).max() == pytest.approx(0.3, rel=0.01)


def test_stain_and_colour_come_after_each_other() -> None:
    pixels = rgb()
    drawn = draw_appearance(EVERYTHING, "rgb", 4, 3, rng())
    stained = apply_appearance(pixels, Appearance(stains=drawn.stains))
    both = apply_appearance(stained, Appearance(colours=drawn.colours))
    torch.testing.assert_close(apply_appearance(pixels, drawn), both, rtol=0, atol=1e-4)


def test_colours_need_three_channels() -> None:
    with pytest.raises(ValueError, match="5 channels"):
        changed(counts(), EVERYTHING, rng(), "rgb")


# ---- colours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.3, 2.5])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_pillow_agrees(name: str, enhancer: Callable[[Image.Image], Any], factor: float) -> None:
    """Pillow rounds luma and results to whole levels; nothing else differs."""
    pixels = rgb(3, 20)
    got = apply_appearance(pixels, colour(**{name: factor}, n=3)).numpy()
    for patch, ours in zip(pixels.numpy(), got, strict=True):
        theirs = np.asarray(enhancer(Image.fromarray(patch.transpose(1, 2, 0))).enhance(factor)).transpose(2, 0, 1)
        assert np.abs(ours - theirs).max() <= 1 + 0.5 * abs(1 - factor)


@given(
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=6),
    st.floats(-1, 1),
)
@settings(max_examples=80, deadline=None)
def test_hue_turns_as_in_hsv(colours: list[tuple[int, int, int]], turns: float) -> None:
    pixels = torch.tensor(colours, dtype=torch.uint8).T.reshape(1, 3, 1, -1)
    got = apply_appearance(pixels, colour(hue=turns))[0, :, 0].T.numpy()
    for colour_in, ours in zip(colours, got, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in colour_in))
        theirs = np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)) * 255
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("turns", [-1.0, 1.0, 2.0])
def test_a_whole_turn_of_hue_changes_nothing(turns: float) -> None:
    pixels = rgb()
    torch.testing.assert_close(apply_appearance(pixels, colour(hue=turns, n=4)), pixels.float(), rtol=0, atol=1e-3)


@given(st.floats(0, 2), st.floats(-0.5, 0.5))
@settings(max_examples=40, deadline=None)
def test_grey_stays_grey(saturation: float, hue: float) -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    got = apply_appearance(grey, colour(saturation=saturation, hue=hue))
    torch.testing.assert_close(got, grey.float(), rtol=0, atol=1e-3)


def test_saturation_keeps_hue_and_luma_and_zero_is_grey() -> None:
    pixels = rgb() // 4 + 96  # far from the ends, so that nothing is cut
    got = apply_appearance(pixels, colour(saturation=1.4, n=4))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((got * weights).sum(1), (pixels.float() * weights).sum(1), rtol=0, atol=1e-3)
    for before, after in zip(pixels.movedim(1, -1).reshape(-1, 3), got.movedim(1, -1).reshape(-1, 3), strict=True):
        if before.unique().numel() > 1:
            hues = [colorsys.rgb_to_hsv(*(values.double() / 255).tolist())[0] for values in (before, after)]
            assert abs((hues[1] - hues[0] + 0.5) % 1 - 0.5) < 1e-4
    flat = apply_appearance(pixels, colour(saturation=0, n=4))
    torch.testing.assert_close(flat.amax(1), flat.amin(1), rtol=0, atol=1e-3)


@given(st.floats(0, 2), st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_brightness_and_contrast_keep_the_order_of_levels(one: float, two: float) -> None:
    low, high = sorted((one, two))
    pixels = rgb(1)
    assert bool((apply_appearance(pixels, colour(low)) <= apply_appearance(pixels, colour(high)) + 1e-3).all())
    levels = pixels.flatten().sort().values.view(1, 1, 12, 36).expand(1, 3, 12, 36)
    for still_rising in (colour(low), colour(contrast=high)):
        assert bool((apply_appearance(levels, still_rising)[0, 0].flatten().diff() >= 0).all())


# ---- stains -------------------------------------------------------------------------------------------------------


def stained(seed: int = 3) -> Tensor:
    """Colours that are mixtures of the three stains, none too dark."""
    amounts = np.random.default_rng(seed).uniform(0.02, 0.5, (2, 10, 10, 3))
    return torch.from_numpy(255 * np.exp(-amounts @ STAINS)).permute(0, 3, 1, 2).float()


def test_vectors_are_those_of_ruifrok_and_johnston() -> None:
    np.testing.assert_allclose(STAINS, rgb_from_hed, atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(STAINS, axis=1), 1)


@pytest.mark.parametrize("scale", [(1.3, 1, 1), (1, 0.6, 1), (1, 1, 1.2), (0.8, 1.2, 0.9)])
def test_scikit_image_agrees_on_scaled_stains(scale: tuple[float, float, float]) -> None:
    """It has another floor for black, hence half a level."""
    pixels = stained()
    got = apply_appearance(pixels, stain(scale, n=2)).numpy()
    amounts = rgb2hed(pixels.double().numpy() / 255, channel_axis=1) * np.reshape(scale, (3, 1, 1))
    np.testing.assert_allclose(got, hed2rgb(amounts, channel_axis=1) * 255, rtol=0, atol=0.5)
    assert np.abs(got - pixels.numpy()).max() > 5


def test_scaling_and_shifting_in_plain_arithmetic() -> None:
    pixels, scale, shift = rgb(), np.array([0.9, 1.2, 0.7]), np.array([0.1, -0.05, 0.2])
    density = -np.log((pixels.double().movedim(1, -1).numpy() + 1) / 256)
    fading = 1 - np.exp(-density.mean(-1, keepdims=True))
    amounts = np.linalg.solve(STAINS.T, density[..., None])[..., 0] * scale + shift * fading
    wanted = np.clip(256 * np.exp(-amounts @ STAINS) - 1, 0, 255)
    got = apply_appearance(pixels, stain(scale, shift, n=4)).movedim(1, -1).numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-3)


@given(
    st.tuples(*[st.floats(0.5, 1.5)] * 3),
    st.tuples(*[st.floats(-0.5, 0.5)] * 3),
)
@settings(max_examples=40, deadline=None)
def test_glass_stays_white(scale: tuple[float, ...], shift: tuple[float, ...]) -> None:
    glass = torch.full((1, 3, 2, 2), 255.0)
    torch.testing.assert_close(apply_appearance(glass, stain(scale, shift)), glass, rtol=0, atol=1e-3)
    nearly = apply_appearance(glass - 5, stain(scale, shift))
    assert float((nearly - 250).abs().max()) < 10


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("part", ["scale", "shift"])
def test_more_stain_is_darker(which: int, part: str) -> None:
    pixels, lightest = stained(), None
    for amount in (-0.3, -0.1, 0.0, 0.2, 0.4):
        change = np.zeros(3)
        change[which] = amount
        got = apply_appearance(pixels, stain(1 + change, n=2) if part == "scale" else stain(shift=change, n=2))
        assert lightest is None or bool((got <= lightest + 1e-3).all())
        assert lightest is None or not torch.equal(got, lightest)
        lightest = got


# ---- markers ------------------------------------------------------------------------------------------------------


def test_dropout_leaves_whole_channels_out_as_often_as_asked() -> None:
    images = torch.randn(3000, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    before, config = images.clone(), AugmentationConfig(channel_dropout=0.3)
    drawn = draw_appearance(config, "markers", 3000, 6, rng())
    assert apply_appearance(images, drawn) is images, "counts stay as they are"
    got = leave_out(images, drawn)
    gone = (got == 0).flatten(2).all(2)
    assert drawn.left_out is not None
    assert np.array_equal(gone.numpy(), drawn.left_out)
    assert torch.equal(got[~gone], before[~gone])
    assert torch.equal(images, before)
    # All six go in 0.3^6 of the patches, and one of them then stays.
    assert float(gone.float().mean()) == pytest.approx(0.3 - 0.3**6 / 6, abs=0.01)
    assert float(gone.float().mean(0).max() - gone.float().mean(0).min()) < 0.05


@given(st.integers(1, 8), st.floats(0.01, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_patch_keeps_a_channel(channels: int, dropout: float, seed: int) -> None:
    drawn = draw_appearance(AugmentationConfig(channel_dropout=dropout), "markers", 12, channels, rng(seed))
    assert drawn.left_out is not None
    assert (~drawn.left_out).any(1).all()
    if dropout == 1:
        assert ((~drawn.left_out).sum(1) == 1).all()


def test_without_dropout_the_very_same_images_go_on() -> None:
    images = torch.ones(2, 3, 4, 4)
    for drawn in (Appearance(), Appearance(left_out=np.zeros((2, 3), bool))):
        assert leave_out(images, drawn) is images


def test_scales_are_log_normal() -> None:
    config = AugmentationConfig(intensity_scaling=0.7, intensity_sigma=0.4)
    factors = draw_appearance(config, "markers", 4000, 5, rng()).channels
    assert factors is not None
    logs = np.log(factors[factors != 1])
    assert logs.size / factors.size == pytest.approx(0.7, abs=0.01)
    assert logs.mean() == pytest.approx(0, abs=0.01)
    assert logs.std() == pytest.approx(0.4, rel=0.02)
    assert abs(np.mean(logs**3)) < 0.01, "symmetric"
    pixels = counts(4000, 5, 1)
    got = apply_appearance(pixels, Appearance(channels=factors))
    np.testing.assert_allclose(got.numpy(), pixels.double().numpy() * factors[:, :, None, None], rtol=1e-6)


def test_dropping_does_not_disturb_scaling() -> None:
    scaled = AugmentationConfig(intensity_scaling=0.5)
    both = scaled.model_copy(update={"channel_dropout": 0.4})
    one, two = (draw_appearance(config, "markers", 50, 4, rng(7)).channels for config in (scaled, both))
    assert one is not None
    assert two is not None
    assert np.array_equal(two, one)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["rgb", "markers"])
def test_a_gpu_gives_the_same_look(kind: Any) -> None:
    pixels = rgb(6) if kind == "rgb" else counts(6)
    ours = changed(pixels, EVERYTHING, rng(), kind)
    theirs = changed(pixels.cuda(), EVERYTHING, rng(), kind)
    assert theirs.is_cuda
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-5, atol=2e-3)

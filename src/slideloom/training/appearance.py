"""Changes of how training patches look: in raw pixels, before they are normalised and encoded, and of what is encoded.

Colours of H&E: stain jitter, then brightness, contrast, saturation and hue, always in this order. Markers: counts of
channels scaled; and channels left out of what the encoder is given: after normalisation they are 0, as a channel is
that has nothing to tell. (Zero *counts* would not be that: after the logarithm and standardisation they lie far below
anything that a stained slide shows.) Every patch has parameters of its own, drawn on the CPU from a NumPy generator,
so that they depend neither on the device nor on the patches beside it.

Sources: colours as HSV and luma (ITU-R BT.601) have them; stain vectors of Ruifrok and Johnston, Quantitation of
histochemical staining by color deconvolution, Analytical and Quantitative Cytology and Histology 23 (2001); stains
scaled and shifted as in Tellez et al., Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference,
IEEE Transactions on Medical Imaging 37 (2018).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from slideloom.config.model import AugmentationConfig

__all__ = ["STAINS", "Appearance", "apply_appearance", "draw_appearance", "has_appearance", "leave_out"]

Kind = Literal["rgb", "markers"]
Floats = NDArray[np.float64]

_WHITE = 255.0
_LUMA = (0.299, 0.587, 0.114)
#: Optical densities of red, green and blue: haematoxylin, eosin, and what neither explains (the vector of DAB).
STAINS: Floats = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(STAINS)
#: Factors and shifts of stains, and brightness, contrast, saturation and hue, that change nothing.
_SAME_STAINS = np.array([[1.0] * 3, [0.0] * 3])
_SAME_COLOUR = np.array([1.0, 1.0, 1.0, 0.0])


@dataclass(frozen=True)
class Appearance:
    """What changes in each patch of a batch. Patches that were not drawn have the values that change nothing.

    Attributes
    ----------
    stains : (n, 2, 3) float64 array, optional
        RGB: factors of the amounts of haematoxylin, eosin and residual, 1 for none; and shifts in units of optical
        density, base e, 0 for none.
    colours : (n, 4) float64 array, optional
        RGB: factors of brightness, contrast and saturation, 1 for none; shift of hue in turns, 0 for none.
    channels : (n, c) float64 array, optional
        Markers: factors of the counts, 1 for none.
    left_out : (n, c) bool array, optional
        Markers: whether the encoder is not given a channel.
    """

    stains: Floats | None = None
    colours: Floats | None = None
    channels: Floats | None = None
    left_out: NDArray[np.bool_] | None = None

    def take(self, rows: ArrayLike) -> Appearance:
        """Of some patches of the batch: indices or booleans."""
        chosen = np.asarray(rows)
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return Appearance(**{name: None if part is None else part[chosen] for name, part in parts.items()})


def has_appearance(config: AugmentationConfig, kind: Kind) -> bool:
    """Whether anything may change the look of such patches.

    Parameters
    ----------
    config : AugmentationConfig
        The config.
    kind : {"rgb", "markers"}
        What the encoder reads.
    """
    return any((_colours_change(config), _stains_change(config)) if kind == "rgb" else _channels_change(config))


def _colours_change(config: AugmentationConfig) -> bool:
    return config.colour_jitter > 0 and any((config.brightness, config.contrast, config.saturation, config.hue))


def _stains_change(config: AugmentationConfig) -> bool:
    return config.stain_jitter > 0 and config.stain_sigma > 0


def _channels_change(config: AugmentationConfig) -> tuple[bool, bool]:
    return config.channel_dropout > 0, config.intensity_scaling > 0 and config.intensity_sigma > 0


def draw_appearance(
    config: AugmentationConfig, kind: Kind, n: int, channels: int, rng: np.random.Generator
) -> Appearance:
    """Draw what changes in each patch of a batch.

    Parameters
    ----------
    config : AugmentationConfig
        Probabilities and ranges. Factors are drawn evenly from 1 - range to 1 + range, shifts from -range to range;
        those of channels so that their logarithm is normal with the deviation ``intensity_sigma``.
    kind : {"rgb", "markers"}
        What the patches show.
    n, channels : int
        Of the batch.
    rng : Generator
        Where the parameters come from. How many numbers are drawn depends on the other arguments only.

    Returns
    -------
    Appearance
        Its parts are None where the config changes nothing. A patch never loses all its channels: where that is drawn,
        one of them, at random, stays.
    """
    if kind == "rgb":
        stains = _draw_stains(config, n, rng) if _stains_change(config) else None
        return Appearance(stains, _draw_colours(config, n, rng) if _colours_change(config) else None)
    leaves_out, scales = _channels_change(config)
    factors = left_out = None
    if scales:
        chosen, logs = rng.random((n, channels)) < config.intensity_scaling, rng.standard_normal((n, channels))
        factors = np.where(chosen, np.exp(config.intensity_sigma * logs), 1.0)
    if leaves_out:
        left_out, stays = rng.random((n, channels)) < config.channel_dropout, rng.integers(channels, size=n)
        left_out[np.arange(n), stays] &= ~left_out.all(1)
    return Appearance(channels=factors, left_out=left_out)


def _draw_stains(config: AugmentationConfig, n: int, rng: np.random.Generator) -> Floats:
    chosen = rng.random(n) < config.stain_jitter
    changes = rng.uniform(-config.stain_sigma, config.stain_sigma, (n, 2, 3))
    return _SAME_STAINS + np.where(chosen[:, None, None], changes, 0.0)


def _draw_colours(config: AugmentationConfig, n: int, rng: np.random.Generator) -> Floats:
    chosen = rng.random(n) < config.colour_jitter
    largest = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    return _SAME_COLOUR + np.where(chosen[:, None], rng.uniform(-largest, largest, (n, 4)), 0.0)


def apply_appearance(pixels: Tensor, appearance: Appearance) -> Tensor:
    """Change the pixels of patches as was drawn.

    Parameters
    ----------
    pixels : (n, c, h, w) Tensor
        Raw: RGB from 0 to 255, or counts; of any dtype, on any device. Never changed itself.
    appearance : Appearance
        Of n patches.

    Returns
    -------
    (n, c, h, w) float32 Tensor
        Raw scale; RGB from 0 to 255. The very same tensor, whatever its dtype, where no pixels were to change; patches
        in which nothing changes keep their values. What changes, patch by patch:

        *stains*: density is ``-ln((value + 1) / 256)``. Amounts of the three :data:`STAINS` are scaled, then shifted.
        The shift fades out towards white, by one minus the geometric mean of what the colours let through: glass is
        not stained.
        *brightness*: values are scaled. *Contrast*: distances from the patch's mean luma are scaled. *Saturation*:
        distances from the pixel's luma are scaled. *Hue*: turned in HSV. After each, values are cut to 0 to 255.
        *channels*: counts are scaled.

    Raises
    ------
    ValueError
        RGB patches that have not three channels.
    """
    if appearance.stains is None and appearance.colours is None and appearance.channels is None:
        return pixels
    values = pixels.to(torch.float32)
    if appearance.channels is not None:
        factors = torch.from_numpy(appearance.channels).to(values)[:, :, None, None]
        values = values * factors if values is pixels else values.mul_(factors)
    for change, drawn, same in ((_stain, appearance.stains, _SAME_STAINS), (_colour, appearance.colours, _SAME_COLOUR)):
        if drawn is None:
            continue
        if pixels.shape[1] != 3:
            raise ValueError(f"{pixels.shape[1]} channels where red, green and blue were expected")
        chosen = np.flatnonzero((drawn != same).reshape(len(drawn), -1).any(1))
        if chosen.size:
            rows = torch.from_numpy(chosen).to(values.device)
            part = change(values.index_select(0, rows), drawn[chosen])
            values = values.index_copy(0, rows, part) if values is pixels else values.index_copy_(0, rows, part)
    return values


def leave_out(images: Tensor, appearance: Appearance) -> Tensor:
    """Take the channels that were drawn to be left out from what an encoder is given.

    Parameters
    ----------
    images : (n, c, h, w) Tensor
        Normalised patches: 0 tells nothing. Never changed itself.
    appearance : Appearance
        Of n patches.

    Returns
    -------
    (n, c, h, w) Tensor
        0 in those channels. The very same tensor where none was drawn.
    """
    if appearance.left_out is None or not appearance.left_out.any():
        return images
    gone = torch.from_numpy(appearance.left_out).to(images.device)
    return images.masked_fill(gone[:, :, None, None], 0)


def _stain(rgb: Tensor, stains: Floats) -> Tensor:
    """Change the amounts of stains, (n, 3, h, w) in 0 to 255; the argument may be overwritten."""
    scale, shift = stains[:, 0], stains[:, 1]
    # Pixels are rows here: density @ unmix * scale @ mix, and channels come first below.
    mixing = torch.from_numpy((_UNMIX * scale[:, None]) @ STAINS).to(rgb).transpose(1, 2)
    offset = torch.from_numpy(shift @ STAINS).to(rgb)[:, :, None]
    light = rgb.add_(1).div_(_WHITE + 1).log_().flatten(2)
    stained = light.mean(1, keepdim=True).exp_().neg_().add_(1)
    changed = torch.baddbmm(offset * stained, mixing, light, beta=-1)
    return changed.exp_().mul_(_WHITE + 1).sub_(1).clamp_(0, _WHITE).view(rgb.shape)


def _colour(rgb: Tensor, colours: Floats) -> Tensor:
    """Change brightness, contrast, saturation and hue, (n, 3, h, w) in 0 to 255; the argument may be overwritten."""
    brightness, contrast, saturation, hue = torch.from_numpy(colours.T.copy()).to(rgb)[:, :, None, None, None]
    if (colours[:, 0] != 1).any():
        rgb.mul_(brightness).clamp_(0, _WHITE)
    if (colours[:, 1] != 1).any():
        mean = _luma(rgb).flatten(1).mean(1)[:, None, None, None]
        rgb.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, _WHITE)
    if (colours[:, 2] != 1).any():
        luma = _luma(rgb)
        rgb.mul_(saturation).add_(luma.mul_(1 - saturation)).clamp_(0, _WHITE)
    if (colours[:, 3] != 0).any():
        rgb = _turn_hue(rgb, hue)
    return rgb


def _luma(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def _turn_hue(rgb: Tensor, turns: Tensor) -> Tensor:
    """Hue by a share of the circle, (n, 1, 1, 1); value and saturation stay."""
    red, green, blue = rgb.unbind(1)
    value, chroma = rgb.amax(1), rgb.amax(1) - rgb.amin(1)
    # Sixths of the circle from red. Where there is no chroma any hue will do.
    sixths = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red, red - green)
    ) / chroma.clamp(min=1e-6)
    sixths += torch.where(value == red, 0.0, torch.where(value == green, 2.0, 4.0)) + 6 * turns[:, 0]
    out = torch.empty_like(rgb)
    for channel, start in enumerate((5.0, 3.0, 1.0)):
        # A colour falls from its value by its chroma on the far side of the circle, with a ramp of a sixth each way.
        along = (sixths + start).remainder_(6)
        fall = torch.minimum(along, 4 - along).clamp_(0, 1)
        out[:, channel] = value - chroma * fall
    return out

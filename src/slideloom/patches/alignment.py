"""Whether an annotation lies on the nuclei of its image: how far off it is, or that it belongs to another slide.

Nuclei are dark in the red of H&E and bright in nuclear stains. An annotation that fits follows that; where it was drawn
on another image, or shifted, correlation says so. Of 268 annotated fields of H&E and fluorescence with twenty nuclei or
more (NuCLS; Data Science Bowl 2018), each correlates with its own image by 0.40 to 0.93, and with another field's by
0.09 at most, or 0.16 where it fits best within reach.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from slideloom.patches.store import PatchStore

__all__ = ["alignment_remarks"]

#: Tiles that are looked at, evenly picked, and nuclei that they must hold for a judgement.
_TILES, _FEWEST_NUCLEI = 16, 20
#: How far an annotation is sought, and what is taken for background, each between limits in pixels.
_REACH_UM, _REACH_PX = 8.0, (8, 64)
_BACKGROUND_UM, _BACKGROUND_PX = 12.0, (25, 97)
#: Less than this is told by nothing but chance; a shift must be this far and better by this factor.
_FITS, _FITS_ELSEWHERE = 0.1, 0.25
_SHIFT_PX, _BETTER = 2, 1.15


def alignment_remarks(instances: NDArray[np.int32], patches: PatchStore) -> tuple[str, ...]:
    """Tell of an annotation that does not lie on the nuclei of its image.

    Parameters
    ----------
    instances : (H, W) int32 array
        Nuclei of the slide in the frame of the patches; 0 is background.
    patches : PatchStore
        The slide's patches, H&E or with at least one channel of a nuclear stain.

    Returns
    -------
    tuple of str
        A remark, or none: the annotation fits, or too little is there to be judged by.
    """
    is_nuclear = [channel.nuclear for channel in patches.channels]
    tiles = _some_tiles(instances, patches)
    if not (patches.is_rgb or any(is_nuclear)) or not tiles:
        return ()
    smallest = min(min(part.stop - part.start for part in box) for _, box in tiles)
    reach = min(_pixels(_REACH_UM, patches.mpp_um, _REACH_PX), smallest // 4)
    background = _pixels(_BACKGROUND_UM, patches.mpp_um, _BACKGROUND_PX)
    found = np.zeros((2 * reach + 1, 2 * reach + 1))
    power_stain = power_drawn = 0.0
    seen: set[int] = set()
    for tile, box in tiles:
        drawn = instances[box]
        seen.update(np.unique(drawn[drawn > 0]).tolist())
        pixels = patches.pixels([tile])[0][:, : drawn.shape[0], : drawn.shape[1]]
        stain = _without_background(_stain(pixels, patches.is_rgb, is_nuclear), background)
        mask = _without_background((drawn > 0).astype(np.float32), background)
        found += _correlation(stain, mask, reach)
        power_stain += float((stain**2).sum())
        power_drawn += float((mask**2).sum())
    power = np.sqrt(power_stain * power_drawn)
    if len(seen) < _FEWEST_NUCLEI or not power > 0:
        return ()
    return _judged(found / power, reach, patches.mpp_um)


def _judged(share: NDArray[np.float64], reach: int, mpp_um: float) -> tuple[str, ...]:
    here = float(share[reach, reach])
    place = np.unravel_index(int(share.argmax()), share.shape)
    best, down, right = float(share[place]), int(place[0]) - reach, int(place[1]) - reach
    if best >= _FITS_ELSEWHERE and max(abs(down), abs(right)) >= _SHIFT_PX and best > _BETTER * here:
        way = [
            f"{abs(step)} px ({abs(step) * mpp_um:.2g} µm) further {word[step > 0]}"
            for step, word in ((down, ("up", "down")), (right, ("left", "right")))
            if step
        ]
        return (
            f"instances: the image's nuclei lie {' and '.join(way)} than the annotation: correlation {best:.2f} there, "
            f"{here:.2f} as it is",
        )
    if here < _FITS:
        return (
            f"instances: the annotation does not follow the image's nuclei (correlation {here:.2f}; {best:.2f} at best "
            f"within {reach} px): it may belong to another slide, or be turned",
        )
    return ()


def _some_tiles(instances: NDArray[np.int32], patches: PatchStore) -> list[tuple[int, tuple[slice, slice]]]:
    """Tiles that hold nuclei, and where their parts on the slide lie."""
    columns = (patches.y_px, patches.x_px, patches.height_valid, patches.width_valid)
    full = []
    for tile, (y, x, height, width) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        box = slice(y, y + height), slice(x, x + width)
        if min(height, width) >= _BACKGROUND_PX[0] and instances[box].any():
            full.append((tile, box))
    return full[:: -(-len(full) // _TILES)] if full else []


def _stain(pixels: NDArray[Any], is_rgb: bool, is_nuclear: list[bool]) -> NDArray[np.float32]:
    if is_rgb:  # haematoxylin takes up red light, eosin hardly
        dark: NDArray[np.float32] = np.float32(255) - pixels[0].astype(np.float32)
        return dark
    values = np.nan_to_num(pixels[np.array(is_nuclear)].astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    stain: NDArray[np.float32] = np.sqrt(np.maximum(values, 0)).mean(axis=0)
    return stain


def _without_background(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    smooth: NDArray[np.float32] = ndimage.uniform_filter(values, size, mode="reflect")
    return values - smooth


def _correlation(stain: NDArray[np.float32], mask: NDArray[np.float32], reach: int) -> NDArray[np.float64]:
    """Sums of products at every shift; place (reach + dy, reach + dx): the stain lies dy, dx behind the mask."""
    sides = [fft.next_fast_len(side + 2 * reach, real=True) for side in mask.shape]
    spectrum = fft.rfft2(stain.astype(np.float64), sides) * np.conj(fft.rfft2(mask.astype(np.float64), sides))
    sums = np.roll(fft.irfft2(spectrum, sides), (reach, reach), (0, 1))
    near: NDArray[np.float64] = sums[: 2 * reach + 1, : 2 * reach + 1]
    return near


def _pixels(length_um: float, mpp_um: float, limits: tuple[int, int]) -> int:
    return int(min(max(length_um / mpp_um, limits[0]), limits[1]))

"""Pixels of CPDMI 2023: images of channels however they are stored, objects of masks, the text that ImageJ keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.slides.image import SlideImage
from slideloom.slides.open import open_image, open_raw
from slideloom.slides.source import Source

__all__ = ["Stack", "close_stack", "imagej_info", "open_stack", "outlined_objects"]

#: An open image of channels, or the array of one that is stored by cycles.
Stack = SlideImage | NDArray[Any]
_PER_CYCLE = 4


def outlined_objects(path: Path) -> NDArray[np.int32]:
    """Objects of a mask: its connected pixels, by sides and corners, numbered in raster order.

    Parameters
    ----------
    path : Path
        A picture of any colours; what is not black is drawn. Transparency does not count.

    Returns
    -------
    (H, W) int32 array
        0 background.

    Raises
    ------
    SlideError
        As of :func:`slideloom.slides.open.open_raw`.
    """
    from skimage.measure import label

    raw = open_raw(Source(path))
    try:
        level = raw.header.levels[0]
        stored = raw.read(0, 0, 0, level.height_px, level.width_px)
    finally:
        raw.close()
    colour, table = raw.header.colour, raw.header.palette
    if colour == "palette" and table is not None:
        stored = table[stored[0]].transpose(2, 0, 1)
    elif colour in ("rgba", "rgba_premultiplied", "rgbx"):
        stored = stored[:3]
    elif colour == "grey_alpha":
        stored = stored[:1]
    drawn = (stored != 0).any(axis=0)
    return np.asarray(label(drawn, connectivity=2), np.int32)  # type: ignore[no-untyped-call]


def open_stack(path: Path, shape: tuple[int, int]) -> tuple[Stack, tuple[int, int]]:
    """Open an image of channels; one that is stored by cycles, four channels each, is read.

    Parameters
    ----------
    path : Path
        A TIFF of three axes, or of four: cycles first, and the four channels of a cycle behind them or last.
    shape : (int, int)
        Height and width that are looked for, should the axes leave a doubt.

    Returns
    -------
    Stack
        To be closed by :func:`close_stack`. An array is (C, H, W), channels by cycle.
    (int, int)
        Height and width.

    Raises
    ------
    SlideError
        As of :func:`slideloom.slides.open.open_image`.
    """
    array = _cycles(path, shape)
    if array is not None:
        return array, (array.shape[1], array.shape[2])
    image = open_image(Source(path), "sp")
    return image, (image.height_px, image.width_px)


def _cycles(path: Path, shape: tuple[int, int]) -> NDArray[Any] | None:
    """Channels of an array of four axes; None of any other file, and of one that cannot be read."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            if file.series[0].ndim != len("TCYX"):
                return None
            stored = np.asarray(file.series[0].asarray())
    except MemoryError:
        raise
    except Exception:  # whatever is wrong with it, the readers of slides tell better
        return None
    if _PER_CYCLE not in (stored.shape[1], stored.shape[3]):
        return None
    last = stored.shape[3] == _PER_CYCLE and (stored.shape[1] != _PER_CYCLE or stored.shape[1:3] == shape)
    by_channel = stored.transpose(0, 3, 1, 2) if last else stored
    return np.ascontiguousarray(by_channel).reshape(-1, *by_channel.shape[2:])


def close_stack(stack: Stack) -> None:
    """Release its file, where one is open."""
    if not isinstance(stack, np.ndarray):
        stack.close()


def imagej_info(path: Path) -> str:
    """The text that ImageJ keeps in a TIFF; empty where there is none."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        return str((file.imagej_metadata or {}).get("Info") or "")

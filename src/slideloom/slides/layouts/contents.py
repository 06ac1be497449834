"""What a file is, by what it holds: channels, a picture, a map of classes, a map of nuclei."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.image import RawImage
from slideloom.slides.open import open_raw
from slideloom.slides.source import Source

__all__ = ["Content", "look_into"]

Kind = Literal["sp", "he", "classes", "instances", "aside"]
#: Highest class id of a class map.
_LAST_CLASS = 9
#: A drawing of ten classes has fewer colours than this; a photograph of tissue has thousands.
_FEWEST_COLOURS = 32
#: Pixels along the shorter side that colours are counted on.
_SAMPLED_PX = 256
_LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes
    ----------
    path : Path
        The file.
    kind : {"sp", "he", "classes", "instances", "aside"}
        ``aside``: none of the four.
    shape : (int, int)
        Height and width, pixels; (0, 0) where it cannot be opened.
    n_channels : int
        Samples a pixel.
    n_values : int
        Of a map: number of different values, background counted.
    why : str
        Of ``aside``: the reason.
    """

    path: Path
    kind: Kind
    shape: tuple[int, int] = (0, 0)
    n_channels: int = 0
    n_values: int = 0
    why: str = ""


def look_into(path: Path) -> Content:
    """Find out what a file holds; maps of one channel and pictures are read through.

    Parameters
    ----------
    path : Path
        Of any format that slides are read from.

    Returns
    -------
    Content
        Two channels or more: ``sp``. RGB of 8 bits: ``he``. One channel of whole numbers: ``classes`` where none is
        above 9, ``instances`` where there are more than ten different ones.
    """
    try:
        raw = open_raw(Source(path))
    except SlideError as error:
        return Content(path, "aside", why=f"it cannot be read ({error.code})")
    try:
        return _look(path, raw)
    except SlideError as error:
        return Content(path, "aside", why=f"it cannot be read ({error.code})")
    finally:
        raw.close()


def _look(path: Path, raw: RawImage) -> Content:
    header = raw.header
    shape = header.levels[0].height_px, header.levels[0].width_px
    n_channels = header.n_channels
    if header.colour.startswith("rgb"):
        if _few_colours(raw.read(0, 0, 0, *shape)):
            return Content(path, "aside", shape, n_channels, why="a drawing of few colours, no photograph of tissue")
        return Content(path, "he", shape, n_channels)
    if header.colour in ("cmyk", "grey_alpha"):
        return Content(path, "aside", shape, n_channels, why="a picture, but not RGB")
    if n_channels > 1:
        return Content(path, "sp", shape, n_channels)
    if header.dtype.kind not in "ui" or path.name.lower().endswith(_LOSSY):
        kind = "a picture in shades of grey" if path.name.lower().endswith(_LOSSY) else f"one channel of {header.dtype}"
        return Content(path, "aside", shape, 1, why=f"{kind}, no map of whole numbers")
    drawn = raw.read(0, 0, 0, *shape)
    low, high = int(drawn.min()), int(drawn.max())
    if low < 0:
        return Content(path, "aside", shape, 1, why="a map with negative numbers")
    if high <= _LAST_CLASS:
        # Counting is ten times as fast as sorting, which np.unique does.
        n_values = int(np.count_nonzero(np.bincount(drawn.ravel())))
        return Content(path, "classes", shape, 1, n_values)
    values = np.unique(drawn)
    if values.size > _LAST_CLASS + 1:
        return Content(path, "instances", shape, 1, values.size)
    shown = ", ".join(map(str, values[:4].tolist()))
    why = f"a map of few values, some above {_LAST_CLASS} ({shown} …)"
    return Content(path, "aside", shape, 1, values.size, why)


def _few_colours(picture: NDArray[Any]) -> bool:
    step = max(1, min(picture.shape[1:]) // _SAMPLED_PX)
    picture = picture[:, ::step, ::step]
    flat = picture[:3].astype(np.uint32).reshape(3, -1)
    colours = (flat[0] << np.uint32(16)) | (flat[1] << np.uint32(8)) | flat[2]
    return bool(np.unique(colours).size < _FEWEST_COLOURS)

"""The protocol behind which every slide format stands, and what its readers share.

Two layers: a *raw image* (:class:`RawImage`) hands out a file's samples as they are stored and says what they are
(grey, colour, separate channels …); :mod:`slideloom.slides.modality` turns it into the :class:`SlideImage` that the
rest of Slideloom sees: H&E as RGB uint8, multiplexed slides as channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from slideloom.slides.source import Source

__all__ = [
    "Colour",
    "Header",
    "Level",
    "RawImage",
    "SlideImage",
    "check_window",
    "fits_pyramid",
    "make_levels",
]

Colour = Literal[
    "grey", "grey_inverted", "grey_alpha", "palette", "rgb", "rgba", "rgba_premultiplied", "rgbx", "cmyk", "channels"
]
"""What the samples of a raw image are.

``grey_inverted``: 0 is white; ``grey_alpha``: grey and opacity; ``palette``: indices into a colour table; ``rgbx``:
RGB and a fourth sample of unknown meaning; ``cmyk``: printing inks; ``channels``: separate measurements, or nothing
better known.
"""


@dataclass(frozen=True)
class Level:
    """One resolution of an image.

    Attributes
    ----------
    height_px, width_px : int
        Size in pixels of this level.
    downsample : float
        Level-0 pixels per pixel of this level; 1.0 for level 0.
    """

    height_px: int
    width_px: int
    downsample: float


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about its image, before any pixel is read.

    Attributes
    ----------
    source : Source
        Where it lies.
    reader : str
        Library and format, such as ``openslide/aperio`` or ``tifffile/ome``; recorded in the slide's facts.
    levels : tuple of Level
        Largest first; at least one.
    n_channels : int
        Samples per pixel.
    dtype : numpy.dtype
        Of the stored samples, in native byte order.
    colour : Colour
        What the samples are.
    channel_names : tuple of str, optional
        One a channel; None when the file names none.
    mpp_um : tuple of float, optional
        Pixel size of level 0, µm, (y, x); None when the file does not say, or says nonsense.
    palette : ndarray, optional
        (n, 3) uint8 colour table of a ``palette`` image.
    warnings : tuple of str
        What a person should know.
    """

    source: Source
    reader: str
    levels: tuple[Level, ...]
    n_channels: int
    dtype: np.dtype[Any]
    colour: Colour
    channel_names: tuple[str, ...] | None = None
    mpp_um: tuple[float, float] | None = None
    palette: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    warnings: tuple[str, ...] = ()


class RawImage(Protocol):
    """An open file that hands out samples as they are stored. Reading is safe from several threads."""

    header: Header

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window that lies wholly inside a level, as (c, height, width) in the stored dtype."""
        ...

    def close(self) -> None:
        """Release the file; reading afterwards is an error."""
        ...


class SlideImage(Protocol):
    """An open image of a slide, as one modality.

    Attributes
    ----------
    reader : str
        Library and format that read it.
    height_px, width_px : int
        Size of level 0.
    n_channels : int
        3 for H&E.
    dtype : numpy.dtype
        Of what :meth:`read` returns; uint8 for H&E, uint8, uint16 or float32 for channels.
    channel_names : tuple of str or None
        As the file names them; None when it does not.
    mpp_um : tuple of float or None
        Pixel size of level 0 by the file, µm, (y, x); None when the file does not say.
    is_rgb : bool
        Whether the channels are red, green, blue.
    levels : tuple of Level
        Largest first.
    warnings : tuple of str
        What a person should know about this file.
    """

    @property
    def reader(self) -> str: ...  # noqa: D102
    @property
    def height_px(self) -> int: ...  # noqa: D102
    @property
    def width_px(self) -> int: ...  # noqa: D102
    @property
    def n_channels(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
    @property
    def channel_names(self) -> tuple[str, ...] | None: ...  # noqa: D102
    @property
    def mpp_um(self) -> tuple[float, float] | None: ...  # noqa: D102
    @property
    def is_rgb(self) -> bool: ...  # noqa: D102
    @property
    def levels(self) -> tuple[Level, ...]: ...  # noqa: D102
    @property
    def warnings(self) -> tuple[str, ...]: ...  # noqa: D102

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window of one level.

        Parameters
        ----------
        level : int
            Index into ``levels``.
        y, x : int
            First row and column, pixels of that level.
        height, width : int
            Size, pixels of that level.

        Returns
        -------
        ndarray
            (c, height, width), freshly made, C-contiguous. Safe to call from several threads.

        Raises
        ------
        SlideError
            ``corrupt_data``: the stored data cannot be decoded; other windows can still be read.
        IndexError
            The window does not lie wholly inside the level.
        """
        ...

    def close(self) -> None:
        """Release the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_window(levels: Sequence[Level], level: int, y: int, x: int, height: int, width: int) -> Level:
    """Return the level that a window lies in.

    Raises
    ------
    IndexError
        There is no such level, the window is empty, or it does not lie wholly inside.
    """
    if not 0 <= level < len(levels):
        raise IndexError(f"level {level} of {len(levels)}")
    at = levels[level]
    if not (0 <= y < y + height <= at.height_px and 0 <= x < x + width <= at.width_px):
        raise IndexError(
            f"window y={y} x={x} height={height} width={width} is empty or reaches out of level {level}, "
            f"{at.height_px} x {at.width_px} px"
        )
    return at


def make_levels(sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from their sizes.

    Pyramids are mostly made by a whole factor, and the size of a level is then that of level 0 divided and rounded
    either way; the true downsample is the whole factor, not the ratio of the rounded sizes.

    Parameters
    ----------
    sizes : sequence of (height_px, width_px)
        Largest first.

    Returns
    -------
    tuple of Level
        With the whole factor where one explains both sizes, else the mean of the two ratios.
    """
    height, width = sizes[0]
    levels = []
    for rows, columns in sizes:
        ratio = (height / rows + width / columns) / 2
        whole = round(ratio)
        exact = all(
            math.floor(full / whole) <= part <= math.ceil(full / whole)
            for full, part in ((height, rows), (width, columns))
        )
        levels.append(Level(rows, columns, float(whole) if exact else ratio))
    return tuple(levels)


def fits_pyramid(full: tuple[int, int], above: tuple[int, int], part: tuple[int, int]) -> bool:
    """Whether an image can be a sub-resolution of another.

    Parameters
    ----------
    full, above, part : (height_px, width_px)
        Level 0, the level before, and the candidate.

    Returns
    -------
    bool
        It is smaller than the level before, and both its sides are smaller by one factor, but for rounding.
    """
    ratios = full[0] / part[0], full[1] / part[1]
    skew = abs(ratios[0] - ratios[1]) / max(ratios)
    # A pixel of rounding, either way, on each side.
    return part[0] <= above[0] and part[1] <= above[1] and part != above and skew <= 2 / min(part)

"""From stored samples to a modality: H&E as RGB uint8, multiplexed slides as channels.

Values are never scaled. H&E must be stored as 8 bits a sample: transparent pixels are laid on white, grey is repeated
three times (with a warning), colour tables are looked up. Channels keep uint8, uint16 and float32; bool becomes
uint8, and int8, int16 and float16 become float32, which holds every one of their values (with a warning); other types
do not fit and are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.slides.image import Header, Level, RawImage, check_window

__all__ = ["ModalityImage", "as_modality", "flatten_alpha"]

_RGB = ("red", "green", "blue")
_KEPT = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
_WIDENED: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.bool_): np.dtype(np.uint8),
    np.dtype(np.int8): np.dtype(np.float32),
    np.dtype(np.int16): np.dtype(np.float32),
    np.dtype(np.float16): np.dtype(np.float32),
}
#: Pixels that are laid on white at a time: it takes ten times the memory of what comes out.
_FLATTENED_PX = 1 << 18
_Convert = Callable[[NDArray[Any]], NDArray[Any]]


class ModalityImage:
    """A raw image seen as one modality; a :class:`~slideloom.slides.image.SlideImage`.

    Parameters
    ----------
    raw : RawImage
        The open file; closed with this image.
    convert : callable
        Stored samples (c', h, w) to samples of the modality (c, h, w), pixel by pixel.
    n_channels, dtype, channel_names, is_rgb, warnings
        Of the converted samples.
    """

    def __init__(
        self,
        raw: RawImage,
        convert: _Convert | None,
        *,
        n_channels: int,
        dtype: np.dtype[Any],
        channel_names: tuple[str, ...] | None,
        is_rgb: bool,
        warnings: tuple[str, ...],
    ) -> None:
        self._raw = raw
        self._convert = convert
        self.n_channels = n_channels
        self.dtype = dtype
        self.channel_names = channel_names
        self.is_rgb = is_rgb
        self.warnings = raw.header.warnings + warnings

    @property
    def header(self) -> Header:
        """What the file itself says."""
        return self._raw.header

    @property
    def reader(self) -> str:
        """Library and format."""
        return self._raw.header.reader

    @property
    def levels(self) -> tuple[Level, ...]:
        """Resolutions, largest first."""
        return self._raw.header.levels

    @property
    def height_px(self) -> int:
        """Height of level 0."""
        return self.levels[0].height_px

    @property
    def width_px(self) -> int:
        """Width of level 0."""
        return self.levels[0].width_px

    @property
    def mpp_um(self) -> tuple[float, float] | None:
        """Pixel size of level 0, µm, (y, x)."""
        return self._raw.header.mpp_um

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window of one level; see :meth:`slideloom.slides.image.SlideImage.read`."""
        check_window(self.levels, level, y, x, height, width)
        stored = self._raw.read(level, y, x, height, width)
        return stored if self._convert is None else self._convert(stored)

    def close(self) -> None:
        """Release the file."""
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.reader} {self.n_channels} x {self.height_px} x {self.width_px} {self.dtype}>"


def as_modality(raw: RawImage, modality: Modality) -> ModalityImage:
    """See a raw image as H&E or as channels.

    Parameters
    ----------
    raw : RawImage
        The open file.
    modality : {"he", "sp"}
        H&E: RGB uint8. SP: channels.

    Returns
    -------
    ModalityImage
        A :class:`~slideloom.slides.image.SlideImage`.

    Raises
    ------
    SlideError
        ``not_rgb``: no way to see it as H&E; ``unsupported_dtype``: its samples do not fit without being altered.
    """
    return _as_rgb(raw) if modality == "he" else _as_channels(raw)


def flatten_alpha(colour: NDArray[np.uint8], alpha: NDArray[np.uint8], *, premultiplied: bool) -> NDArray[np.uint8]:
    """Lay a transparent image on white.

    Parameters
    ----------
    colour : ndarray
        (c, h, w) uint8.
    alpha : ndarray
        (h, w) uint8; 255 is opaque.
    premultiplied : bool
        Whether the colours are already multiplied by the opacity.

    Returns
    -------
    ndarray
        (c, h, w) uint8, rounded to nearest; ``colour`` itself, made contiguous, where all is opaque.
    """
    if bool((alpha == 255).all()):
        return np.ascontiguousarray(colour)
    laid = np.empty(colour.shape, np.uint8)
    band = max(1, _FLATTENED_PX // max(1, alpha.shape[1]))
    for y in range(0, alpha.shape[0], band):
        rows = slice(y, y + band)
        opacity, shown = alpha[rows].astype(np.uint32), colour[:, rows].astype(np.uint32)
        if premultiplied:
            laid[:, rows] = np.minimum(shown + (255 - opacity), 255)
        else:
            laid[:, rows] = (shown * opacity + 255 * (255 - opacity) + 127) // 255
    return laid


def _as_rgb(raw: RawImage) -> ModalityImage:
    header = raw.header
    where = str(header.source)
    warnings: tuple[str, ...] = ()
    convert: _Convert | None = None
    if header.colour == "cmyk":
        raise SlideError(
            "its 4 samples are tagged as printing inks (CMYK), which is no H&E image",
            where=where,
            expected="an RGB image",
            hint="Convert it to RGB; or, if the 4 samples are markers, name it in the sp column",
            code="not_rgb",
        )
    if header.dtype != np.uint8:
        raise SlideError(
            f"an H&E image of {header.dtype} samples",
            where=where,
            expected="uint8",
            hint="Save it with 8 bits a channel; Slideloom does not choose a scale for you",
            code="unsupported_dtype",
        )
    if header.colour in ("rgba", "rgba_premultiplied"):
        premultiplied = header.colour == "rgba_premultiplied"
        convert = lambda stored: flatten_alpha(stored[:3], stored[3], premultiplied=premultiplied)  # noqa: E731
    elif header.colour == "rgbx":
        convert = lambda stored: np.ascontiguousarray(stored[:3])  # noqa: E731
        warnings = ("its 4th sample is not declared as transparency and is left aside",)
    elif header.colour == "grey_alpha":
        convert = lambda stored: _three(flatten_alpha(stored[:1], stored[1], premultiplied=False))  # noqa: E731
    elif header.colour == "palette" and header.n_channels == 1 and header.palette is not None:
        table = header.palette
        convert = lambda stored: np.ascontiguousarray(table[stored[0]].transpose(2, 0, 1))  # noqa: E731
    elif header.colour == "grey_inverted" and header.n_channels == 1:
        convert = lambda stored: _three(255 - stored)  # noqa: E731
    elif header.n_channels == 1:
        convert = _three
    elif header.n_channels != 3:
        raise SlideError(
            f"{header.n_channels} channels cannot be seen as H&E",
            where=where,
            expected="3 channels, or 1",
            hint="If it is a multiplexed image, name it in the sp column",
            code="not_rgb",
        )
    if header.colour.startswith("grey") or (header.n_channels == 1 and header.colour == "channels"):
        warnings = ("a grey image read as H&E: its values are repeated as red, green and blue",)
    elif header.colour == "channels" and header.channel_names is not None:
        initials = tuple(name.strip().lower()[:1] for name in header.channel_names)
        if initials != ("r", "g", "b"):
            warnings = (f"channels {', '.join(header.channel_names)} are read as red, green and blue",)
    return ModalityImage(
        raw, convert, n_channels=3, dtype=np.dtype(np.uint8), channel_names=_RGB, is_rgb=True, warnings=warnings
    )


def _three(stored: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(stored, 3, axis=0)


def _as_channels(raw: RawImage) -> ModalityImage:
    header = raw.header
    warnings: list[str] = []
    names = header.channel_names
    dtype = header.dtype
    convert: _Convert | None = None
    wide = _WIDENED.get(dtype)
    if wide is not None:
        dtype = wide
        convert = lambda stored: stored.astype(wide)  # noqa: E731
        warnings.append(f"{header.dtype} samples are read as {dtype}, which holds every value")
    elif dtype not in _KEPT:
        raise SlideError(
            f"channels of {dtype} samples",
            where=str(header.source),
            expected="uint8, uint16 or float32",
            hint="Save it as one of these; Slideloom does not round or scale values for you",
            code="unsupported_dtype",
        )
    if header.colour.startswith("rgb"):
        names = names or (*_RGB, "extra" if header.colour == "rgbx" else "alpha")[: header.n_channels]
        warnings.append(f"a colour image read as {header.n_channels} channels: {', '.join(names)}")
    elif header.colour == "grey_alpha":
        names = names or ("grey", "alpha")
        warnings.append("a grey image with transparency read as 2 channels: grey, alpha")
    elif header.colour == "cmyk":
        warnings.append("its 4 samples are tagged as printing inks (CMYK): read as 4 channels, values as stored")
    elif header.colour == "palette":
        warnings.append("it has a colour table, which is left aside: values are the stored indices")
    elif header.colour == "grey_inverted":
        warnings.append("it is tagged as white where 0; values are kept as stored")
    return ModalityImage(
        raw,
        convert,
        n_channels=header.n_channels,
        dtype=dtype,
        channel_names=names,
        is_rgb=False,
        warnings=tuple(warnings),
    )

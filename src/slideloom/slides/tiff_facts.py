"""What a TIFF file says of its samples: what they are, their names, their size on the slide.

tifffile's objects are taken as they are: ``file`` is a ``TiffFile``, ``series`` a ``TiffPageSeries``, ``page`` its
first ``TiffPage``. ``flavour`` is that of :func:`slideloom.slides.read_tiff.tiff_flavour`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.image import Colour
from slideloom.slides.ome_xml import OmeImage, believed_name, length_um, parse_xml
from slideloom.slides.pixel_size import plausible_mpp

__all__ = ["JPEG", "tiff_colour", "tiff_names", "tiff_palette", "tiff_pixel_size"]

#: Compressions that may share tables between tiles, and that turn YCbCr into RGB.
JPEG = {6, 7, 34892, 33007}
_LARGEST_TAG_MPP_UM = 10.0  # 2540 dpi; below that resolution the tag speaks of print or screen
_APERIO_MPP = re.compile(r"^Aperio.*\|\s*MPP\s*=\s*([0-9]+[.,]?[0-9]*)", re.DOTALL)
#: Transparency masks, L*a*b* in its three codings, LogL, LogLuv.
_NO_IMAGE = {4, 8, 9, 10, 32844, 32845}
_ONE_SAMPLE: dict[int, Colour] = {0: "grey_inverted", 1: "grey", 3: "palette"}


def tiff_colour(series: Any, page: Any, flavour: str, where: str) -> Colour:
    """What the samples are.

    Raises
    ------
    SlideError
        ``unsupported_layout``: neither grey, nor RGB, nor channels.
    """
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    extra = tuple(int(kind) for kind in page.extrasamples)
    luma = photometric == 6 and samples == 3 and page.compression not in JPEG
    if luma or photometric in _NO_IMAGE:
        raise SlideError(
            f"samples of photometric interpretation {photometric} are no grey, RGB or channel values",
            where=where,
            expected="grey, RGB or separate channels",
            hint="Convert the image to RGB",
            code="unsupported_layout",
        )
    if samples == 1:
        stack = int(np.prod(series.shape)) > page.imagelength * page.imagewidth
        colour: Colour = "channels" if stack else _ONE_SAMPLE.get(photometric, "channels")
        return "grey" if colour == "palette" and flavour == "imagej" else colour
    if samples == 2 and photometric == 1 and extra in ((1,), (2,)):
        return "grey_alpha"
    if samples == 3 and photometric in (2, 6):
        return "rgb"
    if samples == 4 and photometric in (2, 6):
        return "rgba_premultiplied" if extra == (1,) else "rgba" if extra == (2,) else "rgbx"
    return "cmyk" if samples == 4 and photometric == 5 else "channels"


def tiff_palette(page: Any) -> NDArray[np.uint8] | None:
    """Colour table of a page, (n, 3) uint8; None when it has none."""
    if page.colormap is None:
        return None
    table = np.asarray(page.colormap).T  # (n, 3) uint16
    return np.ascontiguousarray((table >> 8 if table.max() > 255 else table).astype(np.uint8))


def tiff_names(
    file: Any, series: Any, flavour: str, image: OmeImage | None, n_channels: int, warnings: list[str]
) -> tuple[str, ...] | None:
    """Names of the channels, from OME-XML, ImageJ's labels or QPTIFF's descriptions; None when there are none."""
    names: list[str] = []
    if image is not None:
        names = list(image.channel_names)
    elif flavour == "imagej":
        names = [str(label) for label in (file.imagej_metadata or {}).get("Labels") or ()]
    elif flavour == "qpi":
        names = [_qpi_name(page) for page in series.pages]
    if len(names) != n_channels or not any(names):
        return None
    if not all(names):
        warnings.append("some channels have no name in the file; they are called channel_<index>, counted from 0")
        names = [name or f"channel_{index}" for index, name in enumerate(names)]
    return tuple(names)


def _qpi_name(page: Any) -> str:
    """Empty where the page's description cannot be read: the sheet may name the channel instead."""
    try:
        root = parse_xml(page.description, "description", "")
    except SlideError:
        return ""
    return believed_name(root.findtext("Biomarker") or root.findtext("Name") or "")


def tiff_pixel_size(
    file: Any, page: Any, flavour: str, image: OmeImage | None, warnings: list[str]
) -> tuple[float, float] | None:
    """Pixel size by the best witness in the file: OME-XML, Aperio's description, ImageJ's unit, the resolution tags."""
    if image is not None and image.mpp_um is not None:
        return image.mpp_um
    match = _APERIO_MPP.match(page.description)
    if match is not None:
        value = float(match[1].replace(",", "."))
        mpp_um, why = plausible_mpp(value, value, "Aperio's description")
        warnings.extend(why)
        return mpp_um
    tags = page.tags
    pixels = [_ratio(tags[code].value) if code in tags else 0.0 for code in (283, 282)]
    if min(pixels) <= 0:
        return None
    unit = {2: "inch", 3: "cm"}.get(int(tags.valueof(296, 2)), "")
    stated_by = "the TIFF resolution tag"
    if flavour == "imagej":
        unit, stated_by = str((file.imagej_metadata or {}).get("unit") or unit), "ImageJ's calibration"
    sizes = [length_um(1 / value, unit) for value in pixels]
    if sizes[0] is None or sizes[1] is None:
        return None
    mpp_um, why = plausible_mpp(sizes[0], sizes[1], stated_by, _LARGEST_TAG_MPP_UM)
    warnings.extend(why)
    return mpp_um


def _ratio(value: Any) -> float:
    numerator, denominator = value if isinstance(value, tuple) else (value, 1)
    return float(numerator) / float(denominator) if denominator else 0.0

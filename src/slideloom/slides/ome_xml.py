"""What an OME-TIFF's XML says about its images: sizes, channel names, pixel size, where the planes lie.

Only what Slideloom needs is read, from any version of the schema (namespaces are left aside). Elements and attributes
are those of the OME data model, https://docs.openmicroscopy.org/ome-model/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from slideloom.errors import SlideError
from slideloom.slides.image import plausible_mpp

__all__ = ["OmeImage", "length_um", "parse_ome"]

_DTYPES = {
    "bit": "bool",
    "float": "float32",
    "double": "float64",
    "complex": "complex64",
    "double-complex": "complex128",
}
_UNIT_UM = {
    "Å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "µm": 1.0,
    "μm": 1.0,  # Greek mu
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "\\u00B5m": 1.0,  # ImageJ writes the escape itself
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "inch": 25_400.0,
    "in": 25_400.0,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
}


@dataclass(frozen=True)
class OmeImage:
    """One ``Image`` element.

    Attributes
    ----------
    index : int
        Its place among the images.
    name : str
        May be empty.
    size_x, size_y, size_c, size_z, size_t : int
        Announced sizes; ``size_c`` counts samples.
    dtype : str
        NumPy's name of the announced type.
    channel_names : tuple of str
        Names of the ``Channel`` elements, empty strings where not given.
    samples : tuple of int
        Samples per pixel of each ``Channel`` element.
    mpp_um : tuple of float or None
        (y, x).
    foreign : tuple of str
        Other files in which planes lie.
    warnings : tuple of str
        What a person should know.
    """

    index: int
    name: str
    size_x: int
    size_y: int
    size_c: int
    size_z: int
    size_t: int
    dtype: str
    channel_names: tuple[str, ...]
    samples: tuple[int, ...]
    mpp_um: tuple[float, float] | None
    foreign: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def announced(self) -> str:
        """Sizes in words."""
        stack = f", {self.size_z} depths and {self.size_t} times" if self.size_z * self.size_t > 1 else ""
        return f"{self.size_c} channels of {self.size_x} x {self.size_y} px (width x height) {self.dtype}{stack}"


def length_um(value: float, unit: str) -> float | None:
    """Convert a length to µm; None when the unit is no unit of length."""
    factor = _UNIT_UM.get(unit.strip(), _UNIT_UM.get(unit.strip().lower()))
    return None if factor is None else value * factor


def parse_ome(xml: str, where: str) -> tuple[OmeImage, ...]:
    """Read OME-XML.

    Parameters
    ----------
    xml : str
        The first page's description.
    where : str
        The file; for messages.

    Returns
    -------
    tuple of OmeImage
        In document order; at least one.

    Raises
    ------
    SlideError
        ``metadata_mismatch``: it is no XML, or describes no image; ``multi_file``: it points to another file.
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise _mismatch(f"its OME-XML cannot be parsed: {error}", where) from error
    if next(_named(root, "BinaryOnly"), None) is not None:
        raise SlideError(
            "its OME-XML lies in another file",
            where=where,
            expected="an OME-TIFF that is whole in itself",
            hint="save the image as one file",
            code="multi_file",
        )
    images = tuple(
        _image(index, image, root.get("UUID", ""), where) for index, image in enumerate(_named(root, "Image"))
    )
    if not images:
        raise _mismatch("its OME-XML describes no image", where)
    return images


def _image(index: int, image: ElementTree.Element, uuid: str, where: str) -> OmeImage:
    pixels = next(_named(image, "Pixels"), None)
    if pixels is None:
        raise _mismatch(f"image {index} of its OME-XML has no Pixels", where)
    try:
        sizes = {axis: int(pixels.get(f"Size{axis}", "")) for axis in "XYCZT"}
        channels = list(_named(pixels, "Channel"))
        samples = tuple(int(channel.get("SamplesPerPixel", "1")) for channel in channels)
    except ValueError as error:
        raise _mismatch(f"image {index} of its OME-XML lacks a size: {error}", where) from error
    explicit = all("SamplesPerPixel" in channel.attrib for channel in channels)
    if channels and (len(channels) > sizes["C"] or (explicit and sum(samples) != sizes["C"])):
        what = f"image {index} of its OME-XML announces {sizes['C']} channels and describes {sum(samples)}"
        raise _mismatch(what, where)
    foreign = {
        element.get("FileName", "another file")
        for data in _named(pixels, "TiffData")
        for element in _named(data, "UUID")
        if (element.text or "").strip() != uuid
    }
    mpp_um, warnings = _pixel_size(pixels)
    kind = pixels.get("Type") or pixels.get("PixelType") or ""
    return OmeImage(
        index=index,
        name=image.get("Name", ""),
        size_x=sizes["X"],
        size_y=sizes["Y"],
        size_c=sizes["C"],
        size_z=sizes["Z"],
        size_t=sizes["T"],
        dtype=_DTYPES.get(kind.lower(), kind.lower()),
        channel_names=tuple(channel.get("Name", "").strip() for channel in channels),
        samples=samples,
        mpp_um=mpp_um,
        foreign=tuple(sorted(foreign)),
        warnings=warnings,
    )


def _pixel_size(pixels: ElementTree.Element) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    sizes = []
    for axis in "YX":
        text, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if text is None:
            return None, ()
        try:
            size = length_um(float(text), unit)
        except ValueError:
            size = None
        if size is None:
            return None, (f"the OME-XML states a pixel size of {text} {unit}, which is no length",)
        sizes.append(size)
    return plausible_mpp(sizes[0], sizes[1], "the OME-XML")


def _named(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _mismatch(what: str, where: str) -> SlideError:
    return SlideError(what, where=where, hint="write the file again with a sound program", code="metadata_mismatch")

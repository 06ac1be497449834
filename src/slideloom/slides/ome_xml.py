"""What an OME-TIFF's XML says about its images: sizes, channel names, pixel size, where the planes lie.

Only what Slideloom needs is read, from any version of the schema (namespaces are left aside). Elements and attributes
are those of the OME data model, https://docs.openmicroscopy.org/ome-model/.

tifffile follows the same text to the pages, and takes each number at its word: a plane count of a billion is a list of
a billion. What is checked here is therefore checked for every image, the ones that are not read too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from slideloom.config.texts import quoted, shortened
from slideloom.errors import SlideError
from slideloom.slides.pixel_size import plausible_mpp

__all__ = ["OmeImage", "believed_name", "length_um", "parse_ome", "parse_xml"]

#: A gigapixel scan of a hundred channels describes itself in less than a megabyte.
_MOST_CHARACTERS, _MOST_TAGS, _MOST_ATTRIBUTES = 16 << 20, 250_000, 1_000_000
_DOCUMENT_TYPE = re.compile(r"<!(DOCTYPE|ENTITY)")
_LONGEST_NAME = 200
_MOST_PLANES = 1_000_000
_MOST_IMAGES = 1000

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
        Names of the ``Channel`` elements, empty strings where not given, or too long for a name.
    samples : tuple of int
        Samples per pixel of each ``Channel`` element.
    mpp_um : tuple of float or None
        (y, x).
    foreign : tuple of str
        Other files in which planes lie.
    n_placed : int
        Planes that its ``TiffData`` elements place, as far as they say how many; all of them where one does not.
    last_page : int
        The last page that they name, counted from 0.
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
    n_placed: int
    last_page: int
    warnings: tuple[str, ...]

    @property
    def n_planes(self) -> int:
        """Planes that it announces: one a channel element, depth and time."""
        samples = self.samples[0] if self.samples else 1
        return -(-self.size_c // samples) * self.size_z * self.size_t

    @property
    def announced(self) -> str:
        """Sizes in words."""
        stack = f", {self.size_z} depths and {self.size_t} times" if self.size_z * self.size_t > 1 else ""
        kind = self.dtype or "of no type"
        return f"{self.size_c} channels of {self.size_x} x {self.size_y} px (width x height) {kind}{stack}"


def length_um(value: float, unit: str) -> float | None:
    """Convert a length to µm; None when the unit is no unit of length."""
    factor = _UNIT_UM.get(unit.strip(), _UNIT_UM.get(unit.strip().lower()))
    return None if factor is None else value * factor


def believed_name(text: str) -> str:
    """A channel's name as a file gives it; empty where it is far too long for one."""
    name = text.strip()
    return name if len(name) <= _LONGEST_NAME else ""


def parse_xml(text: str, kind: str, where: str) -> ElementTree.Element:
    """Parse XML that came with an image, unless it is made to cost memory.

    Parameters
    ----------
    text : str
        The XML.
    kind : str
        What it is; for messages.
    where : str
        The file; for messages.

    Returns
    -------
    Element
        The root.

    Raises
    ------
    SlideError
        ``metadata_mismatch``: it is no XML, is larger than any description of an image, or declares a document type,
        which could define entities that expand without end.
    """
    size = (len(text), text.count("<"), text.count("="))
    if size[0] > _MOST_CHARACTERS or size[1] > _MOST_TAGS or size[2] > _MOST_ATTRIBUTES:
        what = f"its {kind} has {size[0]} characters and {size[1]} tags"
        raise _mismatch(what, where, f"at most {_MOST_CHARACTERS} and {_MOST_TAGS}")
    if _DOCUMENT_TYPE.search(text):
        raise _mismatch(f"its {kind} declares a document type", where, "plain elements, as the OME data model has them")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _mismatch(f"its {kind} cannot be parsed: {error}", where) from error


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
        ``metadata_mismatch``: it is no XML, describes no image, or one that cannot be; ``multi_file``: it points to
        another file; ``unsupported_layout``: it splits an axis in two.
    """
    root = parse_xml(xml, "OME-XML", where)
    if next(_named(root, "BinaryOnly"), None) is not None:
        raise SlideError(
            "its OME-XML lies in another file",
            where=where,
            expected="an OME-TIFF that is whole in itself",
            hint="Save the image as one file",
            code="multi_file",
        )
    _refuse_split_axes(root, where)
    found = list(_named(root, "Image"))
    if not found:
        raise _mismatch("its OME-XML describes no image", where)
    if len(found) > _MOST_IMAGES:
        raise _mismatch(f"its OME-XML describes {len(found)} images", where, f"at most {_MOST_IMAGES}")
    return tuple(_image(index, image, root.get("UUID", ""), where) for index, image in enumerate(found))


def _refuse_split_axes(root: ElementTree.Element, where: str) -> None:
    for group in _named(root, "StructuredAnnotations"):
        if any(one.get("Namespace", "").endswith("modulo") for one in group):
            raise SlideError(
                "its OME-XML splits an axis in two (a modulo annotation)",
                where=where,
                expected="y, x, and one axis of channels",
                hint="Save one focal plane and time point",
                code="unsupported_layout",
            )


def _image(index: int, image: ElementTree.Element, uuid: str, where: str) -> OmeImage:
    name = f"image {index} of its OME-XML"
    all_pixels = list(_named(image, "Pixels"))
    if len(all_pixels) != 1:
        raise _mismatch(f"{name} has {len(all_pixels) or 'no'} Pixels", where, "one element Pixels")
    pixels = all_pixels[0]
    sizes = {axis: _whole(pixels.attrib, f"Size{axis}", None, name, where, least=1) for axis in "XYCZT"}
    channels = list(_named(pixels, "Channel"))
    samples = tuple(_whole(channel.attrib, "SamplesPerPixel", 1, name, where, least=1) for channel in channels)
    explicit = all("SamplesPerPixel" in channel.attrib for channel in channels)
    if channels and (len(channels) > sizes["C"] or (explicit and sum(samples) != sizes["C"])):
        raise _mismatch(f"{name} announces {sizes['C']} channels and describes {sum(samples)}", where)
    if len(set(samples)) > 1:
        what = f"{name} has channels of {' and '.join(map(str, sorted(set(samples))))} samples a pixel"
        raise _mismatch(what, where, "one number for all")
    if sizes["C"] * sizes["Z"] * sizes["T"] > _MOST_PLANES:
        what = f"{name} announces {sizes['C']} channels, {sizes['Z']} depths and {sizes['T']} times"
        raise _mismatch(what, where, f"at most {_MOST_PLANES} planes")
    order = pixels.get("DimensionOrder", "")
    if sorted(order) != sorted("XYCZT") or not order.startswith("XY"):
        raise _mismatch(f"{name} has the dimension order {quoted(order)}", where, "X, Y, then C, Z and T in some order")
    foreign = {
        shortened(element.get("FileName", "another file"))
        for data in _named(pixels, "TiffData")
        for element in _named(data, "UUID")
        if (element.text or "").strip() != uuid
    }
    n_placed, last_page = _places(pixels, sizes, bool(foreign), name, where)
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
        channel_names=tuple(believed_name(channel.get("Name", "")) for channel in channels),
        samples=samples,
        mpp_um=mpp_um,
        foreign=tuple(sorted(foreign)),
        n_placed=n_placed,
        last_page=last_page,
        warnings=warnings,
    )


def _places(
    pixels: ElementTree.Element, sizes: Mapping[str, int], foreign: bool, name: str, where: str
) -> tuple[int, int]:
    """How many planes ``TiffData`` elements place, and the last page of this file that they name."""
    announced = sizes["C"] * sizes["Z"] * sizes["T"]
    elements = list(_named(pixels, "TiffData"))
    if not elements:
        raise _mismatch(f"{name} does not say where its planes lie: it has no TiffData", where)
    placed = last = 0
    for data in elements:
        first = _whole(data.attrib, "IFD", 0, name, where)
        # Without a page and a number, an element stands for all pages of the file.
        count = _whole(data.attrib, "NumPlanes", 1 if "IFD" in data.attrib else 0, name, where)
        count = _whole(data.attrib, "PlaneCount", count, name, where)
        if count > announced:
            raise _mismatch(f"{name} places {count} planes and announces {announced}", where)
        # ImageJ leaves elements of what it cropped away; they place nothing.
        if all(_whole(data.attrib, f"First{axis}", 0, name, where) < sizes[axis] for axis in "CZT"):
            placed += count or announced
            last = last if foreign else max(last, first + max(count, 1) - 1)
    return placed, last


def _whole(attributes: Mapping[str, str], key: str, default: int | None, name: str, where: str, least: int = 0) -> int:
    """A whole number of an element's attributes."""
    text = attributes.get(key)
    if text is None:
        if default is None:
            raise _mismatch(f"{name} lacks a size: it has no {key}", where)
        return default
    if not text.strip().isdecimal() or len(text) > 18 or int(text) < least:
        raise _mismatch(f"{name} has {key} {quoted(text)}", where, f"a whole number from {least}")
    return int(text)


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
            told = f"{shortened(text)} {shortened(unit)}"
            return None, (f"the OME-XML states a pixel size of {told}, which is no length",)
        sizes.append(size)
    return plausible_mpp(sizes[0], sizes[1], "the OME-XML")


def _named(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _mismatch(what: str, where: str, expected: str = "") -> SlideError:
    hint = "Write the file again with a sound program"
    return SlideError(what, where=where, expected=expected, hint=hint, code="metadata_mismatch")

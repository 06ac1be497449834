"""OME-TIFF and OME-Zarr images whose metadata do not fit what is stored, or are made to harm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tifffile

from tests.bad_inputs.kinds import Answer, Cells, Kind
from tests.bad_inputs.panel import NAMES, stack
from tests.data_sets import write_ome_zarr

__all__ = ["OME", "PLACES", "write_ome_tiff"]

#: The element that says where planes lie.
PLACES = '<TiffData IFD="0" PlaneCount="3"/>'
_PLACED = '<TiffData IFD="{}" FirstC="{}" PlaneCount="1"/>'
_OPEN = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="96" SizeY="96" '
    'SizeC="{}" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5">'
)
_CHANNEL = '<Channel ID="Channel:0:{}" SamplesPerPixel="1" Name="{}"/>'
_LARGE = (16 << 20) + 1
Change = Callable[[str], str]


def write_ome_tiff(
    place: Path, names: tuple[str, ...] = NAMES, change: Change = lambda xml: xml, encoding: str = "utf-8"
) -> None:
    """Channels under OME-XML, 0.5 µm a pixel; the XML is changed on the way."""
    channels = "".join(_CHANNEL.format(index, name) for index, name in enumerate(names))
    places = PLACES.replace('"3"', f'"{len(names)}"')
    xml = f"{_OPEN.format(len(names))}{channels}{places}</Pixels></Image></OME>"
    changed = change(xml)
    tifffile.imwrite(
        place, stack(len(names)), photometric="minisblack", metadata=None, description=changed.encode(encoding)
    )


def _tiff_kind(
    name: str,
    what: str,
    old: str,
    new: str,
    says: str,
    answer: Answer = "failed",
    code: str = "metadata_mismatch",
    encoding: str = "utf-8",
) -> Kind:
    def change(xml: str) -> str:
        assert old in xml, old
        return xml.replace(old, new)

    def make(folder: Path) -> Cells:
        write_ome_tiff(folder / "scan.ome.tif", change=change, encoding=encoding)
        return {"sp": "scan.ome.tif"}

    return Kind(f"ome_{name}", "slide", what, make, answer, code if answer == "failed" else "", "facts", says)


def _entities() -> str:
    """Ten entities, each of ten of the one before: a billion words in a kilobyte."""
    rows = [f'<!ENTITY w{index} "{f"&w{index - 1};" * 10}">' for index in range(1, 10)]
    return f'<!DOCTYPE OME [<!ENTITY w0 "ha">{"".join(rows)}]>'


def _tiffs() -> tuple[Kind, ...]:
    first, order = "<OME ", _PLACED.format(0, 2) + _PLACED.format(1, 0) + _PLACED.format(2, 1)
    same = "".join(_PLACED.format(0, channel) for channel in range(3))
    foreign = '<TiffData IFD="0" PlaneCount="3"><UUID FileName="../b.tif">urn:uuid:1</UUID></TiffData>'
    modulo = '<StructuredAnnotations><XMLAnnotation Namespace="modulo" ID="A"/></StructuredAnnotations></OME>'
    secret = '<!DOCTYPE OME [<!ENTITY w9 SYSTEM "file:///etc/hostname">]>'
    return (
        _tiff_kind(
            "size_c", "announces more channels than it describes", 'SizeC="3"', 'SizeC="5"', "announces 5 channels"
        ),
        _tiff_kind(
            "size_x", "announces a wider image", 'SizeX="96"', 'SizeX="9600"', "9600 x 96 px.*the file holds 3 pages"
        ),
        _tiff_kind("size_z", "announces less than nothing", 'SizeZ="1"', 'SizeZ="-1"', "SizeZ '-1'"),
        _tiff_kind("size_t", "announces a trillion times", 'SizeT="1"', 'SizeT="1000000000000"', "times.*at most"),
        _tiff_kind("channels", "describes fewer channels", _CHANNEL.format(2, "CD8"), "", "describes 2"),
        _tiff_kind("type", "announces another type", 'Type="uint16"', 'Type="uint8"', "the file holds uint16"),
        _tiff_kind(
            "order", "orders axes that do not exist", 'DimensionOrder="XYCZT"', 'DimensionOrder="QWERT"', "QWERT"
        ),
        _tiff_kind("no_places", "does not say where planes lie", PLACES, "", "no TiffData"),
        _tiff_kind(
            "plane_missing", "says where two of three planes lie", PLACES, order[: len(order) * 2 // 3], "2 of its 3"
        ),
        _tiff_kind(
            "plane_outside", "names a page behind the last", PLACES, same.replace('IFD="0"', 'IFD="7"', 1), "page 7"
        ),
        _tiff_kind("plane_twice", "shows one page as three channels", PLACES, same, "3 planes on 1 pages"),
        _tiff_kind(
            "billion_planes",
            "places a billion planes",
            PLACES,
            '<TiffData IFD="0" PlaneCount="1000000000"/>',
            "places 1000000000",
        ),
        _tiff_kind("planes_in_order", "pages in another order than channels", PLACES, order, "", "accepted"),
        _tiff_kind("other_file", "planes in another file", PLACES, foreign, "other files", code="multi_file"),
        _tiff_kind("split_axis", "splits an axis in two", "</OME>", modulo, "modulo", code="unsupported_layout"),
        _tiff_kind("entities", "entities that expand to a billion words", first, _entities() + first, "document type"),
        _tiff_kind("external_entity", "an entity that reads a file", first, secret + first, "document type"),
        _tiff_kind("large", "17 MB of XML", "</OME>", f"<!--{'x' * _LARGE}--></OME>", "characters.*at most"),
        _tiff_kind("elements", "half a million elements", "</OME>", "<a/>" * 500_000 + "</OME>", "tags.*at most"),
        _tiff_kind("cut", "XML cut short", "</Image></OME>", "", "cannot be parsed"),
        _tiff_kind("control", "a control character", 'Name="CD8"', 'Name="CD8\x01"', "cannot be parsed"),
        _tiff_kind(
            "latin_1",
            "a name that is not UTF-8",
            'Name="CD8"',
            'Name="CD8é"',
            "'CD8é'",
            code="unknown_channel",
            encoding="latin-1",
        ),
        _tiff_kind(
            "script",
            "a script as a channel's name",
            'Name="CD8"',
            'Name="&lt;script&gt;alert(1)&lt;/script&gt;"',
            "<script>",
            code="unknown_channel",
        ),
        _tiff_kind(
            "line_break",
            "a line break in a channel's name",
            'Name="CD8"',
            'Name="CD8&#10;CD9"',
            r"'CD8\\nCD9'",
            code="unknown_channel",
        ),
        _tiff_kind(
            "long_name",
            "a channel's name of 100 000 letters",
            'Name="CD8"',
            f'Name="{"x" * 100_000}"',
            "1 of 3 channels: 'channel_2'",
            code="unknown_channel",
        ),
        _tiff_kind(
            "unknown_unit",
            "a pixel size in no unit of length",
            'PhysicalSizeX="0.5"',
            'PhysicalSizeX="0.5" PhysicalSizeXUnit="smoot"',
            "smoot",
            code="no_pixel_size",
        ),
    )


def _zarr_kind(
    name: str,
    what: str,
    spoil: Callable[[Path], object],
    says: str,
    code: str = "metadata_mismatch",
    answer: Answer = "failed",
    cells: Cells | None = None,
) -> Kind:
    def make(folder: Path) -> Cells:
        write_ome_zarr(folder / "scan.zarr", stack(), 0.5, NAMES)
        spoil(folder / "scan.zarr")
        return {"sp": "scan.zarr", **(cells or {})}

    return Kind(f"zarr_{name}", "slide", what, make, answer, code if answer == "failed" else "", "facts", says)


def _edited(change: Callable[[dict[str, Any]], object], file: str = "zarr.json") -> Callable[[Path], None]:
    """Metadata of a store, changed."""

    def spoil(store: Path) -> None:
        body = json.loads((store / file).read_text())
        change(body if file != "zarr.json" else body["attributes"]["ome"])
        (store / file).write_text(json.dumps(body, sort_keys=True))

    return spoil


def _elsewhere(store: Path) -> Path:
    write_ome_zarr(store.with_name("other.zarr"), stack(), 0.5, NAMES)
    return store.with_name("other.zarr") / "0"


def _leads_out(store: Path) -> None:
    _elsewhere(store)
    _edited(lambda ome: ome["multiscales"][0]["datasets"][0].update(path="../other.zarr/0"))(store)


def _linked_out(store: Path) -> None:
    shutil.rmtree(store / "0")
    (store / "0").symlink_to(_elsewhere(store))


def _one_name_less(ome: dict[str, Any]) -> None:
    ome["omero"]["channels"].pop()


def _zarrs() -> tuple[Kind, ...]:
    named = {"sp_channels": ";".join(NAMES)}
    many = _edited(lambda ome: ome["multiscales"][0].update(datasets=ome["multiscales"][0]["datasets"] * 5000))
    codec = _edited(lambda body: body.update(codecs=[{"name": "evil", "configuration": {}}]), "0/zarr.json")
    none = _edited(lambda body: body.update(shape=[3, 0, 96]), "0/zarr.json")
    flat = _edited(lambda ome: ome.update(multiscales="all of them"))
    deep = lambda store: (store / "zarr.json").write_text("[" * 200_000)  # noqa: E731
    return (
        _zarr_kind("leads_out", "a level outside the store, by '..'", _leads_out, "lead out of the store"),
        _zarr_kind("linked_out", "a level outside the store, by a link", _linked_out, "lead out of the store"),
        _zarr_kind("no_level", "a level that is not there", lambda store: shutil.rmtree(store / "0"), "not there"),
        _zarr_kind("many_levels", "five thousand levels", many, "5000 levels"),
        _zarr_kind("flat", "metadata of another form", flat, "multiscales is 'all of them'"),
        _zarr_kind("deep", "200 000 lists within lists", deep, "cannot be parsed", "unreadable"),
        _zarr_kind("codec", "a codec nobody knows", codec, "cannot be opened", "unreadable"),
        _zarr_kind("no_pixels", "a level of no height", none, "holds nothing", "unsupported_layout"),
        _zarr_kind(
            "name_missing",
            "a name less than channels",
            _edited(_one_name_less),
            "names 2 channels",
            "",
            "warned",
            named,
        ),
    )


OME: tuple[Kind, ...] = (*_tiffs(), *_zarrs())

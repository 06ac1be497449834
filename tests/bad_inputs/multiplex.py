"""Multiplexed images: channels that do not fit the panel, and pixels that are not measurements."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tests.bad_inputs.kinds import Answer, Cells, Kind
from tests.bad_inputs.ome import write_ome_tiff
from tests.bad_inputs.panel import MARKERS, NAMES, stack

__all__ = ["MULTIPLEX", "TABLES"]

_FOUR = "DAPI;CD3;CD8;Crête"
_OBJECTS = np.array([[{}, 1], [2, 3]], object)


def _kind(
    name: str,
    what: str,
    write: Callable[[Path], object],
    answer: Answer = "accepted",
    code: str = "",
    says: str = "",
    *,
    stage: str = "facts",
    channels: str = ";".join(NAMES),
    file: str = "scan.tif",
    member: str = "",
) -> Kind:
    def make(folder: Path) -> Cells:
        write(folder / file)
        cells = {"sp": file + member, "mpp_um": "0.5", "sp_channels": channels}
        return {column: cell for column, cell in cells.items() if cell}

    return Kind(f"sp_{name}", "multiplex", what, make, answer, code, stage, says)


def _tiff(pixels: Callable[[], NDArray[Any]], **options: Any) -> Callable[[Path], None]:
    options = {"photometric": "minisblack", "metadata": None, **options}
    return lambda place: tifffile.imwrite(place, pixels(), **options)


def _named(*names: str) -> Callable[[Path], None]:
    return lambda place: write_ome_tiff(place, names)


def _spoilt(value: float, where: Any, dtype: Any = np.uint16) -> Callable[[Path], None]:
    """Pixels set to one value."""

    def pixels() -> NDArray[Any]:
        spoilt = stack(dtype=dtype)
        spoilt[where] = value
        return spoilt

    return _tiff(pixels)


def _several_types(place: Path) -> None:
    with tifffile.TiffWriter(place) as file:
        for plane, dtype in zip(stack(), (np.uint16, np.uint16, np.uint8), strict=True):
            file.write(plane.astype(dtype), photometric="minisblack", metadata=None)


def _layouts() -> tuple[Kind, ...]:
    inks = _tiff(lambda: stack(4, np.uint8).transpose(1, 2, 0), photometric="separated")
    mixed = np.ascontiguousarray(stack(4).transpose(1, 2, 0))
    signed = _tiff(lambda: stack(dtype=np.int16) - 100)
    said = "int16 samples are read as float32"
    bits = _tiff(lambda: stack(1)[0] > 100)
    huge = _tiff(lambda: stack(dtype=np.uint32))
    return (
        _kind(
            "planar",
            "channels one after the other in a page",
            _tiff(lambda: stack(4), planarconfig="separate"),
            channels=_FOUR,
        ),
        _kind(
            "interleaved", "channels interleaved in a page", _tiff(lambda: mixed, planarconfig="contig"), channels=_FOUR
        ),
        _kind("cmyk", "four channels tagged as printing inks", inks, "warned", says="CMYK", channels=_FOUR),
        _kind("signed", "signed samples", signed, "warned", says=said),
        _kind("one_bit", "one bit a pixel", bits, "warned", says="bool samples are read as uint8", channels="DAPI"),
        _kind(
            "complex",
            "complex samples",
            _tiff(lambda: stack(dtype=np.complex64)),
            "failed",
            "unsupported_dtype",
            "complex64",
        ),
        _kind("32_bit", "samples of 32 bits", huge, "failed", "unsupported_dtype", "uint32"),
        _kind("several_types", "pages of several types", _several_types, "failed", "channel_count", "expected 2"),
        _kind(
            "objects",
            "Python objects in place of numbers",
            _objects,
            "failed",
            "unsupported_layout",
            "Python objects .*never read",
            file="scan.npy",
        ),
        _kind(
            "objects_npz",
            "an archive of Python objects",
            lambda place: np.savez(place, a=_OBJECTS),
            "failed",
            "unsupported_layout",
            "Python objects .*never read",
            file="scan.npz",
        ),
        _kind(
            "many_objects",
            "Python objects whose pickle is shorter than so many numbers",
            lambda place: np.save(place, np.full((96, 96), None), allow_pickle=True),
            "failed",
            "unsupported_layout",
            "Python objects",
            file="scan.npy",
        ),
        _kind(
            "code",
            "a NumPy header that is code",
            _code,
            "failed",
            "unreadable",
            "no sound NumPy header",
            file="scan.npy",
        ),
        _kind(
            "no_member",
            "an archive of two images, none of them named",
            _two,
            "failed",
            "bad_member",
            "one of a, b",
            file="scan.npz",
        ),
        _kind("member_outside", "an archive with a member called '../../b'", _slip, file="scan.npz"),
    )


def _objects(place: Path) -> None:
    np.save(place, _OBJECTS, allow_pickle=True)


def _code(place: Path) -> None:
    text = b"__import__('os').mkdir('/tmp/was_run')".ljust(117) + b"\n"
    place.write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(64))


def _two(place: Path) -> None:
    np.savez(place, a=stack(), b=stack())


def _slip(place: Path) -> None:
    np.savez(place, **{"../../b": stack()})


def _panels() -> tuple[Kind, ...]:
    from_file = {"file": "scan.ome.tif", "channels": ""}
    apart = unicodedata.normalize("NFD", "Crête")
    unknown = _named("DAPI", "CD3", "CD999")
    return (
        _kind(
            "too_few_names",
            "a name less than channels",
            _tiff(stack),
            "failed",
            "channel_count",
            "expected 3",
            channels="DAPI;CD3",
        ),
        _kind(
            "no_names",
            "no names, in the file or the sheet",
            _tiff(stack),
            "failed",
            "unknown_channel",
            "names the 3 channels",
            channels="",
        ),
        _kind(
            "unknown_marker",
            "a channel that the markers table lacks",
            unknown,
            "failed",
            "unknown_channel",
            "'CD999'",
            **from_file,
        ),
        _kind(
            "marker_twice",
            "two channels of one marker",
            _named("DAPI", "CD3", "CD3"),
            "warned",
            says="more than one channel",
            **from_file,
        ),
        _kind("no_nuclear", "no nuclear stain", _named("CD8", "CD3"), **from_file),
        _kind("other_case", "names in other letter case", _named("dapi", "cd3", "CD8"), **from_file),
        _kind("other_accents", "a letter and its accent apart", _named("DAPI", apart), **from_file),
    )


def _pixels() -> tuple[Kind, ...]:
    full, half = np.s_[:], np.s_[1, :, :40]
    number = ("failed", "non_finite_pixels")
    kinds = (
        ("zeros", "zero everywhere", _spoilt(0, full), "failed", "no_tissue", "looks the same", "tissue"),
        (
            "saturated",
            "the largest value everywhere",
            _spoilt(65535, full),
            "failed",
            "no_tissue",
            "looks the same",
            "tissue",
        ),
        (
            "nan_image",
            "NaN everywhere",
            _spoilt(np.nan, full, np.float32),
            "failed",
            "no_tissue",
            "looks the same",
            "tissue",
        ),
        (
            "constant_channel",
            "one channel of one value",
            _spoilt(7, 1),
            "warned",
            "",
            r"one value everywhere.*'CD3' \(7\)",
            "patches",
        ),
        (
            "saturated_channel",
            "a channel at its largest value in places",
            _spoilt(65535, half),
            "warned",
            "",
            r"largest value.*'CD3' \(42%\)",
            "patches",
        ),
        ("nan_channel", "a channel of NaN", _spoilt(np.nan, 2, np.float32), *number, "'CD8'", "patches"),
        ("nan_pixel", "one pixel of NaN", _spoilt(np.nan, (1, 40, 40), np.float32), *number, "'CD3'", "patches"),
        (
            "infinite_pixel",
            "one infinite pixel",
            _spoilt(np.inf, (0, 40, 40), np.float32),
            *number,
            "'DAPI'",
            "patches",
        ),
    )
    return tuple(
        _kind(name, what, write, answer, code, says, stage=stage)
        for name, what, write, answer, code, says, stage in kinds
    )


def _table_kind(name: str, what: str, rows: tuple[tuple[str, ...], ...], says: str) -> Kind:
    """A whole study whose markers table is wrong."""

    def make(folder: Path) -> Cells:
        table = [("channel", "marker", "uniprot", "nuclear"), *MARKERS, *rows]
        _tiff(stack)(folder / "scan.tif")
        lines = "".join("\t".join(row) + "\n" for row in table)
        (folder / "markers.tsv").write_text(lines, encoding="utf-8")
        (folder / "classes.tsv").write_text("id\tname\tcolour\n1\tTumour\t#ff0000\n")
        tifffile.imwrite(folder / "nuclei.tif", np.repeat(np.arange(96, dtype=np.uint16), 96).reshape(96, 96) // 24)
        cells = (str(folder / "scan.tif"), str(folder / "nuclei.tif"), "0.5", ";".join(NAMES))
        slides = [("slide_id", "sp", "instances", "mpp_um", "sp_channels", "split")]
        slides += [(f"s_{role}", *cells, role) for role in ("train", "val", "test")]
        sheet = "".join("\t".join(row) + "\n" for row in slides)
        (folder / "slides.tsv").write_text(sheet, encoding="utf-8")
        grids = "grids: {sp: {image: sp, tile_px: 64}}\n"
        encoders = "encoders: {mean: {model: mean_marker, grid: sp, statistics: all}}\nsplits: {all: {}}\n"
        experiments = "experiments: {one: {encoder: mean, split: all, heads: [nucleus, hv]}}\n"
        places = "".join(f"{key}: {folder / key}.tsv\n" for key in ("slides", "markers", "classes"))
        results = f"results: {folder / 'results'}\n"
        (folder / "config.yaml").write_text(f"study: s\n{places}{results}{grids}{encoders}{experiments}")
        return {"config": "config.yaml"}

    return Kind(name, "config", what, make, "refused", "config", "", says)


def _tables() -> tuple[Kind, ...]:
    apart = unicodedata.normalize("NFD", "Crête")
    return (
        _table_kind("markers_twice", "a channel with two rows", (("CD3", "CD3e", "", ""),), "'CD3' has a row already"),
        _table_kind(
            "markers_look_alike", "two rows that look the same", ((apart, "Other", "", ""),), "has a row already"
        ),
        _table_kind("markers_disagree", "two accessions for a marker", (("CD3x", "CD3e", "P04234", ""),), "must agree"),
        _table_kind("markers_accession", "no accession", (("CD20", "CD20", "MS4A1", "no"),), "no.*UniProt accession"),
        _table_kind("markers_nuclear", "nuclear or not?", (("CD20", "CD20", "", "perhaps"),), "neither yes nor no"),
    )


MULTIPLEX: tuple[Kind, ...] = (*_layouts(), *_panels(), *_pixels())
TABLES: tuple[Kind, ...] = _tables()

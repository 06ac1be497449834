"""Slides that are missing, damaged, cut short, no slides at all, or of no sensible pixel size."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tests.bad_inputs.hostile import HOSTILE, large_png
from tests.bad_inputs.kinds import Answer, Cells, Kind
from tests.bad_inputs.one_file import FORMS, MPP, Maker, encoded, npy, ome_page, slide_kind, svs_page
from tests.bad_inputs.raw_tiff import Page, picture, strip_page, tiff, tile_page

__all__ = ["KINDS"]

_INCH, _CM = 2, 3

# Cut short.

_PLACES: dict[str, tuple[str, Callable[[int], int]]] = {
    "magic": ("after 4 bytes", lambda size: 4),
    "header": ("after 20 bytes", lambda size: 20),
    "half": ("in the middle", lambda size: size // 2),
    "end": ("24 bytes before its end", lambda size: size - 24),
}
#: Where it is not ``truncated``.
_CUT_CODES = {
    ("png", "magic"): "unsupported_format",
    ("png", "header"): "unreadable",
    ("jpeg", "magic"): "unreadable",
    ("jpeg", "header"): "unreadable",
    ("npy", "magic"): "unsupported_format",
    ("npy", "header"): "unreadable",
    **{("npz", place): "unreadable" for place in _PLACES},
}


def _cut(make: Maker, keep: Callable[[int], int]) -> bytes:
    whole = make()
    return whole[: keep(len(whole))]


def _cuts() -> Iterator[Kind]:
    for form, (file, make) in FORMS.items():
        for place, (words, keep) in _PLACES.items():
            # Pictures are decoded when they are first looked at.
            stage = "tissue" if form in ("png", "jpeg") and place in ("half", "end") else "facts"
            yield slide_kind(
                f"cut_{form}_{place}",
                f"{form.replace('_', '-')} cut short {words}",
                partial(_cut, make, keep),
                _CUT_CODES.get((form, place), "truncated"),
                file=file,
                stage=stage,
            )
    deep = partial(encoded, picture(8, 8)[..., 0].astype(np.uint16), "PNG")
    what = "16-bit PNG cut short after the byte that says so"
    yield slide_kind("cut_png_depth", what, partial(_cut, deep, lambda size: 25), "unreadable", file="scan.png")


# Nothing there, or nothing that is a slide.


def _missing(folder: Path) -> Cells:
    return {"he": "scan.svs", **MPP}


def _folder(folder: Path) -> Cells:
    (folder / "scan.svs").mkdir()
    (folder / "scan.svs" / "notes.txt").write_text("the slide was to be copied here\n")
    return {"he": "scan.svs", **MPP}


def _link_loop(folder: Path) -> Cells:
    (folder / "scan.svs").symlink_to("again.svs")
    (folder / "again.svs").symlink_to("scan.svs")
    return {"he": "scan.svs", **MPP}


def _dangling(folder: Path) -> Cells:
    (folder / "scan.svs").symlink_to("moved/scan.svs")
    return {"he": "scan.svs", **MPP}


def _pipe(folder: Path) -> Cells:
    os.mkfifo(folder / "scan.svs")
    return {"he": "scan.svs", **MPP}


def _archive() -> bytes:
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr(zipfile.ZipInfo("scan.svs"), b"\0" * 64)
    return place.getvalue()


_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Your session has ended.</body></html>\n"
_NO_SLIDES: dict[str, tuple[str, bytes, str]] = {
    "text": ("text called .tif", b"slide 7: see the other disk\n" * 20, "it is text"),
    "html": ("web page of a failed download, called .tif", _PAGE, "web page"),
    "zip": ("ZIP archive called .tif", _archive(), "ZIP archive"),
    "gzip": ("gzip archive called .tif", b"\x1f\x8b\x08" + bytes(64), "gzip archive"),
    "pdf": ("PDF called .tif", b"%PDF-1.7\n" + b"%" * 64, "PDF"),
    "lif": ("Leica LIF file", b"\x70\0\0\0" + bytes(512), "LIF"),
    "lfs": ("Git LFS pointer in place of the slide", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "zeros": ("64 KB of zeros: a copy that never finished", bytes(1 << 16), "are zero"),
    "noise": ("bytes of no format", bytes(range(128, 256)) * 16, "no reader knows"),
}


def _absent() -> Iterator[Kind]:
    for name, what, make, says in (
        ("missing", "no such file", _missing, "does not exist"),
        ("dangling_link", "link to a file that is gone", _dangling, "link"),
        ("link_loop", "links that lead to each other", _link_loop, "circle"),
    ):
        yield Kind(name, "slide", what, make, "refused", stage="", says=says)
    for name, what, make, code, says in (
        ("folder_for_file", "folder where a file belongs", _folder, "unsupported_format", "it is a folder"),
        ("pipe", "named pipe where a file belongs", _pipe, "unsupported_format", "pipe"),
    ):
        yield Kind(name, "slide", what, make, "failed", code, says=says)
    index = partial(encoded, picture(), "JPEG")
    says = "the folder 'scan' with its pixels is not beside it"
    yield slide_kind(
        "mirax_alone", "MIRAX index without its folder", index, "unsupported_format", file="scan.mrxs", says=says
    )
    yield slide_kind("empty", "file of 0 bytes", bytes, "empty_file", file="scan.svs", says="0 bytes")
    for name, (what, content, says) in _NO_SLIDES.items():
        yield slide_kind(f"not_a_slide_{name}", what, partial(bytes, content), "unsupported_format", says=says)


# Hardly any pixels.


def _small() -> Iterator[Kind]:
    page = tile_page(picture())
    strip = strip_page(96, 96, zlib.compress(picture().tobytes()))
    for name, one, tag, what, says in (
        ("no_rows_tiff", page, 257, "TIFF of 96 x 0 px", "the height is 0 pixels"),
        ("tile_width_0", page, 322, "TIFF whose tiles are 0 px wide", "width of its tiles is 0"),
        ("tile_length_0", page, 323, "TIFF whose tiles are 0 px high", "height of its tiles is 0"),
        ("rows_per_strip_0", strip, 278, "TIFF whose strips are 0 px high", "height of its strips is 0"),
        ("no_samples_tiff", page, 277, "TIFF whose pixels have no sample", "it cannot be opened"),
    ):
        spoilt = replace(one, tags={**one.tags, tag: (4, [0])})
        yield slide_kind(name, what, partial(tiff, [spoilt]), "unreadable", says=says)
    svs = replace(svs_page(), tags={**svs_page().tags, 323: (4, [0])})
    what = "Aperio slide whose tiles are 0 px high"
    yield slide_kind("tile_length_0_svs", what, partial(tiff, [svs]), "unreadable", file="scan.svs", says="its tiles")
    half = tile_page(picture()[::2, ::2].copy())
    half = replace(half, tags={**half.tags, 322: (4, [0])})
    what = "pyramid whose second level has tiles 0 px wide"
    yield slide_kind("tile_width_0_level", what, partial(tiff, [page, half]), "unreadable", says="page 1 says")
    array = partial(npy, picture()[:0])
    yield slide_kind("no_rows_npy", "NumPy array of 0 x 96 x 3", array, "unsupported_layout", file="scan.npy")
    yield slide_kind("no_rows_png", "PNG of 0 x 0 px", partial(large_png, 0), "unreadable", file="scan.png")
    one = partial(encoded, picture(1, 1), "PNG")
    yield slide_kind("one_pixel_png", "PNG of one pixel", one, "no_tissue", file="scan.png", stage="tissue")
    one = lambda: tiff([tile_page(picture(1, 1), 16)])  # noqa: E731
    yield slide_kind("one_pixel_tiff", "TIFF of one pixel", one, "no_tissue", stage="tissue")
    row = partial(encoded, np.ascontiguousarray(picture(1, 4096)), "PNG")
    yield slide_kind("one_row", "PNG of 4096 x 1 px", row, file="scan.png", answer="accepted", stage="")


# Pixels that cannot be decoded.


def _spoilt(page: Page, number: int) -> Page:
    segments = list(page.segments)
    segments[number] = b"\xff" * len(segments[number])
    return replace(page, segments=segments)


def _corrupt() -> Iterator[Kind]:
    for form, page, file in (("tiff", tile_page(picture()), "scan.tif"), ("svs", svs_page(), "scan.svs")):
        yield slide_kind(
            f"corrupt_tile_{form}",
            f"{form.upper()} with a tile of wrong bytes",
            partial(lambda page: tiff([_spoilt(page, 3)]), page),
            "corrupt_data",
            file=file,
            stage="tissue",
            says="row 1, column 1 .*y 48 to 96, x 48 to 96",
        )
    fine = _blank(2048)
    fine = replace(fine, segments=[b"\xff" * 64, *fine.segments[1:]])
    yield slide_kind(
        "corrupt_fine_level",
        "pyramid with a tile of wrong bytes in its finest level alone",
        lambda: tiff([fine, _blank(1024)]),
        "corrupt_data",
        stage="patches",
        says="level 0",
    )


def _blank(side: int) -> Page:
    """A page of tiles that are all alike."""
    page = tile_page(picture(256, 256), 256)
    tags = {**page.tags, 256: (4, [side]), 257: (4, [side])}
    return replace(page, tags=tags, segments=list(page.segments) * (side // 256) ** 2)


# Pixel sizes.


def _resolution(x: tuple[int, int], y: tuple[int, int], unit: int) -> bytes:
    page = tile_page(picture())
    return tiff([replace(page, tags={**page.tags, 282: (5, x), 283: (5, y), 296: (3, [unit])})])


def _sizes() -> Iterator[Kind]:
    bare = FORMS["tiff"][1]
    yield slide_kind("no_pixel_size", "pixel size neither in file nor sheet", bare, "no_pixel_size", cells={})
    stated: tuple[tuple[str, str, str], ...] = (
        ("0", "no_pixel_size", "not believed"),
        ("-0.5", "no_pixel_size", "pixel size"),
        ("NaN", "no_pixel_size", "not believed"),
        ("INF", "no_pixel_size", "not believed"),
        ("1000", "no_pixel_size", "not believed"),
        ("100", "implausible_pixel_size", "larger than a nucleus"),
    )
    for text, code, says in stated:
        name = text.lower().replace("-", "minus_").replace(".", "_")
        make = partial(lambda text: tiff([ome_page(text)]), text)
        what = f"OME-TIFF whose pixel size is {text} µm, none in the sheet"
        yield slide_kind(f"file_mpp_{name}", what, make, code, file="scan.ome.tif", cells={}, says=says)
    dpi, what, says = (
        partial(_resolution, (72, 1), (72, 1), _INCH),
        "TIFF of 72 dpi, as picture programs write",
        "believed",
    )
    yield slide_kind("print_resolution", f"{what}, none in the sheet", dpi, "no_pixel_size", cells={}, says=says)
    yield slide_kind("print_resolution_rescued", f"{what}, 0.5 µm in the sheet", dpi, answer="warned", says=says)
    zero = partial(_resolution, (0, 0), (1, 0), _CM)
    yield slide_kind("resolution_over_zero", "TIFF whose resolution is 0/0", zero, "no_pixel_size", cells={})
    uneven: tuple[tuple[str, str, str, Cells, Answer, str], ...] = (
        ("slightly_uneven", "pixels of 0.5 x 0.51 µm", "0.51", {}, "warned", ""),
        ("uneven", "pixels of 0.5 x 0.75 µm", "0.75", {}, "failed", "anisotropic_pixels"),
        ("uneven_rescued", "pixels of 0.5 x 0.75 µm, 0.5 in the sheet", "0.75", MPP, "warned", ""),
    )
    for name, what, y_um, cells, answer, code in uneven:
        make = partial(lambda y_um: tiff([ome_page("0.5", y_um)]), y_um)
        file = "scan.ome.tif"
        yield slide_kind(f"{name}_pixels", what, make, code, file=file, cells=cells, answer=answer, says="µm high")
    differs = partial(lambda: tiff([ome_page("0.25")]))
    says = "the sheet's pixel size, 0.5 µm, is used"
    what = "pixel size that differs between file and sheet"
    yield slide_kind("two_pixel_sizes", what, differs, file="scan.ome.tif", answer="warned", says=says)
    for name, text in (
        ("100", "100"),
        ("zero", "0"),
        ("minus", "-0.5"),
        ("nan", "NaN"),
        ("inf", "inf"),
        ("1000000000", "1e9"),
        ("comma", "0,5"),
        ("unit", "0.5 µm"),
        ("words", "forty"),
    ):
        what = f"pixel size {text} in the sheet"
        cells = {"mpp_um": text}
        yield slide_kind(f"sheet_mpp_{name}", what, bare, cells=cells, answer="refused", stage="", says="pixel size")


#: Every kind, each a slide of its own.
KINDS: tuple[Kind, ...] = (*_cuts(), *_absent(), *_small(), *_corrupt(), *_sizes(), *HOSTILE)

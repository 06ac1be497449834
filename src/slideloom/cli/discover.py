"""A sample sheet from a folder: which files belong together, told by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from slideloom.cli.guards import check_image_folder
from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source

__all__ = ["Discovery", "discover"]

_FORMATS = (
    *(".ome.tiff", ".ome.tif", ".ome.zarr", ".qptiff", ".tiff", ".tif", ".btf", ".svs", ".ndpi", ".scn", ".mrxs"),
    *(".vms", ".vmu", ".bif", ".svslide", ".zarr", ".npy", ".png", ".jpeg", ".jpg"),
)
_TABLES = (".csv", ".tsv", ".parquet")
_STAINED = {".svs", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".bif", ".svslide", ".jpeg", ".jpg"}
_MULTIPLEXED = (".ome.tiff", ".ome.tif", ".zarr", ".qptiff", ".npy")
_Role = Literal["he", "sp", "image", "instances", "classes"]
#: Last words of a file's name, after '_', '-' or '.', and what they say.
_WORDS: dict[str, _Role] = {
    **dict.fromkeys(("he", "h&e", "hande", "hne"), "he"),
    **dict.fromkeys(("sp", "mif", "mihc", "if", "codex", "orion", "cycif", "mibi", "multiplex"), "sp"),
    **dict.fromkeys(("labels", "label", "instances", "instance", "mask", "masks", "nuclei"), "instances"),
    **dict.fromkeys(("classes", "class", "types"), "classes"),
    "image": "image",
}
_SPLIT = re.compile(r"[_\-.]")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Discovery:
    """What was found in a folder.

    Attributes
    ----------
    rows : list of SlideRow
        A slide each, sorted by id; paths are relative to the folder.
    notes : list of str
        Files that were left aside, and guesses that a person should look at.
    """

    rows: list[SlideRow]
    notes: list[str] = field(default_factory=list)


def discover(folder: Path) -> Discovery:
    """Make the rows of a sheet from the images in a folder and the folders below it.

    Names decide: ``case7_he.svs`` and ``case7_sp.ome.tif`` are two images of the slide ``case7``;
    ``case7_labels.tif`` and ``case7_classes.csv`` are its annotation. Folders may say the same: ``he/case7.svs``,
    ``labels/case7.tif``. An image whose name does not say is opened to see whether it is RGB.

    Parameters
    ----------
    folder : Path
        Where to look.

    Returns
    -------
    Discovery
        Slides and remarks.

    Raises
    ------
    SlideloomError
        The folder does not exist, or holds no image.
    """
    check_image_folder(folder)
    notes: list[str] = []
    slides: dict[tuple[Path, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in _candidates(folder):
        stem, role = _read_name(path)
        parent = path.parent
        told = _WORDS.get(parent.name.casefold()) if parent != folder else None
        if told:  # he/case7.svs beside sp/case7.ome.tif
            parent = parent.parent
            role = told if role == "image" else role
        if role == "image":
            role, note = _look(path, path.relative_to(folder))
            notes += note
        slides[parent, stem][role].append(path)
    rows = []
    names: set[str] = set()
    for (parent, stem), found in sorted(slides.items()):
        shown = (parent / stem).relative_to(folder)
        if not found.keys() & {"he", "sp"}:
            files = ", ".join(path.name for paths in found.values() for path in paths)
            hint = (
                "; one table for many slides stands in the column 'classes' as path::image"
                if "classes" in found
                else ""
            )
            notes.append(f"{files}: belongs to no image, left aside{hint}")
            continue
        slide_id = _slide_id(shown, stem, names)
        names.add(slide_id.casefold())
        for part, paths in found.items():
            if len(paths) > 1:
                others = ", ".join(path.name for path in paths[1:])
                notes.append(f"{slide_id}: more than one file for '{part}'; {paths[0].name} is taken, not {others}")
        texts = {part: paths[0].relative_to(folder).as_posix() for part, paths in found.items()}
        classes = texts.get("classes") if "instances" in texts else None
        row = SlideRow(
            slide_id, he=texts.get("he"), sp=texts.get("sp"), instances=texts.get("instances"), classes=classes
        )
        rows.append(row)
    if not rows:
        hint = "Name another folder, or write the sheet by hand: config/README.md lists its columns"
        expected = f"files such as {', '.join(_FORMATS)}"
        raise SlideloomError("no image was found", where=str(folder), expected=expected, hint=hint)
    return Discovery(rows, notes)


def _candidates(folder: Path) -> Iterator[Path]:
    """Image files, Zarr folders and tables, not what lies inside a Zarr folder or beside an .mrxs file."""
    entries = sorted(folder.iterdir())
    companions = {entry.stem for entry in entries if entry.suffix.lower() == ".mrxs"}
    for entry in entries:
        if entry.name.startswith("."):
            continue
        zarr = entry.suffix.lower() == ".zarr"
        if entry.is_dir() and not zarr:
            if entry.name not in companions:
                yield from _candidates(entry)
        elif _suffix(entry, _FORMATS) or (_suffix(entry, _TABLES) and _says_classes(entry)):
            yield entry


def _says_classes(path: Path) -> bool:
    return _read_name(path)[1] == "classes" or _WORDS.get(path.parent.name.casefold()) == "classes"


def _suffix(path: Path, suffixes: Iterable[str]) -> str:
    return next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")


def _read_name(path: Path) -> tuple[str, _Role]:
    """The slide's part of a file's name, and what its last words say."""
    suffix = _suffix(path, (*_FORMATS, *_TABLES))
    stem = path.name[: len(path.name) - len(suffix)]
    role: _Role = "image"
    while True:
        parts = _SPLIT.split(stem)
        word = _WORDS.get(parts[-1].casefold()) if len(parts) > 1 else None
        if word is None or (role in ("instances", "classes") and word in ("instances", "classes")):
            return stem, role
        if role == "image":
            role = word
        stem = stem[: -len(parts[-1]) - 1].rstrip("_-.")


def _look(path: Path, shown: Path) -> tuple[_Role, list[str]]:
    """Whether an image whose name does not say is stained (RGB) or multiplexed."""
    if path.suffix.lower() in _STAINED:
        return "he", []
    from slideloom.slides.open import open_raw

    try:
        raw = open_raw(Source(path))
    except SlideError as error:
        guess: _Role = "sp" if _suffix(path, _MULTIPLEXED) else "he"
        return guess, [f"{shown}: cannot be opened ({error.code}), put down as '{guess}'"]
    raw.close()
    return ("he" if raw.header.colour.startswith("rgb") else "sp"), []


def _slide_id(shown: Path, stem: str, taken: set[str]) -> str:
    plain = _UNSAFE.sub("_", stem).strip("_-") or "slide"
    if plain.casefold() not in taken:
        return plain
    longer = _UNSAFE.sub("_", shown.as_posix()).strip("_-")
    number = 2
    name = longer
    while name.casefold() in taken:
        name, number = f"{longer}_{number}", number + 1
    return name

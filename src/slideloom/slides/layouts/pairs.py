"""Pictures with label images of the same name: ``images/`` beside ``labels/``, ``masks/`` or ``instances/``.

The form that many sets come in, or are soon brought to. Pairs may lie at the top or in folders below it; one whose
name says ``train``, ``val`` or ``test`` gives the split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slideloom.errors import SlideError
from slideloom.slides.layouts.annotated import Gathered
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.listing import files_below, folders_in, list_folder, role_of
from slideloom.slides.open import open_raw
from slideloom.slides.source import Source

__all__ = ["is_pairs", "read_pairs"]

_PICTURES = ("images", "image", "imgs", "img")
_LABELS = ("labels", "label", "masks", "mask", "instances")
_READ = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".npy")
_READ_LABELS = (".tif", ".tiff", ".png", ".npy")
_ENDS = ("_labels", "_label", "_masks", "_mask", "_instances")
_EXPECTED = "a folder 'images' beside one of 'labels', 'masks' or 'instances', with files of the same names"


def is_pairs(folder: Path) -> bool:
    """Whether a folder of pictures stands beside one of label images, with a name in common."""
    return any(_labels(place).keys() & {_stem(path) for path in _pictures(place)} for place in _places(folder))


def read_pairs(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the pairs in, a slide each; files are named in the sheet where they lie.

    Parameters
    ----------
    folder : Path
        Searched with the folders below it.
    out : Path
        Folder of the sheet.
    mpp_um : float, optional
        Pixel size of every picture, µm per pixel, where the files have none.

    Returns
    -------
    Imported
        RGB pictures of 8 bits are H&E, others multiplexed: their channels must be named where the file does not.

    Raises
    ------
    SlideloomError
        No picture was found.
    """
    gathered = Gathered(folder, out, mpp_um)
    for place in _places(folder):
        labels = _labels(place)
        below = place.relative_to(folder).parts
        for path in _pictures(place):
            label = labels.get(_stem(path))
            try:
                with_channels = _multiplexed(path)
            except SlideError as error:
                gathered.skip(gathered.shown(path), error)
                continue
            if with_channels:
                gathered.remarks.count(
                    "is no RGB of 8 bits and goes to 'sp'; see that its channels are named", path.name
                )
            nuclei = None if label is None else gathered.label_file(label)
            name = "_".join((*below, _stem(path)))
            gathered.add(name, path, nuclei, multiplexed=with_channels, split=role_of(path, folder))
        known = {labels[_stem(path)] for path in _pictures(place) if _stem(path) in labels}
        for path in sorted({*labels.values()} - known):
            gathered.remarks.count("a label image without a picture", gathered.shown(path))
    notes = ["each picture is taken to be of a patient of its own: fill in patient_id where you know better"]
    return gathered.finish(_EXPECTED, notes)


def _places(folder: Path) -> Iterator[Path]:
    """Folders that hold a folder of pictures and one of label images."""
    seen: set[Path] = set()
    for path in files_below(folder, _READ):
        place = path.parent.parent
        if path.parent.name.lower() in _PICTURES and path.parent != folder and place not in seen:
            seen.add(place)
            if any(one.name.lower() in _LABELS for one in folders_in(place)):
                yield place


def _pictures(place: Path) -> list[Path]:
    found: dict[str, Path] = {}
    for one in folders_in(place):
        if one.name.lower() in _PICTURES:
            for path in _files(one, _READ):
                found.setdefault(_stem(path), path)
    return list(found.values())


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    names = (one for one in list_folder(folder).files if one[0] != "." and one.lower().endswith(suffixes))
    return (path for path in (folder / one for one in names) if path.is_file())


def _labels(place: Path) -> dict[str, Path]:
    """Label images by the name of their picture."""
    found: dict[str, Path] = {}
    for kind in _LABELS:
        for one in folders_in(place):
            if one.name.lower() == kind:
                for path in _files(one, _READ_LABELS):
                    stem = _stem(path)
                    end = next((end for end in _ENDS if stem.lower().endswith(end)), "")
                    found.setdefault(stem, path)
                    found.setdefault(stem[: len(stem) - len(end)] if end else stem, path)
    return found


def _stem(path: Path) -> str:
    """The name without its suffixes: ``a.ome.tif`` is ``a``."""
    stem = path.stem
    return stem[: -len(".ome")] if stem.lower().endswith(".ome") else stem


def _multiplexed(path: Path) -> bool:
    raw = open_raw(Source(path))
    try:
        return not (raw.header.colour.startswith(("rgb", "palette")) and raw.header.dtype == "uint8")
    finally:
        raw.close()

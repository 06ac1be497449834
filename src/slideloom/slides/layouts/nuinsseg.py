"""NuInsSeg: 665 pictures of 512 x 512 px from 31 organs of humans and mice, a folder an organ.

What is relied upon (Mahbod et al., Sci Data 2024)::

    human bladder/tissue images/*.png         the pictures
    human bladder/label masks modify/*.tif    label images; nuclei that touched were drawn apart
    human bladder/label masks/*.tif           label images, an earlier form; taken where the former is missing
    human bladder/vague areas/mask binary/*   where nobody can say whether there is a nucleus
"""

from __future__ import annotations

from pathlib import Path

from slideloom.slides.layouts.annotated import Gathered
from slideloom.slides.layouts.imported import Imported, path_from
from slideloom.slides.layouts.listing import files_below

__all__ = ["is_nuinsseg", "read_nuinsseg"]

_PICTURES = "tissue images"
#: Folders of label images, the better first.
_LABELS = ("label masks modify", "label masks")
_VAGUE = ("vague", "ambiguous")
_SPECIES = ("human", "mouse")
_EXPECTED = f"a folder an organ, with '{_PICTURES}' and '{_LABELS[0]}' in it"


def is_nuinsseg(folder: Path) -> bool:
    """Whether a folder of an organ lies below the folder."""
    return any(any((place / name).is_dir() for name in _LABELS) for place in _organs(folder))


def read_nuinsseg(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the pictures in, a slide each.

    Parameters
    ----------
    folder : Path
        Searched with the folders below it.
    out : Path
        Folder of the sheet.
    mpp_um : float, optional
        Pixel size, µm per pixel. Neither the files nor their description give it.

    Returns
    -------
    Imported
        Rows with the columns ``species``, ``tissue`` and, where vague areas are mapped, ``vague``: the path of a mask,
        as the sheet writes paths. The platform is the species. There are no classes and no split.

    Raises
    ------
    SlideloomError
        No organ has pictures.
    """
    gathered = Gathered(folder, out, mpp_um)
    n_vague = 0
    for place in _organs(folder):
        species, organ = _species(place.name)
        labels = {name: _by_stem(place / name) for name in _LABELS}
        vague = {path.stem: path for name in _vague_folders(place) for path in _pictures(name)}
        for path in _pictures(place / _PICTURES):
            name = f"{place.name}_{path.stem}" if place.name.replace(" ", "_") not in path.stem else path.stem
            extra = {"species": species, "tissue": organ}
            if path.stem in vague:
                n_vague += 1
                extra["vague"] = path_from(out, vague[path.stem])
                gathered.use(vague[path.stem])
            found = next((labels[kind][path.stem] for kind in _LABELS if path.stem in labels[kind]), None)
            if found is not None and found.parent.name != _LABELS[0]:
                gathered.remarks.count(f"'{found.parent.name}' is taken, '{_LABELS[0]}' has no such file", path.stem)
            nuclei = None if found is None else gathered.label_file(found)
            gathered.add(name, path, nuclei, platform=species or "unknown", extra=extra)
    if n_vague:
        gathered.remarks.tell(
            f"{n_vague} pictures have a map of vague areas, in the column 'vague'. Nothing reads it: nuclei found "
            "there count as wrong where the annotation has none"
        )
    return gathered.finish(_EXPECTED, ["each picture is taken to be of a patient of its own"])


def _organs(folder: Path) -> list[Path]:
    """Folders that hold a folder of pictures."""
    pictures = (path for path in files_below(folder, (".png",)) if path.parent != folder)
    return sorted({path.parent.parent for path in pictures if path.parent.name == _PICTURES})


def _species(name: str) -> tuple[str, str]:
    """Species and organ that a folder such as ``human bladder`` names; the species is empty where it is none."""
    first, _, rest = name.replace("_", " ").partition(" ")
    return (first.lower(), rest.strip()) if first.lower() in _SPECIES and rest else ("", name)


def _pictures(place: Path) -> list[Path]:
    return sorted(place.glob("*.png")) if place.is_dir() else []


def _by_stem(place: Path) -> dict[str, Path]:
    return {path.stem: path for path in files_below(place, (".tif", ".tiff"))} if place.is_dir() else {}


def _vague_folders(place: Path) -> list[Path]:
    """Folders with masks of vague areas: ``vague areas/mask binary`` in the set as published."""
    tops = [one for one in sorted(place.iterdir()) if one.is_dir() and one.name.lower().startswith(_VAGUE)]
    below = [one for top in tops for one in sorted(top.iterdir()) if one.is_dir() and "mask" in one.name.lower()]
    return [*tops, *below]

"""Write the sheet of the study of unseen stains: small public sets, all in one modality.

``config/studies/real_nuclei.yaml`` and ``real_nuclei_gpu.yaml`` read what this writes, and
``docs/studies_stain_agnostic.md`` says what is in it. Run as
``python config/studies/real_nuclei/prepare.py ../shared/data data/real_nuclei``.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tifffile

from slideloom.slides.layouts.choose import read_data_set
from slideloom.slides.layouts.imported import Imported, write_label_image, write_tables
from slideloom.slides.layouts.multiplexed import hash_order, held_back, in_one_modality, write_channels
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import parse_source
from slideloom.slides.tables import Channel, ClassTable

#: Folder below the source, layout, and the stain of each platform. Whole cells (mIF of CellBinDB) are left aside.
SETS = {
    "dsb2018": ("", "dsb2018", {"dsb_fluorescence": "fluorescence", "dsb_brightfield": "brightfield"}),
    "nucls": ("nucls_he_15", "nucls", {"": "he"}),
    "cellbindb": (
        "cellbindb_demo",
        "cellbindb",
        {
            "cellbindb_he": "he",
            "cellbindb_10x_he": "he",
            "cellbindb_dapi": "dna_tissue",
            "cellbindb_10x_dapi": "dna_tissue",
            "cellbindb_ssdna": "dna_tissue",
        },
    ),
}
PAIRS = "paired_he_mif_crc"
#: Stain of the paired fields, whose nuclei a program outlined.
REFERENCE = "dapi_reference"
DAPI = Channel("DAPI", "DNA", nuclear=True)
PAIRS_MPP_UM = 0.25
TILE_PX = 128
#: Tiles of each size of image, at most, that the small budget learns from and chooses the epoch by.
SMALL_TILES = {"train": 160, "val": 32}
#: Share of the training images that chooses the epoch.
VAL = 1 / 8


def main() -> None:
    """Read the two folders from the command line."""
    parser = argparse.ArgumentParser(description="The sheet of the study of unseen stains.")
    parser.add_argument("source", type=Path, help="folder of the small public sets")
    parser.add_argument("place", type=Path, help="folder to write, such as data/real_nuclei")
    given = parser.parse_args()
    rows = prepare(given.source, given.place)
    for column in ("split", "small"):
        counts = Counter((row.platform, row.column(column) or "-") for row in rows)
        told = ", ".join(f"{number} {stain} {role}" for (stain, role), number in sorted(counts.items()))
        print(f"{column}: {told}")


def prepare(source: Path, place: Path) -> list[SlideRow]:
    """Write ``slides.tsv``, ``markers.tsv`` and, below ``imported``, the DAPI of the pairs with its nuclei.

    Parameters
    ----------
    source : Path
        Folder of the small public sets.
    place : Path
        Where the sheet goes.

    Returns
    -------
    list of SlideRow
        Its rows. ``platform`` is the stain; ``split`` trains on fluorescence and stained sections of the Data Science
        Bowl and tests on the images that it marks for validation and on everything else; ``small`` is the same with
        fewer training images.
    """
    place.mkdir(parents=True, exist_ok=True)
    found = [_read(name, source, place) for name in SETS if (source / SETS[name][0]).is_dir()]
    if (source / PAIRS).is_dir():
        found.append(_pairs(source / PAIRS, place))
    rows = [row for one in found for row in one.rows]
    rows = _with_roles(rows, place)
    known = {channel.name: channel for one in found for channel in one.channels}
    used = {name for row in rows for name in row.sp_channels or ()}
    channels = tuple(known[name] for name in sorted(used))
    # Classes differ from set to set, and this study is of nuclei.
    bare = tuple(replace(row, classes=None) for row in sorted(rows, key=lambda row: row.slide_id))
    write_tables(Imported(bare, channels, ClassTable(), ()), place / "slides.tsv")
    return list(bare)


def _read(name: str, source: Path, place: Path) -> Imported:
    """A set in one modality, its platforms called after their stains."""
    folder, layout, stains = SETS[name]
    found = in_one_modality(read_data_set(layout, source / folder, place / name))
    return replace(found, rows=tuple(_rebased(found.rows, name, stains)))


def _rebased(rows: Sequence[SlideRow], name: str, stains: dict[str, str]) -> Iterator[SlideRow]:
    for row in rows:
        stain = stains.get(row.platform, stains.get(""))
        if stain is None or not row.instances:
            continue
        paths = {key: os.path.normpath(f"{name}/{text}") for key in ("sp", "instances") if (text := getattr(row, key))}
        slide = row.slide_id if row.slide_id.startswith(("dsb", name)) else f"{name}_{row.slide_id}"
        patient = slide if row.patient_id == row.slide_id else row.patient_id
        yield replace(row, slide_id=slide, patient_id=patient, platform=stain, extra={"set": name}, **paths)


def _pairs(folder: Path, place: Path) -> Imported:
    """The DAPI of the paired fields, with the nuclei that the paired study's program outlines on it."""
    outline_nuclei = _program().outline_nuclei
    rows = []
    with open(folder / "pairs.csv", newline="", encoding="utf-8") as file:
        names = sorted(row["pair"] for row in csv.DictReader(file))
    for name in names:
        dapi = tifffile.imread(folder / f"{name}_mif.ome.tif")[0]
        image, instances = f"imported/images/{name}.ome.tif", f"imported/instances/{name}.tif"
        write_channels(place / image, dapi[None], (DAPI.name,), PAIRS_MPP_UM)
        write_label_image(place / instances, outline_nuclei(dapi))
        rows.append(
            SlideRow(
                slide_id=f"crc_{name}",
                # Files are numbered by region: fields of one are no independent samples.
                patient_id=f"crc_{name.rsplit('_', 1)[0]}",
                platform=REFERENCE,
                sp=image,
                instances=instances,
                sp_mpp_um=PAIRS_MPP_UM,
                sp_channels=(DAPI.name,),
                split="test",
                extra={"set": PAIRS},
            )
        )
    return Imported(tuple(rows), (DAPI,), ClassTable(), ())


def _program() -> Any:
    """The paired study's program."""
    path = Path(__file__).resolve().parents[1] / "paired" / "prepare.py"
    spec = importlib.util.spec_from_file_location("paired_prepare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _with_roles(rows: list[SlideRow], place: Path) -> list[SlideRow]:
    """Columns ``split`` and ``small``."""
    learn = {row.slide_id: 1 for row in rows if row.extra["set"] == "dsb2018" and row.split == "train"}
    chosen_by = held_back(learn, VAL)
    full = {row.slide_id: "test" for row in rows} | dict.fromkeys(learn, "train") | dict.fromkeys(chosen_by, "val")
    small = {slide: role for slide, role in full.items() if role == "test"} | _fewer(rows, full, place)
    return [
        replace(row, split=full[row.slide_id], extra=row.extra | {"small": small.get(row.slide_id, "")}) for row in rows
    ]


def _fewer(rows: list[SlideRow], full: dict[str, str], place: Path) -> dict[str, str]:
    """Of the images that train or validate, those that the small budget holds; any order, but always the same."""
    tiles: dict[str, int] = {}
    groups: dict[tuple[str, str, int, int], list[str]] = {}
    for row in rows:
        role = full[row.slide_id]
        if role not in SMALL_TILES:
            continue
        with open_image(parse_source(row.sp or "", place), "sp") as image:
            height, width = image.height_px, image.width_px
        tiles[row.slide_id] = -(-height // TILE_PX) * -(-width // TILE_PX)
        groups.setdefault((role, row.platform, height, width), []).append(row.slide_id)
    kept: dict[str, str] = {}
    for (role, *_), slides in groups.items():
        left = SMALL_TILES[role]
        for slide in hash_order(slides):
            if tiles[slide] <= left:
                kept[slide] = role
                left -= tiles[slide]
    return kept


if __name__ == "__main__":
    main()

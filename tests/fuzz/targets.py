"""What is fuzzed: the bytes of one file, laid where a user's would lie, and read as a run would read them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slideloom.config.load import load_config
from slideloom.config.model import Modality
from slideloom.errors import ConfigError, SlideError
from slideloom.slides.annotations import read_annotations
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.headers import read_facts
from slideloom.slides.image import Level
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow, read_sheet
from slideloom.slides.source import parse_source
from slideloom.slides.study import load_study
from slideloom.slides.tables import Channel, ClassTable, MarkerTable, read_classes, read_markers

from .edits import FORMS, Form
from .seeds import FOLDERS, MARKERS, SEEDS, SHEET, ome_tiff_of

__all__ = ["GROUPS", "TARGETS", "Refusals", "Target"]

_WINDOW_PX = 20


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes
    ----------
    name : str
        Key of :data:`~tests.fuzz.seeds.SEEDS`.
    group : str
        Targets of a group are fuzzed by one process.
    form : Form
        How its files are damaged.
    read : callable
        Takes the bytes and an empty folder, the current one; raises what Slideloom raises.
    """

    name: str
    group: str
    form: Form
    read: Callable[[bytes, Path], None]

    @property
    def seeds(self) -> tuple[bytes, ...]:
        """Sound files."""
        return SEEDS[self.name]


def _tables() -> tuple[MarkerTable, ClassTable]:
    with tempfile.TemporaryDirectory() as folder:
        markers, classes = Path(folder, "markers.tsv"), Path(folder, "classes.tsv")
        markers.write_text(MARKERS)
        classes.write_bytes(SEEDS["classes"][0])
        return read_markers(markers)[0], read_classes(classes)[0]


_MARKERS, _CLASSES = _tables()


class Refusals(ExceptionGroup[SlideError]):
    """What each modality was refused for."""


def _image(folder: Path, name: str) -> None:
    """Headers, then pixels of each modality that the headers allow."""
    modalities: tuple[Modality, ...] = ("he", "sp")
    refused: list[SlideError] = []
    for modality in modalities:
        row = SlideRow("a", he=name if modality == "he" else None, sp=name if modality == "sp" else None)
        row = replace(row, he_mpp_um=0.5 if row.he else None, sp_mpp_um=0.5 if row.sp else None)
        try:
            read_facts(row, folder, _MARKERS)
            with open_image(parse_source(name, folder), modality) as image:
                for level in {0, len(image.levels) - 1}:
                    at = image.levels[level]
                    height, width = min(at.height_px, _WINDOW_PX), min(at.width_px, _WINDOW_PX)
                    for y, x in ((0, 0), (at.height_px - height, at.width_px - width)):
                        pixels = image.read(level, y=y, x=x, height=height, width=width)
                        assert pixels.shape == (image.n_channels, height, width)
                        assert pixels.dtype == image.dtype
        except SlideError as error:
            refused.append(error)
    if refused:
        raise Refusals("refused", refused)


def _file(ending: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        (folder / f"a{ending}").write_bytes(data)
        _image(folder, f"a{ending}")

    return read


def _ome_xml(data: bytes, folder: Path) -> None:
    (folder / "a.ome.tif").write_bytes(ome_tiff_of(data.replace(b"\0", b"")))
    _image(folder, "a.ome.tif")


def _zarr(version: str, part: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        for name, content in {**FOLDERS[version], part: data}.items():
            place = folder / "a.zarr" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        _image(folder, "a.zarr")

    return read


def _annotation(ending: str, classes: bool = False) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        (folder / f"a{ending}").write_bytes(data)
        row = SlideRow("a", sp="a.tif", instances=f"a{ending}")
        if classes:
            np.save(folder / "ids.npy", np.arange(24 * 32, dtype=np.int32).reshape(24, 32) // 300)
            row = replace(row, instances="ids.npy", classes=f"a{ending}")
        image = ImageFacts(
            source="a.tif", reader="", height_px=24, width_px=32, n_channels=1, dtype="uint16", mpp_um=0.5,
            mpp_source="file", levels=(Level(24, 32, 1.0),), channels=(Channel("DAPI", "DAPI"),), is_rgb=False,
        )  # fmt: skip
        found = read_annotations(row, folder, SlideFacts("a", {"sp": image}), "sp", 1.0, _CLASSES)
        assert found is not None
        assert found[0].instances.shape == found[0].class_map.shape == (24, 32)
        assert found[0].instances.dtype == np.int32
        assert found[0].instances.min() >= 0

    return read


def _sheet(data: bytes, folder: Path) -> None:
    (folder / "slides.tsv").write_bytes(data)
    rows, problems = read_sheet(folder / "slides.tsv")
    for row in rows:
        assert "/" not in row.slide_id
        assert row.slide_id not in (".", "..")
    if problems:
        raise ConfigError(problems)


def _table(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)
        problems = read_markers(folder / name)[1] if name == "markers.tsv" else read_classes(folder / name)[1]
        if problems:
            raise ConfigError(problems)

    return read


def _config(data: bytes, folder: Path) -> None:
    (folder / "slides.tsv").write_text(SHEET)
    (folder / "markers.tsv").write_text(MARKERS)
    (folder / "classes.tsv").write_bytes(SEEDS["classes"][0])
    for name in ("a.png", "a.tif", "b.png", "c.tif", "a.npy", "a.csv", "b.geojson"):
        (folder / name).touch()
    (folder / "config.yaml").write_bytes(data)
    try:
        load_config(Path("config.yaml"))
    finally:
        load_study(Path("config.yaml"))


def _all() -> dict[str, Target]:
    forms = FORMS
    groups: dict[str, list[tuple[str, Form, Callable[[bytes, Path], None]]]] = {
        "tiff": [
            ("tiff", forms["tiff"], _file(".tif")),
            ("ome_tiff", forms["tiff"], _file(".ome.tif")),
            ("ome_xml", forms["text"], _ome_xml),
            ("svs", forms["tiff"], _file(".svs")),
        ],
        "pictures": [
            ("png", forms["png"], _file(".png")),
            ("jpeg", forms["jpeg"], _file(".jpg")),
            ("npy", forms["npy"], _file(".npy")),
            ("npz", forms["bytes"], _file(".npz")),
        ],
        "zarr": [
            ("zarr_group", forms["json"], _zarr("v3", "zarr.json")),
            ("zarr_array", forms["json"], _zarr("v3", "0/zarr.json")),
            ("zarr2_group", forms["json"], _zarr("v2", ".zattrs")),
            ("zarr2_array", forms["json"], _zarr("v2", "0/.zarray")),
            ("zarr2_chunk", forms["bytes"], _zarr("v2", "0/0/0/0")),
        ],
        "documents": [
            ("sheet", forms["text"], _sheet),
            ("markers", forms["text"], _table("markers.tsv")),
            ("classes", forms["text"], _table("classes.tsv")),
            ("config", forms["text"], _config),
        ],
        "annotations": [
            ("labels_npy", forms["npy"], _annotation(".npy")),
            ("labels_tiff", forms["tiff"], _annotation(".tif")),
            ("labels_png", forms["png"], _annotation(".png")),
            ("class_table", forms["text"], _annotation(".csv", classes=True)),
            ("geojson", forms["json"], _annotation(".geojson")),
            ("geojson_packed", forms["bytes"], _annotation(".geojson.gz")),
        ],
    }
    return {
        name: Target(name, group, form, read)
        for group, name, form, read in itertools.chain.from_iterable(
            [(group, *one) for one in members] for group, members in groups.items()
        )
    }


TARGETS = _all()
GROUPS = tuple(dict.fromkeys(target.group for target in TARGETS.values()))

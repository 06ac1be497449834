"""Every form of image, metadata and panel gets its one answer, at library level: facts, then tissue, then patches."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slideloom.config.model import GridConfig, Modality, TissueConfig
from slideloom.errors import ConfigError, SlideError
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts
from slideloom.slides.headers import read_facts
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow, read_sheet
from slideloom.slides.source import Source
from slideloom.slides.study import load_study
from slideloom.slides.tables import Channel, MarkerTable
from slideloom.slides.tissue import write_tissue
from tests.bad_inputs.formats import KINDS
from tests.bad_inputs.kinds import Kind, check_shape
from tests.bad_inputs.ome import PLACES, write_ome_tiff
from tests.bad_inputs.panel import MARKERS, stack
from tests.bad_inputs.raw_tiff import picture

SLIDE = "slide_17"
MOST_MB, MOST_SECONDS = 450, 20
TABLE = MarkerTable(
    tuple(Channel(name, marker, uniprot, nuclear == "yes") for name, marker, uniprot, nuclear in MARKERS)
)
SLIDES = [kind for kind in KINDS if kind.group in ("slide", "multiplex")]
DOCUMENTS = [kind for kind in KINDS if kind.group == "config"]


def row_of(kind: Kind, folder: Path) -> SlideRow:
    """A kind's row, through a sheet."""
    cells = {"slide_id": SLIDE, **kind.make(folder)}
    (folder / "slides.tsv").write_text("\t".join(cells) + "\n" + "\t".join(cells.values()) + "\n", encoding="utf-8")
    rows, problems = read_sheet(folder / "slides.tsv")
    assert problems == []
    return rows[0]


def run(row: SlideRow, folder: Path) -> tuple[str, SlideFacts | SlideError, list[str]]:
    """The stages until one fails: the last one, its error or the facts, and the warnings recorded on the way."""
    modality: Modality = "he" if row.he else "sp"
    warnings: list[str] = []
    stage = "facts"
    try:
        facts = read_facts(row, folder, TABLE)
        warnings += facts.warnings
        stage = "tissue"
        write_tissue(facts, row, folder, TissueConfig(), folder / "tissue.geojson", folder / "tissue.png")
        stage = "patches"
        grid = GridConfig(image=modality, tile_px=64)
        cut_patches(row, folder, facts, folder / "tissue.geojson", grid, folder / "patches.zarr")
        store = PatchStore(folder / "patches.zarr")
        warnings += store.attributes["warnings"]
        assert np.isfinite(store.pixels(slice(None))).all()
    except SlideError as error:
        return stage, error, warnings
    return "", facts, warnings


@pytest.mark.parametrize("kind", SLIDES, ids=str)
def test_a_slide_gets_its_answer(kind: Kind, tmp_path: Path) -> None:
    row = row_of(kind, tmp_path)
    stage, outcome, warnings = run(row, tmp_path)
    assert stage == (kind.stage if kind.answer == "failed" else ""), outcome
    if kind.answer == "failed":
        assert isinstance(outcome, SlideError)
        assert outcome.code == kind.code
        assert re.search(kind.says, str(outcome), re.DOTALL), str(outcome)
        check_shape(outcome, names=((row.he or row.sp or "").partition("::")[0],))
        return
    assert isinstance(outcome, SlideFacts)
    if kind.answer == "warned":
        assert kind.says
        assert any(re.search(kind.says, warning, re.DOTALL) for warning in warnings), warnings
        assert all(len(warning) < 400 for warning in warnings)
    else:
        assert warnings == []


@pytest.mark.parametrize("kind", DOCUMENTS, ids=str)
def test_a_markers_table_is_refused(kind: Kind, tmp_path: Path) -> None:
    config = tmp_path / kind.make(tmp_path)["config"]
    with pytest.raises(ConfigError, match=kind.says) as caught:
        load_study(config)
    assert kind.answer == "refused"
    problem = caught.value.problems[0]
    assert len(caught.value.problems) == 1, str(caught.value)
    assert "markers.tsv" in problem.where
    assert problem.hint
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_kind_is_the_same_each_time(kind: Kind, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        cells = kind.make(folder)
        files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
        content = {place: path.read_bytes().replace(str(folder).encode(), b"") for place, path in files.items()}
        made.append((cells, content))
    assert made[0] == made[1]


def test_names_are_unique_and_answers_whole() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        assert bool(kind.code) == (kind.answer in ("failed", "refused")), kind.name
        assert bool(kind.says) or kind.answer in ("accepted", "failed"), kind.name


@pytest.mark.parametrize(
    "name", ["he_planar", "he_tile_1", "he_row_strips", "he_tile_wider", "he_bigtiff", "he_big_endian"]
)
def test_forms_give_the_same_pixels(name: str, tmp_path: Path) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == name)
    kind.make(tmp_path)
    with open_image(Source(tmp_path / "scan.tif"), "he") as image:
        read = image.read(0, 0, 0, image.height_px, image.width_px)
    np.testing.assert_array_equal(read, picture(*read.shape[1:]).transpose(2, 0, 1))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == "he_alpha")
    kind.make(tmp_path)
    expected = picture().transpose(2, 0, 1).copy()
    expected[:, :16, :16] = 255
    with open_image(Source(tmp_path / "scan.png"), "he") as image:
        np.testing.assert_array_equal(image.read(0, 0, 0, 96, 96), expected)


def test_channels_are_read_from_the_pages_that_the_metadata_name(tmp_path: Path) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == "ome_planes_in_order")
    kind.make(tmp_path)
    with open_image(Source(tmp_path / "scan.ome.tif"), "sp") as image:
        assert image.channel_names == ("DAPI", "CD3", "CD8")
        # Page 0 is channel 2, page 1 is channel 0, page 2 is channel 1.
        np.testing.assert_array_equal(image.read(0, 0, 0, 96, 96), stack()[[1, 2, 0]])


def test_places_of_what_was_cropped_away_place_nothing(tmp_path: Path) -> None:
    place = tmp_path / "scan.ome.tif"
    cropped = '<TiffData IFD="0" FirstC="7" PlaneCount="1"/>'
    write_ome_tiff(place, change=lambda xml: xml.replace(PLACES, PLACES + cropped))
    with open_image(Source(place), "sp") as image:
        np.testing.assert_array_equal(image.read(0, 0, 0, 96, 96), stack())


def test_nothing_of_a_header_is_run(tmp_path: Path) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == "sp_code")
    run(row_of(kind, tmp_path), tmp_path)
    assert not Path("/tmp/was_run").exists()


def _float_slide(folder: Path, pixels: Any, ring: list[list[int]]) -> SlideRow:
    np.save(folder / "scan.npy", pixels)
    body = {"type": "Polygon", "coordinates": [ring]}
    (folder / "tissue.geojson").write_text(json.dumps(body))
    return SlideRow(SLIDE, sp="scan.npy", sp_mpp_um=0.5, sp_channels=("DAPI", "CD3", "CD8"))


@pytest.mark.parametrize("inside", [False, True])
def test_values_that_are_no_numbers_count_in_tissue_only(inside: bool, tmp_path: Path) -> None:
    pixels = stack(dtype=np.float32)
    pixels[2, 10 if inside else 60, 10] = np.inf
    row = _float_slide(tmp_path, pixels, [[0, 0], [96, 0], [96, 40], [0, 40], [0, 0]])
    facts = read_facts(row, tmp_path, TABLE)
    place, grid = tmp_path / "patches.zarr", GridConfig(image="sp", tile_px=64)
    if inside:
        with pytest.raises(SlideError, match="'CD8'") as caught:
            cut_patches(row, tmp_path, facts, tmp_path / "tissue.geojson", grid, place)
        assert caught.value.code == "non_finite_pixels"
        assert [path.name for path in tmp_path.iterdir() if "patches" in path.name] == []
    else:
        cut_patches(row, tmp_path, facts, tmp_path / "tissue.geojson", grid, place)
        (warning,) = PatchStore(place).attributes["warnings"]
        assert "outside the tissue in 1 tiles" in warning


_CHILD = """
import sys, time
from pathlib import Path
from tests.bad_inputs.kinds import peak_mb
from slideloom.errors import SlideError
from slideloom.slides.open import open_image
from slideloom.slides.source import Source
for place in sorted(Path(sys.argv[1]).iterdir()):
    start = time.perf_counter()
    try:
        open_image(Source(next(place.glob("scan.*"))), "sp").close()
        told = "opened"
    except SlideError as error:
        told = error.code
    print(place.name, told, f"{time.perf_counter() - start:.2f}", f"{peak_mb():.0f}")
"""


def test_metadata_take_little_memory_and_time(tmp_path: Path) -> None:
    names = (
        "ome_large",
        "ome_elements",
        "ome_entities",
        "ome_billion_planes",
        "ome_size_t",
        "zarr_deep",
        "zarr_many_levels",
    )
    expected = {}
    for kind in KINDS:
        if kind.name in names:
            (tmp_path / kind.name).mkdir()
            kind.make(tmp_path / kind.name)
            expected[kind.name] = kind.code
    assert set(expected) == set(names)
    # Just within the limits: the most that is taken in.
    (tmp_path / "within").mkdir()
    elements = '<a b="0"/>' * 249_000
    write_ome_tiff(tmp_path / "within" / "scan.ome.tif", change=lambda xml: xml.replace("</OME>", f"{elements}</OME>"))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name: told for name, told, _, _ in lines} == {**expected, "within": "opened"}
    assert max(int(peak) for *_, peak in lines) < MOST_MB, lines
    assert max(float(took) for _, _, took, _ in lines) < MOST_SECONDS, lines


@pytest.mark.parametrize("column", ["he", "sp"])
def test_the_real_trap(column: str, shared: Path, tmp_path: Path) -> None:
    """Four markers tagged as printing inks, as their source stores them."""
    file = "original_layout_cmyk_f17681_52463_p13.tif"
    (tmp_path / file).symlink_to(shared / "data" / "paired_he_mif_crc" / file)
    names = ("DAPI", "CD3", "CD8", "Crête") if column == "sp" else None
    row = SlideRow(SLIDE, he_mpp_um=0.5, sp_mpp_um=0.5, sp_channels=names, **{column: file})  # type: ignore[arg-type]
    stage, outcome, warnings = run(row, tmp_path)
    if column == "he":
        assert isinstance(outcome, SlideError)
        assert (stage, outcome.code) == ("facts", "not_rgb")
        check_shape(outcome, names=(SLIDE, file))
    else:
        assert isinstance(outcome, SlideFacts), outcome
        assert any("CMYK" in warning for warning in warnings)

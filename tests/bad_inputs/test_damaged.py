"""Damaged and hostile slides, at library level: headers first, then tissue, then patches."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slideloom.config.model import GridConfig, TissueConfig
from slideloom.errors import ConfigError, SlideError
from slideloom.patches.cut import cut_patches
from slideloom.slides.facts import SlideFacts
from slideloom.slides.headers import read_facts
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow, read_sheet
from slideloom.slides.source import Source
from slideloom.slides.study import study_from_mapping
from slideloom.slides.tables import MarkerTable
from slideloom.slides.tissue import write_tissue
from tests.bad_inputs.damaged import KINDS
from tests.bad_inputs.hostile import HOSTILE
from tests.bad_inputs.kinds import Cells, Kind, check_shape
from tests.bad_inputs.one_file import FORMS, MPP, one_file
from tests.bad_inputs.raw_tiff import picture

SLIDE = "slide_17"
MOST_MB, MOST_SECONDS = 200, 10
NO_MARKERS = MarkerTable(())


def row_of(cells: Cells, folder: Path) -> SlideRow:
    """Through a sheet, as a study reads it."""
    sheet = folder / "slides.tsv"
    columns = {"slide_id": SLIDE, **cells}
    sheet.write_text("\t".join(columns) + "\n" + "\t".join(columns.values()) + "\n", encoding="utf-8")
    rows, problems = read_sheet(sheet)
    if problems:
        raise ConfigError(problems)
    (row,) = rows
    return row


def study_of(cells: Cells, folder: Path) -> None:
    """A study of this slide alone, checked before anything runs."""
    columns = {"slide_id": SLIDE, "patient_id": "P1", **cells}
    (folder / "slides.tsv").write_text("\t".join(columns) + "\n" + "\t".join(columns.values()) + "\n")
    config = {"study": "s", "slides": "slides.tsv", "data_root": str(folder)}
    config |= {"grids": {"he": {"image": "he", "tile_px": 64}}}
    study_from_mapping(config, folder)


def run(row: SlideRow, root: Path, out: Path) -> tuple[str, SlideFacts | SlideError, SlideFacts | None]:
    """The stages until one fails: which, with what; or the last, with the facts."""
    stage, facts = "facts", None
    try:
        facts = read_facts(row, root, NO_MARKERS)
        stage = "tissue"
        write_tissue(facts, row, root, TissueConfig(), out / "tissue.geojson", out / "tissue.png")
        stage = "patches"
        grid = GridConfig(image="he", tile_px=64, mpp_um=0.5, min_tissue=0.0)
        cut_patches(row, root, facts, out / "tissue.geojson", grid, out / "patches.zarr")
    except SlideError as error:
        return stage, error, facts
    return "", facts, facts


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_gets_its_one_answer(kind: Kind, tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    cells = kind.make(folder)
    if kind.answer == "refused":
        with pytest.raises(ConfigError) as refused:
            study_of(cells, folder)
        assert re.search(kind.says, str(refused.value))
        assert "slides.tsv:2" in str(refused.value)
        assert all(problem.hint for problem in refused.value.problems)
        return
    row = row_of(cells, folder)
    stage, told, facts = run(row, folder, out)
    if kind.answer == "failed":
        assert isinstance(told, SlideError), f"it went through: {told}"
        assert (stage, told.code) == (kind.stage, kind.code), str(told)
        assert re.search(kind.says, str(told)), str(told)
        names = (cells["he"],) if kind.code != "no_tissue" else ()
        check_shape(told, names=(SLIDE, *names))
        if stage == "facts":
            assert str(folder) not in told.where, "the sheet's own words name the file"
        assert not (out / "patches.zarr").exists()
        return
    assert not isinstance(told, SlideError), str(told)
    assert facts is not None
    assert (out / "patches.zarr").is_dir()
    assert bool(facts.warnings) == (kind.answer == "warned"), facts.warnings
    assert re.search(kind.says, " ".join(facts.warnings))


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_are_sound_before_they_are_damaged(form: str, tmp_path: Path) -> None:
    name, make = FORMS[form]
    row = row_of(one_file(make, name, MPP, tmp_path), tmp_path)
    facts = read_facts(row, tmp_path, NO_MARKERS)
    assert facts.warnings == ()
    with open_image(Source(tmp_path / name), "he") as image:
        read = image.read(0, 0, 0, 96, 96)
    expected = picture().transpose(2, 0, 1)
    if form in ("svs", "jpeg"):
        # Of the best quality: but for colour conversion and rounding.
        assert np.abs(read.astype(int) - expected).max() <= 4
    else:
        np.testing.assert_array_equal(read, expected)


def test_kinds_are_told_apart() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) >= 40
    assert all(kind.code for kind in KINDS if kind.answer == "failed")


def test_the_same_bytes_come_out_each_time(tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    for kind in (one for one in KINDS if one not in HOSTILE):
        made = []
        for number in (1, 2):
            folder = tmp_path / f"{kind.name}_{number}"
            folder.mkdir()
            kind.make(folder)
            made.append(content(folder))
        assert made[0] == made[1], kind.name


_CHILD = """
import re, sys, time
from pathlib import Path
from tests.bad_inputs.hostile import HOSTILE
from tests.bad_inputs.kinds import peak_mb
from tests.bad_inputs.test_damaged import row_of, run
folder = Path(sys.argv[1])
for kind in HOSTILE:
    data, out = folder / kind.name, folder / f"{kind.name}.out"
    out.mkdir()
    row = row_of({"he": next(path.name for path in data.iterdir()), "mpp_um": "0.5"}, data)
    start = time.perf_counter()
    stage, told, _ = run(row, data, out)
    print(kind.name, stage, getattr(told, "code", "none"), f"{time.perf_counter() - start:.2f}", f"{peak_mb():.0f}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_hostile_files_take_little_memory_and_time(tmp_path: Path) -> None:
    for kind in HOSTILE:
        (tmp_path / kind.name).mkdir()
        kind.make(tmp_path / kind.name)
        size = sum(path.stat().st_size for path in (tmp_path / kind.name).rglob("*") if path.is_file())
        assert size < 2e6, f"{kind.name} is itself a large file"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(name, stage, code) for name, stage, code, _, _ in lines] == [(k.name, k.stage, k.code) for k in HOSTILE]
    # The peak is the process's own so far: libraries and all that went before.
    assert {name: int(peak) for name, _, _, _, peak in lines if int(peak) > MOST_MB} == {}
    assert {name: float(took) for name, _, _, took, _ in lines if float(took) > MOST_SECONDS} == {}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_file_that_may_not_be_read(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so what the system would answer others is put in its place.
    row = row_of(one_file(*reversed(FORMS["tiff"]), MPP, tmp_path), tmp_path)
    original = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".tif":
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SlideError, match="may not be read") as caught:
        read_facts(row, tmp_path, NO_MARKERS)
    assert caught.value.code == "unreadable"
    check_shape(caught.value, names=(SLIDE, "scan.tif"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permissions(tmp_path: Path) -> None:
    row = row_of(one_file(*reversed(FORMS["tiff"]), MPP, tmp_path), tmp_path)
    (tmp_path / "scan.tif").chmod(0)
    with pytest.raises(SlideError, match="may not be read") as caught:
        read_facts(row, tmp_path, NO_MARKERS)
    assert caught.value.code == "unreadable"


def test_trouble_of_the_machine_is_no_fault_of_the_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of(one_file(*reversed(FORMS["tiff"]), MPP, tmp_path), tmp_path)
    original = Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".tif":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        read_facts(row, tmp_path, NO_MARKERS)


@pytest.mark.parametrize(
    ("name", "stage", "code"),
    [
        ("empty.svs", "facts", "empty_file"),
        ("header_only.svs", "facts", "truncated"),
        ("truncated_half.svs", "facts", "truncated"),
        ("ome_metadata_mismatch.ome.tiff", "facts", "metadata_mismatch"),
        ("corrupt_tile.svs", "tissue", "corrupt_data"),
    ],
)
def test_real_broken_slides(name: str, stage: str, code: str, shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "wsi_broken"
    row = SlideRow(SLIDE, he=name, he_mpp_um=0.5)
    at, told, _ = run(row, data, tmp_path)
    assert isinstance(told, SlideError)
    assert (at, told.code) == (stage, code)
    check_shape(told, names=(name,))

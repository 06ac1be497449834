"""The program that makes the paired study's reference labels, on pictures with known nuclei; the study itself."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.draw import disk as draw_disk

from slideloom.slides.study import load_study

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = REPOSITORY / "config" / "studies" / "paired.yaml"
CENTRES = [(30, 30), (30, 56), (90, 40), (80, 100)]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paired_prepare", STUDY.with_suffix("") / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _field() -> np.ndarray:
    """DAPI: four discs, two of them touching; CD3 round the third, panCK round the fourth."""
    y, x = np.mgrid[:128, :128]
    mif = np.zeros((4, 128, 128), np.uint8)
    for centre in CENTRES:
        mif[0][draw_disk(centre, 14, shape=(128, 128))] = 180
    mif[1][np.abs(np.hypot(y - 90, x - 40) - 14) < 4] = 200
    # Of many grey levels, as a channel that was not stretched from a few.
    mif[3] = np.where(np.hypot(y - 80, x - 100) < 24, 100 + (7 * y + 3 * x) % 120, np.maximum(x - 100, 0) * 3)
    return mif


def test_touching_nuclei_come_apart_and_are_sorted_by_marker(program: ModuleType) -> None:
    mif = _field()
    labels = program.outline_nuclei(mif[0])
    found = [int(labels[centre]) for centre in CENTRES]
    assert sorted(found) == [1, 2, 3, 4] == np.unique(labels[labels > 0]).tolist()
    areas = np.bincount(labels.ravel())[1:]
    assert (np.abs(areas / (np.pi * 14**2) - 1) < 0.2).all()
    classes = program.sort_nuclei(labels, mif[1], mif[3])
    assert [classes[label - 1] for label in found] == ["Other", "Other", "T cell", "Epithelial"]
    coarse = mif[3] // 64 * 64
    assert "Epithelial" not in program.sort_nuclei(labels, mif[1], coarse), "a stretched background is no epithelium"
    assert not program.outline_nuclei(np.zeros((40, 40), np.uint8)).any()


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (3, -2), (-1, 6)])
def test_a_shifted_picture_is_moved_back(program: ModuleType, dy: int, dx: int) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    shifted = np.roll(picture, (dy, dx), (0, 1))
    assert np.array_equal(program.move(shifted, dy, dx)[6:-6, 6:-6], picture[6:-6, 6:-6])


def test_files_are_those_that_the_sheet_names(program: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "pairs"
    source.mkdir()
    (source / "pairs.csv").write_text("pair,shift_dy_px,shift_dx_px\nf1_p2,2,-1\n")
    tifffile.imwrite(source / "f1_p2_mif.ome.tif", _field(), metadata={"axes": "CYX"})
    Image.fromarray(np.full((128, 128, 3), 200, np.uint8)).save(source / "f1_p2_he.jpg")
    counts = program.prepare(source, tmp_path / "made")
    assert sum(counts.values()) == len(CENTRES)
    made = {path.name for path in (tmp_path / "made").iterdir()}
    assert made == {"f1_p2_he.png", "f1_p2_mif.ome.tif", "f1_p2_nuclei.png", "classes.csv", "README.txt"}
    labels = np.asarray(Image.open(tmp_path / "made" / "f1_p2_nuclei.png"))
    with open(tmp_path / "made" / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == np.unique(labels[labels > 0]).tolist()
    assert {row["image"] for row in rows} == {"f1_p2"}


def test_the_study_is_well_formed(
    program: ModuleType, shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shared.resolve() != (REPOSITORY.parent / "shared").resolve():
        pytest.skip("the study names the marker embeddings by a path beside the repository")
    monkeypatch.chdir(REPOSITORY)
    with open(STUDY.with_suffix("") / "slides.tsv", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            for column in ("he", "sp", "instances", "classes"):  # what the program would have written
                (tmp_path / line[column].split("::")[0]).touch()
    study = load_study(STUDY.relative_to(REPOSITORY), {"data_root": str(tmp_path)})
    assert study.classes.names == program.CLASSES
    with open(shared / "data" / "paired_he_mif_crc" / "pairs.csv", newline="") as file:
        assert {row.slide_id for row in study.rows} == {row["pair"] for row in csv.DictReader(file)}
    sides: dict[str, set[str | None]] = {}
    for row in study.rows:
        sides.setdefault(row.patient_id, set()).add(row.split)
    assert all(len(roles) == 1 for roles in sides.values()), "no region stands on two sides"

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from slideloom.artefacts.tables import read_table
from slideloom.cli import examine as module
from slideloom.cli.examine import examine
from slideloom.cli.findings import FINDINGS, write_findings
from slideloom.cli.slide_report import SlideReport
from slideloom.slides.study import Study, load_study


def reports_of(study: Study, **options: object) -> dict[str, SlideReport]:
    return {report.slide_id: report for report in examine(study, workers=1, **options)}  # type: ignore[arg-type]


def test_a_good_slide(study: Path) -> None:
    report = reports_of(load_study(study))["good"]
    assert report.good
    assert report.annotation == (96, 128)
    assert report.n_annotated is None
    he, sp = report.images
    assert (he.image, he.height_px, he.width_px, he.n_channels, he.dtype) == ("he", 96, 128, 3, "uint8")
    assert (he.mpp_um, he.mpp_source) == (0.5, "sheet")
    assert (sp.channels, sp.markers, sp.dtype) == (("DAPI", "CD3"), ("DNA", "CD3e"), "uint16")


def test_every_reason_of_a_bad_slide_is_found(study: Path) -> None:
    report = reports_of(load_study(study))["broken"]
    assert len(report.faults) == 1, "the damaged image; its annotation cannot be compared with it"
    assert [image.image for image in report.images] == ["he", "sp"]
    assert report.images[0].height_px is None
    assert (report.images[1].height_px, report.images[1].width_px) == (96, 128)
    assert report.annotation == (50, 128)


def test_two_reasons(study: Path) -> None:
    text = (
        Path("slides.tsv").read_text().replace("good_sp.tif\tsmall_labels.tif\t\t0.5\tDAPI;CD3", "good_sp.tif\t\t\t\t")
    )
    Path("slides.tsv").write_text(text)
    report = reports_of(load_study(study))["broken"]
    codes = [fault.code for fault in report.faults]
    assert len(codes) == 2
    assert codes[1] == "no_pixel_size"
    assert report.images[1].n_channels == 2, "its size is told though its pixel size is not known"


def test_a_marker_that_an_experiment_reads_and_the_slide_lacks(study: Path) -> None:
    report = reports_of(load_study(study))["few"]
    assert [fault.code for fault in report.faults] == ["missing_marker"]
    assert "has no CD3e, which sp reads" in report.faults[0].message


def _with_embeddings(study: Path, more: str = "") -> Study:
    """The study with a VirTues whose only vector is CD3e's."""
    Path("esm").mkdir(exist_ok=True)
    Path("esm", "P07766.pt").touch()
    entry = f"  vt: {{model: virtues/tiny, grid: sp64, random: 0, statistics: holdout, marker_embeddings: esm{more}}}\n"
    text = study.read_text().replace("splits:\n", f"{entry}splits:\n")
    study.write_text(text + "  emb: {encoder: [mm, vt], split: holdout, heads: [nucleus, hv]}\n")
    return load_study(study)


def test_a_marker_without_an_embedding_fails_its_slides(study: Path) -> None:
    found = reports_of(_with_embeddings(study))
    (fault,) = found["good"].faults
    assert fault.code == "marker_embedding"
    assert fault.message == "encoder vt has no embedding of DNA"
    assert "marker_ids: {DNA: <accession>}" in fault.hint
    assert [one.code for one in found["few"].faults] == ["missing_marker", "marker_embedding"]


def test_nuclei_of_another_program_are_looked_at_where_they_are_scored(study: Path) -> None:
    other = "  other: {labels: 'other/{slide}.tif', grid: he64, split: holdout}\n"
    study.write_text(study.read_text() + other)
    Path("other").mkdir()
    Path("other", "few.tif").write_bytes(Path("small_labels.tif").read_bytes())
    found = reports_of(load_study(study))
    assert found["good"].good, "it trains: nothing of another program is read"
    faults = {fault.code: fault.message for fault in found["few"].faults}
    assert "experiment other" in faults["annotation_shape"]
    Path("other", "few.tif").write_bytes(Path("good_labels.tif").read_bytes())
    assert "annotation_shape" not in {fault.code for fault in reports_of(load_study(study))["few"].faults}


@pytest.mark.parametrize(
    ("more", "notes"),
    [
        (", marker_ids: {DNA: P07766}", ()),
        (", markers: [CD3e]", ()),
        (", unknown_markers: drop", ("encoder vt drops DNA: no embedding of the marker's protein",)),
    ],
)
def test_a_marker_without_an_embedding_may_be_mapped_left_out_or_dropped(
    study: Path, more: str, notes: tuple[str, ...]
) -> None:
    report = reports_of(_with_embeddings(study, more))["good"]
    assert report.good
    assert report.warnings == notes


def test_deep_counts_nuclei(study: Path) -> None:
    assert reports_of(load_study(study), deep=True)["good"].n_annotated == 3


def _damaged(study: Path, shared: Path) -> Study:
    rows = load_study(study)
    image = shared / "data" / "wsi_broken" / "corrupt_tile.svs"
    row = replace(rows.rows[0], slide_id="damaged", he=str(image), sp=None, instances=None, classes=None)
    return replace(rows, rows=(row,))


def test_a_glimpse_finds_damaged_pixels_of_a_small_image(study: Path, shared: Path) -> None:
    report = reports_of(_damaged(study, shared))["damaged"]
    assert [fault.code for fault in report.faults] == ["corrupt_data"]
    assert report.images[0].height_px == 2967, "its size is told all the same"


def test_of_a_large_image_only_deep_reads_every_pixel(
    study: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slideloom.cli.glimpse._MOST_BYTES", 1 << 20)
    monkeypatch.setattr("slideloom.cli.glimpse._WINDOW_PX", 64)
    assert reports_of(_damaged(study, shared))["damaged"].good, "the window in its middle is whole"
    report = reports_of(_damaged(study, shared), deep=True)["damaged"]
    assert [fault.code for fault in report.faults] == ["corrupt_data"]


def test_an_unknown_class_is_found_by_deep(study: Path) -> None:
    Path("classes.csv").write_text("image,label_id,class\ngood,1,teapot\n")
    report = reports_of(load_study(study), deep=True)["good"]
    assert [fault.code for fault in report.faults] == ["unknown_class"]


def test_processes_find_what_one_finds(study: Path) -> None:
    alone = reports_of(load_study(study))
    together = {report.slide_id: report for report in examine(load_study(study), workers=2)}
    assert together == alone


def _die(task: module._Task) -> SlideReport:
    if task.row.slide_id == "few":
        os._exit(11)
    return SlideReport(task.row.slide_id, task.row.patient_id, task.row.platform)


def test_a_file_that_crashes_its_reader_spoils_its_own_slide_only(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = get_context("fork")
    monkeypatch.setattr("slideloom.cli.processes.get_context", lambda method: fork)
    monkeypatch.setattr(module, "_examine", _die)
    reports = {report.slide_id: report for report in examine(load_study(study), workers=2)}
    assert {slide: [fault.code for fault in report.faults] for slide, report in reports.items()} == {
        "good": [],
        "few": ["reader_crashed"],
        "broken": [],
    }
    fault = reports["few"].faults[0]
    assert "few" in fault.message
    assert fault.hint
    assert [image.image for image in reports["few"].images] == ["he", "sp"], "it has its rows in the table"


def test_the_disks_trouble_is_not_called_a_defect_of_the_program(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "slide.svs")

    monkeypatch.setattr("slideloom.slides.headers.read_facts", fail)
    (fault,) = reports_of(load_study(study))["good"].faults
    assert fault.code == "unreadable"
    assert "good: slide.svs: Stale file handle" in fault.message
    assert "Try again" in fault.hint


def test_tiles_are_counted_by_tissue(study: Path) -> None:
    loaded = load_study(study)
    assert dict(reports_of(loaded)["good"].tiles) == {"sp64": 4, "he64": 4}
    study.write_text(study.read_text().replace("{image: he, tile_px: 64}", "{image: he, tile_px: 64, min_tissue: 0.9}"))
    pixels = np.full((96, 128, 3), 255, np.uint8)
    pixels[:, :64] = (200, 40, 120)
    Image.fromarray(pixels).save("good_he.png")
    assert dict(reports_of(load_study(study))["good"].tiles) == {"sp64": 4, "he64": 2}


def _outline(place: Path, x_px: int) -> None:
    """A person's outline of the first columns of the slide."""
    place.parent.mkdir(parents=True)
    ring = [[0, 0], [x_px, 0], [x_px, 96], [0, 96], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Tissue"}},
    }
    place.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


@pytest.mark.parametrize(("x_px", "tiles", "codes"), [(64, 2, []), (20, 0, ["no_tissue"])])
def test_a_persons_outline_is_what_counts(study: Path, x_px: int, tiles: int, codes: list[str]) -> None:
    study.write_text(study.read_text().replace("{image: he, tile_px: 64}", "{image: he, tile_px: 64, min_tissue: 0.9}"))
    loaded = load_study(study)
    place = loaded.paths.tissue("good")
    _outline(place, x_px)
    before = place.read_bytes()
    report = reports_of(loaded)["good"]
    assert report.tiles["he64"] == tiles
    assert [fault.code for fault in report.faults] == codes
    if codes:
        assert "he64" in report.faults[0].message
        assert "grids.he64.min_tissue" in report.faults[0].hint
    assert place.read_bytes() == before
    assert [path.name for path in place.parent.iterdir()] == [place.name], "nothing is written there"


def test_an_empty_slide_is_told(study: Path) -> None:
    Image.fromarray(np.full((96, 128, 3), 250, np.uint8)).save("good_he.png")
    assert [fault.code for fault in reports_of(load_study(study))["good"].faults] == ["no_tissue"]


def test_nothing_is_left_in_the_temporary_folder(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = sorted(path for path in tmp_path.rglob("*"))
    reports_of(load_study(study))
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_an_unforeseen_error_spoils_one_slide(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("what is this")

    monkeypatch.setattr("slideloom.slides.headers.read_facts", fail)
    reports = reports_of(load_study(study))
    assert {report.faults[0].code for report in reports.values()} == {"internal"}
    assert "RuntimeError: what is this" in reports["good"].faults[0].message


def test_findings_are_a_table(study: Path) -> None:
    reports = list(reports_of(load_study(study)).values())
    place = Path("findings.parquet")
    write_findings(reports, place)
    table = read_table(FINDINGS, place)
    assert table.num_rows == 6
    rows = {(row["slide_id"], row["image"]): row for row in pq.read_table(place).to_pylist()}
    assert rows["good", "sp"]["channels"] == ["DAPI", "CD3"]
    assert rows["good", "sp"]["code"] is None
    assert rows["broken", "he"]["status"] == "fails"
    assert rows["broken", "he"]["height_px"] is None
    assert rows["few", "sp"]["code"] == "missing_marker"


def test_a_slide_of_which_nothing_is_known_has_its_rows(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_look", lambda task: 1 / 0)
    write_findings(list(reports_of(load_study(study)).values()), Path("findings.parquet"))
    rows = pq.read_table("findings.parquet").to_pylist()
    assert [(row["slide_id"], row["image"], row["code"]) for row in rows] == [
        (slide, image, "internal") for slide in ("good", "few", "broken") for image in ("he", "sp")
    ]

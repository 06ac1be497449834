from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

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


def test_deep_counts_nuclei_and_finds_damaged_pixels(study: Path, shared: Path) -> None:
    rows = load_study(study)
    assert reports_of(rows, deep=True)["good"].n_annotated == 3
    damaged = shared / "data" / "wsi_broken" / "corrupt_tile.svs"
    row = replace(rows.rows[0], slide_id="damaged", he=str(damaged), sp=None, instances=None, classes=None)
    one = replace(rows, rows=(row,))
    assert reports_of(one)["damaged"].good
    assert [fault.code for fault in reports_of(one, deep=True)["damaged"].faults] == ["corrupt_data"]


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


@pytest.mark.slow
def test_a_file_that_crashes_its_reader_spoils_its_own_slide_only(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_study(study)
    tasks = [module._task(loaded, row, False, {}, {}) for row in loaded.rows]
    monkeypatch.setattr(module, "get_context", lambda method: __import__("multiprocessing").get_context("fork"))
    monkeypatch.setattr(module, "_examine", _die)
    reports = {report.slide_id: report for report in module._in_processes(tasks, 2)}
    assert {slide: [fault.code for fault in report.faults] for slide, report in reports.items()} == {
        "good": [],
        "few": ["reader_crashed"],
        "broken": [],
    }


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

"""The doctor's findings as a Parquet table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from slideloom.artefacts.tables import Column, TableSchema, write_table
from slideloom.cli.slide_report import ImageReport, SlideReport

__all__ = ["FINDINGS", "write_findings"]

_TEXT, _COUNT = pa.string(), pa.int64()
_UNOPENED = "the image cannot be opened"
#: Columns of the table that ``slideloom doctor --table`` writes.
FINDINGS = TableSchema(
    name="findings",
    version=1,
    row="an image of a slide",
    key=("slide_id", "image"),
    columns=(
        Column("slide_id", _TEXT, "Slide, as in the sheet."),
        Column("patient_id", _TEXT, "Patient, as in the sheet."),
        Column("platform", _TEXT, "Platform, as in the sheet."),
        Column("image", _TEXT, "he or sp."),
        Column("source", _TEXT, "The image, as the sheet names it."),
        Column("status", _TEXT, "ok: the slide can run; fails: it will fail."),
        Column("code", _TEXT, "Reason codes of the slide, separated by ';'.", "status is ok"),
        Column("message", _TEXT, "What is wrong with the slide, a line a reason.", "status is ok"),
        Column("hint", _TEXT, "How to mend it, a line a reason.", "status is ok"),
        Column("warnings", _TEXT, "What is worth knowing of the slide, a line each.", "there is nothing"),
        Column("reader", _TEXT, "Library and format.", _UNOPENED),
        Column("height_px", _COUNT, "Height of level 0.", _UNOPENED, "px"),
        Column("width_px", _COUNT, "Width of level 0.", _UNOPENED, "px"),
        Column("mpp_um", pa.float64(), "Pixel size of level 0.", f"{_UNOPENED}, or it is not known", "µm/px"),
        Column("mpp_source", _TEXT, "file or sheet.", "mpp_um is null"),
        Column("n_channels", _COUNT, "Number of channels.", _UNOPENED),
        Column("dtype", _TEXT, "Type of the samples.", _UNOPENED),
        Column("channels", pa.list_(_TEXT), "Channel names, in the order of the file.", "they are not known"),
        Column(
            "annotation_height_px", _COUNT, "Height of the annotation.", "there is none, or it cannot be read", "px"
        ),
        Column("annotation_width_px", _COUNT, "Width of the annotation.", "there is none, or it cannot be read", "px"),
        Column("n_annotated", _COUNT, "Annotated nuclei.", "not counted: --deep does"),
    ),
)


def write_findings(reports: Sequence[SlideReport], place: Path) -> None:
    """Write a row an image.

    Parameters
    ----------
    reports : sequence of SlideReport
        From :func:`slideloom.cli.examine.examine`.
    place : Path
        The ``.parquet`` file, written whole or not at all.
    """
    rows = [_row(report, image) for report in reports for image in report.images]
    columns = {one.name: pa.array([row[one.name] for row in rows], one.type) for one in FINDINGS.columns}
    write_table(FINDINGS, pa.table(columns), place, made_from={"slides": len(reports)})


def _row(report: SlideReport, image: ImageReport) -> dict[str, Any]:
    height, width = report.annotation or (None, None)
    return {
        "slide_id": report.slide_id,
        "patient_id": report.patient_id,
        "platform": report.platform,
        "image": image.image,
        "source": image.source,
        "status": "ok" if report.good else "fails",
        "code": ";".join(dict.fromkeys(fault.code for fault in report.faults)) or None,
        "message": _lines(fault.message for fault in report.faults),
        "hint": _lines(fault.hint for fault in report.faults),
        "warnings": _lines(report.warnings),
        "reader": image.reader,
        "height_px": image.height_px,
        "width_px": image.width_px,
        "mpp_um": image.mpp_um,
        "mpp_source": image.mpp_source,
        "n_channels": image.n_channels,
        "dtype": image.dtype,
        "channels": list(image.channels) or None,
        "annotation_height_px": height,
        "annotation_width_px": width,
        "n_annotated": report.n_annotated,
    }


def _lines(texts: Iterable[str]) -> str | None:
    return "\n".join(text for text in texts if text) or None

"""Sheets that are wrong, or odd and right."""

from __future__ import annotations

import io
import unicodedata
import zipfile
from pathlib import Path

from tests.bad_inputs.kinds import Cells, Kind
from tests.bad_inputs.little_study import cell, of_sheet, sparse, swap, ten_thousand, write_study

__all__ = ["KINDS"]

_ACCENT = unicodedata.normalize("NFD", "Müller")


def _workbook(_: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(zipfile.ZipInfo("xl/workbook.xml"), "<workbook/>")
    return made.getvalue()


def _folder_for_sheet(folder: Path) -> Cells:
    cells = write_study(folder)
    (folder / "slides.tsv").unlink()
    (folder / "slides.tsv").mkdir()
    return cells


KINDS: tuple[Kind, ...] = (
    of_sheet("sheet_utf16", "UTF-16, as Windows saves 'Unicode'", lambda t: t.encode("utf-16"), says="UTF-16"),
    of_sheet("sheet_utf16_bare", "UTF-16 without a mark", lambda t: t.encode("utf-16-le"), says="NUL bytes"),
    of_sheet("sheet_latin1", "Latin-1", lambda t: cell("patient_id", "Müller")(t).encode("latin-1"), says="Müller"),
    of_sheet("sheet_bom", "a byte order mark", lambda t: t.encode("utf-8-sig"), "accepted"),
    of_sheet("sheet_commas", "commas", swap("\t", ","), "accepted"),
    of_sheet("sheet_semicolons", "semicolons", swap("\t", ";"), "accepted"),
    of_sheet("sheet_windows_lines", "Windows line ends", swap("\n", "\r\n"), "accepted"),
    of_sheet("sheet_old_mac_lines", "line ends of old Macs", swap("\n", "\r"), "accepted"),
    of_sheet("sheet_blank_rows", "blank rows", swap("\n", "\n\n\t\t\t\n"), "accepted"),
    of_sheet(
        "sheet_million_rows", "a million empty rows, as spreadsheets write", lambda t: t + "\n" * 1_000_000, "accepted"
    ),
    of_sheet("sheet_spaces", "blanks around cells", swap("\t", " \t  "), "accepted"),
    of_sheet("sheet_blanks_for_tabs", "blanks where tabs were", swap("\t", "  "), says="the header is one column"),
    of_sheet("sheet_empty", "an empty file", lambda t: "", says="is empty"),
    of_sheet("sheet_header_only", "a header and no slide", lambda t: t.split("\n")[0] + "\n", says="no slides"),
    of_sheet("sheet_workbook", "an .xlsx named .tsv", _workbook, says="spreadsheet workbook"),
    of_sheet("sheet_image", "a TIFF named .tsv", lambda t: b"II*\0" + bytes(100), says="a TIFF image"),
    of_sheet("sheet_nul", "NUL bytes", lambda t: t.replace("P2", "P\0"), says="slides.tsv:3: holds NUL bytes"),
    of_sheet("sheet_control", "a control character", cell("patient_id", "P\x07"), says="control character"),
    of_sheet("sheet_open_quote", "a quote that is not closed", cell("platform", '"codex'), says="double quote opens"),
    of_sheet(
        "sheet_torn_quote",
        "a quote closed too late",
        cell("platform", '"co', 0, ("platform", 'dex"', 1)),
        says="a cell of several lines",
    ),
    of_sheet(
        "sheet_header_twice",
        "two sheets in one file",
        lambda t: t + t.replace("a\tP", "d\tP"),
        says="header stands here again",
    ),
    of_sheet("sheet_column_twice", "a column twice", swap("platform\t", "he\t"), says="stands in the header 2 times"),
    of_sheet("sheet_no_ids", "no column slide_id", swap("slide_id", "number"), says="'slide_id' is missing"),
    of_sheet(
        "sheet_column_misspelt", "a misspelt column", swap("instances", "instance"), says="Did you mean 'instances'"
    ),
    of_sheet(
        "sheet_no_images",
        "no column of images",
        lambda t: t.replace("\the\tsp\t", "\timage\tother\t"),
        says="neither a column",
    ),
    of_sheet(
        "sheet_surplus_cells", "more cells than columns", swap("\ttest\n", "\ttest\tand\tmore\n"), says="11 cells"
    ),
    of_sheet(
        "sheet_too_wide",
        "a thousand columns",
        lambda t: "\t".join(["slide_id", *(f"c{k}" for k in range(1000))]) + "\n",
        says="1001 columns",
    ),
    of_sheet("sheet_ten_thousand", "ten thousand slides", ten_thousand, "accepted"),
    Kind(
        "sheet_gigabyte",
        "sheet",
        "a file of a gigabyte",
        sparse("slides.tsv", 2**30),
        "refused",
        says="1074 MB, more than a table may have",
    ),
    Kind("sheet_folder", "sheet", "a folder where the sheet belongs", _folder_for_sheet, "refused", says="is a folder"),
    of_sheet("id_slash", "an id with a slash", cell("slide_id", "a/b"), says="holds '/'"),
    of_sheet("id_climbs", "an id that climbs folders", cell("slide_id", "../../etc"), says="'../../etc' cannot be"),
    of_sheet("id_dots", "an id of two points", cell("slide_id", ".."), says="begins with '.'"),
    of_sheet("id_backslash", "an id with a backslash", cell("slide_id", "a\\b"), says="cannot be a slide's id"),
    of_sheet("id_hidden", "an id that begins with a point", cell("slide_id", ".a"), says="begins with '.'"),
    of_sheet("id_device", "a name that Windows keeps", cell("slide_id", "CON"), says="name of a device"),
    of_sheet("id_device_dotted", "such a name with an ending", cell("slide_id", "aux.tif"), says="name of a device"),
    of_sheet("id_last_point", "an id that ends with a point", cell("slide_id", "a."), says="ends with '.'"),
    of_sheet("id_long", "an id of 300 characters", cell("slide_id", "x" * 300), says="300 characters, more than 128"),
    of_sheet("id_longest", "an id as long as may be", cell("slide_id", "x" * 128), "accepted"),
    of_sheet("id_blank", "an id with a blank", cell("slide_id", "case 7"), says="holds ' '"),
    of_sheet("id_empty", "no id", cell("slide_id", ""), says="slide_id: is empty"),
    of_sheet("id_emoji", "an emoji", cell("slide_id", "a\N{MICROSCOPE}"), says="U\\+1F52C"),
    of_sheet("id_combining", "accents apart from letters", cell("slide_id", _ACCENT), says="U\\+0308"),
    of_sheet("id_direction", "a mark of direction", cell("slide_id", "a\u202eb"), says="U\\+202E"),
    of_sheet("id_twice", "an id twice", cell("slide_id", "a", 1), says="'a' is the id of line 2 already"),
    of_sheet("id_case", "ids that differ by letter case", cell("slide_id", "A", 1), says="letter case only"),
    of_sheet(
        "patient_composed",
        "one patient, accents written in two ways",
        cell("patient_id", "Müller", 0, ("patient_id", _ACCENT, 1)),
        says="patient_id Müller both trains and validates",
    ),
    of_sheet(
        "patient_alike",
        "patients that differ by letter case",
        cell("patient_id", "p1", 1),
        "warned",
        "'P1' .* and 'p1' .* look alike",
    ),
    of_sheet(
        "patient_cyrillic", "a Cyrillic letter that looks Latin", cell("patient_id", "\u04201", 1), "warned", "U\\+0420"
    ),
    of_sheet("patient_unseen", "a blank of no width", cell("patient_id", "P1\u200b", 1), says="is not seen"),
    of_sheet(
        "patient_torn",
        "a patient on both sides of the split",
        cell("patient_id", "P1", 2),
        says="P1 both trains and tests",
    ),
    of_sheet(
        "image_twice",
        "one image, slides of two patients",
        cell("sp", "./a.tif", 1),
        "warned",
        "'a' \\(line 2\\) and 'b' \\(line 3\\) have one sp image, 'a.tif'",
    ),
    of_sheet(
        "image_twice_one_patient",
        "one image and one annotation, slides of one patient",
        cell("sp", "a.tif", 1, ("patient_id", "P1", 1), ("instances", "a_labels.tif", 1), ("split", "train", 1)),
        "accepted",
    ),
    of_sheet(
        "annotation_twice",
        "one annotation, slides of two images",
        cell("instances", "a_labels.tif", 1),
        "warned",
        "'a' \\(line 2\\) and 'b' \\(line 3\\) have one annotation, 'a_labels.tif'",
    ),
    of_sheet(
        "annotation_members",
        "annotations that are members of one file",
        cell("instances", "labels.npz::images[0]", 0, ("instances", "labels.npz::images[1]", 1)),
        "accepted",
    ),
    of_sheet("classes_twice", "one class table, two slides", cell("classes", "a.csv", 1), "accepted"),
    of_sheet("mpp_comma", "a decimal comma", cell("mpp_um", "0,5"), says="decimal point, not a comma"),
    of_sheet("mpp_nanometres", "a pixel size in nm", cell("mpp_um", "250"), says="nanometres"),
    of_sheet("mpp_unit", "a pixel size with its unit", cell("mpp_um", "0.5 µm"), says="number alone"),
    of_sheet("mpp_zero", "a pixel size of 0", cell("mpp_um", "0"), says="'0' is not a pixel size"),
    of_sheet("mpp_negative", "a negative pixel size", cell("mpp_um", "-0.5"), says="'-0.5' is not a pixel size"),
    of_sheet("mpp_nan", "a pixel size that is no number", cell("mpp_um", "nan"), says="'nan' is not a pixel size"),
    of_sheet("role_unknown", "a role that there is not", cell("split", "training"), says="Did you mean 'train'"),
    of_sheet("no_image", "a slide without an image", cell("he", "", 0, ("sp", "", 0)), says="names neither"),
    of_sheet("file_missing", "a file that is not there", cell("he", "a.SVS"), says="Did you mean 'a.svs'"),
    of_sheet("file_windows", "a Windows path", cell("he", "D:\\scans\\a.svs"), says="a Windows path"),
    of_sheet("file_url", "an address", cell("he", "s3://bucket/a.svs"), says="Nothing is ever fetched"),
    of_sheet("file_home", "the home of nobody", cell("he", "~nobody_at_all/a.svs"), says="not known here"),
    of_sheet("file_long", "a name too long for the disk", cell("he", "x" * 300 + ".svs"), says="name too long"),
    of_sheet("file_braces", "braces in a file's name", cell("he", "a{slide}.svs"), says="wildcard"),
    of_sheet("file_no_member", "a member that is not named", cell("he", "a.npz::"), says="names no member"),
    of_sheet(
        "wrong_everywhere",
        "one slip in every row",
        lambda t: "\n".join(ten_thousand(t).replace("\tP", "\tP\u200b").split("\n")[:1001]),
        says="995 more lines have the mistake of the 5 above",
    ),
)

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.slides.pixel_size import COARSEST_UM, FINEST_UM
from slideloom.slides.sheet import COLUMNS, SlideRow, read_sheet, write_sheet

TEXT = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=12).filter(
    lambda text: text == text.strip() and not {*text} & {"#", '"'} and unicodedata.is_normalized("NFC", text)
)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,11}", fullmatch=True)
MPP = st.one_of(st.none(), st.floats(FINEST_UM, COARSEST_UM))


@st.composite
def slide_rows(draw: st.DrawFn) -> SlideRow:
    images = draw(st.sampled_from([("he",), ("sp",), ("he", "sp")]))
    instances = draw(st.one_of(st.none(), TEXT))
    channels = st.lists(TEXT.filter(lambda text: ";" not in text), min_size=1, max_size=4, unique=True).map(tuple)
    return SlideRow(
        slide_id=draw(IDS),
        patient_id=draw(TEXT),
        platform=draw(TEXT),
        he=draw(TEXT) if "he" in images else None,
        sp=draw(TEXT) if "sp" in images else None,
        instances=instances,
        classes=draw(st.one_of(st.none(), TEXT)) if instances else None,
        he_mpp_um=draw(MPP) if "he" in images else None,
        sp_mpp_um=draw(MPP) if "sp" in images else None,
        sp_channels=draw(st.one_of(st.none(), channels)) if "sp" in images else None,
        split=draw(st.one_of(st.none(), st.sampled_from(["train", "val", "test", "infer"]))),
        extra=draw(st.dictionaries(st.sampled_from(["cohort", "fold_b", "stage"]), TEXT, max_size=2)),
    )


def sheet(folder: Path, *lines: str) -> Path:
    path = folder / "slides.tsv"
    path.write_text("".join(line.replace(" | ", "\t") + "\n" for line in lines), encoding="utf-8")
    return path


def told(path: Path) -> list[str]:
    return [str(problem).removeprefix(f"{path}:") for problem in read_sheet(path)[1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(slide_rows(), min_size=1, max_size=4, unique_by=lambda row: row.slide_id.casefold()))
def test_a_written_sheet_reads_back(tmp_path_factory: pytest.TempPathFactory, rows: list[SlideRow]) -> None:
    path = tmp_path_factory.mktemp("sheet") / "slides.tsv"
    write_sheet(rows, path)
    back, problems = read_sheet(path)
    assert problems == []
    assert back == rows
    assert [row.line for row in back] == list(range(2, len(rows) + 2))


@settings(max_examples=60, deadline=None)
@given(slide_rows())
def test_a_row_goes_through_json(row: SlideRow) -> None:
    value = json.loads(json.dumps(row.as_dict()))
    assert SlideRow.from_dict(value) == row
    assert None not in value.values()
    assert hash(SlideRow.from_dict(value)) == hash(row)


def test_the_line_is_no_part_of_a_rows_value() -> None:
    assert SlideRow("a", he="x", line=3) == SlideRow("a", he="x", line=9)
    assert "line" not in SlideRow("a", he="x", line=3).as_dict()


def test_a_row_of_few_columns() -> None:
    row = SlideRow.from_dict({"slide_id": "a", "sp": "x.tif", "sp_channels": ["DAPI", "CD3"]})
    assert (row.patient_id, row.platform, row.he, row.sp_channels) == ("a", "unknown", None, ("DAPI", "CD3"))


def test_defaults_and_pixel_sizes(tmp_path: Path) -> None:
    path = sheet(
        tmp_path,
        "slide_id | he | sp | mpp_um | sp_mpp_um | cohort",
        "a | a.svs | a.tif | 0.25 | 0.5 | west",
        "b | b.svs |  | 0.25 |  | ",
        "c |  | c.tif |  | 0.6 | ",
    )
    rows, problems = read_sheet(path)
    assert problems == []
    assert [(row.he_mpp_um, row.sp_mpp_um) for row in rows] == [(0.25, 0.5), (0.25, None), (None, 0.6)]
    assert [(row.patient_id, row.platform, row.extra) for row in rows] == [
        ("a", "unknown", {"cohort": "west"}),
        ("b", "unknown", {}),
        ("c", "unknown", {}),
    ]
    assert rows[0].column("cohort") == "west"
    assert rows[0].column("split") is None
    assert rows[0].column("nowhere") is None


@pytest.mark.parametrize(
    "slide_id", ["a/b", "..", "a..b", ".a", "-a", "_a", "a b", "ä", "a\\b", "x" * 129, "a:b", "a*"]
)
def test_ids_that_cannot_stand_in_a_path_are_refused(tmp_path: Path, slide_id: str) -> None:
    path = sheet(tmp_path, "slide_id | he", f"{slide_id} | a.svs", "good | b.svs")
    rows, problems = read_sheet(path)
    assert [row.slide_id for row in rows] == ["good"]
    assert [problem.where for problem in problems] == [f"{path}:2: slide_id"]
    assert "cannot be a slide's id" in problems[0].what


@pytest.mark.parametrize("slide_id", ["a", "A-1.b_2", "0", "TCGA-AA-0001.svs", "x" * 128])
def test_ids_that_are_fine(tmp_path: Path, slide_id: str) -> None:
    assert told(sheet(tmp_path, "slide_id | he", f"{slide_id} | a.svs")) == []


def test_every_fault_of_every_row_is_told_with_its_line(tmp_path: Path) -> None:
    path = sheet(
        tmp_path,
        "slide_id | he | sp | instances | classes | mpp_um | sp_channels",
        "a | a.svs",
        "b",
        " | c.svs",
        "a | d.svs",
        "A | e.svs",
        "f | f.svs |  |  | classes.csv",
        "g | g.svs |  |  |  | 0,25",
        "h |  | h.tif |  |  | 250 | DAPI;;CD3",
        "i | i.svs |  |  |  |  | DAPI",
        "j |  | j.tif |  |  | nan | DAPI;DAPI",
    )
    messages = told(path)
    expected = [
        ("3:", "names neither an H&E"),
        ("4: slide_id:", "is empty"),
        ("5: slide_id:", "'a' is the id of line 2 already"),
        ("6: slide_id:", "by letter case only"),
        ("7: classes:", "no instances"),
        ("8: mpp_um:", "decimal point"),
        ("9: mpp_um:", "'250' is not a pixel size"),
        ("9: sp_channels:", "empty name"),
        ("10: sp_channels:", "no sp image"),
        ("11: mpp_um:", "'nan' is not a pixel size"),
        ("11: sp_channels:", "twice"),
    ]
    assert len(messages) == len(expected), messages
    for message, (place, words) in zip(messages, expected, strict=True):
        assert message.startswith(place), message
        assert words in message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("slide | he", "unknown column 'slide'. Did you mean 'slide_id'?"),
        ("slide_id | he | instance", "Did you mean 'instances'?"),
        ("slide_id | he | mpp", "Did you mean 'mpp_um'?"),
        ("slide_id | he | sp | channels", "Did you mean 'sp_channels'?"),
        ("slide_id | patient_id", "has neither a column 'he' nor a column 'sp'"),
        ("he | sp", "the column 'slide_id' is missing"),
    ],
)
def test_a_wrong_header_is_told(tmp_path: Path, header: str, words: str) -> None:
    messages = told(sheet(tmp_path, header, "a | b | c | d"[: len(header)]))
    assert any(words in message for message in messages), messages


def test_a_sheet_without_slides(tmp_path: Path) -> None:
    (message,) = told(sheet(tmp_path, "slide_id | he"))
    assert message.startswith(" has no slides below its header")


def test_every_column_has_a_meaning() -> None:
    assert all(text.endswith(".") for text in COLUMNS.values())


@pytest.mark.parametrize("name", ["split_1", "split_3"])
def test_columns_of_published_folds_are_no_misspelt_split(tmp_path: Path, name: str) -> None:
    rows, problems = read_sheet(sheet(tmp_path, f"slide_id | he | {name}", "a | a.png | train"))
    assert problems == []
    assert (rows[0].column(name), rows[0].split) == ("train", None)


def test_a_column_that_the_config_names_is_no_misspelt_one(tmp_path: Path) -> None:
    path = sheet(tmp_path, "slide_id | he | splits", "a | a.png | train")
    assert told(path) == [
        "1: unknown column 'splits'. Did you mean 'split'? A column of your own needs a name less like it"
    ]
    rows, problems = read_sheet(path, {"splits"})
    assert problems == []
    assert rows[0].column("splits") == "train"

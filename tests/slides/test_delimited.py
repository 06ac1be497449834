from pathlib import Path

import pytest

from slideloom.slides.delimited import nearest, read_table


def table_of(folder: Path, raw: bytes | str, **more: object):
    path = folder / "table.tsv"
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return read_table(path, ("id", "name", "size"), ("id",), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("mark", ["\t", ",", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_delimiter_line_end_and_byte_order_mark_are_told_apart(
    tmp_path: Path, mark: str, end: str, start: bytes
) -> None:
    lines = [mark.join(cells) for cells in (["id", " name "], ["a", " Ärztin "], ["", ""], ["b", "two words"])]
    table = table_of(tmp_path, start + end.join(lines).encode())
    assert table.problems == []
    assert table.columns == ("id", "name")
    assert [row.cells for row in table.rows] == [{"id": "a", "name": "Ärztin"}, {"id": "b", "name": "two words"}]
    assert [row.line for row in table.rows] == [2, 4]


def test_comments_blank_rows_and_short_rows(tmp_path: Path) -> None:
    table = table_of(tmp_path, "# a remark, with a comma\n\nid\tname\tsize\t\t\n\n#a\tx\nb\n\t\t\nc\ty\t3\t\t\n")
    assert table.problems == []
    assert table.columns == ("id", "name", "size")
    assert [(row.line, row.cells) for row in table.rows] == [
        (6, {"id": "b", "name": "", "size": ""}),
        (8, {"id": "c", "name": "y", "size": "3"}),
    ]


def test_quoted_cells_may_hold_the_delimiter_and_lines(tmp_path: Path) -> None:
    table = table_of(tmp_path, 'id,name\na,"x, y"\nb,"two\nlines"\nc,z\n')
    assert [(row.line, row.cells["name"]) for row in table.rows] == [(2, "x, y"), (3, "two\nlines"), (5, "z")]


def test_header_faults_are_all_told(tmp_path: Path) -> None:
    table = table_of(tmp_path, "nam\tlength\tlength\t\tweight\na\tb\tc\td\te\n", mistaken={"weight": "size"})
    told = [(problem.where.rpartition(":")[2], problem.what) for problem in table.problems]
    assert told == [
        ("1", "unknown column 'nam'"),
        ("1", "the column 'length' stands in the header 2 times"),
        ("1", "a column of the header has no name"),
        ("1", "unknown column 'weight'"),
        ("1", "the column 'id' is missing"),
    ]
    assert table.rows == ()


def test_a_column_of_ones_own_is_kept(tmp_path: Path) -> None:
    table = table_of(tmp_path, "id\tcohort\na\tx\n")
    assert table.problems == []
    assert table.rows[0].cells == {"id": "a", "cohort": "x"}


def test_a_missing_column_that_was_misspelt_is_one_mistake(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("slide_ids\n1\n")
    problems = read_table(path, ("slide_id",), ("slide_id",)).problems
    assert [problem.what for problem in problems] == ["unknown column 'slide_ids'"]


def test_surplus_cells_are_told(tmp_path: Path) -> None:
    table = table_of(tmp_path, "id\tname\na\tb\tc\t\n")
    assert str(table.problems[0]).endswith("table.tsv:2: has 3 cells, but the header has 2 columns. "
                                           "Look at the surplus cell 'c'")  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b"", "is empty"), (b"\n\n", "is empty"), ("id\nñ\n".encode("latin-1"), "not UTF-8"), (b"\xff\xfei\x00", "UTF-8")],
)
def test_what_is_no_table(tmp_path: Path, raw: bytes, words: str) -> None:
    table = table_of(tmp_path, raw)
    assert [words in problem.what for problem in table.problems] == [True]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in read_table(tmp_path / "none", ("id",), ("id",)).problems[0].what
    assert "is a folder" in read_table(tmp_path, ("id",), ("id",)).problems[0].what


def test_nearest_gives_the_known_spelling() -> None:
    assert nearest("CODEX", ["codex", "orion"]) == "codex"
    assert nearest("orin", ["Codex", "Orion"]) == "Orion"
    assert nearest("x", []) == ""

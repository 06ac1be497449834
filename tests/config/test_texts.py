import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideloom.config.fields import unfit_for_paths
from slideloom.config.texts import absence, quoted, read_text, shortened
from slideloom.errors import Problem


def told(path: Path, most_bytes: int = 1000) -> tuple[str | None, list[Problem]]:
    problems: list[Problem] = []
    return read_text(path, most_bytes, "a table", "Save it as text", problems), problems


@given(st.text(max_size=300), st.integers(3, 100))
def test_a_shortened_text_keeps_its_ends(text: str, longest: int) -> None:
    short = shortened(text, longest)
    assert len(short) <= max(longest, 0)
    assert short == text or (short[0], short[-1], "…" in short) == (text[0], text[-1], True)


def test_quotes_show_what_cannot_be_seen() -> None:
    assert quoted("a\u200bb") == "'a\\u200bb'"
    assert len(quoted("x" * 1000)) < 100


def test_text_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"\xef\xbb\xbfM\xc3\xbcller\r\n")
    assert told(path) == ("Müller\r\n", [])
    path.write_bytes(b"x" * 1001)
    text, (problem,) = told(path)
    assert text is None
    assert "more than a table may have" in problem.what


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"PK\x03\x04rest", "a spreadsheet workbook or a zip archive, not text"),
        ("text".encode("utf-16"), "UTF-16 text"),
        ("text".encode("utf-16-be"), "NUL bytes"),
        (b"one\nM\xfcller\n", "at 'Müller'"),
        (b"\xff", "not UTF-8"),
        (b"PAR1\x15", "a Parquet table"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, raw: bytes, what: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(raw)
    text, (problem,) = told(path)
    assert text is None
    assert what in problem.what
    assert problem.where.startswith(str(path))
    assert problem.hint == "Save it as text"


def test_what_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        text, (problem,) = told(path)
        assert text is None
        assert "no ordinary file" in problem.what


def test_absence_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert absence(tmp_path) == ""
    assert absence(tmp_path / "none") == "does not exist"
    assert absence(tmp_path / "loop") == "is a link that leads in a circle"
    assert "Not a directory" in absence(tmp_path / "file" / "x")
    assert "too long" in absence(tmp_path / ("x" * 300))
    assert "cannot be a path" in absence(tmp_path / "a\0b")


@given(st.text(max_size=12))
def test_a_fit_name_is_one_plain_part_of_a_path(text: str) -> None:
    if not unfit_for_paths(text, 10):
        assert Path("root", text).resolve().parent == Path("root").resolve()
        assert text.isascii()
        assert 0 < len(text) <= 10
        assert not {*text} & {*'/\\:*?"<>|\0 \n{}'}


@pytest.mark.parametrize("name", ["CON", "nul", "com1.tif", "a.", "a..b", ".a", "-a", "", "é", "x" * 11])
def test_unfit_names(name: str) -> None:
    assert unfit_for_paths(name, 10)


@pytest.mark.parametrize("name", ["console", "a", "0", "com", "A-1.b_2"])
def test_fit_names(name: str) -> None:
    assert unfit_for_paths(name, 10) == ""

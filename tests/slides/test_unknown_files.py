"""What is said of files that are no slides."""

from __future__ import annotations

from pathlib import Path

import pytest

from slideloom.slides.unknown_files import describe_unknown


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\3\4rest", "it is a ZIP archive"),
        (b"\n <HTML><body>", "it is a web page, such as a failed download leaves"),
        (b"\0" * 5000, "its first 4096 bytes are zero, as of a copy that was never finished"),
        (b"  \n\nname,value\n1,2\n", "it is text, which begins 'name,value'"),
        (b"\n \n", "it is text, which begins ''"),
        (b"\x01\x02\xfe\xff", "no reader knows this format; it begins with the bytes 01 02 fe ff"),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "it is an HDF5 file (Imaris, AnnData, QuPath and others use it)"),
    ],
)
def test_words(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    said, hint = describe_unknown(tmp_path / "a")
    assert said == what
    assert hint[0].isupper()


def test_escape_codes_do_not_reach_the_screen(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x1b[2Jhello, this is text with a code that clears the screen\n")
    assert "\x1b" not in describe_unknown(tmp_path / "a")[0]

from __future__ import annotations

import io

import pytest
from rich.console import Console

from slideloom.cli.examination import print_examination, print_findings
from slideloom.cli.slide_report import Fault, ImageReport, SlideReport
from slideloom.cli.surroundings import Finding


def image(name: str, width_px: int) -> ImageReport:
    return ImageReport(name, f"{name}.tif", "tifffile", 1000, width_px, 16, "uint16", 0.5, "file", ("DAPI", "CD3"))


def slide(number: int, *codes: str, warnings: tuple[str, ...] = ()) -> SlideReport:
    faults = tuple(Fault(code, f"slide_{number:04}: {code} happened", "copy it again") for code in codes)
    images = (image("sp", 1000 + number),) if not codes else (ImageReport("sp", "gone.tif"),)
    platform = "Orion" if number % 2 else "CODEX"
    name = f"slide_{number:04}"
    return SlideReport(name, f"P{number}", platform, images, None, None, faults, warnings, annotated=number % 4 == 0)


def screen(reports: list[SlideReport], width: int = 120) -> str:
    stream = io.StringIO()
    print_examination(reports, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def test_of_few_slides_each_has_a_line_and_bad_ones_come_first() -> None:
    text = screen([slide(1), slide(2), slide(3, "truncated")])
    assert text.index("slide_0003") < text.index("slide_0001") < text.index("slide_0002")
    assert "1001 × 1000" in text
    assert "fails: truncated" in text
    assert "slide_0003: truncated happened" in text


def test_of_a_thousand_slides_good_ones_are_counted() -> None:
    bad = {3: ("truncated",), 500: ("missing_file", "no_pixel_size"), 998: ("missing_file",)}
    text = screen([slide(number, *bad.get(number, ())) for number in range(1000)])
    lines = text.splitlines()
    assert len(lines) < 40
    assert [line.split()[0] for line in lines[1:4]] == ["slide_0003", "slide_0500", "slide_0998"]
    assert "fails: 2 reasons" in text
    assert "slide_0001" not in text
    codex, orion = (
        next(line.split() for line in lines if name in line and "sp" in line) for name in ("CODEX", "Orion")
    )
    assert codex == ["498", "CODEX", "sp", "1000–1996", "×", "1000", "0.5", "16", "uint16", "249"]
    assert orion[0] == "499"
    assert max(map(len, lines)) <= 120


def test_a_thousand_bad_slides_do_not_fill_a_thousand_screens() -> None:
    reports = [slide(number, "missing_file" if number % 3 else "truncated") for number in range(1000)]
    text = screen(reports)
    lines = text.splitlines()
    assert len(lines) < 70
    assert "… and 980 more that will fail; --table writes all of them" in text
    assert text.count("missing_file happened") == 5
    assert text.count("truncated happened") == 5
    assert "661 more  missing_file" in text
    assert "329 more  truncated" in text
    assert text.count("→ copy it again") == 10


def test_a_slide_is_not_hidden_behind_one_more() -> None:
    many = [slide(number, "missing_file") for number in range(30)]
    text = screen([*many, *(slide(number, "truncated") for number in range(30, 36))])
    assert text.count("truncated happened") == 6, "not five, and one more"


def test_warnings_that_differ_by_a_number_are_told_once() -> None:
    reports = [slide(number, warnings=(f"sp: pixels are {number / 100 + 0.2:.3f} µm",)) for number in range(100)]
    text = screen(reports)
    assert "slide_0000 and 99 more: sp: pixels are 0.200 µm" in text
    assert text.count("pixels are") == 1


def test_notes_are_few() -> None:
    text = screen([slide(number, warnings=("note " + "x" * number,)) for number in range(60)])
    assert "and 40 more; --table writes all of them" in text


def test_names_from_files_are_no_markup() -> None:
    report = SlideReport("[red]x", "P", "p", (ImageReport("he", "x"),), faults=(Fault("bad", "[/nonsense]", "[b]"),))
    assert "[/nonsense]" in screen([report])
    stream = io.StringIO()
    print_findings([Finding("disk", "wrong", "[/x] is full", "[b]")], Console(file=stream, width=80))
    assert "[/x] is full" in stream.getvalue()


def test_names_from_files_do_not_steer_the_terminal() -> None:
    escape = "\x1b[2J\x07\u202e"
    named = ImageReport("sp", "x", None, 10, 10, 2, "uint16", 0.5, "file", (f"DAPI{escape}\nCD3", "CK"))
    report = SlideReport("s", "P", "p", (named,), faults=(Fault("bad", escape, escape),), warnings=(escape,))
    text = screen([report], width=200)
    assert not any(one in text for one in "\x1b\x07\u202e")
    assert "DAPI\\x1b[2J\\x07\\u202e\\nCD3" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_findings_fit_any_width(width: int) -> None:
    stream = io.StringIO()
    found = [
        Finding("disk", "fine", "word " * 60),
        Finding("GPU", "note", "none", "look"),
        Finding("GPU", "wrong", "x"),
    ]
    print_findings(found, Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("GPU") == 1
    assert "→ look" in text

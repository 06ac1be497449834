"""The sheet's text form of a source, and what levels are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from slideloom.errors import SlideError
from slideloom.slides.image import fits_pyramid, make_levels
from slideloom.slides.pixel_size import plausible_mpp
from slideloom.slides.source import Source, parse_source, split_index

ROOT = Path("/root of all")


@pytest.mark.parametrize(
    ("text", "path", "member"),
    [
        ("a.svs", "/root of all/a.svs", ""),
        ("/data/a.svs", "/data/a.svs", ""),
        (" b/a.npz :: images[3] ", "/root of all/b/a.npz", "images[3]"),
        ("../a.npy::[0]", "/root of all/../a.npy", "[0]"),
        ("a.zarr::labels/0", "/root of all/a.zarr", "labels/0"),
        ("C1::D::E", "/root of all/C1", "D::E"),
    ],
)
def test_parse_source(text: str, path: str, member: str) -> None:
    source = parse_source(text, ROOT)
    assert source == Source(Path(path), member)
    assert parse_source(str(source), Path("elsewhere")) == source


def test_a_label_is_for_messages_alone() -> None:
    source = Source(Path("/data/a.npz"), "images", "slide_1, he image a.npz::images")
    assert str(source) == "slide_1, he image a.npz::images"
    assert source == Source(Path("/data/a.npz"), "images")
    assert hash(source) == hash(Source(Path("/data/a.npz"), "images"))


@pytest.mark.parametrize("text", ["", "  ", "::x", "a.npz::", "a.npz:: "])
def test_sources_that_name_nothing(text: str) -> None:
    with pytest.raises(SlideError) as caught:
        parse_source(text, ROOT)
    assert caught.value.code == "bad_source"


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("images[3]", ("images", 3)),
        ("images", ("images", None)),
        ("[0]", ("", 0)),
        ("", ("", None)),
        ("a b[ 7 ]", ("a b", 7)),
    ],
)
def test_split_index(member: str, expected: tuple[str, int | None]) -> None:
    assert split_index(Source(Path("a"), member)) == expected


@pytest.mark.parametrize("member", ["a[-1]", "a[1.5]", "a[]", "a[1][2]", "a]1[", "a[1]b"])
def test_members_that_cannot_be_read(member: str) -> None:
    with pytest.raises(SlideError) as caught:
        split_index(Source(Path("a"), member))
    assert caught.value.code == "bad_member"


def test_downsamples_are_whole_where_rounding_explains_the_sizes() -> None:
    levels = make_levels([(3001, 2803), (1500, 1402), (751, 700), (188, 175)])
    assert [level.downsample for level in levels] == [1, 2, 4, 16]
    assert make_levels([(1001, 800), (400, 320)])[1].downsample == pytest.approx((1001 / 400 + 2.5) / 2)


def test_what_fits_a_pyramid() -> None:
    assert fits_pyramid((3001, 2803), (3001, 2803), (750, 700))
    assert fits_pyramid((3001, 2803), (750, 700), (188, 176))
    assert not fits_pyramid((3001, 2803), (750, 700), (750, 700))
    assert not fits_pyramid((3001, 2803), (750, 700), (800, 747))
    assert not fits_pyramid((3001, 2803), (3001, 2803), (750, 1400)), "squeezed along y"


def test_pixel_sizes_that_cannot_be() -> None:
    assert plausible_mpp(0.5, 0.25, "x") == ((0.5, 0.25), ())
    for wrong in (0.0, -1.0, 352.8, float("nan"), float("inf")):
        mpp, warnings = plausible_mpp(wrong, 0.5, "the tag")
        assert mpp is None
        assert "the tag" in warnings[0]

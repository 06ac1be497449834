from __future__ import annotations

import pytest

from slideloom.slides.shared_files import shared_file_warnings
from slideloom.slides.sheet import SlideRow


def test_an_image_of_two_patients_is_told() -> None:
    rows = [SlideRow("a", he="x.svs", line=2), SlideRow("b", he="./x.svs", line=5), SlideRow("c", he="y.svs", line=6)]
    (warning,) = shared_file_warnings(rows)
    assert "slides 'a' (line 2) and 'b' (line 5) have one he image, 'x.svs'" in warning
    assert "both sides of a split" in warning


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"patient_id": "P", "sp": "x.tif"}, {"patient_id": "P", "sp": "x.tif"}),
        ({"sp": "x.npz::a"}, {"sp": "x.npz::b"}),
        ({"he": "x"}, {"sp": "x"}),
        ({"he": "x", "instances": "i.npz::i[0]"}, {"he": "y", "instances": "i.npz::i[1]"}),
        ({"he": "x", "instances": "i", "classes": "c"}, {"he": "y", "instances": "j", "classes": "c"}),
        (
            {"patient_id": "P", "he": "x", "sp": "v", "instances": "i"},
            {"patient_id": "P", "he": "x", "sp": "w", "instances": "i"},
        ),
    ],
)
def test_what_may_be_shared(first: dict[str, str], second: dict[str, str]) -> None:
    assert shared_file_warnings([SlideRow("a", **first), SlideRow("b", **second)]) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("patients", [("P", "P"), ("P", "Q")])
def test_an_annotation_of_two_images_is_told_whoever_the_patients_are(patients: tuple[str, str]) -> None:
    rows = [SlideRow(f"s{k}", name, he=f"{k}.svs", instances="cells.geojson") for k, name in enumerate(patients)]
    (warning,) = shared_file_warnings(rows)
    assert warning.startswith("the sheet's slides 's0' and 's1'")
    assert "have one annotation, 'cells.geojson'" in warning


def test_one_slide_of_several_images_and_one_annotation() -> None:
    rows = [SlideRow("a", "P", he="x", instances="i"), SlideRow("b", "P", sp="v", instances="i")]
    assert len(shared_file_warnings(rows)) == 1, "H&E and SP of one place belong in one row, or must be registered"


def test_many_are_counted() -> None:
    rows = [SlideRow(f"s{file}_{k}", he=f"{file}.svs") for file in range(8) for k in range(5)]
    warnings = shared_file_warnings(rows)
    assert len(warnings) == 6
    assert "'s0_0', 's0_1', 's0_2' and 2 more have one he image, '0.svs'" in warnings[0]
    assert "3 more files in the sheet's column he" in warnings[-1]

import pytest

from slideloom.slides.alike import alike_warnings, look_of
from slideloom.slides.sheet import SlideRow


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("P1", "p1", True),
        ("P 1", "P1", True),
        ("P\u200b1", "P1", True),
        ("\uff301", "P1", True),
        ("\u04201", "P1", True),
        ("\u03a11", "P1", True),
        ("P1", "P2", False),
        ("P1", "P11", False),
        ("P-1", "P1", False),
        ("Müller", "Muller", False),
    ],
)
def test_what_looks_alike(one: str, other: str, same: bool) -> None:
    assert (look_of(one) == look_of(other)) == same


def test_each_pair_is_told_with_its_slides() -> None:
    rows = [
        SlideRow("a", patient_id="P1", platform="codex", he="x"),
        SlideRow("b", patient_id="p1", platform="CODEX", he="x"),
        SlideRow("c", patient_id="P1", platform="codex", he="x"),
        SlideRow("d", patient_id="P2", platform="orion", he="x"),
    ]
    patients, platforms = alike_warnings(rows)
    assert "'P1' (slide 'a') and 'p1' (slide 'b') look alike" in patients
    assert "both sides of a split" in patients
    assert "'codex' (slide 'a') and 'CODEX' (slide 'b')" in platforms
    assert alike_warnings(rows[2:]) == []


def test_many_pairs_are_counted() -> None:
    rows = [SlideRow(f"{case}{k}", patient_id=f"{case}{k}", he="x") for k in range(9) for case in "pP"]
    warnings = alike_warnings(rows)
    assert len(warnings) == 6
    assert "4 more names" in warnings[-1]

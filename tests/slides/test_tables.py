from __future__ import annotations

import json
from pathlib import Path

import pytest

from slideloom.slides.tables import Channel, ClassTable, MarkerTable, read_classes, read_markers


def write(folder: Path, *lines: str) -> Path:
    path = folder / "table.tsv"
    path.write_text("".join(line.replace(" | ", "\t") + "\n" for line in lines), encoding="utf-8")
    return path


def test_markers_are_read_and_looked_up(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "channel | marker | uniprot | nuclear",
        "DAPI | DNA |  | yes",
        "Hoechst 33342 | DNA |  | YES",
        "CD3e | CD3e | P07766 | no",
        "cd3e | CD3-other | ",
    )
    table, problems = read_markers(path)
    assert problems == []
    assert table.markers == {"DNA", "CD3e", "CD3-other"}
    assert table.lookup("DAPI") == Channel("DAPI", "DNA", "", True)
    assert table.lookup(" hoechst  33342 ") == Channel(" hoechst  33342 ", "DNA", "", True)
    assert table.lookup("CD3e") == Channel("CD3e", "CD3e", "P07766", False)
    assert table.lookup("cd3e") == Channel("cd3e", "CD3-other", "", False)
    assert table.lookup("CD4") is None
    assert MarkerTable.from_dict(json.loads(json.dumps(table.as_dict()))) == table


def test_every_fault_of_the_markers_is_told(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "channel | marker | uniprot | nuclear",
        "DAPI | DNA |  | maybe",
        "DAPI | DNA |  | yes",
        "CD3 | ",
        " | CD4",
        "CD8 | CD8 | 12345 | no",
        "HH3 | DNA | P68431 | no",
        "CD8b | CD8 | P01732 | no",
        "CD8c | CD8 | P10966 | no",
    )
    problems = [str(problem).removeprefix(f"{path}:") for problem in read_markers(path)[1]]
    expected = [
        ("2: nuclear:", "'maybe' is neither yes nor no"),
        ("3: channel:", "'DAPI' has a row already"),
        ("4: marker:", "is empty"),
        ("5: channel:", "is empty"),
        ("6: uniprot:", "'12345' is not a UniProt accession"),
    ]
    for place, words in expected:
        assert any(one.startswith(place) and words in one for one in problems), (place, problems)
    assert any(one.startswith("9: uniprot:") and "must agree" in one for one in problems), problems


def test_rows_of_one_marker_may_leave_values_out(tmp_path: Path) -> None:
    path = write(tmp_path, "channel | marker | uniprot | nuclear", "DAPI | DNA |  | yes", "HH3 | DNA | P68431 | yes")
    assert read_markers(path)[1] == []


@pytest.mark.parametrize("accession", ["P08575", "Q9BZS1", "A0A024R1R8", "P16070-12"])
def test_uniprot_accessions(tmp_path: Path, accession: str) -> None:
    assert read_markers(write(tmp_path, "channel | marker | uniprot", f"a | b | {accession}"))[1] == []


def test_tables_without_rows(tmp_path: Path) -> None:
    assert "no channels" in read_markers(write(tmp_path, "channel | marker"))[1][0].what
    assert "no classes" in read_classes(write(tmp_path, "id | name | colour"))[1][0].what


def test_classes_are_read_by_id(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "id | name | colour | aliases",
        "2 | Stroma | #00FF00 | stromal ; fibroblast",
        "1 | Tumour | #ff0010 | ",
    )
    table, problems = read_classes(path)
    assert problems == []
    assert (table.ids, table.names) == ((1, 2), ("Tumour", "Stroma"))
    assert table.colours == ((255, 0, 16), (0, 255, 0))
    assert len(table) == 2
    assert [table.id_of(text) for text in ("tumour", " Stromal ", "fibroblast", "2", "3", "0", "")] == [
        1,
        2,
        2,
        2,
        None,
        None,
        None,
    ]
    assert ClassTable.from_dict(json.loads(json.dumps(table.as_dict(), sort_keys=True))) == table


def test_numbered_aliases_replace_the_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "id | name | colour | aliases", "1 | a | #000000 | 0", "2 | b | #000000 | 1")
    table, problems = read_classes(path)
    assert problems == []
    assert [table.id_of(text) for text in "0123ab"] == [1, 2, None, None, 1, 2]


def test_many_classes_keep_their_order_through_json() -> None:
    ids = tuple(range(1, 13))
    table = ClassTable(ids, tuple(f"c{k}" for k in ids), ((1, 2, 3),) * 12, ((),) * 12)
    assert ClassTable.from_dict(json.loads(json.dumps(table.as_dict(), sort_keys=True))) == table
    assert ClassTable.from_dict(ClassTable().as_dict()) == ClassTable()


def test_a_class_table_without_aliases_round_trips_to_empty_ones() -> None:
    table = ClassTable((1,), ("a",), ((0, 0, 0),))
    assert table.id_of("A") == 1
    assert ClassTable.from_dict(table.as_dict()).id_of("1") == 1


def test_every_fault_of_the_classes_is_told(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "id | name | colour | aliases",
        "0 | background | #000000 | ",
        "1 | tumour | red | ",
        "1 | stroma | #00ff00 | ",
        "4 | Tumour | #00ff00 | ",
        "x |  | #00ff00 | stroma",
        "255 | last | #00ff00 | ",
    )
    problems = [str(problem).removeprefix(f"{path}:") for problem in read_classes(path)[1]]
    expected = [
        ("2: id:", "0 is background"),
        ("2: name:", "implied"),
        ("3: colour:", "'red' is not a colour"),
        ("4: id:", "1 is the id of 'tumour' already"),
        ("5: name:", "'Tumour' means the class of line 3 already"),
        ("6: id:", "'x' is not a whole number"),
        ("6: name:", "is empty"),
        ("6: aliases:", "'stroma' means the class of line 4 already"),
        ("7: id:", "'255'"),
        (" id:", "leave out 2, 3"),
    ]
    assert len(problems) == len(expected), problems
    for place, words in expected:
        assert any(one.removeprefix(str(path) + ":").startswith(place) and words in one for one in problems), (
            place,
            problems,
        )


def test_a_name_that_could_mean_two_markers_is_not_known() -> None:
    rows = (Channel("CD3", "CD3e"), Channel("cd3", "CD3-other"), Channel("CD8", "CD8a"), Channel("cd8", "CD8a"))
    table = MarkerTable(rows)
    assert [table.lookup(name).marker for name in ("CD3", "cd3", "Cd8")] == ["CD3e", "CD3-other", "CD8a"]
    assert table.lookup("Cd3") is None


def test_letters_have_one_spelling(tmp_path: Path) -> None:
    composed, apart = "Cr\u00eate", "Cre\u0302te"
    table, problems = read_markers(write(tmp_path, "channel | marker", f"{composed} | M"))
    assert problems == []
    assert table.lookup(apart) == Channel(apart, "M")
    assert MarkerTable((Channel(apart, "M"),)).lookup(composed.upper()) == Channel(composed.upper(), "M")
    twice = read_markers(write(tmp_path, "channel | marker", f"{composed} | M", f"{apart} | N"))[1]
    assert [problem.where.rpartition(":")[0][-1] for problem in twice] == ["3"]
    assert "has a row already" in twice[0].what

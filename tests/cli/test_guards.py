from pathlib import Path

import pandas as pd
import pytest

from slideloom.cli.guards import (
    check_demo_folder,
    check_image_folder,
    check_sheet_place,
    read_report,
    reports_folder,
)
from slideloom.errors import SlideloomError


def test_a_sheet_is_not_replaced_unasked_and_never_a_folder(tmp_path: Path) -> None:
    place = tmp_path / "slides.tsv"
    check_sheet_place(place, force=False)
    place.write_text("mine")
    with pytest.raises(SlideloomError, match=r"exists already.*--force"):
        check_sheet_place(place, force=False)
    check_sheet_place(place, force=True)
    with pytest.raises(SlideloomError, match=r"is a folder.*slides\.tsv"):
        check_sheet_place(tmp_path, force=True)


def test_images_are_looked_for_in_folders(tmp_path: Path) -> None:
    check_image_folder(tmp_path)
    (tmp_path / "a.svs").touch()
    with pytest.raises(SlideloomError, match="is a file"):
        check_image_folder(tmp_path / "a.svs")
    with pytest.raises(SlideloomError, match="does not exist"):
        check_image_folder(tmp_path / "none")


def test_the_demo_replaces_only_a_demo(tmp_path: Path) -> None:
    check_demo_folder(tmp_path / "new" / "cohort")
    assert (tmp_path / "new" / "cohort").is_dir()
    demo, own, table = tmp_path / "demo", tmp_path / "own", tmp_path / "table"
    for folder in (demo, own, table):
        folder.mkdir()
    (demo / "slides.tsv").write_text("slide_id\tplatform\the\nslide_01\tsynthetic-a\the/slide_01.svs\n")
    check_demo_folder(demo)
    (own / "slides.tsv").write_text("slide_id\tplatform\the\ncase_7\tcodex\tcase_7.svs\n")
    with pytest.raises(SlideloomError, match=r"slides\.tsv: this file is not the demo's"):
        check_demo_folder(own)
    (table / "markers.tsv").write_text("mine")
    with pytest.raises(SlideloomError, match=r"markers\.tsv: this file is not the demo's"):
        check_demo_folder(table)
    assert (table / "markers.tsv").read_text() == "mine"
    with pytest.raises(SlideloomError, match="is a file"):
        check_demo_folder(table / "markers.tsv")
    with pytest.raises(SlideloomError, match="cannot be made"):
        check_demo_folder(table / "markers.tsv" / "below")


def test_a_folder_without_tables_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    for place, words in (("config.yaml", "is a file"), ("none", "does not exist"), ("", "no slides table here")):
        with pytest.raises(SlideloomError, match=words) as caught:
            reports_folder(tmp_path / place)
        assert caught.value.hint


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    place = tmp_path / "slides.parquet"
    pd.DataFrame({"a": [1, 2]}).to_parquet(place)
    assert read_report(place)["a"].tolist() == [1, 2]
    raw = place.read_bytes()
    for damaged in (b"", b"text", raw[:-6], raw[: len(raw) // 2]):
        place.write_bytes(damaged)
        with pytest.raises(SlideloomError, match="cannot be read as a table") as caught:
            read_report(place)
        assert (caught.value.code, bool(caught.value.hint)) == ("unreadable", True)

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slideloom.errors import SlideError
from slideloom.slides.classlist import ClassRows, is_class_table, read_class_rows, settle_classes
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable(
    (1, 2, 3), ("tumour", "stroma", "other"), ((0, 0, 0),) * 3, (("0",), ("1",), ("2", "none of these"))
)


def test_text_tables(tmp_path):
    (tmp_path / "a.csv").write_text(
        "\ufeffimage,x,label_id,class_id\nf1,3,1,0\nf2,3,1,1\nf1,9,0,1\nf1,4,7,\nf1,4,8,2.0\n"
    )
    assert read_class_rows(Source(tmp_path / "a.csv", "f1")) == ClassRows((1, 8), ("0", "2"))
    assert read_class_rows(Source(tmp_path / "a.csv")).ids == (1, 1, 8)
    (tmp_path / "a.tsv").write_text("instance_id\tclass\n4\tstroma\n")
    assert read_class_rows(Source(tmp_path / "a.tsv")) == ClassRows((4,), ("stroma",))


def test_parquet_tables(tmp_path):
    table = pa.table({"ID": [1, 2, None, 3], "Type": ["tumour", "stroma", "x", None], "image": ["a", "b", "a", "a"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_class_rows(Source(tmp_path / "a.parquet")) == ClassRows((1, 2), ("tumour", "stroma"))
    assert read_class_rows(Source(tmp_path / "a.parquet", "a")) == ClassRows((1,), ("tumour",))


def test_the_first_known_column_counts(tmp_path):
    (tmp_path / "a.csv").write_text("label,instance_id,type,class\n5,6,x,y\n")
    assert read_class_rows(Source(tmp_path / "a.csv")) == ClassRows((6,), ("y",))


@pytest.mark.parametrize(
    ("text", "member", "code"),
    [
        ("x,class\n1,a\n", "", "annotation_columns"),
        ("id,kind\n1,a\n", "", "annotation_columns"),
        ("id,class\n1,a\n", "field", "annotation_columns"),
        ("id,class\n1.5,a\n", "", "annotation_ids"),
        ("id,class\n-1,a\n", "", "annotation_ids"),
        ("id,class\n1,a,b\n", "", "annotation_unreadable"),
        ("", "", "annotation_columns"),
    ],
)
def test_tables_that_cannot_be_used_say_why(tmp_path, text, member, code):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SlideError) as caught:
        read_class_rows(Source(tmp_path / "a.csv", member))
    assert caught.value.code == code


def test_a_missing_table(tmp_path):
    with pytest.raises(SlideError) as caught:
        read_class_rows(Source(tmp_path / "a.csv"))
    assert caught.value.code == "annotation_missing"


def test_which_sources_are_tables(tmp_path):
    assert is_class_table(Source(tmp_path / "a.CSV"))
    assert not is_class_table(Source(tmp_path / "a.png"))


def test_majority_then_lowest_id():
    rows = ClassRows((1, 1, 1, 2, 2, 3), ("stroma", "0", "1", "other", "TUMOUR", "none of these"))
    settled, warnings = settle_classes(rows, CLASSES, "t.csv")
    assert settled == {1: 2, 2: 1, 3: 3}
    assert len(warnings) == 1
    assert "2 instances (1, 2)" in warnings[0]
    assert settle_classes(ClassRows((3,), ("2",)), CLASSES, "t.csv") == ({3: 3}, ())


def test_unknown_words_are_all_named():
    with pytest.raises(SlideError, match="'9', 'x'") as caught:
        settle_classes(ClassRows((1, 2, 3), ("9", "x", "0")), CLASSES, "t.csv")
    assert caught.value.code == "unknown_class"

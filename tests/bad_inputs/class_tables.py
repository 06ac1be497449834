"""Classes of annotations that are wrong, damaged or hostile: tables and class images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_inputs.kinds import Answer, Cells, Kind
from tests.bad_inputs.scene import CLASS_NAMES, class_rows, labels, tell

__all__ = ["TABLES"]

_N = int(labels().max())
_IDS = range(1, _N + 1)
_WORDS = [CLASS_NAMES[number % 3] for number in _IDS]


def _with_classes(write: Callable[[Path], str], *, instances: bool = True) -> Callable[[Path], Cells]:
    def make(folder: Path) -> Cells:
        np.save(folder / "nuclei.npy", labels())
        return tell(folder, "nuclei.npy" if instances else None, write(folder))

    return make


def _kind(
    name: str,
    what: str,
    write: Callable[[Path], str],
    answer: Answer = "failed",
    code: str = "annotation_unreadable",
    *,
    stage: str = "facts",
    says: str = "",
    instances: bool = True,
) -> Kind:
    code = code if answer in ("failed", "refused") else ""
    return Kind(name, "annotation", what, _with_classes(write, instances=instances), answer, code, stage, says)


def _text(text: str | bytes, name: str = "classes.csv", member: str = "") -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"{name}::{member}" if member else name

    return write


def _drawn(make: Callable[[], np.ndarray]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        np.save(folder / "classes.npy", make())
        return "classes.npy"

    return write


def _class_map(**places: int) -> np.ndarray:
    drawn = np.where(labels() > 0, labels() % 3 + 1, 0).astype(np.uint8)
    drawn[0, 0] = places.get("corner", 0)
    drawn[labels() == 7] = places.get("seven", 1)
    return drawn


def _parquet(**columns: object) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        pq.write_table(pa.table(columns), folder / "classes.parquet")
        return "classes.parquet"

    return write


def _swollen(folder: Path) -> str:
    """A million rows of one value, four times over, in a few kilobytes."""
    same = pa.array(np.ones(1_000_000, np.int32))
    table = pa.table({"id": same, "class": pa.DictionaryArray.from_arrays(same, pa.array(["x", "tumour"]))})
    with pq.ParquetWriter(folder / "classes.parquet", table.schema, compression="zstd") as writer:
        for _ in range(4):
            writer.write_table(table)
    return "classes.parquet"


def _sound() -> str:
    return class_rows(_IDS, _WORDS)


TABLES: tuple[Kind, ...] = (
    _kind("absent_ids", "classes of ids that have no pixel",
          _text(class_rows(range(1, _N + 4), [*_WORDS, *["stroma"] * 3])), "warned", stage="targets",
          says=f"3 of {_N + 3} instance ids are not in the instance map"),
    _kind("nuclei_without_class", "nuclei that the table leaves out", _text(class_rows(_IDS[5:], _WORDS[5:])),
          "warned", stage="targets", says=f"5 of {_N} instances have no class"),
    _kind("rows_disagree", "two classes for one nucleus",
          _text(class_rows([*_IDS, 1, 2], [*_WORDS, "tumour", "tumour"])), "warned", stage="targets", says="disagree"),
    _kind("class_outside", "a class that the study does not have", _text(class_rows(_IDS, ["tumor cell", *_WORDS[1:]])),
          code="unknown_class", stage="targets", says="'tumor cell'.*aliases"),
    _kind("hostile_words", "classes with script tags, line ends and thousands of letters",
          _text('id,class\n1,"<script>alert(1)</script>\nx"\n2,' + "x" * 50_000 + "\n3,\u202etumour\n"),
          code="unknown_class", stage="targets"),
    _kind("many_unknown_words", "many unknown classes", _text(class_rows(_IDS, [f"kind {one}" for one in _IDS])),
          code="unknown_class", stage="targets", says="…"),
    _kind("no_rows_of_this", "no row of the table belongs to this slide",
          _text("image,id,class\nother,1,tumour\n", member="this"), code="annotation_no_rows", stage="targets"),
    _kind("empty_class_table", "class table that ends after its header", _text("id,class\n"), code="annotation_no_rows",
          stage="targets"),
    _kind("no_class_table", "class table of 0 bytes", _text(""), code="annotation_columns"),
    _kind("other_columns", "class table with other columns", _text("nucleus,kind\n1,tumour\n"),
          code="annotation_columns", says="'nucleus', 'kind'"),
    _kind("fractional_ids", "ids with fractions", _text("id,class\n1.5,tumour\n"), code="annotation_ids", says="1.5"),
    _kind("negative_class_ids", "negative ids in the class table", _text("id,class\n-4,tumour\n"),
          code="annotation_ids"),
    _kind("endless_ids", "ids beyond any number of nuclei", _text("id,class\n1e300,tumour\n"), code="annotation_ids"),
    _kind("header_twice", "class tables glued together", _text(_sound() * 2), code="annotation_ids",
          says="'instance_id'"),
    _kind("ragged_classes", "row with more cells than the header", _text("id,class\n1,tumour,yes\n"), says="row 1"),
    _kind("open_quote", "quote that never ends", _text('id,class\n1,"tumour\n2,stroma\n')),
    _kind("utf16_classes", "class table in UTF-16", _text(_sound().encode("utf-16")), says="UTF-8"),
    _kind("binary_classes", "bytes called .csv", _text(bytes(range(256)) * 4)),
    _kind("one_long_line", "class table whose line never ends", _text("id,class\n" + "1" * (1 << 21))),
    _kind("semicolons", "class table with semicolons and Windows line ends",
          _text(class_rows(_IDS, _WORDS, ";").replace("\n", "\r\n")), "accepted", stage="targets"),
    _kind("byte_order_mark", "class table with a byte order mark and blank rows",
          _text("\ufeff" + _sound().replace("\n", "\n\n")), "accepted", stage="targets"),
    _kind("missing_classes", "class table that is not there", lambda folder: "classes.csv", "refused",
          "annotation_missing", says="does not exist"),
    _kind("cut_parquet", "Parquet that holds no Parquet", _text(b"PAR1 and then nothing", "classes.parquet")),
    _kind("swollen_parquet", "Parquet that declares millions of rows in little space", _swollen, says="not believed"),
    _kind("nested_parquet", "Parquet of lists", _parquet(id=[[1], [2]], **{"class": ["tumour", "stroma"]}),
          says="several values a row"),
    _kind("classes_without_nuclei", "classes without a column instances", _text(_sound()), "refused",
          "instances", instances=False, says="no instances"),
    _kind("class_image_outside", "class image with a number outside of the table",
          _drawn(lambda: _class_map(seven=200)), code="unknown_class", stage="targets", says="200"),
    _kind("class_beside_nuclei", "class image that is drawn beside the nuclei", _drawn(lambda: _class_map(corner=1)),
          "warned", stage="targets", says="1 px carry a class outside"),
    _kind("class_image_size", "class image of another size", _drawn(lambda: _class_map()[:100]),
          code="annotation_shape"),
    _kind("class_image_colour", "class image in colours", _drawn(lambda: np.stack([_class_map()] * 3, axis=-1)),
          code="annotation_rgb"),
)  # fmt: skip

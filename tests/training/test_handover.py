"""What processes hand each other: every value comes back, and no text can run anything."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.config.model import GridConfig, TrainingConfig
from slideloom.errors import ConfigError, Problem, SlideError, SlideloomError
from slideloom.slides.tables import ClassTable
from slideloom.training.handover import from_text, to_text
from slideloom.training.survey import Survey, survey

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(lambda text: Path("a") / (text.replace("\0", "").replace("/", "") or "b"), st.text(max_size=5))
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(value=VALUES)
def test_every_value_comes_back(value: object) -> None:
    back = from_text(to_text(value))
    assert back == value
    assert repr(back) == repr(value), "types, too"


def test_numbers_keep_every_bit() -> None:
    for value in (0.1 + 0.2, 5e-324, math.inf, -0.0, 1 << 80):
        back = from_text(to_text(value))
        assert repr(back) == repr(value)
    assert math.isnan(from_text(to_text(math.nan)))
    for array in (np.arange(6, dtype="<i2").reshape(2, 3), np.array([np.nan, 1], np.float32), np.zeros((0, 3), bool)):
        back = from_text(to_text({"a": array}))["a"]
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
        back[...] = 1  # it may be written into
    number = from_text(to_text(np.float32(0.1)))
    assert number == np.float32(0.1)
    assert number.dtype == np.float32


def test_records_of_slideloom_come_back() -> None:
    grid = GridConfig(image="sp", tile_px=64)
    classes = ClassTable((1, 2), ("a", "b"), ((1, 2, 3), (4, 5, 6)), (("x",), ()))
    found = Survey(None, np.array([0.25, 0.75]), ("a",), 3)
    for value in (grid, TrainingConfig(epochs=3, patience=None), classes, MappingProxyType({"a": 1})):
        assert from_text(to_text(value)) == value
    assert from_text(to_text(grid)).model_fields_set == grid.model_fields_set
    back = from_text(to_text(found))
    assert (back.class_weights, back.absent, back.n_nuclei) == (None, ("a",), 3)
    np.testing.assert_array_equal(back.patch_weights, found.patch_weights)
    assert from_text(to_text((survey, Survey))) == (survey, Survey)


@pytest.mark.parametrize(
    "error",
    [
        SlideloomError("what", where="x.tif", expected="y", hint="Look", code="diverged"),
        SlideError("what", code="no_tissue"),
        ConfigError([Problem("config.yaml: a", "is wrong", "Mend it"), Problem("b", "too")]),
    ],
)
def test_errors_come_back_with_their_words(error: SlideloomError) -> None:
    back = from_text(to_text(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert (back.code, back.hint) == (error.code, error.hint)


@pytest.mark.parametrize("value", [object(), lambda: 1, os.system, b"bytes", {1, 2}, np.array([object()]), 1j, os])
def test_what_is_no_plain_value_is_not_handed_over(value: object) -> None:
    with pytest.raises(TypeError):
        to_text({"a": [value]})


@pytest.mark.parametrize(
    "name",
    [
        "os:system", "builtins:eval", "subprocess:Popen", "slideloom.training.distributed:os", "slideloomx.y:z",
        "slideloom.training.distributed:os.system", "slideloom.errors:SlideError.__init__.__globals__",
        "slideloom.errors:", "slideloom.errors:dataclass", "slideloom.training.distributed:subprocess.Popen", ":eval",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["name", "record"])
def test_a_text_names_nothing_outside_of_slideloom(name: str, form: str) -> None:
    text = json.dumps({"kind": form, "name": name, "fields": [["what", "touch pwned"]]})
    with pytest.raises(ValueError, match=r"is none of Slideloom's|is no class and no function"):
        from_text(text)


@pytest.mark.parametrize("text", ['{"kind": "code", "text": "1"}', "{}", "", "[1", '{"kind": "record", "name": "x"'])
def test_no_such_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"kind|Expecting|delimiter"):
        from_text(text)


def test_a_function_is_no_record() -> None:
    named = {"kind": "record", "name": "slideloom.training.survey:survey", "fields": [["job", 1]]}
    with pytest.raises(ValueError, match="is no class"):
        from_text(json.dumps(named))
    named["name"] = "slideloom.training.distributed:_Lines"
    with pytest.raises(ValueError, match="is no record"):
        from_text(json.dumps(named))

"""Names lead nowhere: whatever a sheet or a config calls a thing, its files lie below the results folder."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from slideloom.artefacts.paths import Paths
from slideloom.config.fields import Name
from slideloom.config.model import SplitConfig
from slideloom.errors import SlideloomError
from slideloom.slides.folds import platform_folds
from slideloom.slides.sheet import SlideRow, read_sheet

ROOT = Path("/results")
#: Every method that makes a path of names.
METHODS = [
    name
    for name, method in inspect.getmembers(Paths, inspect.isfunction)
    if not name.startswith("_") and "Path" not in [p.annotation for p in inspect.signature(method).parameters.values()]
]
HOSTILE = [
    "../x", "..", ".", "a/../../x", "/etc/passwd", "a/b", "..\\x", "C:\\x", "\\\\host\\share", "x\0.png", "\0", "",
    "a/", "/", "~/../../x", "./x", "x/.", "x\\..\\y",
]  # fmt: skip
#: Letters and the marks that paths are made of.
NAMES = st.text(st.sampled_from("ab1._-~:/\\\0 \n\té☃‮") | st.characters(), max_size=20) | st.sampled_from(HOSTILE)
CLEAN = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,12}", fullmatch=True)


class Named(BaseModel):
    name: Name


def arguments(method: str) -> list[str]:
    return [name for name in inspect.signature(getattr(Paths, method)).parameters if name != "self"]


def inside(path: Path) -> bool:
    """Whether a path lies below the results folder when ``..`` is followed, as the system does."""
    return os.path.normpath(path).startswith(f"{ROOT}/") and "\0" not in str(path)


def test_every_path_is_made_by_a_method_that_is_tested() -> None:
    assert {"slide_facts", "embeddings", "cells", "log", "record", "job_record", "maps_band"} <= set(METHODS)
    assert "account_of" not in METHODS


@given(data=st.data())
def test_a_path_of_any_names_lies_in_the_results(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(METHODS))
    names = [data.draw(NAMES | CLEAN, label=name) for name in arguments(method)]
    try:
        path = getattr(Paths(ROOT), method)(*names)
    except SlideloomError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert (refused.code, bool(refused.expected), bool(refused.hint)) == ("unsafe_name", True, True)
        return
    assert inside(path)
    assert path.parts[: len(ROOT.parts)] == ROOT.parts
    assert len(path.relative_to(ROOT).parts) >= 1 + bool(names)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_in_every_place(name: str) -> None:
    places = [(method, *place) for method in METHODS for place in enumerate(arguments(method))]
    assert len(places) > 40
    for method, position, argument in places:
        if argument == "context" and name in ("", "a/b"):
            continue  # a context may be empty, or of several parts
        names = ["plain"] * len(arguments(method))
        names[position] = name
        with pytest.raises(SlideloomError) as caught:
            getattr(Paths(ROOT), method)(*names)
        assert caught.value.code == "unsafe_name"
        assert len(str(caught.value)) < 500


@settings(max_examples=50)
@given(names=st.lists(CLEAN, min_size=4, max_size=4))
def test_sound_names_are_left_as_they_are(names: list[str]) -> None:
    stage, experiment, fold, unit = names
    assert Paths(ROOT).maps(experiment, fold, unit) == ROOT / "maps" / experiment / fold / f"{unit}.zarr"
    record = Paths(ROOT).record(stage, f"{experiment}/{fold}", unit)
    assert record == ROOT / "state" / stage / experiment / fold / "items" / f"{unit}.json"
    assert Paths(ROOT).log(stage, "", unit) == ROOT / "logs" / stage / f"{unit}.log"
    # Planning asks for paths with wildcards in place of names.
    assert Paths(ROOT).maps("{experiment}", "{fold}", "{slide}").name == "{slide}.zarr"


@settings(max_examples=50)
@given(slide_id=NAMES | CLEAN)
@example(slide_id="a..b")
@example(slide_id="case_7\n")
@example(slide_id="．．／x")  # full-width marks, which some programs fold to ../x
def test_a_slide_that_the_sheet_takes_has_a_path_of_its_own(
    slide_id: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sheet = tmp_path_factory.getbasetemp() / "hostile.tsv"
    quoted = '"' + slide_id.replace('"', '""') + '"'
    sheet.write_text(f"slide_id\the\n{quoted}\tx.tif\n", encoding="utf-8", errors="surrogatepass", newline="")
    rows, problems = read_sheet(sheet)
    assert rows or problems
    for row in rows:
        assert row.slide_id == row.slide_id.strip()
        assert set(row.slide_id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
        assert ".." not in row.slide_id
        for method in ("slide_facts", "tissue", "thumbnail"):
            place = getattr(Paths(ROOT), method)(row.slide_id)
            assert inside(place)
            assert row.slide_id in place.parts


@given(name=NAMES | CLEAN)
@example(name="grid\n")
@example(name="a" * 300)
def test_a_name_that_the_config_takes_has_a_path_of_its_own(name: str) -> None:
    try:
        taken = Named(name=name).name
    except ValidationError:
        return
    assert inside(Paths(ROOT).model(taken, "0"))
    assert Paths(ROOT).model(taken, "0").parts[-2] == taken
    assert len(taken) <= 64


@settings(max_examples=50)
@given(platforms=st.lists(NAMES.filter(bool), min_size=1, max_size=4))
def test_folds_that_are_named_by_platforms_stay_inside(platforms: list[str]) -> None:
    rows = [
        SlideRow(f"s{number}", platform=platform, he="x.tif", instances="y.tif")
        for number, platform in enumerate(platforms)
    ]
    folds = platform_folds(SplitConfig(scheme="leave_platform_out"), rows)
    assert set(folds.values()) == set(platforms)
    for fold in folds:
        assert inside(Paths(ROOT).model("sp", fold))
        assert Paths(ROOT).model("sp", fold).parts[-1] == fold

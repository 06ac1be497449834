from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from slideloom.config.explain import explain, kind_at, model_at, nearest_key
from slideloom.config.load import check_mapping, load_config, merge, read_config
from slideloom.config.model import GridConfig, StudyConfig
from slideloom.config.yaml_lines import Places
from slideloom.errors import ConfigError

GOOD: dict[str, Any] = {
    "study": "demo",
    "slides": "slides.tsv",
    "markers": "markers.tsv",
    "grids": {"sp120": {"image": "sp", "tile_px": 120, "stride_px": 60}},
    "encoders": {"mm": {"model": "mean_marker", "grid": "sp120", "statistics": "holdout", "markers": ["DNA"]}},
    "splits": {"holdout": {"scheme": "sequential", "train": 0.8}},
    "experiments": {
        "first": {"encoder": "mm", "split": "holdout", "heads": ["nucleus", "hv"], "training": {"betas": [0.9, 0.99]}}
    },
    "inference": {"batch_size": 8},
}


def told(value: dict[str, Any]) -> list[str]:
    checked = check_mapping(value, Places("c"))
    assert (checked.config is None) == bool(checked.problems)
    return [str(problem) for problem in checked.problems]


def changed(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(GOOD)
    *above, last = path.split(".")
    holder = config
    for key in above:
        holder = holder.setdefault(key, {})
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return config


def test_a_right_config_loads(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    config = load_config(path)
    assert config == StudyConfig.model_validate(GOOD)
    assert config.grids["sp120"].step_px == 60


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("tile_px", 3, ("c: tile_px: unknown key 'tile_px'", "belongs under 'grids'")),
        ("banana", 3, ("unknown key 'banana'", "Known keys here: study, data_root")),
        ("inferense", {}, ("unknown key 'inferense'", "'inference'")),
        ("grids.sp120.tile", 3, ("unknown key 'tile'", "Did you mean 'tile_px'?")),
        ("grids.sp120.tile_px", "wide", ("c: grids.sp120.tile_px: found the text 'wide', expected a whole number",)),
        ("grids.sp120.tile_px", 1.5, ("found 1.5, expected a whole number",)),
        ("grids.sp120.tile_px", None, ("found nothing, expected a whole number", "remove the key")),
        ("grids.sp120.tile_px", 4, ("4 is out of range, expected ≥ 8",)),
        ("grids.sp120.tile_px", ..., ("c: grids.sp120: the key 'tile_px' is missing", "Tile side")),
        ("grids.sp120.stride_px", 500, ("c: grids.sp120: stride_px 500 is larger than tile_px 120",)),
        ("grids.sp120.image", "hee", ("found the text 'hee', expected one of he, sp", "Did you mean 'he'?")),
        ("grids.sp120.mpp_um", "0,25", ("found the text '0,25', expected a number", "decimal point")),
        ("grids.sp120.mpp_um", True, ("found true, expected a number",)),
        ("grids.sp120", None, ("c: grids.sp120: found nothing, expected keys and values",)),
        ("grids", {}, ("c: grids: has 0 entries, expected at least one",)),
        ("grids", ..., ("c: the key 'grids' is missing",)),
        ("grids", ["sp120"], ("c: grids: found a list of 1, expected keys and values",)),
        ("grids.a b", {"image": "sp", "tile_px": 16}, ("'a b' cannot be a name",)),
        ("study", "my study", ("c: study: 'my study' cannot be a name",)),
        ("study", 5, ("c: study: found 5, expected text",)),
        ("experiments.first.training.betas", [0.9], ("betas",)),
        ("experiments.first.training.epochs", True, ("found true, expected a number",)),
        ("experiments.first.decoder", {"skips": 1}, ("decoder.skips: found 1, expected true or false",)),
        ("experiments.first.heads", "nucleus", ("found the text 'nucleus', expected a list", "Write [nucleus]")),
        ("experiments.first.heads", ["nucleus", "hw"], ("heads[1]: found the text 'hw'", "Did you mean 'hv'?")),
        ("experiments.first.heads", ["hv"], ("must hold 'nucleus'",)),
        ("encoders.mm.blocks", [1, "x"], ("c: encoders.mm.blocks[1]: found the text 'x'",)),
        ("inference.batch_size", float("inf"), ("inference.batch_size",)),
        ("instances", {"min_area_um2": float("nan")}, ("instances.min_area_um2",)),
    ],
)
def test_one_mistake_is_told_once_in_plain_words(path: str, value: Any, words: tuple[str, ...]) -> None:
    messages = told(changed(path, value))
    assert len(messages) == 1, messages
    assert all(word in messages[0] for word in words), messages


def test_a_misspelt_required_key_is_one_mistake_not_two() -> None:
    config = changed("encoders.mm.grid", ...)
    config["encoders"]["mm"]["gird"] = "sp120"
    assert told(config) == ["c: encoders.mm.gird: unknown key 'gird'. Did you mean 'grid'?"]


def test_all_mistakes_are_told_at_once() -> None:
    config = changed("grids.sp120.stride_px", 500)
    config["grids"]["sp120"]["min_tissue"] = 7
    config["encoders"]["mm"]["modle"] = "x"
    config["experiments"]["first"]["training"]["lr"] = "fast"
    config["nonsense"] = 1
    messages = told(config)
    assert len(messages) == 5, messages
    assert any("stride_px 500" in message for message in messages), "a model's own check speaks beside its fields'"


def test_draft_keeps_what_is_right() -> None:
    config = changed("encoders.mm.gird", "sp120")
    del config["encoders"]["mm"]["grid"]
    config["grids"]["wrong"] = {"image": "ct", "tile_px": 16}
    config["inference"]["batch_size"] = 0
    config["splits"]["holdout"]["foldss"] = 3
    draft = check_mapping(config, Places("c")).draft
    assert draft.encoders["mm"].grid == "sp120"
    assert draft.encoders["mm"].markers == ["DNA"]
    assert set(draft.grids) == {"sp120"}
    assert draft.names["grids"] == {"sp120", "wrong"}
    assert draft.inference is None
    assert draft.evaluation is not None
    assert draft.splits["holdout"].train == 0.8
    assert draft.slides == Path("slides.tsv")
    assert draft.gives("markers")
    assert not draft.gives("classes")


JUNK: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    3,
    0.5,
    1e9,
    "",
    "x",
    "sp",
    [],
    ["x"],
    [[1]],
    {},
    {"x": 1},
    {"x": {"y": None}},
]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += paths(one, (*path, key))
    return found


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_config_breaks_the_check(data: st.DataObject) -> None:
    config = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from(paths(config)))
        holder: Any = config
        for key in path[:-1]:
            holder = holder[key]
        if isinstance(holder, dict) and data.draw(st.booleans()):
            holder[str(path[-1]) + data.draw(st.sampled_from(["x", "_px", " "]))] = holder.pop(path[-1])
        else:
            holder[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
        if not paths(config):
            break
    checked = check_mapping(config, Places("c"))
    try:
        expected: StudyConfig | None = StudyConfig.model_validate(config)
    except ValidationError:
        expected = None
    if expected is None:
        assert checked.problems
    assert (checked.config is None) == bool(checked.problems)
    assert all(problem.where.startswith("c") and problem.what for problem in checked.problems)


def test_overrides_join_key_by_key_and_name_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    config = load_config(path, {"grids": {"sp120": {"tile_px": 240}}, "results": "elsewhere"})
    assert (config.grids["sp120"].tile_px, config.grids["sp120"].stride_px) == (240, 60)
    assert config.results == Path("elsewhere")
    problems = read_config(path, {"grids": {"sp120": {"tile_px": "x"}}, "study": "a b"}).problems
    assert [problem.where for problem in problems] == ["command line: study", "command line: grids.sp120.tile_px"]


def test_numbers_as_text_count_as_snakemake_hands_them_over() -> None:
    config = changed("experiments.first.training.lr", "5e-4")
    config["inference"] = {"batch_size": "4"}
    checked = check_mapping(config, Places("c"))
    assert checked.config is not None
    assert checked.config.experiments["first"].training.lr == 5e-4
    assert checked.config.inference.batch_size == 4


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"x": 1}}, {"a": {"y": 2}, "b": {"z": 3}}
    assert merge(base, over) == {"a": {"x": 1, "y": 2}, "b": {"z": 3}}
    assert (base, over) == ({"a": {"x": 1}}, {"a": {"y": 2}, "b": {"z": 3}})


def test_problems_come_with_the_files_lines(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("study: a\nslides: s.tsv\ngrids:\n  one:\n    image: he\n    tile_px: big\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    wheres = [problem.where for problem in caught.value.problems]
    assert f"{path}:6: grids.one.tile_px" in wheres
    assert len(wheres) == 3, "the keys splits and experiments are missing, too"


def test_model_and_kind_at_a_path() -> None:
    assert model_at(StudyConfig, ("grids", "any")) is GridConfig
    assert model_at(StudyConfig, ("grids", "any", "tile_px")) is None
    assert model_at(StudyConfig, ("nowhere", "any")) is None
    assert kind_at(StudyConfig, ("experiments", "any", "training", "patience")) is int
    assert kind_at(StudyConfig, ("encoders", "any", "markers", 0)) is str


def test_nearest_key() -> None:
    assert nearest_key("lerning_rate", ["lr", "learning_rate"]) == "learning_rate"
    assert nearest_key("mpp", ["mpp_um", "tile_px"]) == "mpp_um"
    assert nearest_key("zzz", ["mpp_um", "tile_px"]) == ""


def test_an_error_of_an_unknown_kind_keeps_pydantics_words() -> None:
    error = {"type": "brand_new", "loc": ("study",), "msg": "Something new", "input": [1, 2]}
    problem = explain(error, StudyConfig, Places("c"))  # type: ignore[arg-type]
    assert str(problem) == "c: study: Something new (found a list of 2)"

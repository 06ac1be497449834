from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.config.yaml_lines import Places, read_yaml

WORDS = st.text(st.characters(categories=["Ll"], max_codepoint=0x17F), min_size=1, max_size=8)
KEYS = WORDS.filter(lambda word: yaml.safe_load(word) == word)
LEAVES = st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6), st.booleans(), st.none(), KEYS)
TREES = st.recursive(
    LEAVES, lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(KEYS, below, max_size=4))
)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_each_key_and_item_has_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\n\nb:\n  c: {d: 2,\n      e: 3}\n  f:\n    - x\n    - y\n")
    file = read_yaml(path)
    assert file.problems == []
    assert file.value == {"a": 1, "b": {"c": {"d": 2, "e": 3}, "f": ["x", "y"]}}
    lines = {key: int(text.rpartition(":")[2]) for key, text in file.places.texts.items()}
    assert lines[("a",)] == 1
    assert lines[("b", "c", "e")] == 5
    assert lines[("b", "f", 1)] == 8
    assert file.places.of(("b", "c", "unwritten")) == f"{path}:4: b.c.unwritten"


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=4))
def test_agrees_with_pyyaml_and_the_line_holds_the_key(tmp_path_factory: pytest.TempPathFactory, tree: dict) -> None:
    text = yaml.safe_dump(tree, allow_unicode=True, default_flow_style=False)
    path = write(tmp_path_factory.mktemp("yaml"), text)
    file = read_yaml(path)
    assert file.problems == []
    assert file.value == yaml.safe_load(text)
    lines = text.splitlines()
    for key, place in file.places.texts.items():
        if isinstance(key[-1], str):
            assert key[-1] in lines[int(place.rpartition(":")[2]) - 1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1E3", 1000.0),
        ("-2.5e+2", -250.0),
        ("1.5", 1.5),
        ("12", 12),
        ("-3", -3),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("null", None),
        ("~", None),
        ("e5", "e5"),
    ],
)
def test_plain_words_mean_what_people_mean(tmp_path: Path, text: str, value: object) -> None:
    file = read_yaml(write(tmp_path, f"key: {text}\n"))
    assert file.value == {"key": value}
    assert type(file.value["key"]) is type(value)


def test_names_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "grids: {20: a, true: b, null: c}\n")).value == {
        "grids": {"20": "a", "true": "b", "null": "c"}
    }


def test_keys_that_stand_twice_are_all_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 3\na: 4\n")
    file = read_yaml(path)
    assert [problem.where for problem in file.problems] == [
        f"{path}:2: b.c",
        f"{path}:3: a",
        f"{path}:4: a",
    ]
    assert "first in line 1" in file.problems[1].what


def test_anchors_and_merges_are_no_duplicates(tmp_path: Path) -> None:
    file = read_yaml(write(tmp_path, "base: &base {x: 1, y: 2}\nmore:\n  <<: *base\n  y: 3\n"))
    assert file.problems == []
    assert file.value == {"base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n- b\n", "does not hold keys"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a:\n\tb: 1\n", "not valid YAML"),
        ("a: 'x\n", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "plain word"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        ("a: &a [*a]\n", "holds itself"),
        (b"a: \xff\xfe\n", "not UTF-8"),
        ("a: \x07\n", "does not allow"),
    ],
)
def test_what_is_no_config_is_told(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = write(tmp_path, text)
    problems = read_yaml(path).problems
    assert any(words in problem.what for problem in problems), problems
    assert all(problem.where.startswith(str(path)) for problem in problems)


def test_missing_file_and_byte_order_mark(tmp_path: Path) -> None:
    assert "does not exist" in read_yaml(tmp_path / "none.yaml").problems[0].what
    assert read_yaml(write(tmp_path, b"\xef\xbb\xbfa: 1\r\n")).value == {"a": 1}


def test_places_without_a_file() -> None:
    places = Places("config")
    assert places.of(("a", 0, "b")) == "config: a[0].b"
    assert places.of(()) == "config"

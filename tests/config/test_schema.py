from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from slideloom.config.model import StudyConfig
from slideloom.config.schema import json_schema, key_sections, keys_markdown, schema_text

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = [REPOSITORY / "config" / "config.yaml", *sorted((REPOSITORY / "config" / "studies").glob("*.yaml"))]


def test_the_exported_schema_is_current() -> None:
    exported = REPOSITORY / "config" / "schema" / "config.schema.json"
    assert exported.read_text(encoding="utf-8") == schema_text(), "run `slideloom schema --write config`"


def test_it_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json.loads(schema_text()) == json_schema()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_schema_and_model_agree_on_the_repositorys_configs(path: Path) -> None:
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    StudyConfig.model_validate(value)
    validator = jsonschema.Draft202012Validator(json_schema())
    assert [error.message for error in validator.iter_errors(value)] == []
    wrong = copy.deepcopy(value)
    next(iter(wrong["grids"].values()))["tile_pixels"] = 1
    wrong["splits"]["a/b"] = {}
    assert len(list(validator.iter_errors(wrong))) == 2


def test_every_key_is_described() -> None:
    sections = list(key_sections())
    assert {section.path for section in sections} >= {"", "grids.<name>", "experiments.<name>.training", "jobs"}
    for section in sections:
        assert section.summary
        for row in section.rows:
            assert row.description, f"{section.path}.{row.key} has no description"
            assert row.kind


def test_tables_say_bounds_choices_and_defaults() -> None:
    text = keys_markdown()
    assert "| `tile_px` | whole number ≥ 8 and ≤ 4096 | **required** |" in text
    assert "| `image` | `he`, `sp` | **required** |" in text
    assert "| `patience` | whole number ≥ 1, or null | `30` |" in text
    heads = "`nucleus`, `hv`, `classes`, `boundary`, `distance`, `three_class`, `instanseg`, `instanseg_cells`"
    assert f"| `heads` | list of {heads} | `[nucleus, hv, classes]` |" in text
    assert "| `skips` | `true`, `false` | `true` |" in text
    lengths = {len(line.split(" | ")) for line in text.splitlines() if line.startswith("| `")}
    assert lengths == {4}

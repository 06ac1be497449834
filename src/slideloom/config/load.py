"""Read and check the config: every mistake at once, each with its file, line and key."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from slideloom.config.explain import explain, found_text, kind_at, model_at, nearest_key
from slideloom.config.model import (
    EncoderConfig,
    EvaluationConfig,
    ExperimentConfig,
    GridConfig,
    InferenceConfig,
    InstancesConfig,
    SplitConfig,
    StudyConfig,
)
from slideloom.config.yaml_lines import KeyPath, Places, read_yaml
from slideloom.errors import ConfigError, Problem

__all__ = ["CheckedConfig", "check_mapping", "load_config", "merge", "read_config"]

#: Mistakes that are explained; a file with more of them is no config, or not of Slideloom.
_MOST_ERRORS = 100


@dataclass(frozen=True)
class CheckedConfig:
    """What could be made of a config, right or wrong.

    Attributes
    ----------
    config : StudyConfig or None
        None when there is any problem.
    draft : Draft
        The parts that are right, so that they can be checked against the sheet whatever the others are.
    places : Places
        Where each key was written.
    problems : tuple of Problem
        Every mistake found in the config by itself.
    """

    config: StudyConfig | None
    draft: Draft
    places: Places
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Draft:
    """The parts of a config that are right.

    Attributes
    ----------
    data_root, slides, markers, classes, results : Path or None
        None when left out or wrong.
    grids, encoders, splits, experiments : mapping
        Entries that are right, apart from unknown keys.
    inference, instances, evaluation : model or None
        None when wrong.
    names : mapping of str to frozenset of str
        By section, every name that was written, of wrong entries, too; a section that was left out is left out.
    """

    data_root: Path | None = None
    slides: Path | None = None
    markers: Path | None = None
    classes: Path | None = None
    results: Path | None = None
    grids: Mapping[str, GridConfig] = field(default_factory=dict)
    encoders: Mapping[str, EncoderConfig] = field(default_factory=dict)
    splits: Mapping[str, SplitConfig] = field(default_factory=dict)
    experiments: Mapping[str, ExperimentConfig] = field(default_factory=dict)
    inference: InferenceConfig | None = None
    instances: InstancesConfig | None = None
    evaluation: EvaluationConfig | None = None
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def gives(self, key: str) -> bool:
        """Whether a key of the top was given a value, right or wrong."""
        return key in self.names


def read_config(path: Path, overrides: Mapping[str, Any] | None = None) -> CheckedConfig:
    """Read a config file and check it by itself; never raises for what people write.

    Parameters
    ----------
    path : Path
        YAML file.
    overrides : mapping, optional
        Laid over the file's mapping, key by key, as Snakemake's ``--config`` does.

    Returns
    -------
    CheckedConfig
        Without ``config`` when there is any problem.
    """
    file = read_yaml(path)
    places = file.places
    value = file.value or {}
    if overrides:
        value = merge(value, overrides)
        places.cover(Places("", _override_places(overrides, ())))
    if file.value is None:
        return CheckedConfig(None, Draft(), places, tuple(file.problems))
    return check_mapping(value, places, file.problems)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Read a config file.

    Parameters
    ----------
    path : Path
        YAML file.
    overrides : mapping, optional
        Laid over the file's mapping.

    Returns
    -------
    StudyConfig
        Checked by itself, not against the sheet; see :func:`slideloom.slides.study.load_study`.

    Raises
    ------
    ConfigError
        With every mistake.
    """
    checked = read_config(path, overrides)
    if checked.config is None:
        raise ConfigError(checked.problems)
    return checked.config


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another: mappings join key by key, anything else is replaced.

    Examples
    --------
    >>> merge({"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": [2]})
    {'a': {'x': 1, 'y': 3}, 'b': [2]}
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def _override_places(value: Any, path: KeyPath) -> dict[KeyPath, str]:
    if isinstance(value, Mapping):
        return {at: text for key, one in value.items() for at, text in _override_places(one, (*path, key)).items()}
    return {path: "command line"}


def check_mapping(value: Mapping[str, Any], places: Places, problems: Sequence[Problem] = ()) -> CheckedConfig:
    """Check a config that has been read.

    Parameters
    ----------
    value : mapping
        Plain values.
    places : Places
        Where each key was written.
    problems : sequence of Problem
        Found already.

    Returns
    -------
    CheckedConfig
        Without ``config`` when there is any problem.
    """
    found = list(problems)
    plain = _plain(value)
    mixed = dict(_mixed_booleans(plain, ()))
    found += [Problem(places.of(path), what) for path, what in mixed.items()]
    config: StudyConfig | None = None
    errors: list[ErrorDetails] = []
    try:
        config = StudyConfig.model_validate(plain)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if len(errors) > _MOST_ERRORS:
        what = f"{len(errors) - _MOST_ERRORS} more keys and values are wrong"
        found += [explain(one, StudyConfig, places) for one in errors[:_MOST_ERRORS]]
        found.append(Problem(places.default, what, "Is it a config of Slideloom? config/README.md describes the keys"))
        return CheckedConfig(None, Draft(), places, tuple(dict.fromkeys(found)))
    draft, later = _draft(plain)
    told = [one for one in (*errors, *later) if one["loc"] not in mixed and not _told_by_unknown(one, errors)]
    found += [explain(one, StudyConfig, places) for one in told]
    unique = tuple(dict.fromkeys(found))
    return CheckedConfig(None if unique else config, draft, places, unique)


def _plain(value: Any) -> Any:
    """A copy in dicts and lists, with text for every key."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return copy.copy(value)


def _told_by_unknown(error: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Whether a missing key is what an unknown key beside it was meant to be."""
    if error["type"] != "missing":
        return False
    path = error["loc"]
    beside = [one["loc"][-1] for one in errors if one["type"] == "extra_forbidden" and one["loc"][:-1] == path[:-1]]
    model = model_at(StudyConfig, path[:-1])
    return model is not None and any(nearest_key(str(key), list(model.model_fields)) == path[-1] for key in beside)


@lru_cache(maxsize=1)
def _lenient() -> type[BaseModel]:
    """The study's model with every top-level key optional."""
    fields: dict[str, Any] = {}
    for name, one in StudyConfig.model_fields.items():
        kind: Any = one.annotation
        if get_origin(kind) is dict:
            fields[name] = (kind, {})
        else:
            fields[name] = (kind | None, None) if one.is_required() else (kind, one)
    return create_model("_Lenient", __config__=ConfigDict(extra="ignore", allow_inf_nan=False), **fields)


def _draft(plain: dict[str, Any]) -> tuple[Draft, list[ErrorDetails]]:
    """Mend or drop what is wrong until the rest validates; give errors that only then came to light, too."""
    value = copy.deepcopy(plain)
    later: list[ErrorDetails] = []
    model: BaseModel | None = None
    for attempt in range(50):
        try:
            model = _lenient().model_validate(value)
            break
        except ValidationError as error:
            errors = error.errors(include_url=False)
            # A model's own check runs once its fields are right, so it may speak first now.
            later += [one for one in errors if attempt and one["type"] == "value_error"]
            # A misspelt key is renamed before its absence counts.
            wrong = [one for one in errors if one["type"] != "missing"] or errors
            for one in sorted(wrong, key=lambda one: len(one["loc"]), reverse=True):
                _mend(value, one)
    names: dict[str, frozenset[str]] = {}
    for written in (plain, value):  # as written, and under the names that misspelt sections were meant to have
        for section, one in written.items():
            if one is not None:
                names[section] = names.get(section, frozenset()) | frozenset(one if isinstance(one, dict) else ())
    if model is None:
        return Draft(names=names), later
    parts = {name: getattr(model, name) for name in Draft.__dataclass_fields__ if name in StudyConfig.model_fields}
    for section in ("inference", "instances", "evaluation"):
        if plain.get(section) != value.get(section):
            parts[section] = None
    return Draft(**parts, names=names), later


def _mend(value: dict[str, Any], error: ErrorDetails) -> None:
    path = list(error["loc"])
    if path and path[-1] == "[key]":
        path.pop()
    missing = error["type"] == "missing"
    if missing or error["type"] == "too_short":
        path = path[:-1] if missing else path
    holder: Any = value
    for part in path[:-1]:
        holder = holder.get(part) if isinstance(holder, dict) else None
        if holder is None:
            return
    if not isinstance(holder, dict) or not path or path[-1] not in holder:
        if isinstance(holder, list) and len(path) > 1:  # a wrong item spoils its list
            _mend(value, {**error, "loc": tuple(path[:-1]), "type": "item"})
        return
    wrong = holder.pop(path[-1])
    if error["type"] == "extra_forbidden":
        model = model_at(StudyConfig, tuple(path[:-1]))
        near = nearest_key(str(path[-1]), list(model.model_fields)) if model else ""
        if near and near not in holder:
            holder[near] = wrong


def _mixed_booleans(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """True where a number belongs and 1 where true belongs: pydantic takes both, people mean neither."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _mixed_booleans(one, (*path, key))
    elif isinstance(value, int | float):
        kind = kind_at(StudyConfig, path)
        if isinstance(value, bool) and kind in (int, float):
            yield path, f"found {found_text(value)}, expected a number"
        elif not isinstance(value, bool) and kind is bool:
            yield path, f"found {value}, expected true or false"

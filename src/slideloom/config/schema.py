"""The config's JSON Schema and its keys in words, both made from the model, so that neither can fall behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from slideloom.config.model import StudyConfig

__all__ = ["KeyRow", "KeySection", "json_schema", "key_sections", "keys_markdown", "schema_text"]


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a study's config."""
    schema = StudyConfig.model_json_schema()
    _close(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _close(schema: Any) -> None:
    """Refuse entries whose name does not match: pydantic does, its schema only leaves them unchecked."""
    if isinstance(schema, dict):
        if "patternProperties" in schema:
            schema["additionalProperties"] = False
        for one in schema.values():
            _close(one)
    elif isinstance(schema, list):
        for one in schema:
            _close(one)


def schema_text() -> str:
    """Text of ``config/schema/config.schema.json``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class KeyRow:
    """One key, in words."""

    key: str
    kind: str
    default: str
    description: str


@dataclass(frozen=True)
class KeySection:
    """The keys that stand below one path, such as ``encoders.<name>.normalisation``."""

    path: str
    summary: str
    rows: tuple[KeyRow, ...]


def key_sections(model: type[BaseModel] = StudyConfig, path: str = "") -> Iterator[KeySection]:
    """Every key of the config, section by section, outer before inner.

    Parameters
    ----------
    model : type of BaseModel
        Where to start.
    path : str
        Path of the model's own place.

    Yields
    ------
    KeySection
        The model's keys, then those of the models below it.
    """
    below: list[tuple[type[BaseModel], str]] = []
    rows = []
    for name, field in model.model_fields.items():
        kind = _bare(field.annotation)
        inner = get_args(kind)[1] if get_origin(kind) is dict else kind
        here = f"{path}.{name}" if path else name
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            below.append((inner, here if inner is kind else f"{here}.<name>"))
        rows.append(KeyRow(name, _kind(field), _default(field), field.description or ""))
    yield KeySection(path, (model.__doc__ or "").strip().splitlines()[0], tuple(rows))
    for inner, place in below:
        yield from key_sections(inner, place)


def keys_markdown() -> str:
    """Every key of the config as Markdown tables, one a section."""
    parts = []
    for section in key_sections():
        title = f"### `{section.path}`" if section.path else "### At the top"
        lines = [title, "", section.summary, "", "| key | value | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{row.key}` | {row.kind} | {row.default} | {_cell(row.description)} |" for row in section.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _bare(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        rest = [one for one in get_args(kind) if one is not NoneType]
        return _bare(rest[0])
    return kind


def _kind(field: FieldInfo) -> str:
    words = _kind_words(field.annotation, field.metadata)
    nullable = get_origin(field.annotation) in (Union, UnionType) and NoneType in get_args(field.annotation)
    return f"{words}, or null" if nullable and not field.is_required() and field.default is not None else words


def _kind_words(kind: Any, metadata: list[Any]) -> str:
    bounds = list(metadata)
    while get_origin(kind) in (Annotated, Union, UnionType):
        if get_origin(kind) is Annotated:
            kind, *more = get_args(kind)
            for one in more:
                bounds += one.metadata if isinstance(one, FieldInfo) else [one]
        else:
            kind = next(one for one in get_args(kind) if one is not NoneType)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is dict:
        return (
            "entries by name"
            if isinstance(arguments[1], type) and issubclass(arguments[1], BaseModel)
            else "texts by name"
        )
    if origin is list:
        return f"list of {_plural(_kind_words(arguments[0], []))}"
    if origin is tuple and arguments[-1] is Ellipsis:
        words = _kind_words(arguments[0], [])
        return f"{words}, or list of {_plural(words)}"
    if origin is tuple:
        return f"list of {len(arguments)} {_plural(_kind_words(arguments[0], []))}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "keys, below"
    name = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", Path: "path"}[kind]
    return f"{name} {_range(bounds)}".strip()


def _plural(words: str) -> str:
    return words.replace("number", "numbers").replace("text", "texts")


def _range(bounds: list[Any]) -> str:
    signs: list[tuple[type[Any], str, str]] = [(Gt, ">", "gt"), (Ge, "≥", "ge"), (Lt, "<", "lt"), (Le, "≤", "le")]
    found = [f"{sign} {getattr(one, name):g}" for kind, sign, name in signs for one in bounds if isinstance(one, kind)]
    return " and ".join(found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True) if field.default_factory else field.default
    if isinstance(value, BaseModel) or value is PydanticUndefined:
        return ""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != "" else "empty"

"""Pydantic's errors in a person's words: the place, what was found, what was expected, the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from slideloom.config.texts import quoted, shortened
from slideloom.config.yaml_lines import KeyPath, Places
from slideloom.errors import Problem

__all__ = ["explain", "found_text", "kind_at", "model_at", "nearest_key"]

_NUMBERS = "a number"
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": _NUMBERS,
    "float_parsing": _NUMBERS,
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list, such as [a, b]",
    "tuple_type": "a list, such as [a, b]",
    "dict_type": "keys and values, indented below it",
    "model_type": "keys and values, indented below it",
    "model_attributes_type": "keys and values, indented below it",
}
_BOUNDS = {
    "greater_than": "> {gt:g}",
    "greater_than_equal": "≥ {ge:g}",
    "less_than": "< {lt:g}",
    "less_than_equal": "≤ {le:g}",
}


def nearest_key(word: str, known: Sequence[str]) -> str:
    """The known key most like ``word``, or an empty text.

    Examples
    --------
    >>> nearest_key("tile_pxl", ["tile_px", "stride_px"])
    'tile_px'
    """
    found = difflib.get_close_matches(word.casefold(), known, n=1, cutoff=0.6 if len(word) > 3 else 0.5)
    if found:
        return found[0]
    # 'tile' for 'tile_px', 'mpp' for 'mpp_um': the unit left out.
    longer = [name for name in known if len(word) > 2 and name.startswith(word.casefold() + "_")]
    return longer[0] if len(longer) == 1 else ""


def found_text(value: Any) -> str:
    """What was found, for a message, shortened and with its kind.

    Examples
    --------
    >>> found_text("wide"), found_text(3), found_text(None), found_text([1, 2])
    ("the text 'wide'", '3', 'nothing', 'a list of 2')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        names = ", ".join(shortened(str(key)) for key in list(value)[:4])
        return f"keys ({names}{', …' if len(value) > 4 else ''})" if value else "no keys"
    return shortened(str(value))


def model_at(root: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model whose keys stand below a path, or None when the path leads to something else."""
    kind = kind_at(root, path)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def kind_at(root: type[BaseModel], path: KeyPath) -> Any:
    """The type of the value at a path, without ``Annotated`` and ``None``; None when the path leads nowhere.

    Examples
    --------
    >>> from slideloom.config.model import StudyConfig
    >>> kind_at(StudyConfig, ("grids", "any", "stride_px"))
    <class 'int'>
    """
    kind: Any = root
    for part in path:
        kind = _inside(kind, part)
    return _bare(kind)


def _bare(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        rest = [one for one in get_args(kind) if one is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else kind
    return kind


def _inside(kind: Any, part: str | int) -> Any:
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return field.annotation if field else None
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    return arguments[0] if arguments else None


def explain(error: ErrorDetails, root: type[BaseModel], places: Places) -> Problem:
    """Turn one of pydantic's errors into a problem.

    Parameters
    ----------
    error : ErrorDetails
        An element of ``ValidationError.errors()``.
    root : type of BaseModel
        The model that was validated.
    places : Places
        Where each key was written.

    Returns
    -------
    Problem
        With the file, the line and the key path; what was found and expected; a hint where one is known.
    """
    kind, path, value = error["type"], error["loc"], error["input"]
    context: Mapping[str, Any] = error.get("ctx") or {}
    if path and path[-1] == "[key]":
        hint = "A name has letters, digits, '_', '-' and '.', at most 64, and starts with a letter or digit"
        return Problem(places.of(path[:-1]), f"{quoted(str(path[-2]))} cannot be a name", hint)
    if kind == "extra_forbidden":
        return _unknown(path, root, places)
    if kind == "missing":
        return _missing(path, root, places)
    if kind == "literal_error":
        choices = [one.strip("'") for one in str(context["expected"]).replace(" or ", ", ").split(", ")]
        near = nearest_key(value, choices) if isinstance(value, str) else ""
        what = f"found {found_text(value)}, expected one of {', '.join(choices)}"
        return Problem(places.of(path), what, f"Did you mean {near!r}?" if near else "")
    if kind in _BOUNDS:
        bound = _BOUNDS[kind].format(**context)
        hint = _bound_hint(str(path[-1]), value, context)
        return Problem(places.of(path), f"{found_text(value)} is out of range, expected {bound}", hint)
    if kind == "string_pattern_mismatch" or kind == "string_too_long":
        hint = "Letters, digits, '_', '-' and '.', at most 64, starting with a letter or digit"
        return Problem(places.of(path), f"{quoted(str(value))} cannot be a name", hint)
    if kind == "too_short":
        least = context.get("min_length", 1)
        what = f"has {context.get('actual_length', 0)} entries, expected {'at least one' if least == 1 else least}"
        return Problem(places.of(path), what)
    if kind == "value_error":
        return Problem(places.of(path), str(context.get("error", error["msg"])), "config/README.md describes the keys")
    expected = _EXPECTED.get(kind)
    if expected is None:
        return Problem(places.of(path), f"{error['msg']} (found {found_text(value)})")
    return Problem(places.of(path), f"found {found_text(value)}, expected {expected}", _type_hint(kind, value))


def _bound_hint(key: str, value: Any, context: Mapping[str, Any]) -> str:
    high = context.get("lt", context.get("le"))
    if high == 1 and isinstance(value, int | float) and 1 < value <= 100:
        return f"It is a share: write {value / 100:g} for {value:g} %"
    if key.endswith("mpp_um") and high is not None:
        return "It is in µm per pixel: a 40x scan has about 0.25"
    return ""


def _type_hint(kind: str, value: Any) -> str:
    if kind.startswith(("list", "tuple")) and isinstance(value, str | int | float):
        return f"Write [{value}]"
    if kind.startswith(("int", "float")) and isinstance(value, str) and "," in value:
        return "Write a decimal point, not a comma"
    if kind.startswith(("int", "float")) and isinstance(value, str) and re.match(r"-?[\d.]+\s*[^\d.\s]", value):
        return "Write the number alone; its unit is in the key's name"
    if kind.startswith("bool") and isinstance(value, str):
        return "Write true or false, not yes, no, on or off"
    if value is None:
        return "Write a value, or remove the key"
    return ""


def _unknown(path: KeyPath, root: type[BaseModel], places: Places) -> Problem:
    model = model_at(root, path[:-1])
    known = list(model.model_fields) if model else []
    near = nearest_key(str(path[-1]), known)
    hint = f"Did you mean {near!r}?" if near else f"Known keys here: {', '.join(known)}"
    if not near:
        homes = [name for name in root.model_fields if _has_key(root, name, str(path[-1]))]
        hint = f"It belongs under {homes[0]!r}" if homes else hint
    return Problem(places.of(path), f"unknown key {quoted(str(path[-1]))}", hint)


def _has_key(root: type[BaseModel], section: str, key: str) -> bool:
    for path in ((section,), (section, "*")):
        model = model_at(root, path)
        if model and key in model.model_fields:
            return True
    return False


def _missing(path: KeyPath, root: type[BaseModel], places: Places) -> Problem:
    model = model_at(root, path[:-1])
    field = model.model_fields.get(str(path[-1])) if model else None
    place = places.of(path[:-1]) if path[:-1] else places.default
    return Problem(place, f"the key {path[-1]!r} is missing", (field.description or "").rstrip(".") if field else "")

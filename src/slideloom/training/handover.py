"""What one process of a training hands to another, as text that cannot run anything when it is read.

Plain values, paths, arrays, and records of Slideloom's own classes. A class or a function is named, never carried, and
only one that Slideloom itself holds is looked up. Floats keep every bit.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from slideloom.errors import ConfigError, SlideloomError

__all__ = ["from_text", "to_text"]

_PACKAGE = "slideloom"
#: Key of the one-entry objects that stand for what JSON has no form of.
_KIND = "kind"


def to_text(value: Any) -> str:
    """Write a value as JSON.

    Parameters
    ----------
    value
        None, numbers, texts, lists, tuples, mappings, paths, arrays of numbers, functions and classes of Slideloom,
        its errors, and instances of its dataclasses and pydantic models, of any depth.

    Returns
    -------
    str
        For :func:`from_text`.

    Raises
    ------
    TypeError
        Anything else is in it.
    """
    return json.dumps(_plain(value))


def from_text(text: str) -> Any:
    """Inverse of :func:`to_text`; mappings come back as dict.

    Raises
    ------
    ValueError
        No such text, or it names something outside of Slideloom.
    """
    return _value(json.loads(text))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple) and type(value) is tuple:
        return {_KIND: "tuple", "items": [_plain(item) for item in value]}
    if isinstance(value, Mapping):
        return {_KIND: "mapping", "items": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, Path):
        return {_KIND: "path", "text": str(value)}
    if isinstance(value, np.ndarray | np.generic):
        return _array(np.asarray(value), bare=isinstance(value, np.generic))
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return {_KIND: "name", "name": _name(value)}
    return {_KIND: "record", "name": _name(type(value)), "fields": [[name, _plain(item)] for name, item in _of(value)]}


def _array(value: np.ndarray[Any, Any], bare: bool) -> dict[str, Any]:
    if value.dtype.kind not in "biuf":
        raise TypeError(f"an array of {value.dtype} cannot be handed over")
    content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
    return {_KIND: "array", "dtype": value.dtype.str, "shape": list(value.shape), "bare": bare, "content": content}


def _of(value: Any) -> list[tuple[str, Any]]:
    """Names and values of a record's fields."""
    if isinstance(value, BaseModel):
        given = value.model_fields_set
        return [("", sorted(given)), *((name, getattr(value, name)) for name in type(value).model_fields)]
    if isinstance(value, ConfigError):
        return [("problems", list(value.problems))]
    if isinstance(value, SlideloomError):
        return [(name, getattr(value, name)) for name in ("what", "where", "expected", "hint", "code")]
    if dataclasses.is_dataclass(value):
        return [(one.name, getattr(value, one.name)) for one in dataclasses.fields(value) if one.init]
    raise TypeError(f"a {type(value).__name__} cannot be handed over")


def _name(value: Any) -> str:
    """Where a class or function stands, such as ``slideloom.errors:SlideError``."""
    name = f"{value.__module__}:{value.__qualname__}"
    try:
        found = _look_up(name)
    except ValueError as error:
        raise TypeError(str(error)) from error
    if found is not value:
        raise TypeError(f"{name} is no longer what it was")
    return name


def _look_up(name: str) -> Any:
    module, _, qualname = name.partition(":")
    if module != _PACKAGE and not module.startswith(f"{_PACKAGE}."):
        raise ValueError(f"{name!r} is none of Slideloom's, and cannot be handed over")
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    # What a module has imported is not its own: slideloom.x:os would lead anywhere.
    if getattr(found, "__module__", None) != module or getattr(found, "__qualname__", None) != qualname:
        raise ValueError(f"{name!r} is no class and no function of that module")
    return found


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(_KIND)
    if kind == "tuple":
        return tuple(_value(item) for item in plain["items"])
    if kind == "mapping":
        return {_value(key): _value(item) for key, item in plain["items"]}
    if kind == "path":
        return Path(plain["text"])
    if kind == "array":
        flat = np.frombuffer(base64.b64decode(plain["content"]), np.dtype(plain["dtype"]))
        array = flat.reshape(plain["shape"]).copy()
        return array[()] if plain["bare"] else array
    if kind == "name":
        return _look_up(plain["name"])
    if kind == "record":
        return _record(_look_up(plain["name"]), {name: _value(item) for name, item in plain["fields"]})
    raise ValueError(f"{kind!r} is no kind of value that is handed over")


def _record(cls: Any, values: dict[str, Any]) -> Any:
    if not isinstance(cls, type):
        raise ValueError(f"{cls!r} is no class")
    if issubclass(cls, BaseModel):
        # Checked when it was made; a second check may not change it.
        return cls.model_construct(_fields_set=set(values.pop("")), **values)
    if issubclass(cls, ConfigError):
        return cls(values["problems"])
    if issubclass(cls, SlideloomError):
        return cls(values.pop("what"), **values)
    if dataclasses.is_dataclass(cls):
        return cls(**values)
    raise ValueError(f"{cls.__name__} is no record")

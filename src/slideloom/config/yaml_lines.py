"""Read a YAML file, remember the line of every key, refuse keys that stand twice."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slideloom.errors import Problem

__all__ = ["KeyPath", "Places", "YamlFile", "key_text", "read_yaml"]

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but ``5e-4`` is a number, and ``yes``, ``no``, ``on`` and dates are text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":timestamp", ":int"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_TAG = "tag:yaml.org,2002:"
_DIGITS = list("-+.0123456789")
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
# Without YAML 1.1's octal 010 and base-60 1:30, which nobody means.
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), _DIGITS)
_Loader.add_implicit_resolver(_TAG + "float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), _DIGITS)


def key_text(path: KeyPath) -> str:
    """A key's path as people write it.

    Examples
    --------
    >>> key_text(("encoders", "a", "blocks", 0))
    'encoders.a.blocks[0]'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass
class Places:
    """Where each key was written.

    Attributes
    ----------
    default : str
        The place of a key that no file is known to hold.
    texts : dict of KeyPath to str
        ``file:line`` by key path.
    """

    default: str
    texts: dict[KeyPath, str] = field(default_factory=dict)

    def of(self, path: KeyPath) -> str:
        """Place of a key, or of the nearest one above it, and the key's path."""
        for depth in range(len(path), 0, -1):
            place = self.texts.get(path[:depth])
            if place:
                break
        else:
            place = self.default
        return f"{place}: {key_text(path)}" if path else place

    def cover(self, other: Places) -> None:
        """Take over the places of a mapping that overrides this one."""
        self.texts.update(other.texts)


@dataclass
class YamlFile:
    """What a YAML file holds.

    Attributes
    ----------
    value : dict or None
        The mapping; None when the file could not be read.
    places : Places
        Line of every key and list item.
    problems : list of Problem
        Every fault.
    """

    value: dict[str, Any] | None
    places: Places
    problems: list[Problem]


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file that holds one mapping.

    Parameters
    ----------
    path : Path
        UTF-8, with or without byte order mark.

    Returns
    -------
    YamlFile
        With every fault as a problem; of a key that stands twice, the last value is kept.
    """
    result = YamlFile(None, Places(str(path)), [])
    problems = result.problems
    try:
        loader = _Loader(path.read_bytes().decode("utf-8-sig"))
        root = loader.get_single_node()
        if root is None:
            problems.append(Problem(str(path), "is empty"))
        elif not isinstance(root, yaml.MappingNode):
            what = "does not hold keys and values at its top"
            place = f"{path}:{root.start_mark.line + 1}"
            problems.append(Problem(place, what, "It should begin like 'study: my_study'"))
        else:
            _Walk(path, result).node(root, ())
            result.value = loader.construct_document(root)
    except FileNotFoundError:
        problems.append(Problem(str(path), "this file does not exist"))
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror or error}"))
    except UnicodeDecodeError:
        problems.append(Problem(str(path), "is not UTF-8 text"))
    except (yaml.MarkedYAMLError, yaml.reader.ReaderError) as error:
        problems.append(_syntax(path, error))
    return result


def _syntax(path: Path, error: yaml.MarkedYAMLError | yaml.reader.ReaderError) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        return Problem(str(path), f"holds a character that YAML does not allow: {error.character!r}")
    mark = error.problem_mark or error.context_mark
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    what = f"is not valid YAML: {error.problem or error.context}"
    if "\\t" in what:
        return Problem(place, what, "Indent with spaces, not with tabs")
    began = error.context_mark
    context = f"It was {error.context} that began in line {began.line + 1}" if error.context and began else ""
    return Problem(place, what, context)


class _Walk:
    """Notes the line of every key below a node."""

    def __init__(self, path: Path, result: YamlFile) -> None:
        self._path = path
        self._result = result
        self._open: set[int] = set()

    def node(self, node: yaml.Node, path: KeyPath) -> None:
        if id(node) in self._open:  # an alias to its own ancestor
            mark = node.start_mark
            raise yaml.constructor.ConstructorError(None, None, "an alias holds itself", mark)
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._note((*path, index), item)
                self.node(item, (*path, index))
        self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: dict[Hashable, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._say(key, path, "a key must be a plain word")
                continue
            if key.tag == _TAG + "merge":
                continue
            if key.tag != _TAG + "str":
                key.tag = _TAG + "str"  # a grid may be called 20 or true
            line = key.start_mark.line + 1
            if key.value in seen:
                what = f"the key {key.value!r} stands twice, first in line {seen[key.value]}"
                self._say(key, (*path, key.value), what, "Only one of them can hold; remove the other")
            seen.setdefault(key.value, line)
            self._note((*path, key.value), key)
            self.node(value, (*path, key.value))

    def _note(self, path: KeyPath, node: yaml.Node) -> None:
        self._result.places.texts[path] = f"{self._path}:{node.start_mark.line + 1}"

    def _say(self, node: yaml.Node, path: KeyPath, what: str, hint: str = "") -> None:
        place = f"{self._path}:{node.start_mark.line + 1}"
        self._result.problems.append(Problem(f"{place}: {key_text(path)}" if path else place, what, hint))

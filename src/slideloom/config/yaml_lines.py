"""Read a YAML file, remember the line of every key, refuse keys that stand twice and files that would explode."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from slideloom.config.texts import read_text, shortened
from slideloom.config.yaml_faults import explain_syntax
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
# A config of thousands of lines is far below; reading takes about 20 µs a value.
_MOST_BYTES, _MOST_VALUES, _MOST_LEVELS = 2**17, 50_000, 50
_MOST_BRACKETS = 200
_NESTED = "A config has a handful of levels; look for brackets that are not closed"
_PLAIN_TAGS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge"))
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
        name = f"[{part}]" if isinstance(part, int) else shortened(part)
        text += f".{name}" if text and not isinstance(part, int) else name
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
    text = read_text(path, _MOST_BYTES, "a config", "Save it as UTF-8 text", problems)
    if text is None:
        return result
    try:
        if _brackets(text) > _MOST_BRACKETS:  # PyYAML would take seconds to say so
            raise RecursionError
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            problems.append(Problem(str(path), "is empty", "Copy config/config.yaml, and change what differs"))
        elif not isinstance(root, yaml.MappingNode):
            what = "does not hold keys and values at its top"
            place = f"{path}:{root.start_mark.line + 1}"
            problems.append(Problem(place, what, "It should begin like 'study: my_study'"))
        else:
            _Sizes().of(root, 0)
            _Walk(path, result).node(root, ())
            result.value = loader.construct_document(root)
    except (yaml.MarkedYAMLError, yaml.reader.ReaderError) as error:
        problems.append(explain_syntax(path, error, text))
    except RecursionError:
        problems.append(Problem(str(path), f"values are nested deeper than {_MOST_LEVELS} levels", _NESTED))
    except ValueError as error:  # of what a tag or a number of thousands of digits is made into
        what = f"holds a value that cannot be read: {shortened(str(error), 120)}"
        problems.append(Problem(str(path), what, "Remove what begins with !!, and write numbers as people do"))
    return result


def _brackets(text: str) -> int:
    """Brackets that are open at once, at most; those in quotes count, too."""
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    return max(accumulate(steps), default=0)


class _Sizes:
    """How many values a document has once every alias is written out: a few lines can mean billions."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._open: set[int] = set()

    def of(self, node: yaml.Node, level: int) -> int:
        if id(node) in self._known:
            return self._known[id(node)]
        if id(node) in self._open:  # an alias to its own ancestor
            raise yaml.constructor.ConstructorError(None, None, "an alias holds itself", node.start_mark)
        if level > _MOST_LEVELS:
            what = f"values are nested deeper than {_MOST_LEVELS} levels"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        if node.tag not in _PLAIN_TAGS:
            what = f"the tag {shortened(node.tag.replace(_TAG, '!!'))} is not allowed: a config holds plain values"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        self._open.add(id(node))
        count = 1
        if isinstance(node, yaml.MappingNode):
            count += sum(self.of(key, level + 1) + self.of(value, level + 1) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            count += sum(self.of(item, level + 1) for item in node.value)
        if count > _MOST_VALUES:
            what = f"more than {_MOST_VALUES} values, once every alias is written out"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        self._open.discard(id(node))
        self._known[id(node)] = count
        return count


class _Walk:
    """Notes the line of every key below a node."""

    def __init__(self, path: Path, result: YamlFile) -> None:
        self._path = path
        self._result = result

    def node(self, node: yaml.Node, path: KeyPath) -> None:
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._note((*path, index), item)
                self.node(item, (*path, index))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: dict[Hashable, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._say(key, path, "a key must be a plain word", "It should look like 'name: value'")
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

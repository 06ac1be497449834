"""Content keys: canonical text, digests of files and trees, and a fingerprint of the code that a script runs.

Snakemake compares params as a set of values and looks at mtimes, so it misses exchanged values and edited library
modules. Slideloom passes each rule one canonical text and lets content decide.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

__all__ = ["canonical", "code_fingerprint", "code_parts", "digest_file", "digest_text", "digest_tree", "tree_size"]

_BLOCK = 1 << 22
_PACKAGE = Path(__file__).resolve().parents[1]
#: Modules whose text never changes what a stage computes.
_NEUTRAL = {"slideloom._version", "slideloom.artefacts.provenance"}


def canonical(value: Any) -> str:
    """Text that is equal exactly when the values are: JSON, sorted keys, no spaces.

    Parameters
    ----------
    value : object
        Anything made of mappings, sequences, numbers, strings, paths, ``None`` and pydantic models.

    Examples
    --------
    >>> canonical({"b": 0.40, "a": [1, None]})
    '{"a":[1,null],"b":0.4}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} {value!r} has no canonical text")


def digest_text(*parts: str) -> str:
    """BLAKE2b-160 of the parts, each told apart from the next. 40 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=20)
    for part in parts:
        raw = part.encode()
        state.update(f"{len(raw)}:".encode())
        state.update(raw)
    return state.hexdigest()


def digest_file(path: Path) -> str:
    """BLAKE2b-160 of a file's bytes. 40 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=20)
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def digest_tree(path: Path) -> str:
    """Digest of a file, or of every file below a folder with its relative path; mtimes play no part."""
    if path.is_file():
        return digest_file(path)
    files = _files_below(path)
    return digest_text(*(text for child in files for text in (child.relative_to(path).as_posix(), digest_file(child))))


def tree_size(path: Path) -> list[int]:
    """Number of files and of bytes that :func:`digest_tree` reads."""
    sizes = [child.stat().st_size for child in ([path] if path.is_file() else _files_below(path))]
    return [len(sizes), sum(sizes)]


def _files_below(path: Path) -> list[Path]:
    return sorted(child for child in path.rglob("*") if child.is_file() and child.name != ".snakemake_timestamp")


def code_fingerprint(scripts: Iterable[Path]) -> str:
    """Fingerprint of scripts and of every Slideloom module they import, directly or not.

    Comments, layout and docstrings do not count: only what the interpreter runs.

    Parameters
    ----------
    scripts : iterable of Path
        Python files.

    Returns
    -------
    str
        40 hexadecimal digits.
    """
    return digest_text(*(text for name, path in _code_files(scripts) for text in (name, _essence(path))))


def code_parts(scripts: Iterable[Path]) -> dict[str, str]:
    """What :func:`code_fingerprint` is made of: a digest by script and module, 16 hexadecimal digits each."""
    return {name: digest_text(_essence(path))[:16] for name, path in _code_files(scripts)}


def _code_files(scripts: Iterable[Path]) -> list[tuple[str, Path]]:
    """Scripts and the modules that they need, by name, in a fixed order."""
    scripts = tuple(Path(script).resolve() for script in scripts)
    modules: set[str] = set()
    waiting = [name for script in scripts for name in _imports(script)]
    while waiting:
        name = waiting.pop()
        if name in modules or name in _NEUTRAL:
            continue
        modules.add(name)
        waiting += _imports(_module_file(name))
    return [(script.name, script) for script in scripts] + [(name, _module_file(name)) for name in sorted(modules)]


def _module_file(name: str) -> Path:
    path = _PACKAGE.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return (name == "slideloom" or name.startswith("slideloom.")) and _module_file(name).is_file()


@cache
def _imports(path: Path) -> tuple[str, ...]:
    return _read_code(path)[0]


def _essence(path: Path) -> str:
    return _read_code(path)[1]


@cache
def _read_code(path: Path) -> tuple[tuple[str, ...], str]:
    """Modules of ours that a file imports, and its text without comments, layout and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    found: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    ours = {name for name in found if _is_module(name)}
    parents = {".".join(name.split(".")[:depth]) for name in ours for depth in range(1, name.count(".") + 1)}
    return tuple(sorted(ours | parents)), ast.unparse(tree)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and its statements at any depth; expressions, most of a tree, hold none."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, field, ())


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)

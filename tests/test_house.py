"""The house rules that no linter holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from slideloom.artefacts import keys

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "slideloom"
ORDER = [
    "_version", "errors", "config", "artefacts", "slides", "patches", "encoders", "adapters", "decoders", "training",
    "inference", "instances", "metrics", "reports", "workflow", "demo", "cli",
]  # fmt: skip
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_only_point_left(path: Path) -> None:
    room = path.parts[0].removesuffix(".py")
    if room == "__init__":
        return
    rank = ORDER.index(room)
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("slideloom.") and room not in ("demo", "cli"):
                assert ORDER.index(_room(name)) <= rank, f"line {node.lineno} imports {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=str)
def test_packages_import_nothing_for_convenience(path: Path) -> None:
    if path == Path("__init__.py"):
        return
    body = ast.parse((PACKAGE / path).read_text()).body
    assert [type(node).__name__ for node in body] == ["Expr"], "a docstring and nothing else"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "workflow" / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin(path: Path) -> None:
    assert path.read_text().count("\n") <= 60


@pytest.mark.parametrize("module", ["slideloom.workflow.plan", "slideloom.slides.study", "slideloom.cli.main"])
def test_planning_imports_nothing_heavy(module: str) -> None:
    program = (
        f"import sys, {module}; "
        "print([name for name in ('torch', 'timm', 'matplotlib', 'pandas', 'cv2', 'skimage') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("script", "foreign"),
    [
        ("train", {"slides.read_tiff", "slides.open", "patches.cut", "encoders.timm_models.vit", "instances.segment"}),
        ("instances", {"slides.read_tiff", "decoders.cellvit", "training.loop", "inference.predict"}),
        ("patches", {"encoders.base", "training.loop", "instances.segment", "metrics.panoptic"}),
        ("reports", {"slides.read_tiff", "training.loop", "instances.stitch"}),
    ],
)
def test_a_stage_is_not_tied_to_what_it_does_not_use(script: str, foreign: set[str]) -> None:
    used: set[str] = set()
    waiting = list(keys._imports(REPOSITORY / "workflow" / "scripts" / f"{script}.py"))
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting += keys._imports(keys._module_file(name))
    assert not {f"slideloom.{name}" for name in foreign} & used

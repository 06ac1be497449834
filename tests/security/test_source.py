"""What the source never does: run text as code, unpickle, start a shell, open a connection."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("src", "workflow", "tools", "envs", "benchmarks")
    for path in (REPOSITORY / folder).rglob("*.py")
)
RULES = [REPOSITORY / "Snakefile", *sorted((REPOSITORY / "workflow").rglob("*.smk"))]
#: Names that turn text into code.
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "breakpoint"}
#: Modules whose files run code when they are read.
PICKLES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
#: All that is taken of pickle, and where: the name of the error that torch.load(weights_only=True) raises.
PICKLE_NAMES = {"UnpicklingError"}
MAY_NAME_PICKLE = {
    "src/slideloom/training/resume.py",
    "src/slideloom/encoders/checkpoints/safe_pickle.py",
    "src/slideloom/encoders/checkpoints/weights.py",
    "src/slideloom/encoders/virtues/marker_embeddings.py",
}
NETWORK = {
    "socket", "socketserver", "ssl", "http", "urllib", "urllib3", "ftplib", "smtplib", "poplib", "imaplib", "telnetlib",
    "xmlrpc", "requests", "httpx", "aiohttp", "websockets", "paramiko", "boto3", "botocore", "fsspec", "s3fs", "gcsfs",
    "huggingface_hub", "webbrowser",
}  # fmt: skip
#: By module, what of it may be used all the same: texts are quoted, nothing is opened.
HARMLESS = {"urllib": {"urllib.parse"}}
#: Called on objects of PyTorch: they unpickle, or fetch.
TORCH = {"broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "recv_object_list"}
TORCH |= {"load_state_dict_from_url", "download_url_to_file"}
#: Unpack whole archives, wherever their members say.
UNPACK = {"extractall", "extract", "unpack_archive"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call, by its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute; what is called on a value that has no name begins with a dot."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def given(call: ast.Call, name: str) -> object:
    """A keyword's constant; a text ``?`` where it is no constant, None where it is left out."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else "?"
    return None


def faults(source: str, name: str) -> list[str]:
    """What a module does that none may do."""
    tree, found = ast.parse(source), []
    for line, module in imported(tree):
        top = module.split(".")[0]
        if top in PICKLES and not (name in MAY_NAME_PICKLE and module in ("pickle", "pickle.UnpicklingError")):
            found.append(f"line {line}: imports {module}")
        if top in NETWORK and not any(module.startswith(one) for one in HARMLESS.get(top, ())):
            found.append(f"line {line}: imports {module}")
        if module.startswith(("torch.hub", "multiprocessing.connection", "multiprocessing.managers")):
            found.append(f"line {line}: imports {module}")
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = [node for node in attributes if dotted(node.value) == "pickle" and node.attr not in PICKLE_NAMES]
    found += [f"line {node.lineno}: pickle.{node.attr}" for node in used]
    for called, call in calls(tree):
        last = called.split(".")[-1]
        if called in RUNS_TEXT or called.startswith("builtins."):
            found.append(f"line {call.lineno}: {called}()")
        if (
            called in ("os.system", "os.popen", "os.startfile", "pty.spawn", "tempfile.mktemp")
            or last in UNPACK | TORCH
        ):
            found.append(f"line {call.lineno}: {called}()")
        if given(call, "shell") not in (None, False):
            found.append(f"line {call.lineno}: {called}(shell=…)")
        first = call.args[0] if call.args else None
        if called.startswith("subprocess.") and isinstance(first, ast.Constant | ast.JoinedStr):
            found.append(f"line {call.lineno}: {called}() of one text, not of a list")
        if called.startswith("torch.hub.") or (
            last == "create_model" and given(call, "pretrained") not in (None, False)
        ):
            found.append(f"line {call.lineno}: {called}() fetches weights")
        if called == "torch.load" and given(call, "weights_only") is not True:
            found.append(f"line {call.lineno}: torch.load without weights_only=True")
        if last in ("load", "read_array", "memmap") and given(call, "allow_pickle") not in (None, False):
            found.append(f"line {call.lineno}: {called}(allow_pickle=…)")
        if called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all"):
            found.append(f"line {call.lineno}: {called}()")
        if last == "add_safe_globals" or (last == "read_pickle") or (last == "to_pickle"):
            found.append(f"line {call.lineno}: {called}()")
    for node in ast.walk(tree):
        bases = [dotted(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
        if any(base.endswith("Loader") and base.startswith("yaml.") and "Safe" not in base for base in bases):
            found.append(f"line {node.lineno}: a loader of YAML that is not safe")
    return found


def test_no_module_runs_what_it_reads() -> None:
    assert len(SOURCES) > 250
    names = {path.relative_to(REPOSITORY).as_posix(): path for path in SOURCES}
    found = {name: faults(path.read_text(encoding="utf-8"), name) for name, path in names.items()}
    assert {name: told for name, told in found.items() if told} == {}


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "exec(text)", "import pickle", "from pickle import loads", "import marshal", "import requests",
        "from urllib.request import urlopen", "import os\nos.system('ls')", "import subprocess\nsubprocess.run('ls')",
        "subprocess.run(['ls'], shell=True)", "subprocess.run(f'ls {x}', check=True)", "torch.load(place)",
        "torch.load(place, weights_only=False)", "np.load(place, allow_pickle=True)", "yaml.load(text, Loader=x)",
        "archive.extractall(place)", "timm.create_model('x', pretrained=True)", "x.broadcast_object_list(box)",
        "torch.hub.load('a', 'b')", "import huggingface_hub", "class L(yaml.UnsafeLoader): ...", "compile(t, 'x', 'y')",
        "frame.to_pickle(place)", "tempfile.mktemp()", "import socket",
    ],
)  # fmt: skip
def test_each_fault_would_be_seen(source: str) -> None:
    assert faults(source, "src/slideloom/x.py")


def test_pickle_is_named_for_its_error_alone() -> None:
    for name in MAY_NAME_PICKLE:
        source = (REPOSITORY / name).read_text(encoding="utf-8")
        used = {node.attr for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Attribute) and dotted(node.value) == "pickle"}  # fmt: skip
        assert used <= PICKLE_NAMES
    assert "pickle.loads" in str(faults("import pickle\npickle.loads(b'')", "src/slideloom/training/resume.py"))


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_start_no_shell(path: Path) -> None:
    """Wildcards and paths never become words of a command line: every rule runs a script."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(shell|run|wrapper|notebook|cwl)\s*:", text, re.M)
    assert not re.search(r"\b(shell|eval|exec|os\.system|subprocess)\s*\(", text)
    assert "://" not in re.sub(r"#.*", "", text), "nothing is fetched"


def test_templates_mark_nothing_from_outside_as_safe() -> None:
    """All that a template writes is escaped, but a line break of its own and rules of style made of columns' names."""
    folder = REPOSITORY / "src" / "slideloom" / "reports" / "template"
    trusted = []
    for path in sorted(folder.glob("*.j2")):
        text = path.read_text(encoding="utf-8")
        assert "autoescape" not in text
        trusted += [found.strip() for found in re.findall(r"\{\{-?([^{}]*\|\s*safe\b[^{}]*)-?\}\}", text)]
    assert sorted(trusted) == ['"<br>" | safe if not loop.last', "group_rules | safe"]

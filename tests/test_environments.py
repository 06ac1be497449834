"""One set of pins: what the lock says, what is installed, the conda environment and the container recipes."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CONTAINER = ROOT / "envs" / "container"
#: Of pip: fetches nothing that the locks do not name, digest and all.
PIP = [
    "pip install --require-hashes --requirement requirements-pip.lock",
    "pip install --require-hashes --requirement requirements.lock",
    "pip install --no-deps --no-build-isolation --editable .",
]
#: Every lock file, and the options that may stand in it.
LOCKS = {
    "requirements-pip.lock": [],
    "requirements.lock": ["--constraint requirements-cuda.lock"],
    "requirements-dev.lock": [],
    "requirements-readers.lock": [],
    "requirements-cuda.lock": [],
}


def _requirements(text: str) -> list[str]:
    """Lines of a lock file as pip takes them: continued ones joined, comments left out."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


def _pins(text: str) -> dict[str, str]:
    """Versions by package of lines ``name==version``, with or without digests; any other line is an error."""
    pins = {}
    for line in _requirements(text):
        if line.startswith("--"):
            continue
        name, version = line.split()[0].split("==")
        assert str(Version(version)), line
        pins[canonicalize_name(name)] = version
    return pins


LOCK = _pins((ROOT / "requirements.lock").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "envs" / "slideloom.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("envs_write", ROOT / "envs" / "write.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_the_digest_of_every_file(lock: str) -> None:
    lines = _requirements((ROOT / lock).read_text())
    assert [line for line in lines if line.startswith("-")] == LOCKS[lock]
    pins = [line.split() for line in lines if not line.startswith("-")]
    assert len({canonicalize_name(pin.split("==")[0]) for pin, *_ in pins}) == len(pins) > 0
    for pin, *digests in pins:
        assert digests, f"{pin}: pip would refuse to install it"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in digests), pin
        assert len(set(digests)) == len(digests)


def test_the_cuda_lock_holds_nothing_of_the_run(environment: dict[str, Any]) -> None:
    assert not set(_pins((ROOT / "requirements-cuda.lock").read_text())) & set(LOCK)


def test_every_install_of_the_makefile_asks_for_digests() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert len(lines) >= 7
    for line in lines:
        assert "--require-hashes" in line or "--no-deps --no-build-isolation --editable ." in line, line


def test_the_conda_environment_pins_what_the_lock_pins(environment: dict[str, Any]) -> None:
    python, pip, further = environment["dependencies"]
    assert pip == "pip"
    assert _pins("\n".join(further["pip"])) == LOCK
    assert set(environment) == {"channels", "dependencies"}
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    name, version = python.split("=")
    assert (name, version) == ("python", "3.11")
    assert Version(version) in SpecifierSet(PROJECT["project"]["requires-python"])


def test_the_conda_environment_is_as_written(writer: ModuleType) -> None:
    assert writer.PLACE.read_text() == writer.environment(writer.LOCK.read_text()), "python envs/write.py"
    renewed = writer.environment(
        "# what a run needs\n--constraint x\nnumpy==9.9.9 \\\n    --hash=sha256:ab\n\nzarr==9.1\n"
    )
    assert yaml.safe_load(renewed)["dependencies"][-1] == {"pip": ["numpy==9.9.9", "zarr==9.1"]}


def test_the_rules_name_the_environment(environment: dict[str, Any]) -> None:
    rules = ROOT / "workflow" / "rules"
    assert 'ENV = str(BASE / "envs/slideloom.yaml")' in (rules / "common.smk").read_text()
    for path in rules.glob("*.smk"):
        text = path.read_text()
        assert len(re.findall(r"^rule ", text, re.M)) == len(re.findall(r"^ {4}conda:\n {8}ENV$", text, re.M)), path


@pytest.mark.parametrize("requirement", PROJECT["project"]["dependencies"])
def test_the_lock_meets_what_the_package_asks_for(requirement: str) -> None:
    asked = Requirement(requirement)
    assert Version(LOCK[canonicalize_name(asked.name)]) in asked.specifier


def test_the_locks_do_not_contradict_each_other() -> None:
    dev = _pins((ROOT / "requirements-dev.lock").read_text())
    pip = _pins((ROOT / "requirements-pip.lock").read_text())
    assert set(pip) == {"pip"}
    assert dev["pip"] == pip["pip"]
    assert {name: version for name, version in dev.items() if LOCK.get(name, version) != version} == {}
    for requirement in PROJECT["project"]["optional-dependencies"]["dev"]:
        asked = Requirement(requirement)
        name = canonicalize_name(asked.name)
        assert Version((dev | LOCK)[name]) in asked.specifier


def test_what_is_installed_is_what_the_lock_pins() -> None:
    if not (Path(sys.prefix) / ".run-installed").is_file():
        pytest.skip("not an environment that make set up")
    # The local part names a build, such as +cpu, which the machine chooses.
    found = {name: metadata.version(name).partition("+")[0] for name in LOCK}
    assert {name: version for name, version in found.items() if version != LOCK[name]} == {}


def _docker() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and their arguments, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (CONTAINER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(word, rest) for word, rest in lines]


def _apptainer() -> dict[str, list[str]]:
    """Lines of the Apptainer recipe by section; its head stands under an empty name."""
    sections: dict[str, list[str]] = {"": []}
    section = ""
    for line in (CONTAINER / "slideloom.def").read_text().splitlines():
        if line.startswith("%"):
            section = line[1:]
            sections[section] = []
        elif line.strip() and not line.strip().startswith("#"):
            sections[section].append(line.strip())
    return sections


def _commands(text: str) -> list[str]:
    return [part.strip() for part in re.sub(r"\s+", " ", text).split("&&")]


def test_both_recipes_start_from_the_python_of_the_environment(environment: dict[str, Any]) -> None:
    python = environment["dependencies"][0].split("=")[1]
    ((base,),) = [(rest,) for word, rest in _docker() if word == "FROM"]
    head = dict(line.split(": ") for line in _apptainer()[""])
    assert head == {"Bootstrap": "docker", "From": base}
    assert re.fullmatch(rf"python:{re.escape(python)}-slim-\w+", base)


def test_both_recipes_install_the_lock_and_nothing_else() -> None:
    docker = [command for word, rest in _docker() if word == "RUN" for command in _commands(rest)]
    apptainer = _apptainer()["post"]
    for commands in (docker, apptainer):
        assert [command for command in commands if re.search(r"\b(pip|conda|curl|wget|git)\b", command)] == PIP
    installed = [[one for one in commands if "apt-get install" in one] for commands in (docker, apptainer)]
    assert installed[0] == installed[1] != []


def test_both_recipes_hold_the_same_files_and_all_there_are() -> None:
    docker = {name for word, rest in _docker() if word == "COPY" for name in rest.split()[:-1]}
    apptainer = dict(line.split() for line in _apptainer()["files"])
    assert docker == set(apptainer)
    assert all(place == f"/opt/slideloom/{name}" for name, place in apptainer.items())
    assert all((ROOT / name).exists() for name in docker)
    needed = {"src", "workflow", "Snakefile", "config", "profiles", "envs", "requirements.lock", "pyproject.toml"}
    needed |= {"requirements-cuda.lock", "requirements-pip.lock"}
    needed |= {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert docker == needed
    # What the build is given holds all of them, and of a checkout's gigabytes nothing else.
    ignored = (CONTAINER / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == docker


def test_the_page_builds_from_these_files() -> None:
    page = (ROOT / "envs" / "README.md").read_text()
    for command in re.findall(r"^(?:docker|apptainer) build .*$", page, re.M):
        names = [word for word in shlex.split(command.partition("#")[0]) if word.startswith("envs/")]
        assert names
        assert all((ROOT / name).is_file() for name in names)

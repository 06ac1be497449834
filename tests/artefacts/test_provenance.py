"""What computed an artefact: true of this process, of a GPU and of its children, and no part of any key."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideloom._version import __version__
from slideloom.artefacts import provenance
from slideloom.artefacts.paths import Paths

SOURCE = Path(provenance.__file__).resolve().parents[2]


def _torch(name: str, *, initialized: bool) -> Any:
    cuda = SimpleNamespace(is_initialized=lambda: initialized, get_device_name=lambda: name)
    return SimpleNamespace(cuda=cuda)


def test_versions_are_those_installed() -> None:
    found = provenance.installed_versions()
    assert found["slideloom"] == __version__
    assert found["python"] == platform.python_version()
    assert {"numpy", "torch", "zarr"} <= found.keys()
    assert all(found[name] == metadata.version(name) for name in found.keys() - {"slideloom", "python"})
    found["numpy"] = "changed by a caller"
    assert provenance.installed_versions()["numpy"] == metadata.version("numpy")


def test_what_is_written_is_json_of_this_host() -> None:
    made = provenance.made_here({"training.seed": 3})
    assert json.loads(json.dumps(made)) == made
    assert made["host"] == platform.node()
    assert made["seeds"] == {"training.seed": 3}
    assert "seeds" not in provenance.made_here()
    assert provenance.made_here() == provenance.made_here({})


def test_it_is_noted_without_importing_torch() -> None:
    program = (
        "import json, sys; from slideloom.artefacts.provenance import made_here; "
        "print(json.dumps([made_here()['device'], 'torch' in sys.modules, 'numpy' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCE)}
    )
    assert json.loads(done.stdout) == ["cpu", False, False]


@pytest.mark.parametrize(
    ("initialized", "children", "device"),
    [
        (False, 0, "cpu"),
        (True, 0, "NVIDIA X"),
        (True, 1, "NVIDIA X"),
        (False, 1, "NVIDIA X"),
        (False, 4, "4 x NVIDIA X"),
    ],
)
def test_a_gpu_counts_when_it_was_used(
    monkeypatch: pytest.MonkeyPatch, initialized: bool, children: int, device: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", _torch("NVIDIA X", initialized=initialized))
    monkeypatch.setattr(provenance, "_gpus_of_children", 0)
    if children:
        provenance.note_gpus(children)
    assert provenance.device_in_use() == device


def test_the_most_gpus_of_several_launches_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", _torch("NVIDIA X", initialized=False))
    monkeypatch.setattr(provenance, "_gpus_of_children", 0)
    for count in (2, 3, 1):
        provenance.note_gpus(count)
    assert provenance.device_in_use() == "3 x NVIDIA X"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["seed", "random", "a", "b"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def _at(value: Any, place: str) -> Any:
    for part in place.split("."):
        value = value[part] if isinstance(value, Mapping) else value[int(part)]
    return value


def _count(value: Any) -> int:
    if isinstance(value, Mapping):
        mine = sum(type(inner) is int for key, inner in value.items() if key in ("seed", "random"))
        return mine + sum(_count(inner) for inner in value.values())
    return sum(_count(inner) for inner in value) if isinstance(value, list) else 0


@given(_VALUES)
def test_every_seed_is_found_at_its_place(config: Any) -> None:
    found = provenance.seeds_of(config)
    assert len(found) == _count(config)
    assert all(_at(config, place) == seed and type(seed) is int for place, seed in found.items())


@pytest.mark.parametrize(
    ("record", "account"),
    [
        (("maps", "sp/0", "4-1"), "maps/sp/0/4-1.json"),
        (("train", "sp", "0"), "train/sp/0.json"),
        (("splits", "", "holdout"), "splits/holdout.json"),
        (("bands", "sp/0/3", "1-0"), "bands/sp/0/3/1-0.json"),
    ],
)
def test_an_account_lies_beside_the_benchmark_of_the_job_that_writes_the_record(
    tmp_path: Path, record: tuple[str, str, str], account: str
) -> None:
    paths = Paths(tmp_path)
    found = paths.account_of(paths.job_record(*record))
    assert found == paths.root / "benchmarks" / account == paths.benchmark(*record).with_suffix(".json")

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from slideloom.cli import surroundings
from slideloom.cli.disk_estimate import Share
from slideloom.cli.surroundings import disk, gpu, readable, weights
from slideloom.slides.study import load_study


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (12_345_678, "12 MB"), (9.96e9, "10 GB"), (2e15, "2000 TB")],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert readable(size) == text


# ---- disk ------------------------------------------------------------------------------------------------------------


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    usage = SimpleNamespace(free=size)
    monkeypatch.setattr(surroundings.shutil, "disk_usage", lambda place: usage)


SHARES = [Share("patches", "sp64", 600, 600), Share("embeddings", "mm", 900, 400), Share("maps", "sp", 50, 0)]


@pytest.mark.parametrize(("size", "state"), [(999, "wrong"), (1000, "note"), (1249, "note"), (1250, "fine")])
def test_the_disk_must_hold_what_is_left_to_write(
    study: Path, monkeypatch: pytest.MonkeyPatch, size: int, state: str
) -> None:
    free(monkeypatch, size)
    (found,) = disk(load_study(study), SHARES)
    assert found.state == state
    assert "about 1 kB are to be written below results" in found.text
    assert "in all 1.6 kB: embeddings 900 bytes, patches 600 bytes, maps 50 bytes" in found.text
    assert bool(found.hint) == (state != "fine")


def test_the_disk_is_that_of_the_nearest_folder_that_exists(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(free=1 << 40)

    monkeypatch.setattr(surroundings.shutil, "disk_usage", usage)
    study.write_text(study.read_text() + "results: a/b/c\n")
    Path("a").mkdir()
    disk(load_study(study), SHARES)
    assert asked == [Path.cwd() / "a"]


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_there_or_not_whole(study: Path) -> None:
    Path("vit.pth").write_bytes(b"PK\x03\x04 cut short")
    study.write_text(study.read_text().replace("random: 0", "checkpoint: vit.pth"))
    (found,) = weights(load_study(study), digest=False)
    assert found.state == "wrong"
    assert found.text.startswith("encoders.vit.checkpoint: vit.pth ")
    assert found.hint


def test_no_weights_are_needed(study: Path) -> None:
    text = study.read_text()
    study.write_text("".join(line for line in text.splitlines(True) if not line.startswith(("  vit:", "  he:"))))
    assert [(one.state, one.text) for one in weights(load_study(study), digest=False)] == [("fine", "none are needed")]


def test_a_seed_in_place_of_weights_is_told(study: Path) -> None:
    (found,) = weights(load_study(study), digest=False)
    assert found.state == "note"
    assert "encoders.vit: runs WITHOUT WEIGHTS (random: 0)" in found.text


# ---- GPU -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def nvidia_smi(folder: Path, answer: str, code: int = 0) -> None:
    place = folder / "nvidia-smi"
    place.write_text(f"#!{sys.executable}\nimport sys\nprint({answer!r})\nsys.exit({code})\n")
    place.chmod(0o755)


def torch_that_sees(monkeypatch: pytest.MonkeyPatch, count: int, cuda: str | None) -> None:
    fake = SimpleNamespace(
        __version__="2.13.0",
        __spec__=SimpleNamespace(),
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count),
    )
    monkeypatch.setitem(sys.modules, "torch", fake)


def test_a_machine_without_a_driver_runs_on_the_cpu(programs: Path) -> None:
    (found,) = gpu()
    assert found.state == "note"
    assert "nvidia-smi is not on PATH" in found.text
    assert "runs on the CPU" in found.text
    assert "login node" in found.hint


@pytest.mark.parametrize(
    ("count", "cuda", "state", "words"),
    [
        (2, "13.0", "fine", "2 × NVIDIA H100 of 80 GB, driver 580.65; PyTorch 2.13.0 (CUDA 13.0) sees 2"),
        (0, "13.0", "note", "(CUDA 13.0) does not see it"),
        (0, None, "note", "is built for the CPU"),
    ],
)
def test_gpus_that_pytorch_sees_or_does_not(
    programs: Path, monkeypatch: pytest.MonkeyPatch, count: int, cuda: str | None, state: str, words: str
) -> None:
    nvidia_smi(programs, "NVIDIA H100, 81559, 580.65\nNVIDIA H100, 81559, 580.65")
    torch_that_sees(monkeypatch, count, cuda)
    (found,) = gpu()
    assert found.state == state
    assert words in found.text
    assert bool(found.hint) == (state != "fine")


def test_a_driver_that_does_not_answer(programs: Path) -> None:
    nvidia_smi(programs, "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver", code=9)
    (found,) = gpu()
    assert found.state == "note"
    assert "could not communicate" in found.text


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no NVIDIA driver here")
def test_a_real_gpu() -> None:
    (found,) = gpu()
    assert "driver" in found.text

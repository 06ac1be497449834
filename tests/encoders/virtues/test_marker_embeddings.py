"""Protein embeddings from a folder and from one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slideloom.encoders.virtues.marker_embeddings import digest_vectors, read_marker_embeddings
from slideloom.errors import SlideloomError

IDS = ("P08575", "P08575-4", "P01732")


@pytest.fixture
def vectors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(640, generator=generator) for name in IDS}


@pytest.fixture
def folder(tmp_path: Path, vectors: dict[str, Tensor]) -> Path:
    place = tmp_path / "vectors"
    place.mkdir()
    for name, vector in vectors.items():
        torch.save(vector, place / f"{name}.pt")
    return place


@pytest.fixture
def file(tmp_path: Path, vectors: dict[str, Tensor]) -> Path:
    save_file(vectors, tmp_path / "vectors.safetensors")
    return tmp_path / "vectors.safetensors"


def test_folder_and_file_give_the_same(folder: Path, file: Path, vectors: dict[str, Tensor]) -> None:
    for place in (folder, file):
        read = read_marker_embeddings(place, ["P01732", "P08575-4", "Q15116", "P01732"])
        assert (read.ids, read.missing) == (("P01732", "P08575-4"), ("Q15116",))
        assert torch.equal(read.vectors, torch.stack([vectors["P01732"], vectors["P08575-4"]]))
        assert read_marker_embeddings(place, ["Q15116"]).vectors.shape == (0, 640)
        assert read_marker_embeddings(place, ["../vectors/P01732", ""]).missing == ("../vectors/P01732", "")


def test_digest_is_of_the_content(folder: Path, file: Path, vectors: dict[str, Tensor]) -> None:
    whole = digest_vectors(folder, IDS)
    assert whole == digest_vectors(file, [*reversed(IDS), "Q15116"])
    assert whole != digest_vectors(folder, IDS[:2])
    torch.save(vectors["P01732"] + 1e-6, folder / "P01732.pt")
    assert whole != digest_vectors(folder, IDS)
    assert digest_vectors(folder, IDS[:2]) == digest_vectors(file, IDS[:2])


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("was-run",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.zeros(1, 640), r"\(1, 640\)"),
        (torch.zeros(320), r"\(320,\)"),
        (torch.zeros(640, dtype=torch.float16), "float16"),
        (torch.zeros(640, dtype=torch.int64), "int64"),
        (torch.full((640,), float("nan")), "not finite"),
        ({"vector": torch.zeros(640)}, "dict"),
    ],
)
def test_what_is_no_embedding_is_refused(folder: Path, content: Any, told: str) -> None:
    torch.save(content, folder / "P01732.pt")
    with pytest.raises(SlideloomError, match=told) as caught:
        read_marker_embeddings(folder, IDS)
    assert str(folder / "P01732.pt") in str(caught.value)
    assert caught.value.code == "marker_embeddings"
    read_marker_embeddings(folder, IDS[:2])


def test_the_place_in_a_file_is_named(tmp_path: Path) -> None:
    save_file({"P01732": torch.zeros(639)}, tmp_path / "v.safetensors")
    with pytest.raises(SlideloomError, match=r"v\.safetensors: P01732 holds \(639,\)"):
        read_marker_embeddings(tmp_path / "v.safetensors", ["P01732"])


def test_damaged_files_are_refused(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Runs(), folder / "P01732.pt")
    with pytest.raises(SlideloomError, match=r"P01732\.pt") as caught:
        read_marker_embeddings(folder, IDS)
    assert caught.value.code == "unsafe_checkpoint"
    assert not (tmp_path / "was-run").exists()
    whole = (folder / "P08575.pt").read_bytes()
    (folder / "P01732.pt").write_bytes(whole[: len(whole) // 2])
    file.write_bytes(file.read_bytes()[:-100])
    for place in (folder, file):
        with pytest.raises(SlideloomError, match="not a whole file") as caught:
            read_marker_embeddings(place, IDS)
        assert caught.value.code == "marker_embeddings"


def test_other_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vectors.npy").touch()
    for name, told in (("vectors.npy", "is no safetensors file"), ("nowhere", "does not exist")):
        with pytest.raises(SlideloomError, match=told) as caught:
            read_marker_embeddings(tmp_path / name, IDS)
        assert caught.value.code == "marker_embeddings"


def test_real_embeddings(shared: Path) -> None:
    place = shared / "fixtures" / "virtues" / "orion_esm2_150M.safetensors"
    read = read_marker_embeddings(place, list(load_file(place)))
    norms = read.vectors.norm(dim=1)
    assert len(read.ids) == 17
    assert 4 < norms.min() <= norms.max() < 8

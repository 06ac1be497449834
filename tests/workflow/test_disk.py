"""A disk that fills up and a quota that is used up: told clearly, nothing corrupt, gone on with when there is room."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from slideloom.artefacts.files import FullDiskError, publish, read_json
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import Stage
from slideloom.artefacts.zarrio import open_array, write_array
from slideloom.encoders.embedding.token_writer import SlideWriter, TokenArray

from .conftest import Workspace, run_once
from .disturb import Disk
from .undisturbed import content, differences, run_undisturbed, write_study

_RNG = np.random.default_rng(5)


def _noise(kib: int) -> np.ndarray[Any, Any]:
    return _RNG.integers(0, 256, kib * 1024, dtype=np.uint8)


def _store(draft: Path, kib: int) -> None:
    write_array(draft, _noise(kib))


def _table(draft: Path, kib: int) -> None:
    pq.write_table(pa.table({"a": _noise(kib).view(np.int32)}), draft, compression="none", use_dictionary=False)


def _weights(draft: Path, kib: int) -> None:
    save_file({"a": _noise(kib)}, draft)


def _state(draft: Path, kib: int) -> None:
    torch.save(torch.from_numpy(_noise(kib)), draft)


def _plain(draft: Path, kib: int) -> None:
    draft.write_bytes(_noise(kib).tobytes())


@pytest.mark.parametrize("write", [_store, _table, _weights, _state, _plain])
def test_what_lay_there_before_the_disk_was_full_lies_there_after(
    disk: Disk, write: Callable[[Path, int], None]
) -> None:
    place = disk.place / "artefact.bin"
    with publish(place) as draft:
        write(draft, 100)
    before = content(disk.place)
    with pytest.raises(FullDiskError, match=r"artefact\.bin: .*Make room") as caught, publish(place) as draft:
        write(draft, 4096)
    assert caught.value.code == "disk_full"
    assert caught.value.errno == errno.ENOSPC
    assert content(disk.place) == before  # content() refuses drafts
    disk.resize(8192)
    with publish(place) as draft:
        write(draft, 4096)
    assert sum(path.stat().st_size for path in disk.place.rglob("*") if path.is_file()) > 4_000_000


def _made_by_publish(paths: Paths, slide: str) -> list[Path]:
    place = paths.patches("grid", slide)
    with publish(place) as draft:
        write_array(draft, _noise(400))
    return [place]


def _made_by_a_writer(paths: Paths, slide: str) -> list[Path]:
    """As tokens are: the library's error does not pass through ``publish``."""
    place = paths.embeddings("encoder", slide)
    array = TokenArray(0, 0)
    shape = (1, 1, 1, 200 * 1024)
    writer = SlideWriter(place, shape, [array])
    try:
        writer.add({array: _noise(400).view(np.uint8).astype(np.float16)[: shape[-1]].reshape(shape)})
        writer.finish({"blocks": [0], "symmetries": False})
    except Exception:
        writer.abandon()
        raise
    return [place]


@pytest.mark.parametrize("make", [_made_by_publish, _made_by_a_writer])
def test_a_full_disk_ends_the_job_not_the_slide_and_the_rest_is_made_when_there_is_room(
    disk: Disk, make: Callable[[Paths, str], list[Path]]
) -> None:
    paths = Paths(disk.place)
    worked: list[str] = []
    job_record = paths.job_record("stage", "", "0")

    def work(slide: str) -> Iterable[Path]:
        worked.append(slide)
        return make(paths, slide)

    stage = Stage(name="stage", context="", paths=paths, params="{}")
    with pytest.raises(FullDiskError):
        stage.run(["a", "b", "c", "d"], work, job_record)
    assert worked == ["a", "b", "c"]
    assert not job_record.exists()
    assert [paths.record("stage", "", slide).exists() for slide in "abcd"] == [True, True, False, False]
    assert [path.name for path in disk.place.rglob(".draft-*")] == []

    disk.resize(8192)
    worked.clear()
    states = stage.run(["a", "b", "c", "d"], work, job_record)
    assert worked == ["c", "d"]
    assert {state.status for state in states.values()} == {"ok"}
    for slide in "abcd":
        body = read_json(paths.record("stage", "", slide))
        folder = disk.place / body["outputs"][0]
        array = folder if (folder / "c").is_dir() else next(folder.glob("*/zarr.json")).parent
        assert open_array(array).read().result().any()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The study on a disk with room for it."""
    return run_once(tmp_path_factory, worker_id, "undisturbed", run_undisturbed)


@pytest.mark.workflow
@pytest.mark.slow
def test_a_study_whose_disk_fills_up_goes_on_when_there_is_room(
    undisturbed: Workspace, disk: Disk, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study", undisturbed.folder / "cohort")
    study.edit("results", value=str(disk.place / "results"))
    results = disk.place / "results"
    used = sum(path.stat().st_size // 4096 + 1 for path in undisturbed.results.rglob("*") if path.is_file()) * 4
    disk.resize(used // 2)
    done = study.run(check=False)
    assert done.returncode != 0
    assert "no space left on device" in (done.stdout + done.stderr).lower()
    assert not (results / "reports" / "slides.parquet").exists()

    disk.resize(used * 4)
    study.run()
    assert differences(content(undisturbed.results), content(results)) == []

"""Broken stores: told where they are read, named, and mended by giving the same command again."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest

from slideloom.artefacts import broken, files
from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.artefacts.files import FullDiskError
from slideloom.artefacts.keys import digest_tree
from slideloom.workflow.upkeep import find_broken, forget, forget_broken_records

from .kinds import Kind, check_shape
from .mini_study import MiniStudy, whole
from .stores import KINDS, one_shard


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what the reading stage makes of stores that nobody has touched."""
    study = MiniStudy(tmp_path_factory.mktemp("whole"))
    study.write_images()
    assert {state.status for state in study.run().values()} == {"ok"}
    return _made(study)


def _made(study: MiniStudy) -> dict[str, str]:
    return {path.name: digest_tree(path) for path in (study.paths.root / "reader").glob("*.json")}


def _read_anew(study: MiniStudy) -> None:
    """As if the reading stage had not run yet."""
    shutil.rmtree(study.paths.root / "reader")
    shutil.rmtree(study.paths.root / "state" / "reader")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_broken_is_told_and_the_next_run_mends_it(
    kind: Kind, tmp_path: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind.make(tmp_path)
    study = MiniStudy(tmp_path)
    _read_anew(study)
    seen: list[BrokenArtefactError] = []
    keep = BrokenArtefactError.__init__

    def watched(self: BrokenArtefactError, *args: object, **kwargs: object) -> None:
        keep(self, *args, **kwargs)  # type: ignore[arg-type]
        seen.append(self)

    monkeypatch.setattr(BrokenArtefactError, "__init__", watched)
    if kind.answer in ("failed", "accepted"):
        states = study.read()
        assert states["b"].status == "ok", "the other slide goes on"
        if kind.answer == "accepted":
            assert states["a"].status == "ok"
            assert _made(study) == wanted
            assert forget_broken_records(study.records, study.paths.root) == []
            return
        assert (states["a"].status, states["a"].code, states["a"].stage) == ("failed", kind.code, kind.stage)
        assert re.search(kind.says, states["a"].message), states["a"].message
        assert str(tmp_path) not in states["a"].message, "results hold no place of the machine"
        assert (study.paths.root / states["a"].artefact).is_relative_to(study.paths.root)
        check_shape(seen[-1], names=("a",))
        assert len(states["a"].message) < 400
    notes = forget_broken_records(study.records, study.paths.root)
    assert notes
    if kind.answer == "warned":
        assert re.search(kind.says, " ".join(notes)), notes
    states = study.run()
    assert {state.status for state in states.values()} == {"ok"}
    assert _made(study) == wanted
    assert forget_broken_records(study.records, study.paths.root) == []
    assert list(find_broken(study.records, study.paths.root)) == []
    remade = {one for one in study.worked if one[0] != "reader"}
    assert len(remade) <= 1, "what was broken, and nothing else"
    assert {slide for _, slide in remade} <= {"a"}
    if kind.name == "store_linked_elsewhere":
        assert (tmp_path / "elsewhere" / "theirs.txt").read_text() == "not ours to touch"
        assert not study.paths.patches("g", "a").is_symlink()
    study.run()
    assert study.worked == []


@pytest.fixture
def study(tmp_path: Path) -> MiniStudy:
    """Whole stores that nobody has read yet."""
    shutil.copytree(whole(), tmp_path, dirs_exist_ok=True)
    return MiniStudy(tmp_path)


def test_bytes_that_nobody_checks_are_found_by_reading_and_not_taken_over(study: MiniStudy) -> None:
    """Tokens as many as there were, but others: a store that is made again takes whole arrays over from the older."""
    shard = one_shard(study.paths.embeddings("e", "a"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 4] ^= 4
    shard.write_bytes(bytes(raw))
    assert list(find_broken(study.records, study.paths.root, quick=True)) == []
    (found,) = find_broken(study.records, study.paths.root)
    assert (found.stage, found.item) == ("embeddings", "a")
    forget([found])
    before = digest_tree(study.paths.embeddings("e", "b"))
    study.run()
    assert list(find_broken(study.records, study.paths.root)) == []
    assert digest_tree(study.paths.embeddings("e", "b")) == before
    assert shard.read_bytes() != bytes(raw)


def test_a_full_disk_ends_the_job_and_leaves_nothing_half_written(
    study: MiniStudy, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _read_anew(study)
    put = files._put
    with monkeypatch.context() as patched:
        patched.setattr(files, "_put", _full)
        with pytest.raises(FullDiskError) as caught:
            study.read()
    assert files._put is put
    check_shape(caught.value)
    assert caught.value.code == "disk_full"
    assert [path.name for path in study.paths.root.rglob(".draft*")] == []
    study.read()
    assert _made(study) == wanted


def _full(draft: Path, place: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_of_another_folder_is_no_broken_artefact(tmp_path: Path) -> None:
    said = f'DATA_LOSS: Error in local file "{tmp_path / "elsewhere" / "c" / "0"}": Digest mismatch'
    assert broken.told_broken(ValueError(said), tmp_path / "results") is None
    found = broken.told_broken(ValueError(said), tmp_path)
    assert found is not None
    assert found.place == tmp_path / "elsewhere" / "c" / "0"
    assert broken.told_broken(OSError(said), tmp_path) is None


def test_an_error_of_a_broken_artefact_survives_pickling(tmp_path: Path) -> None:
    for kind in (broken.BrokenArtefactError, broken.MissingArtefactError):
        error = kind("it is broken", place=tmp_path / "x.zarr", where="s1", expected="whole")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.place, again.code) == (kind, str(error), error.place, error.code)

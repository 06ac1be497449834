import ctypes
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slideloom.artefacts import files
from slideloom.artefacts.files import (
    FullDiskError,
    publish,
    read_json,
    scratch_beside,
    system_error,
    write_json,
    write_text,
)
from slideloom.errors import SlideError, SlideloomError


def _write_store(place: Path, text: str) -> None:
    with publish(place) as draft:
        draft.mkdir()
        for name in ("one", "two"):
            (draft / name).write_text(text)


def test_a_failed_draft_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    place = tmp_path / "a" / "table.json"
    write_json(place, {"n": 1})
    with pytest.raises(RuntimeError, match="stop"), publish(place) as draft:
        draft.write_text("half")
        raise RuntimeError("stop")
    assert read_json(place) == {"n": 1}
    assert [path.name for path in place.parent.iterdir()] == ["table.json"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:  # as on NFS
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    place = tmp_path / "store.zarr"
    for names in (["old", "both"], ["new", "both"]):
        with publish(place) as draft:
            draft.mkdir()
            for name in names:
                (draft / name).touch()
    assert sorted(path.name for path in place.iterdir()) == ["both", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("kind", ["file", "link", "link to nothing"])
def test_a_folder_takes_the_place_of_a_file_and_of_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    place, elsewhere = tmp_path / "results" / "store.zarr", tmp_path / "elsewhere"
    place.parent.mkdir()
    if kind == "file":
        place.write_text("no store")
    else:
        place.symlink_to(elsewhere)
    if kind == "link":
        elsewhere.mkdir()
        (elsewhere / "one").write_text("theirs")
    _write_store(place, "new")
    assert not place.is_symlink()
    assert (place / "one").read_text() == "new"
    assert [path.name for path in place.parent.iterdir()] == ["store.zarr"]
    if kind == "link":
        assert (elsewhere / "one").read_text() == "theirs"


def test_a_file_where_a_folder_belongs_is_named(tmp_path: Path) -> None:
    (tmp_path / "patches").write_text("a file")
    for place in (tmp_path / "patches" / "a.zarr", tmp_path / "patches" / "g" / "a.zarr"):
        with pytest.raises(SlideError, match="a file lies where a folder belongs") as caught:
            _write_store(place, "new")
        assert (caught.value.code, caught.value.where) == ("not_a_folder", str(tmp_path / "patches"))
    assert (tmp_path / "patches").read_text() == "a file"


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_block_that_makes_nothing_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    place = tmp_path / "store.zarr"
    _write_store(place, "old")
    with pytest.raises(FileNotFoundError), publish(place):
        pass
    assert (place / "one").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_many_writers_of_one_folder_leave_one_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    """A job that outlived its Snakemake and the one that was started in its place."""
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    place = tmp_path / "store.zarr"
    raised: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(30):
                _write_store(place, text)
        except BaseException as error:
            raised.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert raised == []
    assert len({path.read_text() for path in place.iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


def test_while_a_folder_is_replaced_there_is_always_one(tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this system cannot exchange two folders")
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    if not files._exchange(one, other):
        pytest.skip(f"the filesystem of {tmp_path} cannot exchange two folders")
    place = tmp_path / "store.zarr"
    _write_store(place, "0")
    lost: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                (place / "two").read_text()
            except FileNotFoundError:
                lost.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        _write_store(place, str(number))
    stop.set()
    reader.join()
    assert lost == []


def test_a_draft_keeps_the_suffix(tmp_path: Path) -> None:
    with publish(tmp_path / "labels.ome.zarr") as draft:
        assert draft.name.endswith("labels.ome.zarr")
        draft.mkdir()


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="not an object"):
        read_json(tmp_path / "x.json")


# ---- what killed processes leave -------------------------------------------------------------------------------------

_HANGING = """
import sys, time
from pathlib import Path
from slideloom.artefacts.files import publish, scratch_beside
with publish(Path(sys.argv[1])) as draft, scratch_beside(Path(sys.argv[1])) as scratch:
    draft.mkdir()
    (scratch / "half").write_text("x")
    (draft / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def _hanging_writer(place: Path) -> subprocess.Popen[str]:
    source = str(Path(files.__file__).parents[2])
    writer = subprocess.Popen(
        [sys.executable, "-c", _HANGING, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were a new one."""
    monkeypatch.setattr(files, "_swept", set())


def test_the_draft_of_a_killed_process_goes_and_that_of_a_living_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _hanging_writer(tmp_path / "store.zarr")
    try:
        write_text(tmp_path / "other.txt", "x")
        assert len(list(tmp_path.glob(".draft-*-store.zarr/half"))) == 1
        assert len(list(tmp_path.glob(".draft-*-scratch/half"))) == 1
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    _forget(monkeypatch)
    write_text(tmp_path / "other.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_a_scratch_folder_goes_with_its_block_however_it_ends(tmp_path: Path) -> None:
    place = tmp_path / "slide" / "labels.zarr"
    with scratch_beside(place) as one, scratch_beside(place) as other:
        (one / "half").write_text("x")
        assert one != other
        assert one.parent == other.parent == place.parent
    with pytest.raises(RuntimeError, match="stop"), scratch_beside(place) as one:
        (one / "folder").mkdir()
        raise RuntimeError("stop")
    assert list(place.parent.iterdir()) == []


def test_drafts_of_other_machines_go_when_nobody_has_touched_them_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = time.time() - 8 * 86_400
    for name, inside in (("old", long_ago), ("new", time.time())):
        draft = tmp_path / f".draft-00000000-1-12345678-{name}.zarr"
        draft.mkdir()
        (draft / "chunk").touch()
        os.utime(draft / "chunk", (inside, inside))
        os.utime(draft, (long_ago, long_ago))
    keep = tmp_path / ".draft-of-a-letter.txt"
    keep.touch()
    os.utime(keep, (long_ago, long_ago))
    _forget(monkeypatch)
    write_text(tmp_path / "x.txt", "x")
    names = {".draft-00000000-1-12345678-new.zarr", ".draft-of-a-letter.txt", "x.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names


# ---- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "anything"), "disk_full"),
        (OSError(errno.EDQUOT, "anything"), "quota"),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']"), "disk_full"),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write: Disk quota exceeded [os_error_code='122']"), "quota"),
    ],
)
def test_a_full_disk_is_told_as_such_whoever_met_it(tmp_path: Path, error: Exception, code: str) -> None:
    place = tmp_path / "store.zarr"
    _write_store(place, "old")
    with pytest.raises(FullDiskError, match=r"store\.zarr: .*Make room") as caught, publish(place) as draft:
        draft.mkdir()
        raise error
    assert caught.value.code == code
    assert caught.value.errno == {"disk_full": errno.ENOSPC, "quota": errno.EDQUOT}[code]
    assert isinstance(caught.value, SlideloomError)
    assert not isinstance(caught.value, SlideError)
    assert (place / "two").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


def test_the_error_survives_pickling(tmp_path: Path) -> None:
    error = FullDiskError(tmp_path / "x", errno.EDQUOT)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.errno, copy.code) == (str(error), error.errno, error.code)


def test_faults_of_the_slide_are_not_the_machines(tmp_path: Path) -> None:
    for error in (ValueError("no"), SlideError("no"), FileNotFoundError(errno.ENOENT, "no"), RuntimeError("no")):
        assert system_error(error, tmp_path) is None
        with pytest.raises(type(error), match="no") as caught, publish(tmp_path / "x"):
            raise error
        assert caught.value is error
    many = OSError(errno.EMFILE, "too many open files")
    assert system_error(many, tmp_path) is many


def test_a_cause_is_looked_at(tmp_path: Path) -> None:
    error = ValueError("the writer failed")
    error.__cause__ = OSError(errno.ENOSPC, "x")
    found = system_error(error, tmp_path)
    assert isinstance(found, FullDiskError)
    assert found.code == "disk_full"


def test_an_error_that_gives_no_reason_is_asked_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says ``unexpected pos 576 vs 534`` on a full disk; whether it is one is tried with a few bytes."""

    def full(place: Path) -> OSError:
        return FullDiskError(place, errno.EDQUOT)

    monkeypatch.setattr(files, "_probe", full)
    with pytest.raises(FullDiskError) as caught, publish(tmp_path / "state.pt"):
        raise RuntimeError("unexpected pos 576 vs 534")
    assert isinstance(caught.value.__cause__, RuntimeError)

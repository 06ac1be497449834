"""Which layout a folder has, and how often its folders are read to find out."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slideloom.errors import SlideloomError
from slideloom.slides.layouts import choose
from slideloom.slides.layouts.listing import files_below, list_folder, one_look

#: Folders of every layout with names that it looks for, and files that make it none of them.
_FOREIGN = {
    "Train/Images": ("a.png", "b.png"),
    "Train/Labels": ("c.mat", "d.mat"),
    "fold1/other": ("images.npy", "types.npy"),
    "images": ("e.png", "f.tif"),
    "labels": ("g.png", "h.tif"),
    "CODEX/crop 1": ("notes.txt",),
    "Vectra/P1(1.1)0,0": ("x.txt",),
    "dsb2018_fluorescence": ("y.txt",),
    "HE": (),
    "HE/sample1": ("z-other.tif",),
    "human liver/tissue images": ("l.png",),
    "csv": ("m.csv", "n.csv"),
    "deep/1/2/3/4/5": ("o.tif", "o.xml"),
    ".hidden": ("p.png",),
    "store.zarr": ("q.png",),
}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder that every layout is looked for in, and has none."""
    folder = tmp_path / "set"
    for place, names in _FOREIGN.items():
        (folder / place).mkdir(parents=True)
        for name in names:
            (folder / place / name).touch()
    return folder


class _Reads:
    """Reads of folders, whoever asks for them, while it counts."""

    def __init__(self) -> None:
        self.counts: Counter[Path] = Counter()
        self._on = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> _Reads:
        self._on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event in ("os.scandir", "os.listdir"):
            self.counts[Path(arguments[0] or ".")] += 1


@pytest.fixture
def reads() -> _Reads:
    """A hook cannot be taken out again: it is deaf outside of ``with``."""
    return _Reads()


def test_each_folder_is_read_once(foreign: Path, reads: _Reads) -> None:
    with reads:
        assert choose.find_layout(foreign) is None
    looked_into = {one for one in foreign.rglob("*") if one.is_dir() and one.suffix != ".zarr" and one.name[0] != "."}
    assert reads.counts == dict.fromkeys({foreign, *looked_into}, 1)


def test_reads_do_not_grow_with_pictures(foreign: Path, reads: _Reads) -> None:
    with reads:
        choose.find_layout(foreign)
    before = reads.counts.total()
    for number in range(50):
        (foreign / "Train" / "Images" / f"more{number}.png").touch()
        (foreign / "csv" / f"more{number}.csv").touch()
    with reads:
        choose.find_layout(foreign)
    assert reads.counts.total() == 2 * before


def test_a_listing_lasts_for_one_look(foreign: Path) -> None:
    assert choose.find_layout(foreign) is None
    (foreign / "Train" / "Labels" / "a.mat").touch()
    assert choose.find_layout(foreign) == "consep"
    with one_look():
        first = list_folder(foreign)
        (foreign / "late.tif").touch()
        assert list_folder(foreign) is first
    assert "late.tif" in list_folder(foreign).files


def test_a_failing_look_leaves_no_listing(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> bool:
        list_folder(folder)
        raise RuntimeError

    monkeypatch.setattr(choose, "_LAYOUTS", {"failing": (fail, None)})
    with pytest.raises(RuntimeError):
        choose.find_layout(foreign)
    (foreign / "late.tif").touch()
    assert "late.tif" in list_folder(foreign).files


def test_links_are_listed_and_not_walked_into(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").touch()
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(tmp_path / "far")
    (top / "round").symlink_to(top / "round")
    (top / "gone.png").symlink_to(tmp_path / "gone.png")
    found = list_folder(top)
    assert (found.folders, found.files, found.links) == (("link",), ("gone.png", "round"), {"link"})
    assert [path.name for path in files_below(top, (".png",))] == ["gone.png"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert list_folder(tmp_path / "none").folders == list_folder(tmp_path / "none").files == ()
    with pytest.raises(SlideloomError, match="does not exist"):
        choose.find_layout(tmp_path / "none")

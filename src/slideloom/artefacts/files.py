"""Write beside the place, rename when complete: what exists is whole.

What is being written carries its process in its name, so that what a killed process left behind can be told from what
another one is writing, and goes away the next time that something is written to the same folder.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slideloom.errors import SlideError, SlideloomError

__all__ = ["FullDiskError", "publish", "read_json", "scratch_beside", "system_error", "write_json", "write_text"]

#: Reason codes of a disk that takes no more, by error number.
_FULL = {errno.ENOSPC: "disk_full", errno.EDQUOT: "quota"}
#: Failures of the machine, not of what is being made.
_MACHINE = {*_FULL, errno.EMFILE, errno.ENFILE, errno.EROFS}
#: Someone else put a folder there between looking and renaming.
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR}
_DRAFT = re.compile(r"\.draft-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}-")
#: Drafts of other machines, whose processes cannot be asked after, are rubbish when untouched this long, in seconds.
_FOREIGN_S = 7 * 86_400
_PROBE = b"\0" * 65_536
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD
_swept: set[tuple[int, Path]] = set()


class FullDiskError(SlideloomError, OSError):
    """The disk is full, or the quota is used up. An :class:`OSError`, so that it ends the job, not one slide.

    Parameters
    ----------
    place : Path
        What could not be written.
    number : int
        ``errno.ENOSPC`` or ``errno.EDQUOT``.
    """

    def __init__(self, place: Path, number: int) -> None:
        super().__init__(
            os.strerror(number),
            where=str(place),
            expected="room for it" if number == errno.ENOSPC else "a quota with room for it",
            hint="Nothing half-written was kept. Make room, then give the same command again: what is finished stays",
            code=_FULL[number],
        )
        self.errno = number
        self._place = place

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self._place, self.errno))


def system_error(error: BaseException, place: Path) -> OSError | None:
    """The failure of the machine that an error tells of, whatever library raised it.

    Several libraries name a full disk in their message only: tensorstore raises a ``ValueError`` for it.

    Parameters
    ----------
    error : BaseException
        What was raised; its causes are looked at, too.
    place : Path
        What was being written, for the message.

    Returns
    -------
    OSError or None
        :class:`FullDiskError` for a full disk or a used-up quota; the error itself for too many open files and a disk
        that may only be read; None for all else, which is the fault of what was being made.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, FullDiskError):
            return seen
        number = seen.errno if isinstance(seen, OSError) else None
        for full in _FULL:
            if number == full or os.strerror(full) in str(seen):
                return FullDiskError(place, full)
        if isinstance(seen, OSError) and number in _MACHINE:
            return seen
        seen = seen.__cause__
    return None


@contextmanager
def publish(place: Path) -> Iterator[Path]:
    """Give a temporary path beside ``place``; rename it there when the block ends well, remove it when not.

    Parameters
    ----------
    place : Path
        Where the finished file or folder belongs; an older one is replaced. Where the filesystem can, an older folder
        is exchanged for the new one, so that there is no moment without one.

    Yields
    ------
    Path
        A path in the same folder that does not exist yet, with the same suffixes, so that the rename is atomic.

    Raises
    ------
    FullDiskError
        The disk is full, or the quota is used up; ``place`` is as it was before.
    SlideError
        ``not_a_folder``: a file lies where a folder above ``place`` belongs.
    """
    draft = _beside(place)
    try:
        _make_folder(place.parent)
        _sweep(place.parent)
        yield draft
        _put(draft, place)
    except Exception as error:
        full = system_error(error, place)
        if full is None and (type(error) is RuntimeError or isinstance(error, OSError)):
            full = _probe(place)  # torch and tifffile do not say why they could not write
        if full is None or full is error:
            raise
        raise full from error
    finally:
        _remove(draft)


@contextmanager
def scratch_beside(place: Path) -> Iterator[Path]:
    """Give an empty folder beside ``place`` for as long as the block lasts.

    It bears a draft's name, so that one that a killed process left goes away with the next thing written beside it.

    Parameters
    ----------
    place : Path
        What is being made with its help, not written here.

    Yields
    ------
    Path
        A folder of its own in the folder of ``place``.
    """
    scratch = _beside(place.with_name("scratch"))
    _make_folder(place.parent)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        _remove(scratch)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        taken = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), folder)
        hint = "Move it away, or choose another results folder, and give the same command again"
        raise SlideError(
            "a file lies where a folder belongs", where=str(taken), expected="a folder", hint=hint, code="not_a_folder"
        ) from error


def _beside(place: Path) -> Path:
    return place.with_name(f".draft-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{place.name}")


@functools.cache
def _machine() -> str:
    """What a process number means something in: this machine since it was started, this container."""
    parts = [os.uname().nodename]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


def _put(draft: Path, place: Path) -> None:
    """Rename, whatever lies there; another process may be doing the same."""
    while True:
        draft.lstat()  # before what lies there is moved away
        if place.is_symlink() or not place.is_dir():
            try:
                os.replace(draft, place)
                return
            except OSError as error:
                if error.errno == errno.ENOTDIR:  # a folder is not renamed over a file, nor over a link to a folder
                    place.unlink(missing_ok=True)
                elif error.errno not in _TAKEN:
                    raise
        elif _exchange(draft, place):
            return  # what was there bears the draft's name now, and goes with it
        else:
            old = _beside(place)
            with suppress(FileNotFoundError):
                place.rename(old)
            _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places at once; false where the system or the filesystem cannot (NFS)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(NotADirectoryError):  # a file lies where its folder belongs
            path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder; once a process and folder."""
    mine = (os.getpid(), folder)
    if mine in _swept:
        return
    _swept.add(mine)
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            found = _DRAFT.match(entry.name)
            if found is None:
                continue
            path = Path(entry.path)
            if _is_dead(int(found["pid"])) if found["machine"] == _machine() else _is_old(path):
                with suppress(OSError):
                    _remove(path)


def _is_dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _is_old(path: Path) -> bool:
    try:
        newest = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
    except OSError:
        return False
    return time.time() - newest > _FOREIGN_S


def _probe(place: Path) -> OSError | None:
    """Whether the folder takes a few bytes more, asked while the draft still holds what it could get."""
    path = _beside(place)
    try:
        with path.open("wb") as handle:
            handle.write(_PROBE)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        return system_error(error, place)
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return None


def write_text(place: Path, text: str) -> None:
    """Write a small UTF-8 file, whole or not at all."""
    with publish(place) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(place: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON file with sorted keys, whole or not at all."""
    write_text(place, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(place: Path) -> dict[str, Any]:
    """Read a JSON object."""
    value = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{place} holds a JSON {type(value).__name__}, not an object")
    return value

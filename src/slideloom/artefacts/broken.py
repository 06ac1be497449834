"""Artefacts that are no longer what was written: half of them gone, another slide's in their place, damaged inside.

An artefact is written whole, with a record of what it is, so a stage that finds one otherwise met the work of a failing
disk, of a copy that was cut short, or of a hand. The slide fails there, alone; the next run forgets the record of what
was found broken, so that it is made again.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import digest_file, digest_text, digest_tree, tree_size
from slideloom.artefacts.paths import Paths
from slideloom.errors import SlideError

__all__ = ["BrokenArtefactError", "MissingArtefactError", "check_item", "find_fault", "invalidate", "told_broken"]

_HINT = "Give the same command again: it is made anew, and nothing else is"
#: Tensorstore names the file that it cannot read, in quotes.
_NAMED_FILE = re.compile(r'local file "(?P<path>[^"]+)"')
_SAID_CHARACTERS = 160


class BrokenArtefactError(SlideError):
    """An artefact of an earlier stage is not what was written.

    Parameters
    ----------
    what : str
        What is wrong.
    place : Path
        The artefact, or a part of it.
    where : str, optional
        The place, when left out.
    expected, hint : str, optional
        As in :class:`~slideloom.errors.SlideloomError`.
    code : str, optional
        ``store_damaged``, ``store_mismatch``: it holds something else; ``artefact_schema``: another kind or version;
        ``missing_artefact``.
    """

    default_code = "store_damaged"

    def __init__(
        self, what: str, *, place: Path, where: str = "", expected: str = "", hint: str = _HINT, code: str | None = None
    ) -> None:
        super().__init__(what, where=where or str(place), expected=expected, hint=hint, code=code)
        self.place = Path(place)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.place, self.where, self.expected, self.hint, self.code))


class MissingArtefactError(BrokenArtefactError, FileNotFoundError):
    """An artefact of an earlier stage, or a part of it, is not there."""

    default_code = "missing_artefact"

    def __str__(self) -> str:  # not that of FileNotFoundError
        return f"{self.message}. {self.hint}" if self.hint else self.message


def _rebuild(
    kind: type[BrokenArtefactError], what: str, place: Path, where: str, expected: str, hint: str, code: str
) -> BrokenArtefactError:
    return kind(what, place=place, where=where, expected=expected, hint=hint, code=code)


def find_fault(paths: Paths, stage: str, context: str, item: str, digest: str = "") -> BrokenArtefactError | None:
    """What is wrong with the artefacts that an item's record vouches for.

    Parameters
    ----------
    paths : Paths
        Of the study.
    stage, context, item : str
        Of the record.
    digest : str
        That of the content, which is read and compared; empty: files and bytes are counted, and nothing is read but
        whose store it is.

    Returns
    -------
    BrokenArtefactError or None
        ``missing_artefact``; ``store_mismatch``: the store of another slide; ``store_damaged``. None when nothing is
        wrong, and where no record vouches for anything.
    """
    note = paths.record(stage, context, item)
    try:
        body = read_json(note)
        outputs = [paths.root / output for output in body["outputs"]]
        sizes = [list(size) for size in body.get("sizes", [])]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"the record cannot be read ({type(error).__name__})"
        return BrokenArtefactError(told, place=note, where=_below(paths, note))
    for path in outputs:
        if not path.exists():
            return MissingArtefactError(f"{_below(paths, path)} is gone", place=path, where=item)
    if stage == "tissue" and _is_edited(outputs[0]):
        return None  # a person's outline is meant to differ
    for path, size in zip(outputs, sizes, strict=False):
        if (found := _fault_of(paths, path, size, item)) is not None:
            return found
    if digest and digest_text(*(digest_tree(path) for path in outputs)) != digest:
        told = ", ".join(_below(paths, path) for path in outputs)
        return BrokenArtefactError(f"{told}: other content than was written", place=outputs[0], where=item)
    return None


def check_item(paths: Paths, stage: str, context: str, item: str) -> None:
    """Raise what :func:`find_fault` finds without reading content.

    A store that lost a chunk would otherwise be read as one that holds zeros there.

    Raises
    ------
    BrokenArtefactError
        As :func:`find_fault` returns it.
    """
    if (found := find_fault(paths, stage, context, item)) is not None:
        raise found


def _fault_of(paths: Paths, path: Path, size: list[int], item: str) -> BrokenArtefactError | None:
    owner = _owner(path)
    if owner not in ("", item):
        what = f"{_below(paths, path)} is the store of slide {owner!r}"
        return BrokenArtefactError(what, place=path, where=item, expected=f"that of {item}", code="store_mismatch")
    if (now := tree_size(path)) != size:
        what = f"{_below(paths, path)} has {now[0]} files of {now[1]} bytes, and had {size[0]} of {size[1]}"
        return BrokenArtefactError(what, place=path, where=item, expected="what was written")
    return None


def _owner(path: Path) -> str:
    """The slide that a store says it is of; empty where it says nothing that can be read."""
    try:
        about = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        return str(about.get("slide_id", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _below(paths: Paths, path: Path) -> str:
    return path.relative_to(paths.root).as_posix() if path.is_relative_to(paths.root) else str(path)


def _is_edited(outline: Path) -> bool:
    made = outline.with_suffix(".made")
    return not made.is_file() or made.read_text(encoding="utf-8").strip() != digest_file(outline)


def told_broken(error: BaseException, root: Path) -> BrokenArtefactError | None:
    """The broken artefact that another library's error tells of.

    Parameters
    ----------
    error : BaseException
        Such as the ``ValueError`` that tensorstore raises of a chunk that it cannot decode.
    root : Path
        The results folder: what lies elsewhere is no artefact.

    Returns
    -------
    BrokenArtefactError or None
        ``store_damaged``, naming the file; None for all other errors.
    """
    if isinstance(error, BrokenArtefactError):
        return error
    named = _NAMED_FILE.search(str(error)) if isinstance(error, ValueError) else None
    if named is None or not Path(named["path"]).is_relative_to(root):
        return None
    place = Path(named["path"])
    said = _NAMED_FILE.sub("it", str(error).split("[tensorstore_spec")[0]).splitlines()[0].strip()
    what = f"a part of it cannot be read: {said[:_SAID_CHARACTERS]}"
    return BrokenArtefactError(what, place=place, where=place.relative_to(root).as_posix())


def invalidate(place: Path) -> None:
    """Keep a broken store, or a part of it, from being taken over by the one that is made anew.

    Its data stay, without the file that says what they are; of a link, what it points to stays. Files are replaced when
    they are made anew, and left alone until then.

    Parameters
    ----------
    place : Path
        The artefact.
    """
    with suppress(OSError):
        if place.is_symlink():
            place.unlink()
        elif place.is_dir():
            (place / "zarr.json").unlink(missing_ok=True)

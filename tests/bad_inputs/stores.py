"""Stores that are not what was written: half gone, damaged inside, of another slide, of another kind.

A study of two slides is made by the very functions that a run uses, and one artefact of slide ``a`` is then spoiled.
The answer is told where a later stage reads it, or as the next run begins; the same command, given again, makes what is
broken and nothing else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slideloom.artefacts.zarrio import write_array

from .kinds import Cells, Kind
from .mini_study import SLIDES, MiniStudy, whole

__all__ = ["KINDS", "one_shard"]

_PATCHES, _TARGETS, _TOKENS = "patches/g/a.zarr", "targets/g/a.zarr", "embeddings/e/a.zarr"


def _spoiled(spoil: Callable[[MiniStudy], None]) -> Callable[[Path], Cells]:
    def make(folder: Path) -> Cells:
        shutil.copytree(whole(), folder, dirs_exist_ok=True)
        spoil(MiniStudy(folder))
        return {"slide_id": SLIDES[0], "sp": "a.npy", "instances": "a_ids.npy", "results": "results"}

    return make


def one_shard(place: Path) -> Path:
    """A file of a store that holds data."""
    return next(path for path in sorted(place.rglob("c/**/*")) if path.is_file())


def _half_written(study: MiniStudy) -> None:
    for name in ("pixels", "tissue", "outline"):
        shutil.rmtree(study.paths.root / _PATCHES / name)


def _missing_chunk(study: MiniStudy) -> None:
    one_shard(study.paths.root / _TARGETS / "instances").unlink()


def _truncated_chunk(study: MiniStudy) -> None:
    shard = one_shard(study.paths.root / _TOKENS)
    shard.write_bytes(shard.read_bytes()[:-200])


def _damaged_chunk(study: MiniStudy) -> None:
    """As long as it was: the index of the shard does not have its checksum."""
    shard = one_shard(study.paths.root / _PATCHES / "pixels")
    raw = bytearray(shard.read_bytes())
    raw[-10] ^= 255
    shard.write_bytes(bytes(raw))


def _replace_text(place: Path, old: str, new: str) -> None:
    text = place.read_text()
    assert old in text
    assert len(old) == len(new)
    place.write_text(text.replace(old, new, 1))


def _attributes_not_json(study: MiniStudy) -> None:
    _replace_text(study.paths.root / _PATCHES / "zarr.json", '"attributes": {', '"attributes" : ')


def _attributes_a_list(study: MiniStudy) -> None:
    place = study.paths.root / _TARGETS / "zarr.json"
    body = '{"attributes": []}'
    place.write_text(body + " " * (place.stat().st_size - len(body)))


def _attributes_not_text(study: MiniStudy) -> None:
    place = study.paths.root / _TOKENS / "zarr.json"
    place.write_bytes(b"\xff" * place.stat().st_size)


def _array_metadata_not_json(study: MiniStudy) -> None:
    place = study.paths.root / _PATCHES / "pixels" / "zarr.json"
    place.write_bytes(b"{" * place.stat().st_size)


def _another_version(study: MiniStudy) -> None:
    _replace_text(study.paths.root / _PATCHES / "zarr.json", '"schema": 1', '"schema": 9')


def _of_another_kind(study: MiniStudy) -> None:
    _replace_text(study.paths.root / _TOKENS / "zarr.json", '"embeddings"', '"embedding5"')


def _other_slides(study: MiniStudy) -> None:
    shutil.rmtree(study.paths.root / _PATCHES)
    shutil.copytree(study.paths.patches("g", "b"), study.paths.root / _PATCHES)


def _array_of(store: str, name: str, spoil: Callable[[np.ndarray], np.ndarray]) -> Callable[[MiniStudy], None]:
    """Another array in the place of one; nothing vouches for the store any more, so that only readers can know."""

    def change(study: MiniStudy) -> None:
        place = study.paths.root / store / name
        shutil.rmtree(place)
        write_array(place, spoil(np.zeros((6, 32, 32), np.int32)))
        stage, context = Path(store).parts[:2]
        study.paths.record(stage, context, "a").unlink()

    return change


def _zarr_v2(study: MiniStudy) -> None:
    place = study.paths.root / _PATCHES
    shutil.rmtree(place)
    place.mkdir()
    (place / ".zgroup").write_text('{"zarr_format": 2}')
    study.paths.record("patches", "g", "a").unlink()


def _a_file(study: MiniStudy) -> None:
    place = study.paths.root / _TARGETS
    shutil.rmtree(place)
    place.write_text("not a store")


def _a_folder(study: MiniStudy) -> None:
    place = study.paths.slide_facts("a")
    place.unlink()
    place.mkdir()


def _linked(study: MiniStudy, *, whole: bool) -> None:
    place, elsewhere = study.paths.root / _PATCHES, study.folder / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    if not whole:
        (elsewhere / "theirs.txt").write_text("not ours to touch")


def _gone(study: MiniStudy) -> None:
    shutil.rmtree(study.paths.root / _TOKENS)


def _cut_short(study: MiniStudy) -> None:
    place = study.paths.slide_facts("a")
    place.write_text(place.read_text()[:100])


def _job_record(study: MiniStudy) -> None:
    place = study.paths.job_record("patches", "g", "1-0")
    place.write_text(place.read_text()[:50])


def _item_record(study: MiniStudy) -> None:
    place = study.paths.record("targets", "g", "a")
    place.write_text(place.read_text()[:50])


def _record_of_nonsense(study: MiniStudy) -> None:
    study.paths.job_record("embeddings", "e", "1-0").write_text(json.dumps({"items": ["a"], "stage": 3}))


def _kind(
    name: str, what: str, spoil: Callable[[MiniStudy], None], code: str, says: str, answer: str = "failed"
) -> Kind:
    stage = "reader" if answer == "failed" else ""
    return Kind(f"store_{name}", "store", what, _spoiled(spoil), answer, code, stage, says)  # type: ignore[arg-type]


KINDS: tuple[Kind, ...] = (
    _kind(
        "half_written",
        "patches of which half the arrays are gone",
        _half_written,
        "store_damaged",
        r"has \d+ files of \d+ bytes, and had \d+",
    ),
    _kind(
        "missing_chunk",
        "targets that lost a chunk, which reads as zeros",
        _missing_chunk,
        "store_damaged",
        r"targets/g/a.zarr has \d+ files",
    ),
    _kind(
        "truncated_chunk",
        "tokens whose chunk is cut short",
        _truncated_chunk,
        "store_damaged",
        r"embeddings/e/a.zarr has \d+ files",
    ),
    _kind(
        "damaged_chunk",
        "patches with a damaged chunk that is as long as it was",
        _damaged_chunk,
        "store_damaged",
        r"cannot be read: .*[Dd]igest mismatch",
    ),
    _kind(
        "attributes_not_json",
        "attributes that are no JSON",
        _attributes_not_json,
        "store_damaged",
        "attributes cannot be read",
    ),
    _kind(
        "attributes_a_list", "attributes that are a list", _attributes_a_list, "store_damaged", "attributes are a list"
    ),
    _kind(
        "attributes_not_text",
        "attributes that are no UTF-8",
        _attributes_not_text,
        "store_damaged",
        "attributes cannot be read",
    ),
    _kind(
        "array_metadata_not_json",
        "an array whose metadata are no JSON",
        _array_metadata_not_json,
        "store_damaged",
        "cannot be read.*JSON",
    ),
    _kind(
        "another_version",
        "a store of another schema version",
        _another_version,
        "artefact_schema",
        "its schema is 9 .*schema 1",
    ),
    _kind("another_kind", "a store of another kind", _of_another_kind, "artefact_schema", "kind 'embedding5'"),
    _kind(
        "other_slide",
        "the store of another slide in this one's place",
        _other_slides,
        "store_mismatch",
        "is the store of slide 'b'",
    ),
    _kind(
        "other_shape",
        "an array of another shape",
        _array_of(_PATCHES, "pixels", lambda values: values),
        "store_mismatch",
        r"array of \(6, 32, 32\)",
    ),
    _kind(
        "other_dtype",
        "an array of another type",
        _array_of(_TARGETS, "instances", lambda values: values.astype(np.float32)),
        "store_mismatch",
        "of float32 .*of int32",
    ),
    _kind("zarr_v2", "a Zarr v2 store", _zarr_v2, "artefact_schema", "Zarr v2"),
    _kind("a_file", "a file where a store belongs", _a_file, "store_damaged", "has 1 files of 11 bytes"),
    _kind("a_folder", "a folder where a file belongs", _a_folder, "store_damaged", "slide.json has 0 files"),
    _kind(
        "linked_elsewhere",
        "a link to a store outside the results that is another by now",
        lambda study: _linked(study, whole=False),
        "store_damaged",
        "has .* files",
    ),
    _kind(
        "moved_and_linked",
        "a store that was moved to another disk, with a link in its place",
        lambda study: _linked(study, whole=True),
        "",
        "",
        "accepted",
    ),
    _kind(
        "gone",
        "a store that a record promises and that is not there",
        _gone,
        "missing_artefact",
        "embeddings/e/a.zarr is gone",
    ),
    _kind(
        "file_cut_short",
        "a JSON file that is cut short",
        _cut_short,
        "store_damaged",
        "slide.json has 1 files of 100 bytes",
    ),
    _kind(
        "job_record_half_written",
        "a job's record that is cut short",
        _job_record,
        "",
        r"state/patches/g/jobs/1-0.json cannot be read",
        "warned",
    ),
    _kind(
        "item_record_half_written",
        "a slide's record that is cut short",
        _item_record,
        "",
        r"cannot be read: its job runs again \(state/targets",
        "warned",
    ),
    _kind(
        "record_of_nonsense",
        "a job's record that is JSON of something else",
        _record_of_nonsense,
        "",
        "cannot be read",
        "warned",
    ),
)

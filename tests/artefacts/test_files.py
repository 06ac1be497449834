from pathlib import Path

import pytest

from slideloom.artefacts.files import publish, read_json, write_json


def test_a_failed_draft_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    place = tmp_path / "a" / "table.json"
    write_json(place, {"n": 1})
    with pytest.raises(RuntimeError, match="stop"), publish(place) as draft:
        draft.write_text("half")
        raise RuntimeError("stop")
    assert read_json(place) == {"n": 1}
    assert [path.name for path in place.parent.iterdir()] == ["table.json"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    place = tmp_path / "store.zarr"
    for names in (["old", "both"], ["new", "both"]):
        with publish(place) as draft:
            draft.mkdir()
            for name in names:
                (draft / name).touch()
    assert sorted(path.name for path in place.iterdir()) == ["both", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


def test_a_draft_keeps_the_suffix(tmp_path: Path) -> None:
    with publish(tmp_path / "labels.ome.zarr") as draft:
        assert draft.name.endswith("labels.ome.zarr")
        draft.mkdir()


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="not an object"):
        read_json(tmp_path / "x.json")

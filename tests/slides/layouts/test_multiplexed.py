from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.config.fields import unfit_for_paths
from slideloom.errors import SlideError
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.multiplexed import held_back, in_one_modality, kept_samples, plain_id, write_channels
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source
from slideloom.slides.tables import Channel, ClassTable


@settings(max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=20), st.randoms())
def test_what_is_held_back_is_near_the_share_and_knows_no_order(sizes: list[int], random: object) -> None:
    groups = {f"P{number:02d}": size for number, size in enumerate(sizes)}
    names = list(groups)
    random.shuffle(names)  # type: ignore[attr-defined]
    back = held_back(groups)
    assert back == held_back({name: groups[name] for name in names})
    assert 0 < len(back) < len(groups)
    total, held = sum(groups.values()), sum(groups[name] for name in back)
    assert abs(held - 0.2 * total) <= max(groups.values()), "another group would bring it no nearer than that"


def test_one_group_is_not_held_back() -> None:
    assert held_back({"a": 7}) == held_back({}) == frozenset()


@settings(max_examples=50)
@given(st.text(max_size=140), st.sets(st.text(alphabet="ab", max_size=3)))
def test_ids_fit_into_paths(text: str, taken: set[str]) -> None:
    name = plain_id(text, taken)
    assert not unfit_for_paths(name, 128)
    assert name.casefold() not in {one.casefold() for one in taken}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([0, 255], np.uint8), np.uint8),
        (np.array([0.0, 65_535.0]), np.uint16),
        (np.array([-3, 8], np.int16), np.float32),
        (np.array([0.5, np.nan]), np.float32),
        (np.array([True, False]), np.uint16),
    ],
)
def test_samples_keep_their_values(values: np.ndarray, kind: type) -> None:
    kept = kept_samples(values, "here")
    assert kept.dtype == kind
    assert np.array_equal(kept.astype(np.float64), values.astype(np.float64), equal_nan=values.dtype.kind == "f")


@pytest.mark.parametrize("values", [np.array([0.1]), np.array([2**24 + 1]), np.array([1j]), np.array(["x"])])
def test_samples_that_would_change_are_refused(values: np.ndarray) -> None:
    with pytest.raises(SlideError) as refused:
        kept_samples(values, "here")
    assert refused.value.code == "unsupported_dtype"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(1, 5, 700), (3, 40, 33), (32, 16, 16)])
def test_written_images_are_read_back_and_equal_images_give_equal_bytes(
    tmp_path: Path, kind: type, shape: tuple[int, int, int]
) -> None:
    planes = (np.random.default_rng(0).random(shape) * 200).astype(kind)
    names = [f"channel; {k}" for k in range(shape[0])]
    first, second = tmp_path / "a" / "x.ome.tif", tmp_path / "b" / "x.ome.tif"
    for place in (first, second):
        write_channels(place, planes, names, 0.325)
    assert first.read_bytes() == second.read_bytes()
    with open_image(Source(first), "sp") as image:
        assert image.channel_names == tuple(names)
        assert image.mpp_um == (0.325, 0.325)
        assert image.dtype == kind
        assert np.array_equal(image.read(0, 0, 0, *shape[1:]), planes)
    write_channels(first, planes, names, None)
    with open_image(Source(first), "sp") as image:
        assert image.mpp_um is None


def test_pictures_move_and_what_has_channels_stays() -> None:
    rows = (
        SlideRow("a", he="a.png", he_mpp_um=0.5),
        SlideRow("b", he="b.png", sp="b.tif", he_mpp_um=0.5, sp_mpp_um=0.4),
        SlideRow("c", sp="c.tif", sp_channels=("DAPI",)),
    )
    found = Imported(rows, (Channel("DAPI", "DNA", nuclear=True),), ClassTable(), ("told",))
    moved = in_one_modality(found)
    assert moved.rows[0] == SlideRow("a", sp="a.png", sp_mpp_um=0.5, sp_channels=("red", "green", "blue"))
    assert moved.rows[1:] == rows[1:]
    assert [channel.name for channel in moved.channels] == ["DAPI", "red", "green", "blue"]
    assert moved.notes == ("told", "1 colour pictures stand in the column sp, as channels red, green, blue")
    assert in_one_modality(Imported(rows[2:], (), ClassTable(), ())) == Imported(rows[2:], (), ClassTable(), ())

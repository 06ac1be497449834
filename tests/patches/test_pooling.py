"""A training slide that does not fit the others is left out of the pooled statistics, and named; it ends nothing."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from slideloom.config.model import NormalisationConfig
from slideloom.errors import SlideError
from slideloom.patches.pooling import find_poolable
from slideloom.patches.statistics import ChannelStatistics, channel_statistics, for_slide

POOLED = NormalisationConfig(scope="training", clip="training", clip_quantile=0.999, log1p=True)
PANEL = ("DAPI", "CD3", "CD8")


@pytest.fixture
def cut(make_slide: Any) -> Any:
    """A slide of its own name, 24 px, cut into patches."""

    def make(name: str, names: tuple[str, ...] = PANEL, dtype: type = np.uint16) -> Any:
        values = np.random.default_rng(len(name) + ord(name[-1])).integers(0, 200, (len(names), 24, 24)).astype(dtype)
        return make_slide(sp=values, names=names, slide_id=name).cut(image="sp", tile_px=12)

    return make


def test_a_slide_that_lacks_a_marker_is_left_out_and_named(cut: Any) -> None:
    good = [cut("a"), cut("c")]
    lacking = cut("b", ("DAPI", "CD3"))
    wanted = ["m_CD8", "m_DAPI"]
    for stores in permutations([*good, lacking]):
        pool = find_poolable(stores, wanted)
        assert pool.as_dict()["used"] == ["a", "c"]
        assert {slide: error.code for slide, error in pool.left_out.items()} == {"b": "missing_marker"}
        assert "m_CD8" in pool.told
        assert channel_statistics(pool.stores, wanted, POOLED) == channel_statistics(good, wanted, POOLED)
    told = pool.as_dict()
    assert (told["n_used"], told["n_left_out"]) == (2, 1)
    assert "m_CD8" in told["left_out"]["b"]["message"]
    assert told["left_out"]["b"]["hint"]


def test_a_slide_of_another_type_is_left_out_and_refused_where_it_is_encoded(cut: Any) -> None:
    good = [cut("b"), cut("c")]
    odd = cut("a", dtype=np.uint8)  # first by name
    for stores in permutations([*good, odd]):
        pool = find_poolable(stores, [])
        found = channel_statistics(pool.stores, [], POOLED)
        assert found == channel_statistics(good, [], POOLED)
    assert found.dtype == "uint16"
    assert ChannelStatistics.from_dict(found.as_dict()) == found
    assert pool.as_dict()["used"] == ["b", "c"]
    (error,) = pool.left_out.values()
    with pytest.raises(SlideError) as caught:
        for_slide(found, odd, POOLED)
    assert (caught.value.code, caught.value.message) == ("mixed_dtypes", error.message)
    for word in ("a", "uint8", "uint16", "scope: slide"):
        assert word in f"{error.message} {error.hint}"
    old = ChannelStatistics.from_dict({key: value for key, value in found.as_dict().items() if key != "dtype"})
    assert for_slide(old, odd, POOLED) is old, "statistics that do not say their type are for every type"


def test_without_named_markers_the_panel_is_that_of_more_than_half(cut: Any) -> None:
    good = [cut("b"), cut("c", PANEL[::-1]), cut("d")]
    more = cut("0", (*PANEL, "CK"))  # it has every marker of the others: it counts
    poor = cut("a", PANEL[:1])
    every = [*good, more, poor]
    found = {
        channel_statistics(find_poolable(stores, []).stores, [], POOLED)
        for stores in (every, every[::-1], every[2:] + every[:2])
    }
    (one,) = found
    assert one.markers == ("m_DAPI", "m_CD3", "m_CD8"), "in the order of b, whatever stands first"
    assert one == channel_statistics([*good, more], [], POOLED)
    assert list(find_poolable(every, []).left_out) == ["a"]


def test_where_nothing_says_which_slides_are_the_odd_ones_none_is_guessed(cut: Any) -> None:
    with pytest.raises(SlideError, match=r"uint16 \(1\), uint8 \(1\)") as caught:
        find_poolable([cut("a"), cut("b", dtype=np.uint8)], [])
    assert caught.value.code == "mixed_dtypes"
    with pytest.raises(SlideError, match="2 panels") as caught:
        find_poolable([cut("c"), cut("d", PANEL[:2])], [])
    assert (caught.value.code, "markers" in caught.value.hint) == ("missing_marker", True)


def test_a_marker_that_no_slide_has_is_an_error_that_says_so(cut: Any) -> None:
    with pytest.raises(
        SlideError, match="none of 2 training slides has every marker; a: no channel shows FOXP3"
    ) as told:
        find_poolable([cut("b"), cut("a")], ["m_DAPI", "FOXP3"])
    assert told.value.code == "missing_marker"
    assert told.value.hint
    with pytest.raises(SlideError) as told:
        find_poolable([], [])
    assert told.value.code == "no_patches"


def test_two_channels_of_one_marker_are_a_panel_of_their_own(cut: Any) -> None:
    twice = ("DAPI", "DAPI", "CD3")
    pool = find_poolable([cut("a"), cut("b", twice), cut("c", twice)], [])
    assert list(pool.left_out) == ["a"]
    assert channel_statistics(pool.stores, [], POOLED).markers == ("m_DAPI", "m_DAPI", "m_CD3")

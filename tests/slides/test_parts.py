from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.slides.parts import Group, _commonest, cut_or_deal
from slideloom.slides.sheet import SlideRow

#: Size and value of each group.
KINDS = st.lists(st.tuples(st.integers(1, 7), st.sampled_from("abcd")), min_size=8, max_size=40)


def groups_of(kinds: list[tuple[int, str]]) -> list[Group]:
    return [
        tuple(SlideRow(f"{number:03d}_{k}", f"p{number}", extra={"v": value}) for k in range(size))
        for number, (size, value) in enumerate(kinds)
    ]


def slides(part: list[Group], value: str = "") -> int:
    return sum(len(group) for group in part if value in ("", group[0].extra["v"]))


def largest(groups: list[Group], value: str = "") -> int:
    return max((len(group) for group in groups if value in ("", group[0].extra["v"])), default=0)


@settings(max_examples=80, deadline=None)
@given(kinds=KINDS, count=st.integers(2, 8))
def test_parts_of_equal_share_are_alike_within_one_group(kinds: list[tuple[int, str]], count: int) -> None:
    groups = groups_of(kinds)
    for stratify in (None, "v"):
        parts = cut_or_deal(groups, [1 / count] * count, stratify)
        names = [[group[0].slide_id for group in part] for part in parts]
        assert sorted(name for part in names for name in part) == [group[0].slide_id for group in groups], (
            "each group in one part"
        )
        assert all(part and part == sorted(part) for part in names)
        sizes = [slides(part) for part in parts]
        assert all(abs(size - sum(sizes) / count) <= largest(groups) + 1e-9 for size in sizes)
    assert max(sizes) - min(sizes) <= largest(groups)
    for value in "abcd":
        held = [slides(part, value) for part in parts]
        assert max(held) - min(held) < 2 * largest(groups, value) or not any(held)
        if largest(groups, value) == 1:
            assert max(held) - min(held) <= 1


@settings(max_examples=80, deadline=None)
@given(kinds=KINDS, share=st.floats(0.03, 0.97))
def test_two_parts_keep_their_shares_within_one_group(kinds: list[tuple[int, str]], share: float) -> None:
    groups = groups_of(kinds)
    for stratify in (None, "v"):
        first, second = cut_or_deal(groups, [share, 1 - share], stratify)
        assert first
        assert second
        assert abs(slides(first) - share * slides(groups)) <= largest(groups) + 1e-9
    for value in "abcd":
        assert abs(slides(first, value) - share * slides(groups, value)) <= largest(groups, value) + 1e-9


def test_one_value_or_single_slides_are_dealt_like_cards() -> None:
    groups = groups_of([(1, "a")] * 7 + [(1, "b")] * 5)
    dealt = cut_or_deal(groups, [1 / 3] * 3, "v")
    assert [slides(part) for part in dealt] == [4, 4, 4]
    assert sorted(slides(part, "a") for part in dealt) == [2, 2, 3]
    assert [group[0].slide_id[:3] for group in dealt[0]] == ["000", "003", "006", "009"]


def test_what_one_value_lacks_the_next_makes_up_for() -> None:
    groups = groups_of([(1, value) for value in "abcdefghij"])  # no value alone could be shared out
    first, second = cut_or_deal(groups, [0.8, 0.2], "v")
    assert (len(first), len(second)) == (8, 2)


def test_a_large_surplus_does_not_starve_the_values_after_it() -> None:
    groups = groups_of([(10, "a")] + [(1, "b")] * 10)
    first, second = cut_or_deal(groups, [0.5, 0.5], "v")
    assert [slides(part, "b") for part in (first, second)] == [5, 5]


@pytest.mark.parametrize(("values", "counts_by"), [("bba", "b"), ("ab", "a"), ("ba", "a"), ("a.", ""), ("a.a", "a")])
def test_a_group_counts_by_its_commonest_value_ties_by_text(values: str, counts_by: str) -> None:
    group = tuple(
        SlideRow(f"s{k}", "p", extra={} if cell == "." else {"v": cell}) for k, cell in enumerate(values)
    )  # a dot is an empty cell
    assert _commonest(group, "v") == counts_by


def test_the_order_of_values_and_slides_is_fixed() -> None:
    kinds = [(size, value) for size in (1, 2, 3) for value in "dcba"]
    groups = groups_of(kinds)
    parts = cut_or_deal(groups, [0.25] * 4, "v")
    again = cut_or_deal(groups_of(kinds), [0.25] * 4, "v")
    assert parts == again
    by_value: dict[str, set[int]] = defaultdict(set)
    for number, part in enumerate(parts):
        for group in part:
            by_value[group[0].extra["v"]].add(number)
    assert all(len(found) == 3 for found in by_value.values()), "three groups of a value go to three parts"

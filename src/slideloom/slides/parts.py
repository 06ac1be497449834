"""Groups of slides in parts of given shares: contiguous, or every part with a like share of each kind.

Groups are never torn, no part is empty, and nothing is drawn at random: the same groups always give the same parts.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

from slideloom.slides.sheet import SlideRow

__all__ = ["Group", "cut_or_deal"]

#: Slides that stay together, in the order of their ids.
Group = tuple[SlideRow, ...]


def cut_or_deal(groups: Sequence[Group], shares: Sequence[float], stratify: str | None = None) -> list[list[Group]]:
    """Put groups in parts of these shares, counted in slides.

    Parameters
    ----------
    groups : sequence of tuple of SlideRow
        In order; at least one for each part.
    shares : sequence of float
        Of each part; they add up to 1.
    stratify : str, optional
        Sheet column whose values every part holds in like shares. An empty cell is a value like others.

    Returns
    -------
    list of list of tuple of SlideRow
        A part for each share, none empty, its groups in their order.

    Notes
    -----
    Without ``stratify``, parts are contiguous, and a cut falls at the group boundary nearest to the rising share.

    With it, a group counts by its commonest value (of several, the first as text). Value by value, largest group first,
    each group goes to the part that lacks most slides of that value, where a lack or surplus left by the values before
    counts for up to half of this value's largest group. So parts of equal share differ by at most the largest group,
    and in the groups of a value by less than twice the largest of them: by at most one where groups are single slides.
    Of two parts with other shares, each is within the largest group of its share, and of its share of a value within
    that value's largest group.
    """
    if stratify is not None:
        return _dealt(groups, shares, stratify)
    cuts = [0, *_cuts(groups, list(itertools.accumulate(shares))[:-1]), len(groups)]
    return [list(groups[start:stop]) for start, stop in itertools.pairwise(cuts)]


def _cuts(groups: Sequence[Group], shares: Sequence[float]) -> list[int]:
    """Numbers of groups whose slides come nearest to each rising share, with at least one group in every part."""
    totals = list(itertools.accumulate((len(group) for group in groups), initial=0))
    cuts: list[int] = []
    for number, share in enumerate(shares):
        first = (cuts[-1] if cuts else 0) + 1
        last = len(groups) - (len(shares) - number)
        # The tolerance makes a tie a tie whatever the share's rounding; ties go to the smaller part.
        cuts.append(min(range(first, last + 1), key=lambda k: (round(abs(totals[k] - share * totals[-1]), 9), k)))
    return cuts


def _dealt(groups: Sequence[Group], shares: Sequence[float], column: str) -> list[list[Group]]:
    """Deal the groups of each value among the parts; :func:`cut_or_deal` tells the rule and its bounds."""
    strata: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        strata[_commonest(group, column)].append(index)
    part_of = [0] * len(groups)
    lacking = [0.0] * len(shares)  # slides of the values so far that each part has too few, or with - too many
    for value in sorted(strata):
        order = sorted(strata[value], key=lambda index: (-len(groups[index]), index))
        half = len(groups[order[0]]) / 2
        total = sum(len(groups[index]) for index in order)
        middle = (min(lacking) + max(lacking)) / 2
        carried = [min(max(one - middle, -half), half) for one in lacking]
        short = [share * total for share in shares]
        for index in order:
            part_of[index] = part = _neediest(short, carried, lacking)
            short[part] -= len(groups[index])
        lacking = [one + more for one, more in zip(lacking, short, strict=True)]
    parts = [[g for g, part in zip(groups, part_of, strict=True) if part == number] for number in range(len(shares))]
    for empty in parts:
        if not empty:  # a share smaller than any group: the part with most groups gives its smallest
            giver = max(parts, key=len)
            empty.append(giver.pop(min(range(len(giver)), key=lambda index: (len(giver[index]), -index))))
    return parts


def _neediest(short: Sequence[float], carried: Sequence[float], lacking: Sequence[float]) -> int:
    def need(part: int) -> tuple[float, ...]:
        # Rounded, so that a tie is a tie whatever the share's rounding.
        return round(short[part] + carried[part], 9), round(short[part], 9), round(lacking[part], 9), -part

    return max(range(len(short)), key=need)


def _commonest(group: Group, column: str) -> str:
    counts = Counter(row.column(column) or "" for row in group)
    return min(counts, key=lambda value: (-counts[value], value))

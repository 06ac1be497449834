"""Splits and merges: drawn by hand, and by their definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slideloom.metrics.contingency import contingency
from slideloom.metrics.splits import Splits, count_splits

LABELS = arrays(np.int32, (6, 9), elements=st.integers(0, 4))


def row(text: str) -> np.ndarray:
    return np.array([[int(each) for each in text]])


def test_halves_specks_and_neighbours() -> None:
    whole = row("1111111111")
    assert count_splits(contingency(whole, row("1111100222"))) == Splits(1, 2, 0, 0)
    assert count_splits(contingency(row("1111100222"), whole)) == Splits(0, 0, 1, 2)
    assert count_splits(contingency(whole, row("1112223334"))) == Splits(1, 4, 0, 0)  # a tenth is still a piece
    assert count_splits(contingency(row("11111111111"), row("11111111102"))) == Splits(0, 0, 0, 0)  # a speck is not
    assert count_splits(contingency(whole, row("1111111222"))) == Splits(1, 2, 0, 0)
    moved = contingency(row("1111100000"), row("0001111122"))
    assert count_splits(moved) == Splits(0, 0, 0, 0)  # a neighbour that touches is no piece
    assert count_splits(contingency(row("1111222200"), row("3333333000"))) == Splits(0, 0, 1, 2)
    assert count_splits(contingency(row("11110000"), row("11220000")), 0.6) == Splits(0, 0, 0, 0)
    assert count_splits(contingency(row("000"), row("000"))) == Splits(0, 0, 0, 0)
    assert Splits(1, 2, 3, 4) + Splits(1, 1, 1, 1) == Splits(2, 3, 4, 5)


@settings(max_examples=60, deadline=None)
@given(gt=LABELS, pred=LABELS)
def test_counts_are_those_of_masks_and_turn_with_the_sides(gt: np.ndarray, pred: np.ndarray) -> None:
    def wholes(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
        found = []
        for i in np.unique(one[one > 0]):
            whole = one == i
            found.append(
                sum(
                    int((whole & (other == j)).sum() * 2 > (other == j).sum())
                    and int((whole & (other == j)).sum() * 10 >= whole.sum())
                    for j in np.unique(other[other > 0])
                )
            )
        return sum(n > 1 for n in found), sum(n for n in found if n > 1)

    ours = count_splits(contingency(gt, pred))
    assert (ours.splits, ours.pieces) == wholes(gt, pred)
    assert (ours.merges, ours.merged) == wholes(pred, gt)
    turned = count_splits(contingency(pred.T, gt.T))
    assert turned == Splits(ours.merges, ours.merged, ours.splits, ours.pieces)

"""Threads that keep an order and a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from slideloom.instances.pool import in_order


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_order(work, range(20), workers)) == [item * item for item in range(20)]
    assert list(in_order(work, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_is_taken_than_the_bound(workers: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    for done, _ in enumerate(in_order(lambda item: item, items(), workers)):
        assert len(taken) <= done + 2 * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_in_its_place_and_stops_the_rest(workers: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("item 3")
        return item

    results = in_order(work, range(1000), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(results)
    assert len(begun) <= 4 + 2 * workers
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows")]


def test_leaving_early_leaves_no_thread() -> None:
    results = in_order(lambda item: item, range(1000), 2)
    assert next(results) == 0
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows")]


def test_two_workers_work_at_once() -> None:
    both = threading.Barrier(2, timeout=10)
    assert list(in_order(lambda item: both.wait() >= 0, range(4), 2)) == [True] * 4

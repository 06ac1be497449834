"""Handing over between threads: in order, bounded, never for ever."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from slideloom.encoders.embedding.handoff import Handoff, Stopped


def test_order_is_kept_with_many_hands() -> None:
    line: Handoff[int] = Handoff(3)
    numbers = iter(range(200))
    lock = threading.Lock()

    def produce() -> None:
        generator = random.Random(threading.get_ident())
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            time.sleep(generator.random() / 1e4)
            line.put(number, number * number)

    with ThreadPoolExecutor(6) as pool:
        made = [pool.submit(produce) for _ in range(5)]
        line.end(200)
        assert list(line) == [(number, number * number) for number in range(200)]
        for one in made:
            one.result()


def test_only_a_few_wait_and_the_one_that_is_due_always_gets_in() -> None:
    line: Handoff[str] = Handoff(2)
    line.put(1, "second")
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(line.put, 2, "third")
        time.sleep(0.05)
        assert not third.done()
        line.put(0, "first")
        assert line.get() == (0, "first")
        third.result(5)
    line.end(3)
    assert [thing for _, thing in line] == ["second", "third"]
    assert line.get() is None


@pytest.mark.parametrize("wait", ["get", "put"])
def test_whoever_waits_is_woken_to_stop(wait: str) -> None:
    line: Handoff[int] = Handoff(1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(line.get) if wait == "get" else pool.submit(line.put, 5, 5)
        time.sleep(0.02)
        line.stop()
        with pytest.raises(Stopped):
            waiting.result(5)
    with pytest.raises(Stopped):
        line.put(0, 0)


def test_nothing_at_all() -> None:
    line: Handoff[int] = Handoff(1)
    line.end(0)
    assert list(line) == []

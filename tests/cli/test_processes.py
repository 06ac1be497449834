from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import get_context

import pytest

from slideloom.cli.processes import in_processes


@pytest.fixture(autouse=True)
def _fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start at once."""
    fork = get_context("fork")
    monkeypatch.setattr("slideloom.cli.processes.get_context", lambda method: fork)


def work(number: int) -> int:
    if number % 10 == 7:
        os._exit(11)
    return number * number


def lost(number: int) -> int:
    return -number


def run(numbers: range) -> Iterator[int]:
    return in_processes(work, numbers, 3, lost)


def test_every_task_has_its_result_though_some_end_their_process() -> None:
    expected = [-number if number % 10 == 7 else number * number for number in range(30)]
    assert sorted(run(range(30))) == sorted(expected)


def test_without_a_crash() -> None:
    assert sorted(run(range(7))) == [number * number for number in range(7)]


def test_nothing_to_do() -> None:
    assert list(run(range(0))) == []


def test_an_error_of_the_work_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_processes(divide, [0], 2, lost))


def divide(number: int) -> int:
    return 1 // number

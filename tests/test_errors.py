"""Messages that hold what came from files: readable in a terminal, a log and a table, whatever it was."""

from __future__ import annotations

import pickle

import pytest

from slideloom.errors import ConfigError, Problem, SlideError


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("DAPI\x1b[31m", "DAPI\\x1b[31m"),
        ("a\u202eb", "a\\u202eb"),
        ("a\0", "a\\x00"),
        ("a\r\n", "a\\r\n"),
        ("caf\udce9.tif", "caf\\udce9.tif"),
        ("µm, naïve, 核", "µm, naïve, 核"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_instead(found: str, shown: str) -> None:
    error = SlideError(found, where=found, expected=found, hint=found)
    assert (error.what, error.where, error.expected, error.hint) == (shown,) * 4
    problem = Problem(found, found, found)
    assert (problem.where, problem.what, problem.hint) == (shown,) * 3
    assert shown in str(ConfigError([problem]))
    str(error).encode()


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    error = SlideError("begins " + "x" * 100_000 + " ends", hint="y" * 5000)
    assert error.what.startswith("begins x")
    assert error.what.endswith("x ends")
    assert len(str(error)) < 1300


def test_every_problem_is_told_however_many_there_are() -> None:
    error = ConfigError([Problem(f"slides.tsv:{line}", "w" * 500) for line in range(50)])
    assert str(error).count("slides.tsv:") == 50
    assert pickle.loads(pickle.dumps(error)).problems == error.problems

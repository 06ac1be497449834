from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slideloom.artefacts.files import read_json
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import ItemState, Stage, load_job_states
from slideloom.errors import SlideError, SlideloomError


class Bench:
    """A stage that writes a text for each item and counts its work."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.record = self.paths.job_record("text", "", "1-0")
        self.worked: list[str] = []

    def run(self, items: str = "abc", hook: Callable[[str], str | None] = lambda item: None, **stage: object):
        def work(item: str) -> list[Path] | str:
            self.worked.append(item)
            why = hook(item)
            if why is not None:
                return why
            place = self.paths.root / f"{item}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(item)
            return [place]

        self.worked = []
        settings = {"params": "p", **stage}
        return Stage("text", "", self.paths, **settings).run(items, work, self.record)  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "results")


def test_finished_items_are_kept(bench: Bench) -> None:
    first = bench.run()
    assert bench.worked == ["a", "b", "c"]
    bench.record.unlink()
    assert bench.run("abcd") == first | {"d": bench.run("d")["d"]}
    bench.run("abc")
    assert bench.worked == []


def test_a_killed_job_goes_on_where_it_stopped(bench: Bench) -> None:
    def killed(item: str) -> None:
        if item == "c":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(hook=killed)
    assert not bench.record.exists()
    bench.run()
    assert bench.worked == ["c"]


@pytest.mark.parametrize(
    "change",
    [
        {"params": "q"},
        {"shared": "model"},
        {"per_item": {"a": "row", "b": "row", "c": "row"}},
        {"upstream": {"facts": {item: ItemState("ok", digest="new") for item in "abc"}}},
    ],
)
def test_whatever_an_item_is_made_from_makes_it_again(bench: Bench, change: dict[str, object]) -> None:
    bench.run()
    bench.run(**change)
    assert bench.worked == ["a", "b", "c"]


def test_one_items_row_touches_that_item_alone(bench: Bench) -> None:
    bench.run()
    bench.run(per_item={"b": "other row"})
    assert bench.worked == ["b"]


def test_a_missing_artefact_is_made_again_with_the_same_record(bench: Bench) -> None:
    states = bench.run()
    text = bench.record.read_bytes()
    (bench.paths.root / "b.txt").unlink()
    assert bench.run() == states
    assert bench.worked == ["b"]
    assert bench.record.read_bytes() == text


def test_a_bad_slide_fails_alone_and_is_passed_over_later(bench: Bench) -> None:
    def bad(item: str) -> None:
        if item == "b":
            raise SlideError("no pixel size", where="slide b", hint="Give mpp_um", code="no_pixel_size")

    states = bench.run(hook=bad)
    assert [state.status for state in states.values()] == ["ok", "failed", "ok"]
    assert states["b"].code == "no_pixel_size"
    assert states["b"].stage == "text"
    assert load_job_states([bench.record]) == states
    bench.run(hook=bad)
    assert bench.worked == ["b"], "what failed is tried again, what was made is kept"

    later = Stage("later", "", bench.paths, params="", upstream={"text": states}, requires=("text",))
    seen: list[str] = []
    after = later.run(
        "abc", lambda item: seen.append(item) or "nothing to do", bench.paths.job_record("later", "", "1-0")
    )
    assert seen == ["a", "c"]
    assert after["b"] == states["b"]
    assert after["a"].status == "absent"


def test_a_full_disk_stops_the_job(bench: Bench) -> None:
    def full(item: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        bench.run(hook=full)
    assert not bench.record.exists()


def test_an_unforeseen_error_ends_one_item_and_is_tried_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def broken(item: str) -> None:
        if item == "a":
            raise ZeroDivisionError("division by zero")

    with caplog.at_level(logging.ERROR):
        states = bench.run(hook=broken)
    assert states["a"].code == "internal"
    assert "ZeroDivisionError" in states["a"].message
    assert "Traceback" in caplog.text
    bench.run()
    assert bench.worked == ["a"]


def test_records_hold_no_times(bench: Bench) -> None:
    bench.run()
    body = read_json(bench.paths.record("text", "", "a"))
    assert set(body) == {"schema", "key", "state", "outputs", "sizes", "made"}
    assert set(body["made"]) == {"host", "device", "versions"}
    assert body["outputs"] == ["a.txt"]


def _stream(bench: Bench, *outcomes: tuple[str, object], items: str = "abc", **stage: object):
    """A program that takes every item first and then gives back what it is told, in that order."""

    def stream(waiting: Iterator[str]) -> Iterator[tuple[str, object]]:
        bench.worked = list(waiting)
        for item, outcome in outcomes:
            if outcome == "made":
                place = bench.paths.root / f"{item}.txt"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(item)
                outcome = [place]
            yield item, outcome

    settings = {"params": "p", **stage}
    return Stage("text", "", bench.paths, **settings).run_stream(items, stream, bench.record)  # type: ignore[arg-type]


def test_a_stream_leaves_the_records_that_one_by_one_leaves(bench: Bench) -> None:
    def hook(item: str) -> str | None:
        if item == "b":
            raise SlideError("bad", code="bad")
        return "nothing to do" if item == "c" else None

    one_by_one = bench.run("abcd", hook)
    text = bench.record.read_bytes()
    for item in "abcd":
        bench.paths.record("text", "", item).unlink()
    states = _stream(
        bench, ("d", "made"), ("b", SlideError("bad", code="bad")), ("a", "made"), ("c", "nothing to do"), items="abcd"
    )
    assert states == one_by_one
    assert list(states) == list("abcd"), "in the order given"
    assert bench.record.read_bytes() == text


def test_a_stream_is_given_only_what_is_not_kept(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.run()
    (bench.paths.root / "b.txt").unlink()
    with caplog.at_level(logging.INFO):
        _stream(bench, ("b", "made"))
    assert bench.worked == ["b"]
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "text a 1/3 ok",
        "text c 2/3 ok",
        "text b 3/3 ok",
    ]
    failed = {"facts": {"a": ItemState("failed", stage="facts", code="x"), **{i: ItemState("ok") for i in "bc"}}}
    states = _stream(bench, ("b", "made"), ("c", "made"), upstream=failed, requires=("facts",))
    assert bench.worked == ["b", "c"]
    assert states["a"].stage == "facts"


def test_records_are_forgotten_as_a_stream_takes_the_items(bench: Bench) -> None:
    """An older record must not vouch for the artefact of a newer, unfinished run."""
    bench.run()
    with pytest.raises(SlideloomError, match="nothing became of c"):
        _stream(bench, ("b", "made"), ("a", "made"), params="q")
    assert [bench.paths.record("text", "", item).exists() for item in "abc"] == [True, True, False]
    bench.run(params="q")
    assert bench.worked == ["c"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError("full")])
def test_a_machine_out_of_order_stops_a_stream(bench: Bench, error: Exception) -> None:
    with pytest.raises(type(error)):
        _stream(bench, ("a", "made"), ("b", error), ("c", "made"))
    assert not bench.record.exists()
    assert bench.paths.record("text", "", "a").exists()

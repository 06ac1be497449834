from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slideloom.errors import ConfigError, Problem
from slideloom.slides.study import Study, load_study
from tests.bad_inputs.documents import KINDS
from tests.bad_inputs.kinds import Kind

#: Longest that any of them may take, seconds of a core; most take a hundredth.
_SECONDS, _OF_TEN_THOUSAND_SLIDES = 5.0, 2.0
_MEMORY_MB = 500


def check_problem(problem: Problem) -> None:
    """A mistake says where it is, what was found, and what was expected or what to do; it is quickly read."""
    assert problem.where.strip(), problem
    assert problem.what.strip(), problem
    assert problem.hint.strip() or "expected" in problem.what, f"what is to be done: {problem}"
    assert len(str(problem)) <= 500, problem
    assert str(problem).isprintable(), problem
    assert "object at 0x" not in str(problem)


def answer_of(config: Path) -> Study | ConfigError:
    try:
        return load_study(config)
    except ConfigError as error:
        return error


def test_names_are_unique() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_the_time_grows_with_the_sheet_and_no_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kind,) = [one for one in KINDS if one.name == "sheet_ten_thousand"]
    seconds: dict[int, float] = {}
    for rows in (1_000, 10_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        kind.make(folder)
        (sheet,) = folder.rglob("slides.tsv")
        lines = sheet.read_text().splitlines(keepends=True)[: rows + 1]
        assert len(lines) == rows + 1
        sheet.write_text("".join(lines))
        monkeypatch.chdir(folder)
        spent = []
        for _ in range(2):
            start = time.process_time()
            assert isinstance(answer_of(Path("config.yaml")), Study)
            spent.append(time.process_time() - start)
        seconds[rows] = min(spent)
    # Side by side, as what a core does in a second depends on its neighbours.
    assert seconds[10_000] < 20 * seconds[1_000], seconds


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_kind_has_its_answer(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = kind.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    start = time.process_time()
    found = answer_of(Path(cells["config"]))
    limit = _OF_TEN_THOUSAND_SLIDES if kind.name == "sheet_ten_thousand" else _SECONDS
    assert time.process_time() - start < limit
    assert sorted(path.name for path in tmp_path.rglob("*")) == before, "nothing is written"
    if isinstance(found, Study):
        assert kind.answer in ("accepted", "warned"), "it was to be refused"
        warnings = [text for text in found.warnings if re.search(kind.says, text)]
        assert bool(warnings) == (kind.answer == "warned"), found.warnings
        return
    assert kind.answer == "refused", found
    for problem in found.problems:
        check_problem(problem)
    assert len(found.problems) <= 10
    assert len(str(found).splitlines()) <= 24
    assert len(str(found)) <= (2600 if kind.name == "config_foreign" else 1600), "the keys that there are take room"
    told = [problem for problem in found.problems if re.search(kind.says, str(problem))]
    assert told, f"{kind.says!r} is said: {found}"
    assert told[0].where.startswith(("config.yaml", "slides.tsv", "/dev/zero"))


_CHILD = """
import os
from pathlib import Path
from tests.bad_inputs.kinds import peak_mb
from slideloom.errors import ConfigError
from slideloom.slides.study import load_study
for place in sorted(Path.cwd().iterdir()):
    os.chdir(place)
    try:
        load_study(Path("config.yaml"))
    except ConfigError:
        print(place.name, int(peak_mb()))
"""


def test_hostile_documents_take_little_memory(tmp_path: Path) -> None:
    names = {"sheet_gigabyte", "config_gigabyte", "config_laughs", "slides_device", "config_many_folds"}
    for kind in KINDS:
        if kind.name in names:
            (tmp_path / kind.name).mkdir()
            kind.make(tmp_path / kind.name)
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit,
        check=True,
    )
    # The peak is the process's own so far.
    peaks = {name: int(peak) for name, peak in (line.split() for line in done.stdout.splitlines())}
    assert set(peaks) == names
    assert {name: peak for name, peak in peaks.items() if peak >= _MEMORY_MB} == {}


def test_results_that_may_not_be_written_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the system's answer is given in its place."""
    (kind,) = [one for one in KINDS if one.name == "sheet_bom"]
    kind.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(ConfigError, match="results: 'results' cannot be written") as caught:
        load_study(Path("config.yaml"))
    check_problem(caught.value.problems[0])


def test_a_folder_that_may_not_be_entered_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kind,) = [one for one in KINDS if one.name == "sheet_bom"]
    kind.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    real = Path.stat

    def stat(path: Path, **more: bool) -> os.stat_result:
        if path.name in ("a.svs", "markers.tsv"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ConfigError) as caught:
        load_study(Path("config.yaml"))
    assert [problem.what for problem in caught.value.problems] == [
        "'markers.tsv' cannot be reached: Permission denied",
        "'a.svs' cannot be reached: Permission denied (slide 'a')",
    ]

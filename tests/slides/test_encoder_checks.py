"""Which normalisations of an encoder need a split whose training slides are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slideloom.errors import ConfigError
from slideloom.slides.study import study_from_mapping


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"s{number}\ta.tif\ta.tif\t0.5\tCD3\n" for number in range(4))
    Path("slides.tsv").write_text("slide_id\tsp\tinstances\tmpp_um\tsp_channels\n" + rows)
    Path("markers.tsv").write_text("channel\tmarker\tuniprot\nCD3\tCD3\tP07766\n")
    Path("a.tif").touch()


def told(model: str, statistics: str | None, **normalisation: str) -> list[str]:
    weights = {"random": 0} if model != "mean_marker" else {}
    mapping: dict[str, Any] = {
        "study": "s",
        "slides": "slides.tsv",
        "markers": "markers.tsv",
        "grids": {"g": {"image": "sp", "tile_px": 64}},
        "encoders": {
            "e": {"model": model, "grid": "g", "statistics": statistics, "normalisation": normalisation, **weights}
        },
        "splits": {"one": {"scheme": "sequential"}, "two": {"scheme": "kfold", "folds": 2}},
        "experiments": {"x": {"encoder": "e", "split": "two", "heads": ["nucleus"]}},
    }
    try:
        study_from_mapping(mapping, Path())
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("model", "statistics", "normalisation"),
    [
        ("virtues/tiny", "one", {}),
        ("virtues/tiny", None, {"scope": "slide"}),
        ("virtues/tiny", None, {"scope": "clip"}),
        ("virtues/tiny", "one", {"scope": "clip", "clip": "training"}),
        ("mean_marker", "one", {"scope": "clip"}),
        ("mean_marker", None, {"scope": "clip", "clip": "slide"}),
    ],
)
def test_what_is_enough(model: str, statistics: str | None, normalisation: dict[str, str]) -> None:
    assert told(model, statistics, **normalisation) == []


@pytest.mark.parametrize(
    ("model", "statistics", "normalisation", "words"),
    [
        ("virtues/tiny", None, {}, ("missing (scope: training)", "{scope: slide}")),
        ("mean_marker", None, {"scope": "clip"}, ("missing (clip: training)", "{scope: clip, clip: slide}")),
        ("virtues/tiny", None, {"scope": "clip", "clip": "training"}, ("missing (clip: training)",)),
        ("virtues/tiny", "one", {"scope": "clip"}, ("measured by itself (scope: clip, clip: slide)",)),
        ("virtues/tiny", "one", {"scope": "slide"}, ("measured by itself (scope: slide)",)),
        ("virtues/tiny", "two", {"scope": "clip", "clip": "training"}, ("'two' has 2 folds", "clip: slide}")),
    ],
)
def test_what_is_not(model: str, statistics: str | None, normalisation: dict[str, str], words: tuple[str, ...]) -> None:
    (problem,) = told(model, statistics, **normalisation)
    assert all(word in problem for word in words), problem

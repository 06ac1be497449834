"""All bad slides in one study with good ones: each gets its answer, and the good ones never notice."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.bad_inputs.corpus import KINDS
from tests.bad_inputs.corpus import SLIDES as EVERY_SLIDE
from tests.bad_inputs.kinds import Kind
from tests.bad_inputs.page import failures_page
from tests.bad_inputs.panel import MARKERS, NAMES, stack
from tests.bad_inputs.scene import CLASS_NAMES, class_rows, labels, tell
from tests.workflow.conftest import REPOSITORY, Workspace, run_once

#: All kinds, in jobs of several bins, with a network from timm, both images compared, figures drawn: with
#: ``SLIDELOOM_SLOW``, and under ``make soak``. Otherwise one kind of each answer, in few jobs, whose starts take nearly
#: all of the time.
_ALL = bool(os.environ.get("SLIDELOOM_SLOW") or os.environ.get("SLIDELOOM_SOAK"))
#: Good slides of each image, by their side of the split.
GOOD = {"train": 2, "val": 1, "test": 1}
#: Images whose good slides are run without the bad ones, too: those that bad slides are predicted beside.
_COMPARED = ("he", "sp") if _ALL else ("he",)
#: These stand for answers of their own: no nuclear marker, and pixels of another type than the good ones'.
_ALWAYS = ("sp_no_nuclear", "sp_signed")


def _some(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """One of each answer, group, code and stage; each kind's own answer is held by the tests beside it."""
    chosen = {(kind.answer, kind.group, kind.code, kind.stage): kind for kind in reversed(kinds)}
    return tuple(kind for kind in kinds if kind in chosen.values() or kind.name in _ALWAYS)


SLIDES = EVERY_SLIDE if _ALL else _some(EVERY_SLIDE)
_HE_ENCODER = {"model": "timm/test_vit", "random": 0} if _ALL else {"model": "mean_rgb"}
_COLUMNS = ("he", "sp", "instances", "classes", "mpp_um", "he_mpp_um", "sp_mpp_um", "sp_channels")
_FILES = ("he", "sp", "instances", "classes")


def test_names_are_unique_and_kinds_are_many() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 40
    assert {kind.group for kind in KINDS} == {"slide", "multiplex", "annotation", "sheet", "config", "store"}


def test_the_page_lists_the_corpus() -> None:
    page = (REPOSITORY / "docs" / "failures.md").read_text(encoding="utf-8")
    assert page == failures_page(), "python -m tests.bad_inputs.page docs/failures.md"


def _good(folder: Path, images: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of slides that nothing is wrong with."""
    rows = []
    for image in images:
        for number, split in enumerate(side for side, count in GOOD.items() for _ in range(count)):
            name = f"good_{image}_{number}"
            place = folder / name
            place.mkdir(parents=True)
            found = labels(number)
            np.save(place / "nuclei.npy", found)
            ids = range(1, int(found.max()) + 1)
            (place / "kinds.csv").write_text(class_rows(ids, (CLASS_NAMES[k % 3] for k in ids)))
            cells = dict(tell(place, "nuclei.npy", "kinds.csv"))
            if image == "sp":
                np.save(place / "stack.npy", np.tile(stack(), (1, 3, 3))[:, : found.shape[0], : found.shape[1]])
                del cells["he"]
                cells |= {"sp": "stack.npy", "sp_channels": ";".join(NAMES)}
            rows.append(_row(name, cells, split, "good"))
    return rows


def _bad(folder: Path) -> list[dict[str, str]]:
    """Rows of the corpus. They are on the test side, so that training is the same without them."""
    rows = []
    for kind in SLIDES:
        (folder / kind.name).mkdir(parents=True)
        rows.append(_row(kind.name, dict(kind.make(folder / kind.name)), "test", "odd"))
    return rows


def _row(name: str, cells: dict[str, str], split: str, platform: str) -> dict[str, str]:
    assert set(cells) <= set(_COLUMNS), cells
    placed = {key: f"{name}/{value}" if key in _FILES else value for key, value in cells.items()}
    return {"slide_id": name, "patient_id": name, "platform": platform, "split": split, **placed}


def _run(folder: Path, *, bad: bool) -> None:
    data = folder / "data"
    images = ("he", "sp") if bad else _COMPARED
    rows = [*_good(data, images), *(_bad(data) if bad else [])]
    pd.DataFrame(rows).fillna("").to_csv(data / "slides.tsv", sep="\t", index=False)
    markers = ["channel\tmarker\tuniprot\tnuclear", *("\t".join(row) for row in MARKERS)]
    (data / "markers.tsv").write_text("\n".join(markers) + "\n", encoding="utf-8")
    classes = [f"{number}\t{name}\t#8080{number}0" for number, name in enumerate(CLASS_NAMES, 1)]
    (data / "classes.tsv").write_text("\n".join(["id\tname\tcolour", *classes]) + "\n")
    training = {"epochs": 1, "batch_size": 4, "patience": None}
    one = {"decoder": {"width": 0.0625, "branches": "shared"}, "training": training}
    grid = {"tile_px": 64, "mpp_um": 0.5, "min_tissue": 0.0}
    config: dict[str, Any] = {
        "study": "corpus",
        "slides": "data/slides.tsv",
        "markers": "data/markers.tsv",
        "classes": "data/classes.tsv",
        "results": "results",
        "grids": {"he64": {"image": "he"} | grid, "sp64": {"image": "sp"} | grid},
        "encoders": {
            "rgb": {"grid": "he64"} | _HE_ENCODER,
            "mean": {"model": "mean_marker", "grid": "sp64", "statistics": "panel", "markers": [MARKERS[0][1]]},
        },
        # Bad panels are read as far as their patches: whether an encoder finds its markers there is another question.
        "splits": {"all": {"scheme": "column"}, "panel": {"scheme": "column", "platforms": ["good"]}},
        "experiments": {
            "he": {"encoder": "rgb", "split": "all"} | one,
            "sp": {"encoder": "mean", "split": "panel"} | one,
        },
        "jobs": {"slides_per_job": 64 if _ALL else 128},
    }
    if "sp" not in images:
        for section, name in (("grids", "sp64"), ("encoders", "mean"), ("splits", "panel"), ("experiments", "sp")):
            del config[section][name]
    workspace = Workspace(folder)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    # Without bad slides, the page is another's test; its figures are drawn from the tables.
    workspace.run(*([] if _ALL else ["--until", "report_html" if bad else "reports"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """Good and bad slides together."""
    return run_once(tmp_path_factory, worker_id, "corpus", lambda folder: _run(folder, bad=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The good slides without the bad ones."""
    return run_once(tmp_path_factory, worker_id, "corpus_alone", lambda folder: _run(folder, bad=False))


def _table(workspace: Workspace, name: str) -> pd.DataFrame:
    return pd.read_parquet(workspace.results / "reports" / f"{name}.parquet")


def _warnings(workspace: Workspace, slide: str) -> list[str]:
    facts = json.loads((workspace.results / "slides" / slide / "slide.json").read_text())
    stores = [
        workspace.results / stage / grid / f"{slide}.zarr"
        for stage in ("patches", "targets")
        for grid in ("he64", "sp64")
    ]
    found = list(facts["warnings"])
    for store in stores:
        if store.is_dir():
            found += json.loads((store / "zarr.json").read_text())["attributes"].get("warnings", ())
    return found


def _pixel_type(workspace: Workspace, slide: str) -> str:
    """Pixel type of a slide's multiplexed image; empty where it has none."""
    facts = json.loads((workspace.results / "slides" / slide / "slide.json").read_text())
    return str(facts["images"].get("sp", {}).get("dtype", ""))


@pytest.mark.workflow
@pytest.mark.slow
def test_every_kind_fails_with_its_code_or_does_not_fail(whole: Workspace) -> None:
    failures = _table(whole, "failures")
    assert not failures["slide_id"].isna().any()
    told = {row.slide_id: (row.stage, row.reason_code) for row in failures.itertuples()}
    declared = {kind.name: (kind.stage, kind.code) for kind in SLIDES if kind.answer == "failed"}
    # Panels without a nuclear marker and pixels of other types are read as any other; this study's encoder asks for
    # that marker, and is normalised with statistics of 16-bit counts.
    others = {
        kind.name: ("embeddings", "mixed_dtypes")
        for kind in SLIDES
        if kind.answer != "failed" and _pixel_type(whole, kind.name) not in ("", "uint16")
    }
    assert others
    assert told == declared | others | {"sp_no_nuclear": ("embeddings", "missing_marker")}
    assert (failures["hint"].str.len() > 10).all()
    assert not failures["message"].str.contains("Traceback|object at 0x").any()
    for kind in SLIDES:
        if kind.answer == "failed" and kind.says:
            message = failures.set_index("slide_id").loc[kind.name]
            assert re.search(kind.says, f"{message['message']} {message['hint']}", re.DOTALL), kind.name


@pytest.mark.workflow
@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SLIDES if kind.answer != "failed"], ids=str)
def test_what_runs_has_its_warning_recorded(whole: Workspace, kind) -> None:  # type: ignore[no-untyped-def]
    warnings = _warnings(whole, kind.name)
    told = _table(whole, "warnings")
    told = told[(told["slide_id"] == kind.name) & told["stage"].isin(["facts", "patches", "targets"])]
    assert set(told["message"]) == set(warnings), "the report tells what is recorded, and nothing else"
    if kind.answer == "warned":
        assert any(re.search(kind.says, warning, re.DOTALL) for warning in warnings), warnings
    else:
        assert warnings == []


@pytest.mark.workflow
@pytest.mark.slow
def test_good_slides_have_the_figures_that_they_have_without_the_bad_ones(whole: Workspace, alone: Workspace) -> None:
    for name in ("slides", "classes"):
        beside, without = (_table(one, name) for one in (whole, alone))
        compared = beside["slide_id"].str.startswith("good_") & beside["experiment"].isin(_COMPARED)
        good = beside[compared].reset_index(drop=True)
        assert set(without["experiment"]) == set(_COMPARED)
        pd.testing.assert_frame_equal(good, without, check_dtype=False)  # counts beside a null are floats in pandas
    for one in sorted((alone.results / "models").rglob("decoder.safetensors")):
        assert one.read_bytes() == (whole.results / one.relative_to(alone.results)).read_bytes()
    assert _table(alone, "failures").empty

"""Live prediction with overlap, poses and the seam check, in bands or whole, and the files for other programs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from slideloom.artefacts.zarrio import open_array, read_attributes

from .conftest import Workspace, copied, run_once

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
MAPS = ("nucleus", "hv", "class_id", "class_probability", "covered")


def _write(folder: Path) -> Workspace:
    from slideloom.demo.cohort import write_cohort

    sheet = write_cohort(folder / "cohort", seed=11, n_slides=3, size_px=1100)
    config: dict[str, Any] = {
        "study": "scale",
        "slides": str(sheet),
        "markers": str(sheet.parent / "markers.tsv"),
        "classes": str(sheet.parent / "classes.tsv"),
        "results": "results",
        "grids": {"sp120": {"image": "sp", "tile_px": 120}},
        "encoders": {"mean": {"model": "mean_marker", "grid": "sp120", "normalisation": {"scope": "slide"}}},
        "splits": {"first": {"scheme": "sequential", "train": 0.7, "val": 0.0}},
        "experiments": {
            "sp": {
                "encoder": "mean",
                "split": "first",
                "decoder": {"width": 0.0625, "branches": "shared"},
                "loss": {"cross_entropy": 1.5, "dice": 1.5, "focal_tversky": 0.5, "hv_mse": 2.0, "hv_msge": 0.4},
                "training": {"epochs": 8, "batch_size": 4, "lr": 3e-3, "t_0": 8, "patience": None},
            }
        },
        "inference": {"source": "live", "overlap_px": 24, "symmetries": "flips", "seam_check": True},
        "exports": {"geojson": True, "anndata": True, "spatialdata": True},
    }
    workspace = Workspace(folder)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    return workspace


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    def run(folder: Path) -> None:
        _write(folder).run()

    return run_once(tmp_path_factory, worker_id, "scale", run)


def _slide(workspace: Workspace) -> str:
    (store,) = (workspace.results / "maps" / "sp" / "0").glob("*.zarr")
    return store.stem


def test_the_share_of_nuclei_that_a_shifted_grid_changes_is_reported(predicted: Workspace) -> None:
    slides = pd.read_parquet(predicted.results / "reports" / "slides.parquet")
    assert len(slides) == 1
    rate = slides["seam_change_rate"].item()
    labels = predicted.results / "labels" / "sp" / "0" / f"{_slide(predicted)}.ome.zarr"
    told = read_attributes(labels)["slideloom"]["seam_change"]
    assert told["rate"] == rate == told["changed"] / (told["n"] + told["n_shifted"])
    assert 0 < rate < 0.5
    assert told["n"] == slides["n_pred"].item() > 100


def test_no_tile_is_padded_and_every_pixel_is_seen(predicted: Workspace) -> None:
    store = predicted.results / "maps" / "sp" / "0" / f"{_slide(predicted)}.zarr"
    for folder in (store, store / "shifted"):
        covered = np.asarray(open_array(folder / "covered"))
        assert covered.shape == (1100, 1100)
        assert covered.mean() > 0.9


def test_where_a_jobs_time_went(predicted: Workspace) -> None:
    costs = pd.read_parquet(predicted.results / "reports" / "costs.parquet").set_index("rule")
    spent = costs.loc["maps", ["wait_read_s", "copy_s", "compute_s", "blend_s", "wait_write_s"]].astype(float)
    assert spent.notna().all()
    assert 0 < spent["compute_s"] < costs.loc["maps", "seconds"]
    assert costs.loc["maps", "tiles_per_s"] > 0
    assert pd.isna(costs.loc["instances", "compute_s"])


def test_files_for_other_programs_tell_the_same_nuclei(predicted: Workspace) -> None:
    slide, folder = _slide(predicted), predicted.results / "exports" / "sp" / "0"
    cells = pd.read_parquet(predicted.results / "cells" / "sp" / "0" / f"slide_id={slide}" / "cells.parquet")
    with zipfile.ZipFile(folder / f"{slide}.geojson.zip") as packed:
        (name,) = packed.namelist()
        features = json.loads(packed.read(name))["features"]
    assert len(features) == len(cells)
    assert {feature["properties"]["objectType"] for feature in features} == {"detection"}
    with h5py.File(folder / f"{slide}.h5ad") as file:
        assert file["X"].shape == (len(cells), 16)
    copy = folder / f"{slide}.spatialdata.zarr" / "labels" / "nuclei_labels"
    labels = predicted.results / "labels" / "sp" / "0" / f"{slide}.ome.zarr"
    arrays = [np.asarray(open_array(place / "0")) for place in (copy, labels)]
    assert np.array_equal(*arrays)


def test_bands_make_the_same_maps(predicted: Workspace, tmp_path: Path) -> None:
    whole, slide = copied(predicted, tmp_path / "study"), _slide(predicted)
    whole.edit("jobs", value={"bands": 2})
    wanted = whole.would_run()
    assert wanted["bands"] == 2
    assert "train" not in wanted
    (whole.results / "state" / "maps" / "sp" / "0" / "jobs" / "1-0.json").unlink()
    whole.run()
    for part in ("", "shifted"):
        for name in MAPS:
            one, other = (
                np.asarray(open_array(study.results / "maps" / "sp" / "0" / f"{slide}.zarr" / part / name)).astype(int)
                for study in (predicted, whole)
            )
            # Other batches round floats otherwise in the last bit: here and there a step of the 8-bit code.
            assert (one != other).mean() < 1e-3, (part, name)
    bands = sorted((whole.results / "maps" / "sp" / "0" / f"{slide}.bands").glob("*.zarr"))
    assert len(bands) == 2
    slides = [pd.read_parquet(study.results / "reports" / "slides.parquet") for study in (predicted, whole)]
    assert slides[0]["n_pred"].item() == pytest.approx(slides[1]["n_pred"].item(), abs=2)
    assert whole.would_run() == {}


def test_a_slide_that_changes_no_instance_setting_is_left_alone(predicted: Workspace) -> None:
    assert predicted.would_run() == {}

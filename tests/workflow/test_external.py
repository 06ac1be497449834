"""Nuclei that other programs found, through the workflow: scored, counted and told like any others."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

from slideloom.reports.figures import FIGURES

from .conftest import Workspace, run_once

pytestmark = pytest.mark.workflow


def _class_image(cohort: Path, slide: str, classes: str, labels: np.ndarray, place: Path) -> None:
    """The slide's true classes as an image, whatever form the cohort has them in."""
    if "::" not in classes:
        image = tifffile.imread(cohort / classes)
    else:
        table = pd.read_csv(cohort / classes.split("::")[0]).query("image == @slide")
        image = np.zeros(labels.shape, np.uint8)
        for row in table.itertuples():
            image[labels == row.label_id] = row.class_id
    tifffile.imwrite(place / f"{slide}.tif", image.astype(np.uint8))


def _write(folder: Path) -> Workspace:
    from slideloom.demo.cohort import write_cohort

    sheet = write_cohort(folder / "cohort", seed=5, n_slides=4, size_px=192)
    rows = pd.read_csv(sheet, sep="\t")
    rows["tissue"] = ["colon", "colon", "lung", "lung"]
    rows.to_csv(sheet, sep="\t", index=False)
    truth = {row.slide_id: tifffile.imread(sheet.parent / row.instances) for row in rows.itertuples()}
    others = sheet.parent / "others"
    (others / "mask").mkdir(parents=True)
    (others / "qupath").mkdir()
    (others / "classes").mkdir()
    for row in rows.itertuples():
        _class_image(sheet.parent, row.slide_id, row.classes, truth[row.slide_id], others / "classes")
    for slide, labels in truth.items():
        tifffile.imwrite(others / "mask" / f"{slide}.tif", (labels > 0).astype(np.uint8))
    # QuPath's detections: boxes around the true nuclei, of one slide alone.
    slide, labels = next((one, truth[one]) for one in rows.loc[rows["split"] == "test", "slide_id"])
    features = []
    for nucleus in np.unique(labels[labels > 0]):
        y, x = np.nonzero(labels == nucleus)
        left, top, right, bottom = (float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1))
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        about = {"objectType": "detection", "classification": {"name": "Tumor"}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": about})
    collection = {"type": "FeatureCollection", "features": features}
    (others / "qupath" / f"{slide}.geojson").write_text(json.dumps(collection))
    shared = {"grid": "sp64", "split": "holdout"}
    config: dict[str, Any] = {
        "study": "others",
        "slides": str(sheet),
        "markers": str(sheet.parent / "markers.tsv"),
        "classes": str(sheet.parent / "classes.tsv"),
        "results": "results",
        "grids": {"sp64": {"image": "sp", "tile_px": 64}},
        "splits": {"holdout": {"scheme": "column"}},
        "experiments": {
            "perfect": shared | {"labels": "instances/{slide}.tif", "label_classes": "others/classes/{slide}.tif"},
            "masks": shared | {"labels": "others/mask/{slide}.tif"},
            "qupath": shared | {"labels": "others/qupath/{slide}.geojson"},
        },
    }
    workspace = Workspace(folder)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    return workspace


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The study, run once to its end."""
    return run_once(tmp_path_factory, worker_id, "others", lambda folder: _write(folder).run())


def _table(workspace: Workspace, name: str) -> pd.DataFrame:
    return pd.read_parquet(workspace.results / "reports" / f"{name}.parquet")


def test_the_truth_itself_scores_one(others: Workspace) -> None:
    slides = _table(others, "slides").query("experiment == 'perfect'")
    assert len(slides) > 0
    for figure in ("pq", "aji", "f1_mean", "f1_d", "f1_pixel", "boundary_f1", "dice_macro"):
        assert (slides[figure] == 1).all(), figure
    assert slides["map"].isna().all(), "another program's labels have no probabilities"
    assert slides["hv_mse"].isna().all()
    assert (slides["n_gt"] == slides["n_pred"]).all()


def test_masks_are_refused_by_name(others: Workspace) -> None:
    failures = _table(others, "failures")
    masks = failures[failures["context"].str.startswith("masks")]
    assert set(masks["reason_code"]) == {"binary_labels"}
    assert "masks" not in set(_table(others, "slides")["experiment"])


def test_a_missing_file_stops_its_slide_alone(others: Workspace) -> None:
    slides, failures = _table(others, "slides"), _table(others, "failures")
    scored = slides.query("experiment == 'qupath'")
    assert len(scored) == 1
    assert scored["pq"].between(0.5, 1, inclusive="neither").all(), "boxes are not quite the nuclei"
    missing = failures[failures["context"].str.startswith("qupath")]
    assert set(missing["reason_code"]) <= {"annotation_missing"}


def test_biology_stands_beside_the_figures(others: Workspace) -> None:
    biology = _table(others, "biology").query("experiment == 'perfect' and scope == 'all'")
    slides = _table(others, "slides").query("experiment == 'perfect'").set_index("slide_id")
    counted = biology.set_index("slide_id")["n"]
    assert counted[slides.index].tolist() == slides["n_gt"].tolist()
    assert (biology["density_per_mm2"] > 0).all()
    assert [name for name in biology if name.startswith("mean_")], "markers are measured under other programs' nuclei"
    groups = _table(others, "groups")
    assert "colon" in set(groups.query("by == 'tissue'")["group"]) or "lung" in set(groups["group"])


def test_the_page_names_their_origin_and_nothing_is_left_to_do(others: Workspace) -> None:
    page = (others.results / "reports" / "report.html").read_text()
    assert "another program" in page
    assert others.would_run() == {}


def test_snakemakes_own_report_carries_the_figures(others: Workspace, tmp_path: Path) -> None:
    place = tmp_path / "report.zip"
    others.run("--report", str(place))
    with zipfile.ZipFile(place) as packed:
        names = {Path(name).name for name in packed.namelist()}
        page = next(name for name in packed.namelist() if name.endswith("report/report.html"))
        text = packed.read(page).decode()
    assert {"report.html", *(f"{name}.svg" for name in FIGURES)} <= names
    for figure in FIGURES.values():
        assert figure.title in text, "the figure is named in the report"
        assert figure.category in text


def test_a_changed_file_is_scored_anew_and_nothing_else(others: Workspace) -> None:
    place = next((others.folder / "cohort" / "others" / "qupath").glob("*.geojson"))
    collection = json.loads(place.read_text())
    collection["features"] = collection["features"][1:]
    before = _table(others, "slides").query("experiment == 'qupath'")["n_pred"].item()
    place.write_text(json.dumps(collection))
    assert set(others.would_run()) == {"imported", "biology", "metrics", "reports", "report_html", "report_figures"}
    others.run()
    assert _table(others, "slides").query("experiment == 'qupath'")["n_pred"].item() == before - 1

"""A training slide without a wanted marker, or of another pixel type, fails alone; the statistics go on without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import digest_file
from tests.bad_inputs.panel import MARKERS, NAMES, stack
from tests.bad_inputs.scene import labels

from .conftest import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

ROLES = {"a": "train", "b": "train", "few": "train", "eight_bit": "train", "c": "val", "d": "test"}
ODD = {"few": ("embeddings", "missing_marker"), "eight_bit": ("embeddings", "mixed_dtypes")}


def _study(folder: Path) -> Workspace:
    rows = []
    for number, (slide, role) in enumerate(ROLES.items()):
        place = folder / slide
        place.mkdir(parents=True)
        nuclei = labels(number)
        image = np.tile(stack(), (1, 3, 3))[:, : nuclei.shape[0], : nuclei.shape[1]]
        image, names = (image[:2], NAMES[:2]) if slide == "few" else (image, NAMES)
        np.save(place / "sp.npy", image.astype(np.uint8) if slide == "eight_bit" else image)
        np.save(place / "nuclei.npy", nuclei)
        cells = {"slide_id": slide, "split": role, "sp": f"{slide}/sp.npy", "instances": f"{slide}/nuclei.npy"}
        rows.append(cells | {"mpp_um": "0.5", "sp_channels": ";".join(names)})
    pd.DataFrame(rows).to_csv(folder / "slides.tsv", sep="\t", index=False)
    markers = ["channel\tmarker\tuniprot\tnuclear", *("\t".join(row) for row in MARKERS)]
    (folder / "markers.tsv").write_text("\n".join(markers) + "\n", encoding="utf-8")
    (folder / "classes.tsv").write_text("id\tname\tcolour\n1\tTumour\t#ff0000\n")
    wanted = [row[1] for row in MARKERS if row[0] in NAMES]
    config = {
        "study": "odd",
        **{key: f"{key}.tsv" for key in ("slides", "markers", "classes")},
        "results": "results",
        "grids": {"sp64": {"image": "sp", "tile_px": 64, "mpp_um": 0.5, "min_tissue": 0.0}},
        "encoders": {"mean": {"model": "mean_marker", "grid": "sp64", "statistics": "holdout", "markers": wanted}},
        "splits": {"holdout": {"scheme": "column"}},
        "experiments": {
            "sp": {
                "encoder": "mean",
                "split": "holdout",
                "heads": ["nucleus", "hv"],
                "decoder": {"width": 0.0625, "branches": "shared"},
                "training": {"epochs": 1, "batch_size": 4, "patience": None},
            }
        },
    }
    workspace = Workspace(folder)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    return workspace


def test_odd_training_slides_are_left_out_of_the_statistics_and_fail_alone(tmp_path: Path) -> None:
    study = _study(tmp_path / "study")
    study.run()
    reports = study.results / "reports"
    failures = pd.read_parquet(reports / "failures.parquet")
    assert {row.slide_id: (row.stage, row.reason_code) for row in failures.itertuples()} == ODD
    assert len(failures) == 2, "each once"
    assert failures["trained_on"].tolist() == [False, False]
    told = read_json(study.results / "statistics" / "slides" / "mean.json")
    assert (told["n_used"], told["used"], told["n_left_out"]) == (2, ["a", "b"], 2)
    assert {slide: reason["code"] for slide, reason in told["left_out"].items()} == {k: v[1] for k, v in ODD.items()}
    place = study.results / "statistics" / "mean.json"
    assert read_json(place)["dtype"] == "uint16"
    log = (study.results / "logs" / "statistics" / "mean.log").read_text()
    assert "2 of 4 training slides do not count: eight_bit (its pixels are uint8); few (no channel shows CD8a)" in log
    warnings = pd.read_parquet(reports / "warnings.parquet")
    of_statistics = warnings[warnings["stage"] == "statistics"]
    assert sorted(of_statistics["slide_id"]) == sorted(ODD)
    page = (reports / "report.html").read_text()
    assert "channel statistics: few: no channel shows CD8a" in page
    training = pd.read_parquet(reports / "training.parquet")
    assert training[["n_slides_train", "n_slides_failed"]].to_numpy().tolist() == [[2, 2]]
    assert set(pd.read_parquet(reports / "slides.parquet")["slide_id"]) == {"c", "d"}

    # Taken out of the study, they change no figure: nothing is measured or embedded anew.
    stores = study.results / "embeddings" / "mean"
    before = {path: path.stat().st_mtime_ns for path in stores.glob("*.zarr/zarr.json")}
    digest = digest_file(place)
    rows = pd.read_csv(tmp_path / "study" / "slides.tsv", sep="\t", dtype=str)
    rows[~rows["slide_id"].isin(ODD)].to_csv(tmp_path / "study" / "slides.tsv", sep="\t", index=False)
    study.run()
    assert digest_file(place) == digest
    assert {path: path.stat().st_mtime_ns for path in stores.glob("*.zarr/zarr.json")} == before
    assert len(before) == 4
    assert pd.read_parquet(reports / "failures.parquet").empty
    assert "statistics" not in set(pd.read_parquet(reports / "warnings.parquet")["stage"])

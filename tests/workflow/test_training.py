"""The training laboratory through the workflow: an encoder that is trained along, turned tokens, variants, folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from slideloom.artefacts.paths import Paths
from slideloom.artefacts.zarrio import read_attributes
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.training.checkpoint import read_meta
from slideloom.training.splits import read_split

from .conftest import RULES, Workspace, copied, run_once

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def _write(folder: Path) -> Workspace:
    from slideloom.demo.cohort import write_cohort

    sheet = write_cohort(folder / "cohort", seed=4, n_slides=4, size_px=192)
    short = {"epochs": 1, "batch_size": 4, "lr": 3e-3, "patience": None}
    narrow = {"width": 0.0625, "branches": "shared"}
    slide = {"scope": "slide"}
    config: dict[str, Any] = {
        "study": "laboratory",
        "slides": str(sheet),
        "markers": str(sheet.parent / "markers.tsv"),
        "classes": str(sheet.parent / "classes.tsv"),
        "results": "results",
        "grids": {"sp64": {"image": "sp", "tile_px": 64}, "he64": {"image": "he", "tile_px": 64}},
        "encoders": {
            "markers": {"model": "mean_marker", "grid": "sp64", "normalisation": slide, "symmetries": True},
            "vit": {"model": "timm/test_vit", "grid": "he64", "random": 0},
        },
        "splits": {"halves": {"scheme": "kfold", "folds": 2}},
        "experiments": {
            # Everything that stored tokens allow, and no head for nuclei.
            "rich": {
                "encoder": "markers",
                "split": "halves",
                "decoder": narrow | {"global_context": True, "masked_attention": True},
                "heads": ["classes", "boundary"],
                "loss": {"focal": 0.5, "lovasz_softmax": 0.5, "class_weights": True},
                "sampling": {"gamma": 0.85},
                "augmentation": {"flips": 0.5, "turns": 0.75},
                "training": short | {"schedule": "plateau", "accumulate": 2, "clip_norm": 1.0, "ema": 0.9},
            },
            "linear": {
                "encoder": "markers",
                "split": "halves",
                "decoder": {"kind": "linear"},
                "heads": ["nucleus"],
                "training": short,
            },
            "tuned": {
                "encoder": "vit",
                "split": "halves",
                "decoder": narrow,
                "heads": ["nucleus", "hv"],
                "augmentation": {"turns": 0.5, "colour_jitter": 0.5, "stain_jitter": 0.5},
                "training": short | {"input": "live", "unfreeze_epoch": 0, "encoder_lr": 1e-3},
            },
        },
    }
    workspace = Workspace(folder)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    return workspace


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The study, run once to its end."""
    return run_once(tmp_path_factory, worker_id, "laboratory", lambda folder: _write(folder).run())


@pytest.fixture
def workspace(laboratory: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished study that a test may edit."""
    return copied(laboratory, tmp_path / "study")


def _table(workspace: Workspace, name: str) -> pd.DataFrame:
    return pd.read_parquet(workspace.results / "reports" / f"{name}.parquet")


def test_every_experiment_reaches_the_tables(laboratory: Workspace) -> None:
    assert len(_table(laboratory, "failures")) == 0
    slides = _table(laboratory, "slides")
    found = slides.groupby(["experiment", "fold"])["slide_id"].apply(sorted)
    split = read_split(Paths(laboratory.results).split("halves"))
    tests = {fold: sorted(rows["slide_id"]) for fold, rows in split[split["role"] == "test"].groupby("fold")}
    assert all(found[experiment, fold] == tests[fold] for experiment, fold in found.index)
    assert len(found) == 6, "three experiments, two folds"
    pairs = _table(laboratory, "comparisons")
    assert {"p_adjusted", "n_folds", "fold_difference"} <= set(pairs)
    assert (pairs.query("metric == 'pq'")["n_folds"] == 2).all()
    assert len(_table(laboratory, "published")) == 0, "the study names no published report"


def test_no_patient_stands_on_both_sides(laboratory: Workspace) -> None:
    sheet = pd.read_csv(laboratory.config()["slides"], sep="\t")
    split = read_split(Paths(laboratory.results).split("halves")).merge(sheet[["slide_id", "patient_id"]])
    sides = split[split["role"] != "infer"].groupby(["fold", "patient_id"])["role"].nunique()
    assert (sides == 1).all()


def test_every_term_stands_in_the_history(laboratory: Workspace) -> None:
    training = _table(laboratory, "training").query("experiment == 'rich'")
    for term in ("classes_focal", "classes_lovasz_softmax", "classes_dice", "boundary_dice"):
        assert training[f"train_{term}"].notna().all(), term
    assert training["train_nucleus_dice"].isna().all()


def test_tokens_of_all_poses_are_stored_and_named(laboratory: Workspace) -> None:
    place = next((laboratory.results / "embeddings" / "markers").glob("*.zarr"))
    assert EmbeddingStore(place).has_symmetries
    assert not (laboratory.results / "embeddings" / "vit").exists(), (
        "nothing reads stored tokens of an encoder that trains"
    )


def test_a_trained_encoder_predicts_and_says_so(laboratory: Workspace) -> None:
    paths = Paths(laboratory.results)
    for fold in ("0", "1"):
        meta = read_meta(paths.model("tuned", fold) / "decoder.safetensors")
        assert meta.encoder_trained
        assert meta.encoder["weights"].startswith("random:0 tuned:")
        maps = next((laboratory.results / "maps" / "tuned" / fold).glob("*.zarr"))
        assert read_attributes(maps)["encoder_weights"] == meta.encoder["weights"]
    one, other = (read_meta(paths.model("tuned", fold) / "decoder.safetensors").encoder for fold in ("0", "1"))
    assert one["weights"] != other["weights"]


def test_an_edit_of_one_training_leaves_the_others(workspace: Workspace) -> None:
    assert workspace.would_run() == {}
    workspace.edit("experiments", "tuned", "training", "encoder_lr", value=1e-4)
    wanted = workspace.would_run()
    assert wanted["train_live"] == 2
    assert set(wanted) == {"train_live", *RULES[RULES.index("train") + 1 :]}
    assert wanted["maps"] == wanted["metrics"] == 2, "a job a fold"

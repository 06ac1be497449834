"""Real encoders through the workflow: markers, H&E, both joined, and a published model that is not trained."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.zarrio import read_attributes
from slideloom.encoders.cellvit.file import CellViTFile
from slideloom.encoders.checkpoints.files import file_sha256
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.training.checkpoint import read_meta

from .conftest import Workspace, copied, run_once

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
NAMES = ("Background", "Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
#: The classes of the published model; no annotation of the demo's is of them.
CLASSES = "id\tname\tcolour\n" + "".join(f"{k}\t{name}\t#{k}0{k}0{k}0\n" for k, name in enumerate(NAMES[1:], 1))


def _published(place: Path) -> None:
    """A small CellViT with seeded weights, saved as its authors save theirs."""
    from slideloom.decoders.cellvit_model import CellViT

    settings: dict[str, Any] = {f"dataset_config.nuclei_types.{name}": k for k, name in enumerate(NAMES)}
    settings |= {"model.num_heads": 3, "model.extract_layers": [1, 2, 3, 4], "model.embed_dim": 48, "model.depth": 4}
    settings |= {"data.num_nuclei_classes": 6, "data.num_tissue_classes": 19}
    about = CellViTFile(
        arch="vit",
        sizes={"embed_dim": 48, "depth": 4, "heads": 3},
        extract_layers=(1, 2, 3, 4),
        num_nuclei_classes=6,
        num_tissue_classes=19,
    )
    torch.manual_seed(0)
    place.parent.mkdir(parents=True)
    torch.save({"arch": "CellViT", "config": settings, "model_state_dict": CellViT(about).state_dict()}, place)


def _write(folder: Path) -> Workspace:
    from slideloom.demo.cohort import write_cohort

    sheet = write_cohort(folder / "cohort", seed=3, n_slides=4, size_px=256)
    pd.read_csv(sheet, sep="\t").drop(columns="classes").to_csv(sheet, sep="\t", index=False)
    (folder / "classes.tsv").write_text(CLASSES)
    _published(folder / "weights" / "CellViT-tiny.pth")
    training = {"epochs": 1, "batch_size": 8, "lr": 3e-3, "patience": None}
    narrow = {"width": 0.0625, "branches": "shared"}
    trained = {"split": "holdout", "decoder": narrow, "training": training, "heads": ["nucleus", "hv"]}
    config = {
        "study": "encoders",
        "slides": str(sheet),
        "markers": str(sheet.parent / "markers.tsv"),
        "classes": str(folder / "classes.tsv"),
        "results": "results",
        "grids": {"sp64": {"image": "sp", "tile_px": 64}, "he64": {"image": "he", "tile_px": 64}},
        "encoders": {
            "virtues": {
                "model": "virtues/tiny",
                "grid": "sp64",
                "random": 0,
                "statistics": "holdout",
                "blocks": [4, 8],
                "markers": ["CD45", "Pan-CK", "SMA"],
            },
            "vit": {"model": "timm/test_vit", "grid": "he64", "random": 0},
            "published": {
                "model": "cellvit/vit",
                "grid": "he64",
                "checkpoint": "weights/CellViT-tiny.pth",
            },
        },
        "splits": {"holdout": {"scheme": "column"}},
        "experiments": {
            "sp": {"encoder": "virtues"} | trained,
            "both": {"encoder": ["virtues", "vit"]} | trained,
            "published": {"encoder": "published", "split": "holdout", "pretrained": "weights/CellViT-tiny.pth"},
        },
    }
    workspace = Workspace(folder)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    return workspace


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The study, run once to its end."""
    return run_once(tmp_path_factory, worker_id, "encoders", lambda folder: _write(folder).run())


@pytest.fixture
def workspace(embedded: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished study that a test may edit."""
    return copied(embedded, tmp_path / "study")


def _paths(workspace: Workspace) -> Paths:
    return Paths(workspace.results)


def _test_slide(workspace: Workspace) -> str:
    sheet = pd.read_csv(workspace.config()["slides"], sep="\t")
    return str(sheet.loc[sheet["split"] == "test", "slide_id"].iloc[0])


def _log(workspace: Workspace, *parts: str) -> str:
    return "\n".join(log.read_text() for log in workspace.results.joinpath("logs", *parts).rglob("*.log"))


def test_every_experiment_has_its_rows(embedded: Workspace) -> None:
    slides = pd.read_parquet(embedded.results / "reports" / "slides.parquet")
    assert set(slides["experiment"]) == {"sp", "both", "published"}
    assert slides["dice_binary"].notna().all()
    assert len(pd.read_parquet(embedded.results / "reports" / "failures.parquet")) == 0
    training = pd.read_parquet(embedded.results / "reports" / "training.parquet")
    assert set(training["experiment"]) == {"sp", "both"}, "what is published is not trained"
    assert embedded.would_run() == {}


def test_the_weights_stand_in_every_artefact_downstream(embedded: Workspace) -> None:
    paths, slide = _paths(embedded), _test_slide(embedded)
    published = f"sha256:{file_sha256(embedded.folder / 'weights' / 'CellViT-tiny.pth')}"
    assert EmbeddingStore(paths.embeddings("published", slide)).weights == published
    meta = read_meta(paths.model("published", "0") / "decoder.safetensors")
    assert meta.encoder["weights"] == published
    assert meta.training["pretrained"]["sha256"] == published.removeprefix("sha256:")
    for experiment, weights in {"published": published, "sp": "random:0", "both": "random:0 + random:0"}.items():
        where = (experiment, "0", slide)
        assert read_attributes(paths.maps(*where))["encoder_weights"] == weights
        assert weights in str(read_attributes(paths.labels(*where)))
        assert weights in str(pq.read_metadata(paths.cells(*where)).metadata)
        for table in paths.metrics(*where).glob("*.parquet"):
            assert weights in str(pq.read_metadata(table).metadata)
    for table in (embedded.results / "reports").glob("*.parquet"):
        assert published in str(pq.read_metadata(table).metadata), table.name
    page = (embedded.results / "reports" / "report.html").read_text()
    for told in (published, "90 % of all three folds of PanNuke", "DRAWN from the seed"):
        assert told in page


def test_joined_tokens_are_as_wide_as_both(embedded: Workspace) -> None:
    paths, slide = _paths(embedded), _test_slide(embedded)
    widths = [EmbeddingStore(paths.embeddings(name, slide)).width for name in ("virtues", "vit")]
    meta = read_meta(paths.model("both", "0") / "decoder.safetensors")
    assert meta.token_width == sum(widths)
    assert [one["spec"]["name"] for one in meta.encoder["fused"]] == ["virtues/tiny", "timm/test_vit"]


def test_a_moved_checkpoint_computes_nothing(workspace: Workspace) -> None:
    paths, slide = _paths(workspace), _test_slide(workspace)
    before = {stage: digest_tree(place) for stage, place in _artefacts(paths, slide).items()}
    stamps = {stage: place.stat().st_mtime_ns for stage, place in _artefacts(paths, slide).items()}
    (workspace.folder / "elsewhere").mkdir()
    shutil.move(workspace.folder / "weights" / "CellViT-tiny.pth", workspace.folder / "elsewhere" / "tiny.pth")
    workspace.edit("encoders", "published", "checkpoint", value="elsewhere/tiny.pth")
    workspace.edit("experiments", "published", "pretrained", value="elsewhere/tiny.pth")
    workspace.run()
    assert {stage: place.stat().st_mtime_ns for stage, place in _artefacts(paths, slide).items()} == stamps
    assert {stage: digest_tree(place) for stage, place in _artefacts(paths, slide).items()} == before
    assert workspace.would_run() == {}


def _artefacts(paths: Paths, slide: str) -> dict[str, Path]:
    where = ("published", "0", slide)
    return {
        "embeddings": paths.embeddings("published", slide),
        "model": paths.model("published", "0") / "decoder.safetensors",
        "maps": paths.maps(*where),
        "labels": paths.labels(*where),
    }


def test_a_changed_checkpoint_runs_what_is_made_from_it_and_nothing_else(workspace: Workspace) -> None:
    weights = workspace.folder / "weights" / "CellViT-tiny.pth"
    body = torch.load(weights, weights_only=True)
    name = next(name for name, value in body["model_state_dict"].items() if value.is_floating_point())
    body["model_state_dict"][name] += 1
    torch.save(body, weights)
    wanted = workspace.would_run()
    tables = {"reports", "report_html", "report_figures"}
    assert set(wanted) == {"embeddings", "pretrained", "maps", "instances", "biology", "metrics"} | tables
    bins = len(list((workspace.results / "state" / "maps" / "published" / "0" / "jobs").iterdir()))
    assert wanted["embeddings"] == wanted["maps"] == wanted["metrics"] == bins, "the other experiments stand"


def test_one_more_block_is_computed_alone(workspace: Workspace) -> None:
    paths, slide = _paths(workspace), _test_slide(workspace)
    store = paths.embeddings("virtues", slide)
    kept = {block: digest_tree(store / f"block_{block}") for block in (4, 8)}
    other = paths.embeddings("vit", slide).stat().st_mtime_ns
    workspace.edit("encoders", "virtues", "blocks", value=[2, 4, 8])
    workspace.run("--until", "embeddings")
    assert EmbeddingStore(store).blocks == (2, 4, 8)
    assert {block: digest_tree(store / f"block_{block}") for block in (4, 8)} == kept
    assert paths.embeddings("vit", slide).stat().st_mtime_ns == other
    assert "taken over" in _log(workspace, "embeddings", "virtues")
    assert set(workspace.would_run()) >= {"train", "maps"}, "its decoders read the new block"


class _Hostile:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sentinel,))


def test_weights_that_would_run_code_stop_their_own_experiment_only(workspace: Workspace) -> None:
    sentinel = workspace.folder / "it_ran"
    with (workspace.folder / "weights" / "CellViT-tiny.pth").open("wb") as handle:
        pickle.dump({"model_state_dict": {"a": torch.zeros(1)}, "config": _Hostile(sentinel)}, handle)
    workspace.run(check=False)
    failures = pd.read_parquet(workspace.results / "reports" / "failures.parquet")
    assert not sentinel.exists()
    assert set(failures["reason_code"]) == {"unsafe_checkpoint"}
    assert failures["hint"].str.len().gt(10).all()
    slides = pd.read_parquet(workspace.results / "reports" / "slides.parquet")
    assert set(slides["experiment"]) == {"sp", "both"}


def test_the_account_tells_where_the_time_went(embedded: Workspace) -> None:
    accounts = [read_json(path) for path in (embedded.results / "benchmarks" / "embeddings").rglob("*.json")]
    assert accounts
    for spent in accounts:
        parts = sum(spent[name] for name in ("build_s", "read_s", "preprocess_s", "forward_s", "copy_s", "write_s"))
        assert parts + spent["idle_s"] == pytest.approx(max(parts, spent["seconds"]))
        # What no part names is the start of a pass: some tenths of a second, however few the tiles.
        assert spent["idle_s"] < max(0.5 * spent["seconds"], 1.0)
        assert spent["forward_s"] > 0
    assert "in the encoder's forward" in _log(embedded, "embeddings")

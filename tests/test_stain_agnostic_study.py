"""The stain-agnostic study, its demo and the study of unseen stains: well formed, and asking what they say they ask."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from slideloom.demo.platforms import PLATFORMS, write_platforms
from slideloom.errors import ConfigError
from slideloom.reports.reference_data import read_references
from slideloom.slides.headers import read_facts
from slideloom.slides.layouts.cpdmi_channels import codex_names, markers_of, zeiss_names
from slideloom.slides.layouts.imported import Imported, write_tables
from slideloom.slides.sheet import SlideRow, read_sheet
from slideloom.slides.sides import take_sides
from slideloom.slides.study import Study, load_study, study_from_mapping
from slideloom.slides.tables import ClassTable
from slideloom.workflow.plan import Plan

REPOSITORY = Path(__file__).resolve().parents[1]
STUDIES = REPOSITORY / "config" / "studies"
VECTRA = ("CD8 (Opal 520)", "PD-L1 (Opal 540)", "CD68 (Opal 570)", "FoxP3 (Opal 620)", "DAPI", "PanCK (Opal 690)")


def written(name: str) -> dict[str, Any]:
    with (STUDIES / f"{name}.yaml").open() as file:
        mapping: dict[str, Any] = yaml.safe_load(file)
    return mapping


def plan_of(study: Study) -> Plan:
    """The plan, after every training's spec was made."""
    plan = Plan(study, REPOSITORY / "workflow" / "scripts")
    assert plan.all_records()
    for name, fold in plan.runs():
        assert json.loads(plan.spec("train", (name, fold)))
    return plan


# ---- the demo --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("demo")
    write_platforms(folder, n_slides=2, size_px=128)
    mapping = written("stain_agnostic_demo")
    mapping |= {key: str(folder / Path(mapping[key]).name) for key in ("slides", "markers")}
    return study_from_mapping(mapping, REPOSITORY)


def test_each_fold_of_the_demo_tests_a_panel_that_none_of_its_slides_taught(demo: Study) -> None:
    plan = plan_of(demo)
    assert Counter(name for name, _ in plan.runs()) == dict.fromkeys(demo.config.experiments, len(PLATFORMS))
    panels = {}
    for row in demo.rows:
        facts = read_facts(row, demo.data_root, demo.markers)
        panels[row.slide_id] = tuple(one.marker for one in facts.image("sp").channels)
        assert set(demo.config.encoders["named"].markers) <= set(panels[row.slide_id])
    folds = take_sides(demo.rows, demo.config.splits["platforms"]).folds
    assert set(folds) == {platform.name for platform in PLATFORMS}
    for roles in folds.values():
        of = {role: {panels[slide] for slide, one in roles.items() if one == role} for role in ("train", "val", "test")}
        assert len(of["test"]) == 1
        assert of["train"]
        assert of["val"]
        assert {len(panel) for panel in of["test"]}.isdisjoint(len(panel) for panel in of["train"] | of["val"])


def test_systems_of_the_demo_differ_in_what_feeds_the_network(demo: Study) -> None:
    experiments = demo.config.experiments
    base = experiments["channelnet"]
    changed = {
        name: {key for key in type(one).model_fields if getattr(one, key) != getattr(base, key)}
        for name, one in experiments.items()
    }
    assert changed == {
        "channelnet": set(),
        "channelnet_ablated": {"adapter"},
        "replicated": {"adapter"},
        "three_channels": {"encoder", "adapter"},
    }
    widest = max(len(platform.channels) for platform in PLATFORMS)
    assert experiments["replicated"].adapter is not None
    assert experiments["replicated"].adapter.in_channels >= widest


# ---- the report's experiments ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cpdmi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sheet as the importer makes it; images are never opened."""
    folder = tmp_path_factory.mktemp("cpdmi")
    panels = {
        "vectra": [VECTRA] * 5,
        "zeiss": [zeiss_names("SPLEEN", 5), zeiss_names("PDAC", 5), zeiss_names("ZP-10002", 7)],
        "codex": [codex_names("LN", 28)[0], codex_names("Tnsl", 32)[0]],
    }
    rows = []
    for platform, all_names in panels.items():
        for number, names in enumerate(all_names):
            slide = f"{platform}_{number}"
            for kind in ("sp", "instances"):
                (folder / f"{slide}_{kind}.tif").touch()
            rows.append(
                SlideRow(
                    slide_id=slide,
                    platform=platform,
                    sp=f"{slide}_sp.tif",
                    instances=f"{slide}_instances.tif",
                    sp_mpp_um=0.5,
                    sp_channels=names,
                    split="test" if platform == "codex" else "val" if number == 0 else "train",
                )
            )
    channels = markers_of(name for row in rows for name in row.sp_channels or ())
    write_tables(Imported(tuple(rows), channels, ClassTable(), ()), folder / "cells.tsv")
    return folder


@pytest.fixture
def report(cpdmi: Path) -> Study:
    mapping = written("stain_agnostic")
    mapping |= {key: str(cpdmi / Path(mapping[key]).name) for key in ("slides", "markers")}
    return study_from_mapping(mapping, REPOSITORY)


def test_nothing_is_wrong_but_the_data_that_a_lab_has_to_bring() -> None:
    with pytest.raises(ConfigError) as caught:
        study_from_mapping(written("stain_agnostic"), REPOSITORY, (STUDIES / "stain_agnostic.yaml",))
    told = [str(problem) for problem in caught.value.problems]
    assert all("data/cpdmi" in problem for problem in told), told


def test_the_report_s_plan_trains_on_two_platforms_and_tests_on_the_third(report: Study) -> None:
    plan = plan_of(report)
    folds = {"codex": 1, "platforms": 3}
    assert Counter(name for name, _ in plan.runs()) == {
        name: folds[one.split] for name, one in report.config.experiments.items()
    }
    platform = {row.slide_id: row.platform for row in report.rows}
    (codex,) = take_sides(report.rows, report.config.splits["codex"]).folds.values()
    sides = {
        role: {platform[slide] for slide, one in codex.items() if one == role} for role in ("train", "val", "test")
    }
    assert sides == {"train": {"vectra", "zeiss"}, "val": {"vectra", "zeiss"}, "test": {"codex"}}
    assert set(take_sides(report.rows, report.config.splits["platforms"]).folds) == {"vectra", "zeiss", "codex"}


def test_the_recipe_is_the_report_s(report: Study) -> None:
    one = report.config.experiments["channelnet_cellvit"]
    training = one.training
    assert (training.epochs, training.batch_size, training.accumulate) == (130, 3, 4)
    assert (training.optimiser, training.lr, training.schedule, training.decay) == ("adam", 1e-3, "plateau", 0.5)
    assert (training.plateau_epochs, training.precision, training.unfreeze_epoch) == (5, "fp16", 0)
    assert training.clip_norm is not None
    terms = one.loss.heads["nucleus"]
    given = {name: weight for name, weight in terms.model_dump().items() if weight}
    assert given == {"lovasz_hinge": 0.7, "cross_entropy": 0.3}
    instances = report.config.instances_of("channelnet_cellvit")
    assert (instances.method, instances.nucleus_threshold) == ("threshold", 0.3)
    assert instances.min_area_um2 / report.config.grids["sp256"].mpp_um ** 2 == 32  # type: ignore[operator]
    assert one.adapter is not None
    assert (one.adapter.kind, one.adapter.aggregation, one.adapter.widths) == ("channelnet", "sum", (16, 32, 64))


def test_an_experiment_differs_from_its_reference_in_what_it_is_about(report: Study) -> None:
    experiments = report.config.experiments
    pairs = {
        "channelnet_cellvit_hv": ("channelnet_cellvit", {"heads", "instances"}),
        "channelnet_cellvit_boundary": ("channelnet_cellvit", {"heads", "instances"}),
        "channelnet_cellvit_embedding": ("channelnet_cellvit", {"heads", "instances"}),
        "channel_adapter_cellvit": ("channelnet_cellvit", {"adapter"}),
        "ablated_cellvit": ("channelnet_cellvit", {"adapter"}),
        "channel_adapter_cellvit_hv": ("channelnet_cellvit_hv", {"adapter"}),
        "instanseg_ablated": ("instanseg_channelnet", {"adapter"}),
        "instanseg_two": ("instanseg_channelnet", {"adapter", "encoder"}),
        "instanseg_three": ("instanseg_channelnet", {"adapter", "encoder"}),
        "hovernet_channelnet": ("instanseg_channelnet", {"decoder", "heads", "training"}),
        "unet_channelnet": ("instanseg_channelnet", {"decoder", "heads", "training"}),
    } | {f"{name}_platforms": (name, {"split"}) for name in experiments if f"{name}_platforms" in experiments}
    assert set(experiments) == set(pairs) | {"channelnet_cellvit", "instanseg_channelnet"}
    for name, (reference, about) in pairs.items():
        one, other = experiments[name], experiments[reference]
        assert {key for key in type(one).model_fields if getattr(one, key) != getattr(other, key)} == about, name
    markers = {name: report.config.encoders[name].markers for name in ("two", "three")}
    assert markers == {"two": ["DNA", "CD8a"], "three": ["DNA", "CD8a", "CD68"]}
    for row in report.rows:
        shown = {one.marker for one in markers_of(row.sp_channels or ())}
        assert set(markers["three"]) <= shown, row.slide_id


def test_published_figures_are_those_of_its_tables(report: Study) -> None:
    places = {one.protocol.place for one in read_references() if one.protocol.reference in report.config.references}
    assert any(place.startswith("Table 2") for place in places)
    assert "Table 3" in places


# ---- unseen stains ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_nuclei_prepare", STUDIES / "real_nuclei" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _packed(place: Path, n: int, shape: tuple[int, ...], seed: int) -> None:
    place.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, *shape[:2]), np.uint16)
    labels[:, 4:14, 4:14], labels[:, 20:30, 20:34] = 1, 2
    ids = [f"{seed}{number:063d}"[::-1] for number in range(n)]
    val = np.arange(n) % 5 == 0
    images = rng.integers(0, 255, (n, *shape), dtype=np.uint8)
    np.savez(place, images=images, labels=labels, ids=np.array(ids), val=val)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small sets in the forms of the real ones."""
    folder = tmp_path_factory.mktemp("sets")
    _packed(folder / "dsb2018_fluorescence" / "dsb2018_fluo_128x640.npz", 60, (128, 640), 1)
    _packed(folder / "dsb2018_brightfield" / "dsb2018_brightfield_128x128.npz", 20, (128, 128, 3), 2)
    rng = np.random.default_rng(3)
    stains, pairs = folder / "cellbindb_demo", folder / "paired_he_mif_crc"
    stains.mkdir()
    pairs.mkdir()
    labels = np.zeros((64, 64), np.uint16)
    labels[8:20, 8:20] = 1
    for stain in ("he", "dapi", "mif"):
        image = rng.integers(0, 255, (64, 64, 3) if stain == "he" else (64, 64), dtype=np.uint8)
        tifffile.imwrite(stains / f"{stain}_image.tif", image)
        tifffile.imwrite(stains / f"{stain}_labels.tif", labels)
    (pairs / "pairs.csv").write_text("pair,shift_dy_px,shift_dx_px\nf1_2_p1,0,0\nf1_2_p2,0,0\n")
    y, x = np.mgrid[:128, :128]
    mif = np.zeros((4, 128, 128), np.uint8)
    mif[0] = 180 * (np.hypot(y - 60, x - 60) < 14)
    for name in ("f1_2_p1", "f1_2_p2"):
        tifffile.imwrite(pairs / f"{name}_mif.ome.tif", mif, metadata={"axes": "CYX"})
    return folder


def test_the_sheet_of_unseen_stains_holds_every_set_in_one_modality(
    program: ModuleType, sets: Path, tmp_path: Path
) -> None:
    program.prepare(sets, tmp_path / "made")
    rows, problems = read_sheet(tmp_path / "made" / "slides.tsv")
    assert problems == []
    assert [row.slide_id for row in rows] == sorted(row.slide_id for row in rows)
    assert all(row.sp and row.instances and not row.he and not row.classes for row in rows)
    assert Counter(row.platform for row in rows) == {
        "fluorescence": 60,
        "brightfield": 20,
        "he": 1,
        "dna_tissue": 1,
        "dapi_reference": 2,
    }
    for row in rows:
        assert (tmp_path / "made" / str(row.sp).partition("::")[0]).is_file()
        assert (tmp_path / "made" / str(row.instances).partition("::")[0]).is_file()
    assert len({row.patient_id for row in rows if row.platform == "dapi_reference"}) == 1
    learnt = [row for row in rows if row.split != "test"]
    assert {row.platform for row in learnt} == {"fluorescence", "brightfield"}
    assert sum(row.split == "val" for row in learnt) == 8, "one in eight of 64"
    small = Counter((row.extra.get("small"), row.platform) for row in rows)
    # Five tiles each: 160 tiles hold 32 images, of the 48 that may be learnt from.
    assert small["train", "fluorescence"] == 32
    assert all((row.extra.get("small") or row.split) == row.split for row in rows)
    program.prepare(sets, tmp_path / "again")
    texts = [(tmp_path / name / "slides.tsv").read_text() for name in ("made", "again")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["real_nuclei", "real_nuclei_gpu"])
def test_the_studies_of_unseen_stains_are_well_formed(
    name: str, program: ModuleType, sets: Path, tmp_path: Path
) -> None:
    program.prepare(sets, tmp_path)
    mapping = copy.deepcopy(written(name))
    mapping |= {key: str(tmp_path / Path(mapping[key]).name) for key in ("slides", "markers")}
    study = study_from_mapping(mapping, REPOSITORY)
    plan = plan_of(study)
    n_folds = {"small": 1, "both": 1, "in_domain": 1, "stains": 3}
    experiments = study.config.experiments
    assert Counter(one for one, _ in plan.runs()) == {one: n_folds[experiments[one].split] for one in experiments}
    assert len(experiments) >= 7
    # Trained equally: in all that is not a system's own.
    assert (
        len({(one.training.model_dump_json(), one.augmentation.model_dump_json()) for one in experiments.values()}) == 1
    )
    platform = {row.slide_id: row.platform for row in study.rows}
    for split in set(n_folds) & set(study.config.splits):
        for fold, roles in take_sides(study.rows, study.config.splits[split]).folds.items():
            of = {role: {platform[slide] for slide, one in roles.items() if one == role} for role in ("train", "test")}
            if split in ("small", "both"):
                assert of["train"] == {"fluorescence", "brightfield"}
                assert of["test"] - of["train"] == {"he", "dna_tissue", "dapi_reference"}
            elif split == "stains":
                assert of["test"] == {fold}
                assert fold not in of["train"]
            else:
                assert of == {"train": {"fluorescence"}, "test": {"fluorescence"}}


def test_the_seeds_of_instanseg_differ_in_seed_and_loss_alone(program: ModuleType, sets: Path, tmp_path: Path) -> None:
    program.prepare(sets, tmp_path)
    mapping = written("instanseg_seeds")
    mapping |= {key: str(tmp_path / Path(mapping[key]).name) for key in ("slides", "markers")}
    study = study_from_mapping(mapping, REPOSITORY)
    assert len(plan_of(study).runs()) == 6
    experiments = study.config.experiments
    found = {(one.loss.instanseg_seed_loss, one.training.seed) for one in experiments.values()}
    assert found == {(loss, seed) for loss in ("binary", "l1_distance") for seed in (0, 1, 2)}
    same = {
        one.model_copy(
            update={
                "loss": one.loss.model_copy(update={"instanseg_seed_loss": "binary"}),
                "training": one.training.model_copy(update={"seed": 0}),
            }
        ).model_dump_json()
        for one in experiments.values()
    }
    assert len(same) == 1


def test_the_refinements_of_real_nuclei_are_judged_on_images_that_fit_nothing(
    program: ModuleType, sets: Path, tmp_path: Path
) -> None:
    program.prepare(sets, tmp_path)
    mapping = written("refinement_real")
    mapping |= {key: str(tmp_path / Path(mapping[key]).name) for key in ("slides", "markers")}
    study = study_from_mapping(mapping, REPOSITORY)
    plan_of(study)
    experiments = study.config.experiments
    for one in experiments.values():
        plain = experiments[one.instances.method.replace("hv_", "")]
        changed = {key for key in type(one).model_fields if getattr(one, key) != getattr(plain, key)}
        assert changed == (set() if one is plain else {"refine"})
    # A verifier is fitted on images that validate, and scores are of those that test.
    assert "val" in study.config.inference.roles
    assert study.config.evaluation.roles == ["test"]


def test_the_real_sets_make_the_sheet(
    program: ModuleType, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PAIRS", "left aside here: it takes long")
    rows = program.prepare(shared / "data", tmp_path)
    counts = Counter((row.platform, row.split) for row in rows)
    assert counts == {
        ("fluorescence", "train"): 180,
        ("fluorescence", "val"): 26,
        ("fluorescence", "test"): 54,
        ("brightfield", "train"): 75,
        ("brightfield", "val"): 10,
        ("brightfield", "test"): 22,
        ("he", "test"): 17,
        ("dna_tissue", "test"): 3,
    }
    small = Counter((row.platform, row.extra["small"]) for row in rows)
    assert small["fluorescence", "train"] == 72
    assert small["brightfield", "train"] == 26
    paths = {key: str(tmp_path / f"{key}.tsv") for key in ("slides", "markers")}
    assert load_study(STUDIES / "real_nuclei.yaml", paths).rows

"""The study of the SP/H&E report, on a small set in the layout of the report's data."""

from __future__ import annotations

import copy
import json
import string
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from slideloom.errors import ConfigError
from slideloom.reports.published import REPORTS
from slideloom.slides.headers import read_facts
from slideloom.slides.layouts.choose import read_data_set
from slideloom.slides.layouts.imported import write_tables
from slideloom.slides.layouts.orion_subset import CLASSES, PANEL, SCANNED
from slideloom.slides.sides import take_sides
from slideloom.slides.study import Study, study_from_mapping
from slideloom.slides.tables import read_classes, read_markers
from slideloom.workflow.plan import Plan
from tests.data_sets import write_orion_subset

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = REPOSITORY / "config" / "studies" / "sp_he.yaml"
TABLES = STUDY.with_suffix("")
IDS = tuple(f"orion_{first}{second}aaaaaa_0" for first in "abcde" for second in string.ascii_lowercase[:7])


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    with STUDY.open() as file:
        mapping: dict[str, Any] = yaml.safe_load(file)
    return mapping


@pytest.fixture(scope="module", params=[16, 19])
def data_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 tissues, and the sheet that the importer makes of them."""
    folder = tmp_path_factory.mktemp("sp_he")
    write_orion_subset(folder / "set", IDS, size=32, n_channels=request.param)
    write_tables(read_data_set("orion_subset", folder / "set", folder, 0.325), folder / "slides.tsv")
    return folder


@pytest.fixture
def study(written: dict[str, Any], data_set: Path) -> Study:
    """The study as it stands, but for weights, which are seeded, and for where its sheet lies."""
    mapping = copy.deepcopy(written)
    mapping["slides"] = str(data_set / "slides.tsv")
    for encoder in mapping["encoders"].values():
        if encoder.pop("checkpoint", None):
            encoder["random"] = 0
        encoder.pop("marker_embeddings", None)
    return study_from_mapping(mapping, REPOSITORY)


def test_nothing_is_wrong_but_what_a_lab_has_to_bring(written: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        study_from_mapping(written, REPOSITORY, (STUDY,))
    told = [str(problem) for problem in caught.value.problems]
    assert all("does not exist" in problem for problem in told), told
    named = " ".join(told)
    assert all(name in named for name in ("virtues-sp31", "weights/esm2", "CellViT-256-x40.pth"))


def test_every_experiment_of_the_report_is_there(written: dict[str, Any]) -> None:
    published = {figure.experiment for table in REPORTS[written["published"]].tables for figure in table.figures} - {
        None
    }
    assert set(written["experiments"]) == published | {"sp_classes_isolated"}


def test_tables_are_those_of_the_importer() -> None:
    markers, problems = read_markers(TABLES / "markers.tsv")
    assert (markers.channels, problems) == (SCANNED, [])
    assert read_classes(TABLES / "classes.tsv") == (CLASSES, [])


def test_the_plan_holds_every_job(study: Study) -> None:
    plan = Plan(study, REPOSITORY / "workflow" / "scripts")
    folds = {"quarters": 2, "thirds": 3, "holdout": 1}
    expected = {name: folds[one.split] for name, one in study.config.experiments.items()}
    assert Counter(name for name, _ in plan.runs()) == expected
    assert plan.all_records()
    for name, fold in plan.runs():
        spec = json.loads(plan.spec("train", (name, fold)))
        assert spec
    for row in study.rows[:2]:
        facts = read_facts(row, study.data_root, study.markers)
        assert set(study.config.encoders["virtues"].markers) <= {one.marker for one in facts.image("sp").channels}
    assert study.config.encoders["virtues"].markers == [channel.marker for channel in PANEL]
    assert not [warning for warning in study.warnings if "may have been measured" in warning], "statistics leak nothing"


def test_splits_are_the_reports_and_validation_comes_out_of_training(study: Study) -> None:
    ordered = sorted(IDS)
    roles = {
        name: [
            {role: [one for one in ordered if fold.get(one) == role] for role in ("train", "val", "test")}
            for fold in take_sides(study.rows, split).folds.values()
        ]
        for name, split in study.config.splits.items()
    }
    (holdout,) = roles["holdout"]
    assert holdout["test"] == ordered[28:]
    assert sorted(holdout["train"] + holdout["val"]) == ordered[:28]
    assert len(holdout["val"]) == 4
    first, second = roles["quarters"]
    parts = [
        sorted(first["train"] + first["val"]),
        first["test"],
        sorted(second["train"] + second["val"]),
        second["test"],
    ]
    assert list(chain(*parts)) == ordered, "four quarters in a row"
    assert {len(part) for part in parts} == {8, 9}
    assert sorted(chain(*(fold["test"] for fold in roles["thirds"]))) == ordered
    assert all(fold["val"] for folds in roles.values() for fold in folds)


def test_the_protocol_is_the_reports(study: Study) -> None:
    experiments = study.config.experiments
    for one in experiments.values():
        training = one.training
        assert (training.batch_size, training.optimiser, training.lr, training.weight_decay) == (
            128,
            "adamw",
            5e-4,
            1e-2,
        )
        assert (training.schedule, training.t_0, training.eta_min) == ("cosine", 20, 1e-6)
        expected = {"quarters": (30, None), "thirds": (50, None), "holdout": (100, 30)}[one.split]
        assert (training.epochs, training.patience) == expected
    reference = experiments["ce_dice_ft"]
    assert (reference.loss.cross_entropy, reference.loss.dice, reference.loss.focal_tversky) == (0.4, 0.4, 0.2)
    changed = {
        name: {key for key in type(one).model_fields if getattr(one, key) != getattr(base, key)}
        for name, base in {
            **dict.fromkeys(
                ("ce_dice", "ce_dice_cw", "ce_dice_ft_cw", "no_skips", "gamma_045", "gamma_085"), reference
            ),
            "augmented": experiments["plain"],
            **dict.fromkeys(
                ("he_classes", "sp_boundary", "mean_marker", "sp_classes_isolated"), experiments["sp_classes"]
            ),
            "he_instances": experiments["sp_instances"],
            "sp_boundary_context": experiments["sp_boundary"],
            "sp_boundary_attention": experiments["sp_boundary"],
            "mean_marker_linear": experiments["mean_marker"],
        }.items()
        for one in [experiments[name]]
    }
    assert changed == {
        "ce_dice": {"loss"},
        "ce_dice_cw": {"loss"},
        "ce_dice_ft_cw": {"loss"},
        "no_skips": {"decoder"},
        "gamma_045": {"sampling"},
        "gamma_085": {"sampling"},
        "augmented": {"augmentation"},
        "he_classes": {"encoder"},
        "he_instances": {"encoder"},
        "sp_boundary": {"heads", "loss"},
        "sp_boundary_context": {"decoder"},
        "sp_boundary_attention": {"decoder"},
        "mean_marker": {"encoder"},
        "mean_marker_linear": {"decoder"},
        "sp_classes_isolated": {"encoder"},
    }, "an experiment differs from its reference in the one respect that its table is about"

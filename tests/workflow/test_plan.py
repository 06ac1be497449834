"""What reruns after an edit, as the plan sees it: which stages' specs change."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideloom.artefacts.keys import code_fingerprint
from slideloom.slides.sides import take_sides
from slideloom.slides.study import study_from_mapping
from slideloom.workflow.fingerprints import stage_fingerprints
from slideloom.workflow.plan import Plan
from slideloom.workflow.upkeep import forget_broken_records

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
N_SLIDES = 12
REPORT = {"reports", "report_html", "report_figures"}


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "markers.tsv").write_text("channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\t\tyes\nCD3\tCD3e\t\tno\n")
    (tmp_path / "classes.tsv").write_text("id\tname\tcolour\n1\tTumour\t#ff0000\n2\tStroma\t#00ff00\n")
    _write_sheet(tmp_path, N_SLIDES)
    for kind in ("he", "sp", "inst", "cls"):
        (tmp_path / f"{kind}.tif").touch()
    return {
        "study": "s",
        "slides": "slides.tsv",
        "markers": "markers.tsv",
        "classes": "classes.tsv",
        "grids": {"sp": {"image": "sp", "tile_px": 64}, "he": {"image": "he", "tile_px": 64}},
        "encoders": {
            "mean": {"model": "mean_marker", "grid": "sp", "statistics": "holdout"},
            "vit": {"model": "timm/vit_tiny_patch16_224", "grid": "he", "random": 0},
        },
        "splits": {"holdout": {"scheme": "sequential"}},
        "experiments": {
            "sp": {"encoder": "mean", "split": "holdout"},
            "he": {"encoder": "vit", "split": "holdout"},
        },
        "jobs": {"slides_per_job": 4},
    }


def _write_sheet(folder: Path, count: int) -> None:
    rows = ["slide_id\tpatient_id\the\tsp\tinstances\tclasses\tmpp_um"]
    rows += [f"s{k}\tp{k}\the.tif\tsp.tif\tinst.tif\tcls.tif\t0.5" for k in range(count)]
    (folder / "slides.tsv").write_text("\n".join(rows) + "\n")


def _plan(mapping: dict[str, Any]) -> Plan:
    return Plan(study_from_mapping(mapping, Path.cwd()), SCRIPTS)


def _specs(plan: Plan) -> dict[str, str]:
    """Every spec of the study, by stage and context."""
    specs: dict[str, str] = {name: plan.spec(name) for name in REPORT}
    for job in plan.jobs:
        for stage in ("facts", "tissue"):
            specs[f"{stage} {job}"] = plan.spec(stage, (), job)
        for grid in plan.used_grids():
            for stage in ("patches", "targets"):
                specs[f"{stage}/{grid} {job}"] = plan.spec(stage, (grid,), job)
        for encoder in plan.embedded_encoders():
            specs[f"embeddings/{encoder} {job}"] = plan.spec("embeddings", (encoder,), job)
        for run in plan.runs():
            labels = run[0] in plan.external
            made = ["imported"] if labels else ["maps", "instances"]
            for stage in (*made, "biology", "metrics", *(["exports"] if plan.exports else [])):
                specs[f"{stage}/{run[0]} {job}"] = plan.spec(stage, run, job)
            for band in plan.bands:
                specs[f"bands/{run[0]} {job} {band}"] = plan.spec("bands", (*run, band), job)
    for split in plan.used_splits():
        specs[f"splits/{split}"] = plan.spec("splits", (split,))
    for encoder in plan.pooled_encoders():
        specs[f"statistics/{encoder}"] = plan.spec("statistics", (encoder,))
    for run in plan.runs():
        if run[0] not in plan.external:
            specs[f"train/{run[0]}"] = plan.spec("train", run)
    return specs


def _changed(mapping: dict[str, Any], edit: Callable[[dict[str, Any]], None]) -> set[str]:
    before = _specs(_plan(mapping))
    edited = copy.deepcopy(mapping)
    edit(edited)
    after = _specs(_plan(edited))
    return {name.split()[0] for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(mapping: dict[str, Any]) -> None:
        for key in path[:-1]:
            mapping = mapping.setdefault(key, {})
        mapping[path[-1]] = value

    return edit


#: Beside the table of reruns, a row a key: what is said though it was so by default, and another number of encoders.
EDITS: list[tuple[Callable[[dict[str, Any]], None], set[str] | None]] = [
    (_set("encoders", "mean", "normalisation", value={"clip_quantile": 0.999, "clip": "training"}), set()),
    (_set("inference", "overlap_px", value=0), set()),
    (_set("experiments", "he", "encoder", value=["vit", "mean"]), {"train/he", "maps/he"}),
    (_set("results", value="elsewhere"), None),
]


@pytest.mark.parametrize(("edit", "stages"), EDITS)
def test_an_edit_changes_the_specs_of_its_own_stages(
    mapping: dict[str, Any], edit: Callable[[dict[str, Any]], None], stages: set[str] | None
) -> None:
    changed = _changed(mapping, edit)
    assert changed - REPORT == (stages or set())
    default = copy.deepcopy(mapping)
    edit(default)
    old, new = (_plan(one).config.model_dump(exclude={"results"}) for one in (mapping, default))
    same = old == new
    assert (changed & REPORT == REPORT) is not same


def test_bands_are_jobs_of_their_own_and_change_no_other(mapping: dict[str, Any]) -> None:
    assert _plan(mapping).bands == []
    assert not any("/bands/" in path for path in _plan(mapping).all_records())
    assert _changed(mapping, _set("jobs", "bands", value=3)) == {"bands/sp", "bands/he"}
    mapping["jobs"] = {"bands": 3}
    plan = _plan(mapping)
    made = [path for path in plan.all_records() if "/bands/" in path]
    assert len(made) == 3 * len([path for path in plan.all_records() if "/maps/" in path])


def test_files_for_other_programs_are_made_where_they_are_wanted(mapping: dict[str, Any]) -> None:
    assert not any("/exports/" in path for path in _plan(mapping).all_records())
    mapping["exports"] = {"anndata": True}
    assert sum("/exports/" in path for path in _plan(mapping).all_records()) > 0


def test_labels_of_another_program_take_the_place_of_training_and_prediction(mapping: dict[str, Any]) -> None:
    for k in range(0, N_SLIDES, 2):
        Path(f"s{k}_other.tif").touch()
    other = {"labels": "{slide}_other.tif", "grid": "he", "split": "holdout"}
    mapping["experiments"]["other"] = other
    plan = _plan(mapping)
    records = [path for path in plan.all_records() if "/other/" in path]
    assert {path.split("/state/")[1].split("/")[0] for path in records} == {"instances", "biology", "metrics"}
    job = next(iter(plan.jobs))
    spec = json.loads(plan.spec("imported", ("other", "0"), job))
    assert spec["files"] == {"labels": "{slide}_other.tif", "label_classes": None}
    assert "{slide}" not in json.dumps(spec["config"]), "where a file lies is no part of what is made from it"
    found = {path for job in plan.jobs for path in plan.external_files("other", job)}
    assert found == {f"s{k}_other.tif" for k in range(0, N_SLIDES, 2)}
    assert _changed(mapping, _set("experiments", "other", "grid", value="sp")) - REPORT == {
        "imported/other",
        "biology/other",
        "metrics/other",
    }


def test_a_study_of_other_programs_alone_needs_no_encoder(mapping: dict[str, Any]) -> None:
    Path("s9_other.tif").touch()
    del mapping["encoders"]
    mapping["experiments"] = {"other": {"labels": "{slide}_other.tif", "grid": "he", "split": "holdout"}}
    plan = _plan(mapping)
    assert plan.used_grids() == plan.target_grids() == ["he"]
    assert plan.embedded_encoders() == []


def test_where_a_file_lies_is_no_part_of_the_config_that_keys_are_made_of(mapping: dict[str, Any]) -> None:
    Path("moved").mkdir()
    for place in (Path(), Path("moved")):
        (place / "vit.safetensors").touch()
    del mapping["encoders"]["vit"]["random"]
    specs = []
    for place in ("vit.safetensors", "moved/vit.safetensors"):
        mapping["encoders"]["vit"]["checkpoint"] = place
        plan = _plan(mapping)
        job = next(iter(plan.jobs))
        specs.append([json.loads(plan.spec(*one, job)) for one in _READS_THE_ENCODER])
    for before, after in zip(*specs, strict=True):
        assert before["config"] == after["config"]
        assert before["files"] == {"vit": {"checkpoint": "vit.safetensors"}}
        assert after["files"] == {"vit": {"checkpoint": "moved/vit.safetensors"}}, "the job runs, and keeps its items"


_READS_THE_ENCODER = (("embeddings", ("vit",)), ("maps", ("he", "0")))


def test_training_names_the_encoders_files_only_when_it_encodes(mapping: dict[str, Any]) -> None:
    Path("vit.safetensors").touch()
    del mapping["encoders"]["vit"]["random"]
    mapping["encoders"]["vit"]["checkpoint"] = "vit.safetensors"
    assert "files" not in json.loads(_plan(mapping).spec("train", ("he", "0")))
    mapping["experiments"]["he"]["training"] = {"input": "live"}
    plan = _plan(mapping)
    assert json.loads(plan.spec("train_live", ("he", "0")))["files"] == {"vit": {"checkpoint": "vit.safetensors"}}
    assert plan.stored_encoders("he", "train") == ()
    assert plan.stored_encoders("he", "maps") == ("vit",), (
        "tiles are predicted from the store, unless the config says so"
    )
    mapping["experiments"]["he"]["training"]["unfreeze_epoch"] = 3
    plan = _plan(mapping)
    assert plan.stored_encoders("he", "maps") == ()
    assert "vit" not in plan.embedded_encoders(), "an encoder that is trained has no tokens to store"


def test_sampling_by_a_column_reads_that_column(mapping: dict[str, Any]) -> None:
    mapping["experiments"]["sp"]["sampling"] = {"gamma": 0.5, "by": "group", "column": "platform"}
    groups = json.loads(_plan(mapping).spec("train", ("sp", "0")))["config"]["groups"]
    study = _plan(mapping).study
    training = take_sides(study.rows, study.config.splits["holdout"]).folds["0"]
    assert groups == {row.slide_id: row.platform for row in study.rows if training[row.slide_id] == "train"}
    assert 0 < len(groups) < len(study.rows), "a slide that does not train is no reason to train again"
    mapping["experiments"]["sp"]["sampling"]["by"] = "classes"
    assert "groups" not in json.loads(_plan(mapping).spec("train", ("sp", "0")))["config"]


def test_an_experiment_on_two_encoders_reads_both_and_is_cut_on_the_first_ones_grid(mapping: dict[str, Any]) -> None:
    mapping["experiments"] = {"both": {"encoder": ["vit", "mean"], "split": "holdout"}}
    plan = _plan(mapping)
    assert plan.used_grids() == ["he", "sp"]
    assert plan.target_grids() == ["he"]
    assert plan.stored_encoders("both", "train") == plan.stored_encoders("both", "maps") == ("vit", "mean")
    mapping["inference"] = {"source": "live"}
    assert _plan(mapping).stored_encoders("both", "maps") == ("mean",), "the first one's tokens are made on the fly"


def test_a_published_model_on_the_fly_stores_no_tokens(mapping: dict[str, Any]) -> None:
    Path("CellViT-256-x40.pth").touch()
    mapping["encoders"]["vit"] = {"model": "cellvit/vit256", "grid": "he", "checkpoint": "CellViT-256-x40.pth"}
    mapping["experiments"] = {"he": {"encoder": "vit", "split": "holdout", "pretrained": "CellViT-256-x40.pth"}}
    assert _plan(mapping).embedded_encoders() == ["vit"]
    mapping["inference"] = {"source": "live"}
    plan = _plan(mapping)
    assert plan.embedded_encoders() == []
    spec = json.loads(plan.spec("pretrained", ("he", "0")))
    assert spec["files"]["pretrained"] == "CellViT-256-x40.pth"
    assert set(spec["config"]) == {"encoders", "grid", "classes", "heads"}, "what is not trained has no optimiser"


def test_exchanged_values_are_told_apart(mapping: dict[str, Any]) -> None:
    one = copy.deepcopy(mapping) | {"instances": {"nucleus_threshold": 0.6, "energy_threshold": 0.4}}
    other = copy.deepcopy(mapping) | {"instances": {"nucleus_threshold": 0.4, "energy_threshold": 0.6}}
    job = next(iter(_plan(one).jobs))
    assert _plan(one).spec("instances", ("sp", "0"), job) != _plan(other).spec("instances", ("sp", "0"), job)


def test_a_colour_repaints_and_computes_nothing(mapping: dict[str, Any]) -> None:
    def paint(_: dict[str, Any]) -> None:
        text = Path("classes.tsv").read_text().replace("#ff0000", "#fe0000")
        Path("classes.tsv").write_text(text)

    assert _changed(mapping, paint) == REPORT


def test_a_new_slide_changes_one_job_and_moves_no_other(mapping: dict[str, Any], tmp_path: Path) -> None:
    before = _plan(mapping).jobs
    _write_sheet(tmp_path, N_SLIDES + 1)
    after = _plan(mapping).jobs
    assert sum(before[job] != after.get(job) for job in before) == 1
    assert sorted(slide for job in after.values() for slide in job) == sorted(f"s{k}" for k in range(N_SLIDES + 1))


def test_an_unused_encoder_costs_nothing(mapping: dict[str, Any]) -> None:
    del mapping["experiments"]["he"]
    plan = _plan(mapping)
    assert plan.used_grids() == ["sp"]
    assert not [record for record in plan.all_records() if "/vit/" in record or "/he/" in record]


def test_specs_hold_no_place_of_this_machine(mapping: dict[str, Any], tmp_path: Path) -> None:
    assert str(tmp_path) not in json.dumps(_specs(_plan(mapping)))


def test_fingerprints_are_remembered_until_a_byte_of_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts, results = tmp_path / "scripts", tmp_path / "results"
    scripts.mkdir()
    script = scripts / "facts.py"
    script.write_text("from slideloom.artefacts.paths import Paths\n")
    first = stage_fingerprints(scripts, results)
    assert first == {"facts": code_fingerprint([script])}
    assert not results.exists(), "the dry run of a new study leaves nothing behind"
    results.mkdir()
    assert stage_fingerprints(scripts, results) == first
    with monkeypatch.context() as patch:
        patch.setattr("slideloom.workflow.fingerprints.code_fingerprint", pytest.fail)
        assert stage_fingerprints(scripts, results) == first
    script.write_text("from slideloom.artefacts.paths import Paths  # where things lie\n")
    assert stage_fingerprints(scripts, results) == first, "a comment changes the bytes, not the code"
    other = tmp_path / "other"
    other.mkdir()
    (other / "facts.py").write_text("from slideloom.artefacts.paths import Paths\nPaths\n")
    assert stage_fingerprints(other, results)["facts"] == code_fingerprint([other / "facts.py"]) != first["facts"]
    (results / "state" / "fingerprints.json").write_text("{")
    assert stage_fingerprints(scripts, results) == first


def test_a_heavy_slide_has_a_job_of_its_own_in_every_stage(mapping: dict[str, Any], tmp_path: Path) -> None:
    sheet = tmp_path / "slides.tsv"
    sheet.write_text(sheet.read_text().replace("s7\tp7\the.tif", "s7\tp7\theavy.tif"))
    with (tmp_path / "heavy.tif").open("wb") as file:
        file.truncate(3 * 10**9)
    mapping["jobs"]["gb_per_job"] = 2
    plan = _plan(mapping)
    assert plan.jobs["slide-s7"] == ("s7",)
    assert max(map(len, plan.jobs.values())) <= 4
    assert [path for path in plan.records("facts") if path.endswith("/slide-s7.json")]
    heavy, rest = plan.load("maps", ("sp", "0"), "slide-s7"), plan.load("train", ("sp", "0"), "")
    assert (heavy.slides, heavy.gb, heavy.heaviest_gb) == (1, 3.0, 3.0)
    assert (rest.slides, rest.heaviest_gb) == (N_SLIDES, 3.0)


def test_a_record_of_a_vanished_artefact_is_forgotten(tmp_path: Path) -> None:
    jobs, items = tmp_path / "state" / "x" / "jobs", tmp_path / "state" / "x" / "items"
    jobs.mkdir(parents=True)
    items.mkdir()
    (tmp_path / "kept").touch()
    for name, output in {"0": "kept", "1": "gone"}.items():
        body = {"stage": "x", "context": "", "items": {name: {"status": "ok"}, "bad": {"status": "failed"}}}
        (jobs / f"{name}.json").write_text(json.dumps(body))
        (items / f"{name}.json").write_text(json.dumps({"outputs": [output]}))
    notes = forget_broken_records([str(jobs / f"{name}.json") for name in "012"], tmp_path)
    assert len(notes) == 1
    assert "gone" in notes[0]
    assert [path.name for path in jobs.iterdir()] == ["0.json"]

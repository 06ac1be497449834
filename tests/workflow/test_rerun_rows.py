"""The table of reruns, row by row, as the plan sees it; real runs are in ``test_reruns``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from slideloom.artefacts.keys import canonical
from slideloom.slides.study import study_from_mapping
from slideloom.workflow.graph import REPORT_STAGES, planned_jobs
from slideloom.workflow.plan import SLIDE_STAGES, Plan

from .rerun_table import COLUMN_ROWS, ROWS, edited, rerun_study, schema_keys, sheet_text

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
#: By stage with its first name, and job: what it is keyed by.
Specs = dict[tuple[str, str], str]


class Study:
    """The table's study, planned once for each state that rows start from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mapping = rerun_study(folder)
        self._known: dict[str, Specs] = {}

    def plan(self, mapping: Mapping[str, Any]) -> Plan:
        return Plan(study_from_mapping(mapping, Path.cwd()), SCRIPTS)

    def specs(self, mapping: Mapping[str, Any]) -> Specs:
        plan = self.plan(mapping)
        return {("/".join((job.stage, *job.context[:1])), job.name): job.spec(plan) for job in planned_jobs(plan)}

    def before(self, mapping: Mapping[str, Any]) -> Specs:
        key = canonical(mapping)
        if key not in self._known:
            self._known[key] = self.specs(mapping)
        return self._known[key]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("reruns")
        patch.chdir(folder)
        patch.setattr(Plan, "_code", lambda self, stage: stage)  # code is not what the rows are about
        yield Study(folder)


def _changed(before: Specs, after: Specs) -> set[str]:
    """Stages with a job that was not there, or is keyed by something else now."""
    return {stage for (stage, job), spec in after.items() if before.get((stage, job)) != spec}


def test_every_key_of_the_config_has_a_row_and_every_row_a_key() -> None:
    keys = list(schema_keys())
    assert len(keys) == len(set(keys)) > 100
    assert set(ROWS) == set(keys)
    for key, row in ROWS.items():
        assert any(_is_under(edit, key) for edit in row.edits), key


def _is_under(edit: str, key: str) -> bool:
    parts, general = edit.split("."), key.split(".")
    return len(parts) == len(general) and all(two in ("*", one) for one, two in zip(parts, general, strict=True))


#: Keys that give the slides other jobs: see test_other_bins_compute_nothing.
OF_BINS = [key for key in ROWS if key.startswith("jobs.") and key != "jobs.bands"]


@pytest.mark.parametrize("key", [key for key in ROWS if key not in OF_BINS])
def test_an_edit_runs_the_stages_of_its_row(study: Study, key: str) -> None:
    row = ROWS[key]
    given = edited(study.mapping, row.given)
    asked = edited(given, row.edits)
    assert study.plan(asked).config != study.plan(given).config, "the edit changes nothing"
    wanted = set(row.stages.split()) | (set(REPORT_STAGES) if row.science else set())
    assert _changed(study.before(given), study.specs(asked)) == wanted


@pytest.mark.parametrize("key", OF_BINS)
def test_other_bins_compute_nothing(study: Study, key: str) -> None:
    asked = edited(study.mapping, ROWS[key].edits)
    assert study.plan(asked).jobs != study.plan(study.mapping).jobs
    before, after = (_slides(specs) for specs in (study.before(study.mapping), study.specs(asked)))
    assert before == after, "each slide is made from the same"
    rest = _changed(study.before(study.mapping), study.specs(asked))
    assert {stage.split("/")[0] for stage in rest} <= set(SLIDE_STAGES)


def _slides(specs: Specs) -> dict[tuple[str, str, str], str]:
    """What each slide of each stage is keyed by, whatever its job."""
    found = {}
    for (stage, _), text in specs.items():
        spec = json.loads(text)
        for slide, row in spec.get("items", {}).items():
            found[stage, spec["context"], slide] = canonical([spec["config"], spec["code"], row])
    return found


@pytest.mark.parametrize("column", COLUMN_ROWS)
def test_an_edit_of_the_sheet_runs_the_stages_that_read_the_column(study: Study, column: str) -> None:
    value, stages = COLUMN_ROWS[column]
    before = study.before(study.mapping)
    place = study.folder / "slides.tsv"
    place.write_text(sheet_text(**{column: value}))
    try:
        after = study.specs(study.mapping)
    finally:
        place.write_text(sheet_text())
    changed = _changed(before, after)
    assert changed - set(REPORT_STAGES) == set(stages.split())
    touched = [job for (stage, job), spec in after.items() if before.get((stage, job)) != spec]
    slides = [job for job in touched if job.split()[0] in SLIDE_STAGES]
    assert len({job.split()[-1] for job in slides}) <= 1, "one slide lies in one job"


def test_exchanged_values_are_told_apart(study: Study) -> None:
    given = edited(study.mapping, {"instances.nucleus_threshold": 0.6, "instances.energy_threshold": 0.4})
    asked = edited(study.mapping, {"instances.nucleus_threshold": 0.4, "instances.energy_threshold": 0.6})
    assert _changed(study.before(given), study.specs(asked)) == set(ROWS["instances.min_area_um2"].stages.split()) | {
        *REPORT_STAGES
    }


def test_the_order_of_keys_and_the_writing_of_numbers_are_no_edit(study: Study) -> None:
    given = edited(study.mapping, {"instances": {"nucleus_threshold": 0.6, "energy_threshold": 0.4}})
    asked = edited(study.mapping, {"instances": {"energy_threshold": 4e-1, "nucleus_threshold": 0.60}})
    asked["grids"] = dict(reversed(asked["grids"].items()))
    assert _changed(study.before(given), study.specs(asked)) == set()


def test_experiments_that_mend_nothing_are_keyed_as_before_there_was_such_a_key(study: Study) -> None:
    specs = study.before(study.mapping)
    assert not [job for job, text in specs.items() if '"refine' in text or '"network"' in text]
    plain = edited(study.mapping, {"splits.holdout.val": 0.4})
    mended = edited(plain, {"experiments.virtues.refine": {"split": {}, "verify": {}}})
    # A verifier judges what is there after the split.
    before, after = study.specs(mended), study.specs(edited(mended, {"experiments.virtues.refine.split.most": 3}))
    assert _changed(before, after) == {"verifier/virtues", "instances/virtues", *REPORT_STAGES}
    assert _changed(study.specs(plain), before) == {"verifier/virtues", "instances/virtues", *REPORT_STAGES}

"""What is told of ``refine`` before anything runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from slideloom.errors import ConfigError
from slideloom.slides.study import study_from_mapping

STUDY: dict[str, Any] = {
    "study": "s",
    "slides": "slides.tsv",
    "grids": {"he": {"image": "he", "tile_px": 64}},
    "encoders": {"vit": {"model": "timm/vit_tiny_patch16_224", "grid": "he", "random": 0}},
    "splits": {"column": {"scheme": "column"}, "folds": {"scheme": "kfold", "folds": 2}},
    "experiments": {"x": {"encoder": "vit", "split": "column", "heads": ["nucleus", "hv"]}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = ["slide_id\tplatform\the\tinstances\tsplit"]
    for number, role in enumerate(("train", "train", "val", "test")):
        lines.append(f"s{number}\tcodex\ts.tif\tl.tif\t{role}")
    Path("slides.tsv").write_text("\n".join(lines) + "\n")
    for name in ("s.tif", "l.tif", "s0_o.tif"):
        Path(name).touch()
    return tmp_path


def told(**experiment: Any) -> list[str]:
    study = copy.deepcopy(STUDY)
    study |= experiment.pop("study", {})
    study["experiments"]["x"] |= experiment
    try:
        study_from_mapping(study, Path.cwd())
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_right_ones_pass() -> None:
    assert told(refine={"network": {}, "split": {}, "verify": {}}) == []


def test_a_verifier_needs_maps_of_validation_slides() -> None:
    inference = {"inference": {"roles": ["test"]}, "evaluation": {"roles": ["test"]}}
    (problem,) = told(refine={"verify": {}}, study=inference)
    assert "refine.verify: it is fitted on slides of the role 'val', and inference.roles leaves them out" in problem
    assert "Add 'val' to inference.roles" in problem
    assert told(refine={"split": {}}, study=inference) == []


def test_a_verifier_needs_annotated_validation_slides_in_every_fold(folder: Path) -> None:
    (problem,) = told(refine={"verify": {}}, split="folds")
    assert "split 'folds', fold 0, has none" in problem
    assert "Set 'splits.folds.val', such as 0.2" in problem
    sheet = folder / "slides.tsv"
    sheet.write_text(sheet.read_text().replace("\tval", "\ttrain"))
    (problem,) = told(refine={"verify": {}})
    assert "split 'column' has none" in problem
    assert "Write val into the sheet's column 'split'" in problem


def test_the_split_needs_hv_maps() -> None:
    (problem,) = told(refine={"split": {}}, heads=["nucleus"])
    assert "nuclei are split by HV maps, and the experiment has no head 'hv'" in problem


def test_what_mends_the_maps_of_a_network_without_tokens_reads_none() -> None:
    (problem,) = told(refine={"network": {}}, decoder={"kind": "unet"})
    assert "refine.network.token_channels: a decoder of kind 'unet' reads no tokens" in problem
    assert "Set 'token_channels: 0'" in problem
    assert told(refine={"network": {"token_channels": 0}}, decoder={"kind": "unet"}) == []


def test_labels_of_another_program_stay_as_they_are() -> None:
    other = {"encoder": [], "labels": "{slide}_o.tif", "grid": "he"}
    problems = told(**other, refine={"verify": {}})
    assert any("refine: plays no part: labels of another program are scored as they are" in one for one in problems)


def test_a_published_model_is_not_trained_with_a_network(folder: Path) -> None:
    (folder / "cv.pth").touch()
    encoder = {"model": "cellvit/vit256", "grid": "he", "checkpoint": "cv.pth", "off_resolution": True}
    study = {"encoders": {"cv": encoder}, "grids": {"he": {"image": "he", "tile_px": 64}}}
    problems = told(encoder="cv", pretrained="cv.pth", refine={"network": {}, "split": {}, "verify": {}}, study=study)
    assert [one for one in problems if "refine" in one] == [
        one for one in problems if "refine.network: it is trained with the decoder" in one
    ]
    assert len(problems) == 1

"""A slide's two tables: from files on disk to figures that were worked out by hand or by other means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.artefacts.zarrio import create_group, write_array
from slideloom.config.model import EvaluationConfig
from slideloom.errors import SlideError
from slideloom.metrics import evaluate
from slideloom.metrics.schemas import CLASS_METRICS, SLIDE_METRICS
from slideloom.patches.hv import hv_map
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2, 3), ("tumour", "stroma", "rare"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)), ((), (), ()))
SIZE = (60, 80)


@dataclass
class Slide:
    """Truth and prediction of one slide, and where they lie."""

    folder: Path
    gt: np.ndarray
    gt_class: np.ndarray
    labels: np.ndarray
    arrays: dict[str, np.ndarray]
    row: SlideRow
    seam_change: dict[str, Any] | None = None

    def evaluate(self, iou_threshold: float = 0.5) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Write everything, evaluate, read the tables back."""
        np.save(self.folder / "gt.npy", self.gt)
        np.save(self.folder / "classes.npy", self.gt_class)
        maps, labels, out = (self.folder / name for name in ("maps.zarr", "labels.ome.zarr", "metrics"))
        create_group(
            maps,
            {
                "mpp_um": 0.5,
                "scale": 1.0,
                "encoder_weights": "random:1",
            },
        )
        for name, data in self.arrays.items():
            write_array(maps / name, data)
        level = {"datasets": [{"path": "0"}]}
        about = {} if self.seam_change is None else {"slideloom": {"seam_change": self.seam_change}}
        create_group(labels, {"ome": {"version": "0.5", "multiscales": [level]}, **about})
        write_array(labels / "0", self.labels.astype(np.uint32))
        image = ImageFacts("he.npy", "numpy", *SIZE, 3, "uint8", 0.5, "sheet", (Level(*SIZE, 1.0),), (), True)
        facts = SlideFacts("s1", {"he": image})
        config = EvaluationConfig(iou_threshold=iou_threshold)
        done = evaluate.evaluate_slide(
            maps, labels, self.row, self.folder, facts, "he", 1.0, CLASSES, config, None, out
        )
        if not done:
            assert not out.exists()
            return None
        slide = read_table(SLIDE_METRICS, out / "slide.parquet").to_pylist()
        return slide[0], read_table(CLASS_METRICS, out / "classes.parquet").to_pylist()


def square(labels: np.ndarray, y: int, x: int, value: int, side: int = 10) -> None:
    """Draw a square."""
    labels[y : y + side, x : x + side] = value


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    """Three true nuclei (tumour, stroma, unknown); one hit, one of the wrong class, one on the unknown, one false."""
    gt, labels = np.zeros(SIZE, np.int32), np.zeros(SIZE, np.int32)
    gt_class, class_id = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    for number, (y, x, true_class) in enumerate([(5, 5, 1), (5, 30, 2), (30, 5, 255)], 11):
        square(gt, y, x, number)
        square(gt_class, y, x, true_class)
    for number, (y, x, predicted) in enumerate([(5, 7, 1), (5, 30, 1), (30, 5, 1), (30, 50, 2)], 1):
        square(labels, y, x, number)
        square(class_id, y, x, predicted)
    labels[50:52, 70:75] = 5  # a nucleus that the class head calls background
    nucleus = np.where(labels > 0, 200, 20).astype(np.uint8)
    hv = np.round(hv_map(gt) * 127).astype(np.int8)
    arrays = {"covered": np.ones(SIZE, np.uint8), "nucleus": nucleus, "class_id": class_id, "hv": hv}
    row = SlideRow("s1", he="he.npy", instances="gt.npy", classes="classes.npy")
    return Slide(tmp_path, gt, gt_class, labels, arrays, row)


def test_figures_of_a_slide_worked_out_by_hand(slide: Slide) -> None:
    found, classes = slide.evaluate()
    iou = 80 / 120
    assert (found["n_gt"], found["n_pred"], found["tp"], found["fp"], found["fn"]) == (3, 5, 3, 2, 0)
    assert found["pq"] == pytest.approx((2 + iou) / 4)
    assert found["bpq"] == pytest.approx((2 + iou) / 3.5)  # without the nucleus that is typed background
    assert found["sq"] == pytest.approx((2 + iou) / 3)
    assert (found["precision"], found["recall"]) == (0.6, 1.0)
    assert found["f1_mean"] == pytest.approx(np.mean([6 / 8] * 2 + [4 / 8] * 3))
    assert found["area_mm2"] == pytest.approx(60 * 80 * 0.25e-6)
    assert (found["gt_pixels"], found["pred_pixels"], found["tp_pixels"]) == (300, 410, 280)
    assert found["f1_pixel"] == found["dice_binary"] == pytest.approx(560 / 710)
    assert found["pixel_accuracy"] == pytest.approx(1 - 150 / 4800)
    assert found["map"] == pytest.approx(280 / 300 * 280 / 410 + 20 / 300 * 300 / 4800)
    assert found["hv_mse"] == 0
    assert found["seam_change_rate"] is found["n_tiles"] is None
    by_name = {line["class_name"]: line for line in classes}
    assert [line["class_id"] for line in classes] == [0, 1, 2, 3]
    tumour = by_name["tumour"]  # the prediction on the unknown nucleus is neither right nor wrong
    assert (tumour["tp"], tumour["fp"], tumour["fn"]) == (1, 1, 0)
    assert (tumour["gt_pixels"], tumour["pred_pixels"], tumour["tp_pixels"]) == (100, 200, 80)
    assert tumour["gt_fraction"] == pytest.approx(100 / 4700)
    assert (by_name["stroma"]["tp"], by_name["stroma"]["dice"]) == (0, 0.0)
    assert by_name["rare"]["dice"] is by_name["rare"]["pq"] is None
    assert (by_name["background"]["n_gt"], by_name["background"]["pq"]) == (None, None)
    assert found["mpq"] == pytest.approx(np.mean([tumour["pq"], 0.0]))
    assert found["dice_macro"] == pytest.approx(np.mean([tumour["dice"], 0.0]))
    background = by_name["background"]["dice"]
    assert found["dice_macro_with_background"] == pytest.approx(np.mean([background, tumour["dice"], 0.0]))


def test_the_seam_change_rate_is_the_label_images(slide: Slide) -> None:
    slide.seam_change = {"n": 5, "n_shifted": 3, "changed": 2, "rate": 0.25}
    assert slide.evaluate()[0]["seam_change_rate"] == 0.25
    slide = replace(slide, folder=slide.folder / "none")
    slide.folder.mkdir()
    slide.seam_change = {"n": 0, "n_shifted": 0, "changed": 0, "rate": None}
    assert slide.evaluate()[0]["seam_change_rate"] is None


def test_block_size_changes_nothing(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    slide.arrays["hv"][0] += 5
    whole = slide.evaluate()
    monkeypatch.setattr(evaluate, "_BLOCK_PX", 7)
    (slide.folder / "maps.zarr").rename(slide.folder / "old.zarr")
    (slide.folder / "labels.ome.zarr").rename(slide.folder / "old.ome.zarr")
    assert slide.evaluate() == whole


def test_only_what_a_tile_looked_at_counts(slide: Slide) -> None:
    slide.arrays["covered"][28:] = 0
    found, classes = slide.evaluate()
    assert (found["n_gt"], found["n_pred"], found["tp"]) == (2, 2, 2)
    assert found["area_mm2"] == pytest.approx(28 * 80 * 0.25e-6)
    assert sum(line["gt_pixels"] for line in classes) == 28 * 80
    slide = replace(slide, folder=slide.folder / "none")
    slide.folder.mkdir()
    slide.arrays["covered"][:] = 0
    found, classes = slide.evaluate()
    assert (found["n_gt"], found["pq"], found["pixel_accuracy"], found["map"]) == (0, None, None, None)


def test_without_classes_only_class_figures_are_null(slide: Slide) -> None:
    del slide.arrays["class_id"], slide.arrays["hv"]
    found, classes = slide.evaluate()
    assert found["bpq"] == found["pq"] == pytest.approx((2 + 80 / 120) / 4)
    assert found["mpq"] is found["dice_macro"] is found["dice_macro_with_background"] is found["hv_mse"] is None
    assert [line["gt_pixels"] for line in classes] == [4500, 100, 100, 0]
    assert {line["pred_pixels"] for line in classes} == {line["dice"] for line in classes} == {None}


def test_truth_without_classes_leaves_predicted_frequencies(slide: Slide) -> None:
    slide.row = replace(slide.row, classes=None)
    found, classes = slide.evaluate()
    assert found["pq"] is not None
    assert found["mpq"] is found["dice_macro"] is None
    assert [line["pred_pixels"] for line in classes] == [4400, 300, 100, 0]
    assert {line["gt_pixels"] for line in classes} == {line["tp"] for line in classes} == {None}


def test_the_threshold_is_the_configs(slide: Slide) -> None:
    found, classes = slide.evaluate(0.7)
    assert (found["tp"], found["f1_50"]) == (2, 0.75)
    assert (classes[1]["tp"], classes[1]["f1"]) == (0, pytest.approx(2 / 3))


def test_no_annotation_writes_nothing(slide: Slide) -> None:
    slide.row = replace(slide.row, instances=None, classes=None)
    assert slide.evaluate() is None


def test_maps_of_another_size_fail_with_a_reason(slide: Slide) -> None:
    slide.labels = slide.labels[:50]
    with pytest.raises(SlideError, match="array labels") as caught:
        slide.evaluate()
    assert caught.value.code == "maps_shape"


def test_tables_say_what_they_were_made_from(slide: Slide) -> None:
    slide.evaluate()
    about = table_metadata(pq.read_table(slide.folder / "metrics" / "slide.parquet"))
    assert about["schema"] == "slide_metrics"
    assert about["units"]["area_mm2"] == "mm²"
    assert about["made_from"]["evaluation"]["iou_threshold"] == 0.5
    assert about["made_from"]["maps"] == {"mpp_um": 0.5, "scale": 1.0, "encoder_weights": "random:1"}

"""A slide's tables: from files on disk to figures that were worked out by hand or by other means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.metrics.evaluated import Slide, square

from slideloom.artefacts.tables import table_metadata
from slideloom.errors import SlideError
from slideloom.metrics.schemas import COMPARED, LESS_IS_BETTER, SLIDE_METRICS
from slideloom.patches.hv import hv_map
from slideloom.slides.sheet import SlideRow

SIZE = (60, 80)


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
    sure = np.where(labels > 0, 204, 255).astype(np.uint8)
    hv = np.round(hv_map(gt) * 127).astype(np.int8)
    arrays = {"covered": np.ones(SIZE, np.uint8), "nucleus": nucleus, "class_id": class_id, "hv": hv}
    return Slide(tmp_path / "slide", gt, gt_class, labels, arrays | {"class_probability": sure})


def test_figures_of_a_slide_worked_out_by_hand(slide: Slide) -> None:
    found, classes = slide.evaluate()
    iou = 80 / 120
    assert (found["n_gt"], found["n_pred"], found["tp"], found["fp"], found["fn"]) == (3, 5, 3, 2, 0)
    assert found["pq"] == pytest.approx((2 + iou) / 4)
    assert found["bpq"] == pytest.approx((2 + iou) / 3.5)  # without the nucleus that is typed background
    assert found["sq"] == pytest.approx((2 + iou) / 3)
    assert (found["precision"], found["recall"]) == (0.6, 1.0)
    assert found["f1_mean"] == pytest.approx(np.mean([6 / 8] * 2 + [4 / 8] * 3))
    assert [found[f"tp_{at}"] for at in (50, 60, 70, 80, 90)] == [3, 3, 2, 2, 2]
    assert [found[f"f1_{at}"] for at in (50, 70)] == [0.75, 0.5]
    assert (found["ap_60"], found["ap_80"]) == (3 / 5, 2 / 6)
    assert found["ap_mean"] == pytest.approx((2 * 3 / 5 + 3 * 2 / 6) / 5)
    assert found["aji"] == found["aji_plus"] == pytest.approx(280 / (100 + 100 + 120 + 110))
    assert found["dice_2"] == pytest.approx(560 / 600)
    assert (found["splits"], found["split_pieces"], found["merges"], found["merged_nuclei"]) == (0, 0, 0, 0)
    assert found["area_mm2"] == pytest.approx(60 * 80 * 0.25e-6)
    assert (found["gt_pixels"], found["pred_pixels"], found["tp_pixels"]) == (300, 410, 280)
    assert found["f1_pixel"] == found["dice_binary"] == pytest.approx(560 / 710)
    assert (found["pred_pixels_binary"], found["tp_pixels_binary"]) == (410, 280)
    assert found["iou_binary"] == pytest.approx(280 / 430)
    assert (found["precision_binary"], found["recall_binary"]) == (280 / 410, 280 / 300)
    assert found["pixel_accuracy"] == pytest.approx(1 - 150 / 4800)
    assert found["map"] == pytest.approx(280 / 300 * 280 / 410 + 20 / 300 * 300 / 4800)
    gaps = abs(280 / 410 - 200 / 255), abs(20 / 4390 - 20 / 255)
    assert found["ece"] == pytest.approx((410 * gaps[0] + 4390 * gaps[1]) / 4800)
    assert found["mce"] == pytest.approx(max(gaps))
    wrong = 280 * 55**2 + 130 * 200**2 + 20 * 235**2 + 4370 * 20**2
    assert found["brier"] == pytest.approx(wrong / 255**2 / 4800)
    assert found["hv_mse"] == found["hv_mse_everywhere"] == 0
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
    assert found["dice_macro_n"] == 2
    background = by_name["background"]
    assert found["dice_macro_with_background"] == pytest.approx(np.mean([background["dice"], tumour["dice"], 0.0]))
    assert found["iou_macro"] == pytest.approx(80 / 220 / 2)
    assert found["precision_macro"] == pytest.approx(80 / 200 / 2)
    assert found["recall_macro"] == pytest.approx(80 / 100 / 2)
    assert found["recall_macro_with_background"] == pytest.approx((80 / 100 + 4380 / 4500) / 3)
    assert found["class_accuracy"] == pytest.approx((4380 + 80) / 4700)
    assert found["class_accuracy_nuclei"] == pytest.approx(80 / 200)


def test_detections_by_distance_worked_out_by_hand(slide: Slide) -> None:
    found, classes = slide.evaluate()  # 3 µm are 6 pixels; the first nucleus is 2 pixels off, the next two fit
    assert (found["tp_d"], found["fp_d"], found["fn_d"]) == (3, 2, 0)
    assert (found["precision_d"], found["recall_d"], found["f1_d"]) == (0.6, 1.0, 0.75)
    tumour, stroma, rare = classes[1:]
    names = ("tp_d", "fp_paired_d", "fn_paired_d", "fp_alone_d", "fn_alone_d")
    assert [tumour[name] for name in names] == [1, 1, 0, 0, 0]
    assert [stroma[name] for name in names] == [0, 0, 1, 1, 0]
    assert (tumour["f1_d"], tumour["precision_d"], tumour["recall_d"]) == (pytest.approx(2 / 3), 0.5, 1.0)
    assert tumour["f1_d_hovernet"] == 0.5  # 2 / (2 + 2): the wrong class weighs double
    assert (stroma["f1_d"], rare["f1_d"], classes[0]["tp_d"]) == (0.0, None, None)
    closer, _ = slide.evaluate(detection_radius_um=0.9)
    assert (closer["tp_d"], closer["fp_d"], closer["fn_d"]) == (2, 3, 1)
    assert closer["tp"] == 3


def test_outlines_worked_out_by_hand(slide: Slide) -> None:
    found, _ = slide.evaluate()  # 0.5 µm are one pixel
    assert (found["boundary_gt_pixels"], found["boundary_pred_pixels"]) == (3 * 36, 4 * 36 + 10)
    # Two squares fit. Of the third, moved 2 pixels along x, all but the outermost pixel of the upper and the lower row
    # have one within a pixel. Both sides lie 2 off, but of the inner one the two pixels next to the rows.
    near = 36 + 36 + 2 * 9 + 2
    assert (found["boundary_gt_near"], found["boundary_pred_near"]) == (near, near)
    precision, recall = near / 154, near / 108
    assert (found["boundary_precision"], found["boundary_recall"]) == (precision, recall)
    assert found["boundary_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["surface_dice"] == pytest.approx(2 * near / (108 + 154))
    wider, _ = slide.evaluate(boundary_tolerance_um=1.0)
    assert wider["boundary_recall"] == 1.0
    slide.mpp_um = 0.01
    with pytest.raises(SlideError, match=r"50\.0 px") as caught:
        slide.tables()
    assert caught.value.code == "boundary_tolerance"


def test_confusion_of_pixels_and_nuclei(slide: Slide) -> None:
    rows = slide.tables()["confusion"]
    names = ("background", "tumour", "stroma", "rare")
    assert [(row["true_class_name"], row["pred_class_name"]) for row in rows] == [(t, p) for t in names for p in names]
    pixels = {(row["true_class_id"], row["pred_class_id"]): row["pixels"] for row in rows if row["pixels"]}
    assert pixels == {(0, 0): 4380, (0, 1): 20, (0, 2): 100, (1, 0): 20, (1, 1): 80, (2, 1): 100}
    nuclei = {(row["true_class_id"], row["pred_class_id"]): row["nuclei"] for row in rows if row["nuclei"] != 0}
    # The prediction on the nucleus of unknown class is left out.
    assert nuclei == {(0, 0): None, (1, 1): 1, (2, 1): 1, (0, 2): 1}
    slide.labels[30:40, 5:15] = 0
    slide.arrays["class_id"][5:15, 30:40] = 0
    rows = slide.tables(iou_threshold=0.7)["confusion"]
    nuclei = {(row["true_class_id"], row["pred_class_id"]): row["nuclei"] for row in rows if row["nuclei"]}
    # Stroma matches a nucleus without a class; tumour and its prediction no longer match.
    assert nuclei == {(2, 0): 1, (1, 0): 1, (0, 1): 1, (0, 2): 1}


def test_scores_by_probability(slide: Slide) -> None:
    rows = slide.tables()["scores"]
    of_nucleus = [(row["score"], row["positive"], row["negative"]) for row in rows if row["of"] == "nucleus"]
    assert of_nucleus == [(255, 0, 0), (200, 280, 130), (20, 20, 4370)]
    assert {row["n_true"] for row in rows if row["of"] == "nucleus"} == {300}
    of_class = {}
    for row in rows:
        if row["of"] == "class":
            of_class.setdefault(row["class_name"], []).append(tuple(row[c] for c in ("score", "positive", "negative")))
    assert of_class == {
        # 10 pixels of the nucleus that was called background have the nuclei's score.
        "background": [(255, 4370, 20), (204, 10, 0)],
        "tumour": [(255, 0, 0), (204, 80, 120)],
        "stroma": [(255, 0, 0), (204, 0, 100)],
        "rare": [(255, 0, 0)],
    }
    assert {row["class_name"]: row["n_true"] for row in rows if row["of"] == "class"} == {
        "background": 4500,
        "tumour": 100,
        "stroma": 100,
        "rare": 0,
    }
    found, classes = slide.evaluate()
    assert [line["ap_won"] for line in classes[1:]] == [pytest.approx(80 / 100 * 80 / 200), 0.0, None]
    assert found["map_won"] == pytest.approx(0.16)
    gaps = {255: 4390 - 4370, 204: abs(90 - 0.8 * 310)}  # 15 bins: 204 and 255 lie in different ones
    assert found["ece_class"] == pytest.approx(sum(gaps.values()) / 4700)


def test_squares_of_the_slide(slide: Slide) -> None:
    slide.tile_px = 20
    slide.arrays["covered"][40:, 40:] = 0
    rows = slide.tables()["tiles"]
    assert [row["tile"] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [(row["y_px"], row["x_px"]) for row in rows[:5]] == [(0, 0), (0, 20), (0, 40), (0, 60), (20, 0)]
    by_tile = {row["tile"]: row for row in rows}
    assert {tile: row["tp"] for tile, row in by_tile.items() if row["tp"]} == {0: 1, 1: 1, 4: 1}
    assert {tile: row["fp"] for tile, row in by_tile.items() if row["fp"]} == {6: 1}
    assert by_tile[0]["pq"] == pytest.approx(80 / 120)
    assert (by_tile[6]["pq"], by_tile[9]["pq"]) == (0.0, None)
    assert [row["wrong_class"] for row in rows[:5]] == [0, 1, 0, 0, 0]
    slide.tile_px = 50
    rows = slide.tables()["tiles"]
    assert [(row["height_px"], row["width_px"]) for row in rows] == [(50, 50), (50, 30), (10, 50)]
    assert [(row["n_gt"], row["n_pred"]) for row in rows] == [(3, 3), (0, 1), (0, 0)]


def test_squares_add_up_to_the_slide(slide: Slide) -> None:
    slide.tile_px = 16
    tables = slide.tables(iou_threshold=0.7)
    whole = tables["slide"][0]
    for name in ("n_gt", "n_pred", "tp", "fp", "fn"):
        assert sum(row[name] for row in tables["tiles"]) == whole[name]
    assert sum(row["iou_sum"] for row in tables["tiles"]) == pytest.approx(whole["iou_sum"])
    assert sum(row["height_px"] * row["width_px"] for row in tables["tiles"]) == 60 * 80
    assert whole["n_tiles"] == 7


def test_the_seam_change_rate_is_the_label_images(slide: Slide) -> None:
    slide.seam_change = {"n": 5, "n_shifted": 3, "changed": 2, "rate": 0.25}
    assert slide.evaluate()[0]["seam_change_rate"] == 0.25
    slide.seam_change = {"n": 0, "n_shifted": 0, "changed": 0, "rate": None}
    assert slide.evaluate()[0]["seam_change_rate"] is None


def test_only_what_a_tile_looked_at_counts(slide: Slide) -> None:
    slide.arrays["covered"][28:] = 0
    found, classes = slide.evaluate()
    assert (found["n_gt"], found["n_pred"], found["tp"]) == (2, 2, 2)
    assert found["area_mm2"] == pytest.approx(28 * 80 * 0.25e-6)
    assert sum(line["gt_pixels"] for line in classes) == 28 * 80
    slide.arrays["covered"][:] = 0
    tables = slide.tables()
    found = tables["slide"][0]
    assert found["n_gt"] == 0
    undefined = ("pq", "f1_d", "pixel_accuracy", "map", "ece", "brier", "boundary_f1", "hv_mse_everywhere", "ece_class")
    assert {found[name] for name in undefined} == {None}
    assert tables["tiles"] == []


def test_without_classes_only_class_figures_are_null(slide: Slide) -> None:
    del slide.arrays["class_id"], slide.arrays["class_probability"], slide.arrays["hv"]
    tables = slide.tables()
    found, classes = tables["slide"][0], tables["classes"]
    assert found["bpq"] == found["pq"] == pytest.approx((2 + 80 / 120) / 4)
    undefined = [name for name in COMPARED if found[name] is None]
    about_classes = [name for name in COMPARED if "macro" in name or "class" in name]
    assert sorted(undefined) == sorted(
        [*about_classes, "mpq", "map_won", "hv_mse", "hv_mse_everywhere", "seam_change_rate"]
    )
    assert [line["gt_pixels"] for line in classes] == [4500, 100, 100, 0]
    assert {line["pred_pixels"] for line in classes} == {line["dice"] for line in classes} == {None}
    assert tables["confusion"] == []
    assert {row["of"] for row in tables["scores"]} == {"nucleus"}
    assert {row["wrong_class"] for row in tables["tiles"]} == {None}


def test_truth_without_classes_leaves_predicted_frequencies(slide: Slide) -> None:
    slide.row = replace(slide.row, classes=None)
    tables = slide.tables()
    found, classes = tables["slide"][0], tables["classes"]
    assert found["pq"] is not None
    assert found["mpq"] is found["dice_macro"] is found["ece_class"] is None
    assert [line["pred_pixels"] for line in classes] == [4400, 300, 100, 0]
    assert {line["gt_pixels"] for line in classes} == {line["tp"] for line in classes} == {None}
    assert tables["confusion"] == []
    assert {row["of"] for row in tables["scores"]} == {"nucleus"}


@pytest.mark.parametrize("with_classes", [True, False])
def test_labels_of_another_program_bring_no_probabilities(slide: Slide, with_classes: bool) -> None:
    whole = slide.tables()
    kept = ("covered", "class_id") if with_classes else ("covered",)
    slide.arrays = {name: slide.arrays[name] for name in kept}
    tables = slide.tables()
    found = tables["slide"][0]
    absent = {"map", "dice_binary", "iou_binary", "precision_binary", "recall_binary", "ece", "mce", "brier"}
    absent |= {"pred_pixels_binary", "tp_pixels_binary", "hv_mse", "hv_mse_everywhere", "ece_class", "map_won"}
    if with_classes:
        assert {name for name, value in found.items() if value != whole["slide"][0][name]} == absent
        assert tables["confusion"] == whole["confusion"]
        assert {line["ap_won"] for line in tables["classes"]} == {None}
    else:
        assert (found["pq"], found["f1_d"]) == (whole["slide"][0]["pq"], whole["slide"][0]["f1_d"])
        assert found["mpq"] is found["class_accuracy"] is None
    assert {found[name] for name in absent} == {None}
    assert tables["scores"] == []


def test_the_threshold_is_the_configs(slide: Slide) -> None:
    found, classes = slide.evaluate(iou_threshold=0.7)
    assert (found["tp"], found["f1_50"]) == (2, 0.75)
    assert (classes[1]["tp"], classes[1]["f1"]) == (0, pytest.approx(2 / 3))


def test_conventions_differ_at_the_threshold_and_on_empty_classes(tmp_path: Path) -> None:
    size = (40, 60)
    gt, labels = np.zeros(size, np.int32), np.zeros(size, np.int32)
    square(gt, 5, 5, 1)
    labels[5:10, 5:15] = 1  # the upper half: an IoU of exactly 0.5
    labels[10:15, 5:15] = 2  # and the lower half
    square(labels, 20, 40, 3)
    gt_class = (gt > 0).astype(np.uint8)
    class_id = np.select([labels == 3, labels > 0], [2, 1], 0).astype(np.uint8)
    slide = Slide(tmp_path / "slide", gt, gt_class, labels, {"covered": np.ones(size, np.uint8), "class_id": class_id})
    by_convention = {name: slide.tables(convention=name) for name in ("pannuke", "stardist", "instanseg_pairs")}
    rows = {name: tables["slide"][0] for name, tables in by_convention.items()}
    assert {name: (row["tp"], row["fp"], row["fn"]) for name, row in rows.items()} == {
        "pannuke": (0, 3, 1),
        "stardist": (1, 2, 0),
        "instanseg_pairs": (2, 1, 0),
    }
    assert {name: row["splits"] for name, row in rows.items()} == dict.fromkeys(rows, 1)
    assert rows["pannuke"]["mpq"] == 0.0  # of tumour alone; stroma has no true nucleus
    assert rows["stardist"]["mpq"] == pytest.approx((2 * 0.5 / 3 + 0) / 2)
    pairs = by_convention["instanseg_pairs"]
    assert pairs["slide"][0]["mpq"] is None
    assert {line["pq"] for line in pairs["classes"]} == {line["tp"] for line in pairs["classes"]} == {None}
    assert pairs["classes"][1]["f1_d"] is not None
    nuclei = {(row["true_class_id"], row["pred_class_id"]): row["nuclei"] for row in pairs["confusion"]}
    assert (nuclei[1, 1], nuclei[0, 2]) == (2, 1)


def test_no_annotation_writes_nothing(slide: Slide) -> None:
    slide.row = SlideRow("s1", he="he.npy")
    assert slide.tables() is None


def test_maps_of_another_size_fail_with_a_reason(slide: Slide) -> None:
    slide.labels = slide.labels[:50]
    with pytest.raises(SlideError, match="array labels") as caught:
        slide.tables()
    assert caught.value.code == "maps_shape"


def test_a_binary_mask_is_refused_as_truth(slide: Slide) -> None:
    """Scored as instances, a mask against a mask is one object against one: the published F1 of nearly 1."""
    slide.gt = (slide.gt > 0).astype(np.int32)
    with pytest.raises(SlideError, match="one id, in 3 separate pieces") as caught:
        slide.tables()
    assert caught.value.code == "binary_labels"
    assert caught.value.where.startswith("s1")
    slide.gt = np.zeros(SIZE, np.int32)
    square(slide.gt, 5, 5, 1)
    assert slide.evaluate()[0]["n_gt"] == 1  # a single nucleus is one
    slide.gt = np.ones(SIZE, np.int32)
    slide.mpp_um = 2.0  # 19 200 µm² are none
    with pytest.raises(SlideError, match="one id, in 1 separate piece:") as caught:
        slide.tables()


def test_tables_say_what_they_were_made_from(slide: Slide) -> None:
    slide.tables(convention="stardist")
    for name in ("slide", "classes", "confusion", "scores", "tiles"):
        about = table_metadata(pq.read_table(slide.folder / "metrics" / f"{name}.parquet"))
        assert about["made_from"]["evaluation"]["iou_threshold"] == 0.5
        assert about["made_from"]["evaluation"]["convention"] == "stardist"
        assert about["made_from"]["maps"] == {"mpp_um": 0.5, "scale": 1.0, "encoder_weights": "random:1"}
    about = table_metadata(pq.read_table(slide.folder / "metrics" / "slide.parquet"))
    assert about["schema"] == "slide_metrics"
    assert about["units"]["area_mm2"] == "mm²"


def test_what_is_compared_are_figures_of_the_slide() -> None:
    assert len(set(COMPARED)) == len(COMPARED)
    real = {column.name for column in SLIDE_METRICS.columns if str(column.type) == "double"}
    assert set(COMPARED) == real - {"area_mm2", "iou_sum"}
    assert set(COMPARED) > LESS_IS_BETTER

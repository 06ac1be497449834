"""Overlays: the right crop, outlines that enclose their nuclei, and verdicts that agree with the figures."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from slideloom.metrics.contingency import contingency
from slideloom.metrics.panoptic import panoptic
from slideloom.reports.overlays import choose_overlays, draw_overlay, draw_overlays
from slideloom.reports.pictures import false_colour, outlines, overview_picture
from slideloom.slides.tables import Channel


def filled(path: str, size: tuple[int, int]) -> np.ndarray:
    """Mask of an outline, drawn at double size as the page does and sampled at pixel centres."""
    mask = np.zeros((2 * size[0], 2 * size[1]), np.uint8)
    for part in re.findall(r"M(\d+) (\d+)l([^z]*)z", path):
        start = np.array([int(part[0]), int(part[1])])
        steps = np.array([int(number) for number in part[2].split()]).reshape(-1, 2)
        points = np.concatenate((start[None], start + steps.cumsum(axis=0)))
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return mask[::2, ::2]


def test_outlines_enclose_their_nuclei() -> None:
    labels = np.zeros((40, 50), np.int64)
    y, x = np.mgrid[:40, :50]
    labels[(y - 12) ** 2 + (x - 14) ** 2 < 90] = 7
    labels[25:35, 30:49] = 4_000_000_000
    labels[0, 0] = 2
    labels[38:, 5:7] = labels[38:, 10:12] = 9  # two pieces
    paths = outlines(labels)
    assert sorted(paths) == [2, 7, 9, 4_000_000_000]
    for label, path in paths.items():
        mask, truth = filled(path, labels.shape), labels == label
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9, label
    assert outlines(np.zeros((3, 3), np.int64)) == {}
    assert list(outlines(np.ones((5, 5), np.int64))) == [1]


def test_an_overlay_shows_the_slide_and_judges_as_the_figures_do(cohort: Any) -> None:
    source = next(s for s in cohort.sources if (s.experiment, s.row.slide_id) == ("good", "s1"))
    drawn = draw_overlay(source, cohort.classes, crop_px=512)
    assert (drawn.width, drawn.height, drawn.x_px, drawn.y_px) == (96, 96, 0, 0)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.picture.split(",")[1]))))
    image = np.load(cohort.root / "s1_he.npy")
    assert np.abs(picture.astype(int) - image).mean() < 12
    from slideloom.artefacts.zarrio import read_array

    gt, labels = np.load(cohort.root / "s1_instances.npy"), read_array(source.labels / "0")
    figures = panoptic(contingency(gt, labels))
    assert drawn.true is not None
    predicted, true = Counter(n.state for n in drawn.predicted), Counter(n.state for n in drawn.true)
    assert predicted["hit"] + predicted["other_class"] == figures.tp
    assert (predicted["false"], true["missed"]) == (figures.fp, figures.fn)
    assert predicted["other_class"] == true["other_class"]
    assert {n.class_id for n in drawn.true} == {1, 2, 255}
    assert any("IoU" in n.title and "true class" in n.title for n in drawn.predicted)


def test_the_crop_is_where_nuclei_stand(blank: Any) -> None:
    labels, classes = np.zeros((400, 300), np.int32), np.zeros((400, 300), np.uint8)
    for k in range(9):
        y, x = 300 + 30 * (k // 3), 200 + 30 * (k % 3)
        labels[y : y + 12, x : x + 12], classes[y : y + 12, x : x + 12] = k + 1, 1
    row = blank.add_slide("big", np.full((400, 300, 3), 240, np.uint8), labels, classes)
    blank.predict("e", row, labels, classes)
    for source in (blank.sources[0], replace(blank.sources[0], row=replace(row, instances=None, classes=None))):
        drawn = draw_overlay(source, blank.classes, crop_px=128)
        assert len(drawn.predicted) == 9
        assert drawn.x_px <= 200
        assert drawn.y_px <= 300
        assert drawn.x_px + drawn.width <= 300
        assert drawn.y_px + drawn.height <= 400
        assert (drawn.true is None) == (source.row.instances is None)
    assert {n.state for n in drawn.predicted} == {"plain"}


def test_a_slide_without_nuclei_or_cells_is_drawn(blank: Any) -> None:
    nothing = np.zeros((70, 90), np.int32)
    row = blank.add_slide("empty", np.full((70, 90, 3), 240, np.uint8), nothing, nothing.astype(np.uint8))
    blank.predict("e", row, nothing, nothing.astype(np.uint8))
    blank.sources[0].cells.unlink()
    drawn = draw_overlay(blank.sources[0], blank.classes)
    assert drawn.predicted == drawn.true == ()


def test_an_overlay_that_cannot_be_drawn_is_left_out(cohort: Any, caplog: pytest.LogCaptureFixture) -> None:
    good = cohort.sources[0]
    lost = replace(good, row=replace(good.row, he="gone.npy"))
    assert [drawn.slide_id for drawn in draw_overlays([lost, good], cohort.classes)] == ["s0"]
    assert "no overlay of s0" in caplog.text


def test_the_same_slides_are_shown_for_every_experiment(cohort: Any) -> None:
    def scored(experiment: str, slide: str, pq: float | None, role: str = "test") -> dict[str, Any]:
        return {"experiment": experiment, "fold": "0", "slide_id": slide, "pq": pq, "role": role}

    slides = [scored("good", f"s{k}", value) for k, value in enumerate([0.9, 0.1, 0.5, 0.6])]
    slides += [scored("poor", f"s{k}", value) for k, value in enumerate([0.2, 0.3, None, 0.4])]
    chosen = choose_overlays(slides, cohort.sources, 3)
    assert [(s.experiment, s.row.slide_id) for s in chosen[:3]] == [("good", "s0"), ("good", "s2"), ("good", "s1")]
    assert {s.row.slide_id for s in chosen[3:]} == {"s0", "s1", "s2"}
    unscored = choose_overlays([], cohort.sources, 2)
    assert Counter(s.experiment for s in unscored) == {"good": 2, "poor": 2}
    mixed = choose_overlays([scored("good", "s0", 0.9, "val"), scored("good", "s3", 0.1)], cohort.sources[:8], 1)
    assert mixed[0].row.slide_id == "s3"  # tested slides come before those that chose the epoch
    assert choose_overlays([], []) == []
    crowd = [replace(source, experiment=f"e{k}") for k in range(9) for source in cohort.sources[:4:2]]
    assert [source.experiment for source in choose_overlays([], crowd)] == [f"e{k}" for k in range(9)]
    assert len(choose_overlays([], crowd[:16])) == 16


def test_false_colours_name_their_channels() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (4, 30, 30)).astype(np.uint16)
    pixels[0, 5:10, 5:10] = 4000
    pixels[2, 15:20] = pixels[3, 15:20] = 900
    pixels[1, :, 3:8] = 700
    channels = [Channel("c0", "DNA", "", True), Channel("c1", "CD3"), Channel("c2", "CK"), Channel("c3", "")]
    picture, colours = false_colour(pixels, channels, False)
    assert (picture.shape, picture.dtype) == ((30, 30, 3), np.uint8)
    assert colours.startswith("DNA blue, ")
    assert "CD3" in colours
    assert not ("CK" in colours and "c3" in colours)
    assert picture[7, 7, 2] > 200 > picture[25, 25].max()
    assert false_colour(pixels[:1], channels[:1], False)[1] == "DNA blue"
    flat, _ = false_colour(np.zeros((2, 4, 4), np.float32), channels[:2], False)
    assert not flat.any()


def test_the_overview_has_a_bounded_size(cohort: Any) -> None:
    y, x = np.array([10.0, 99_999.0]), np.array([10.0, 49_999.0])
    picture = overview_picture((100_000, 50_000), y, x, np.array([1, 0], np.uint8), cohort.classes)
    assert picture.shape == (180, 90, 3)
    assert tuple(picture[0, 0]) == cohort.classes.colours[0]
    assert tuple(picture[-1, -1]) == (140, 140, 140)


def test_sources_are_only_read(cohort: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(cohort.root).rglob("*") if path.is_file()}
    draw_overlay(cohort.sources[0], cohort.classes)
    assert {path: path.stat().st_mtime_ns for path in Path(cohort.root).rglob("*") if path.is_file()} == before

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from slideloom.demo.cohort import DemoSlide
from slideloom.demo.nuclei import MIN_AREA_PX
from slideloom.demo.panel import CLASSES, class_id


def test_every_label_is_one_piece_of_one_class(slides: list[DemoSlide]) -> None:
    for slide in slides:
        labels, classes = slide.nuclei.labels, slide.nuclei.classes
        areas = np.bincount(labels.ravel())
        assert areas.size == len(slide.nuclei) + 1 > 50
        assert areas[1:].min() >= MIN_AREA_PX
        for name, window in enumerate(ndimage.find_objects(labels), 1):
            own = labels[window] == name
            assert ndimage.label(own)[1] == 1
            assert set(classes[window][own]) == {slide.nuclei.class_of[name]}
        np.testing.assert_array_equal(classes == 0, labels == 0)


def test_labels_run_in_raster_order(slides: list[DemoSlide]) -> None:
    for slide in slides:
        names, first = np.unique(slide.nuclei.labels, return_index=True)
        assert np.all(np.diff(first[names > 0]) > 0)


def test_nuclei_touch_and_overlap(slides: list[DemoSlide]) -> None:
    touching, overlapped, count = 0, 0, 0
    for slide in slides:
        labels = slide.nuclei.labels
        near = np.zeros(len(slide.nuclei) + 1, bool)
        for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            meet = (one != other) & (one > 0) & (other > 0)
            near[one[meet]] = near[other[meet]] = True
        touching += int(near.sum())
        overlapped += np.unique(slide.nuclei.beneath).size - 1
        count += len(slide.nuclei)
        beneath = slide.nuclei.beneath
        assert np.all(slide.nuclei.labels[beneath > 0] > 0), "the top one shows"
        assert np.all(beneath[beneath > 0] != labels[beneath > 0])
    assert 0.2 < touching / count < 0.9
    assert overlapped / count > 0.05


def test_classes_have_their_shapes(slides: list[DemoSlide]) -> None:
    def axes(name: str) -> tuple[float, float]:
        found = []
        for slide in slides:
            labels = slide.nuclei.labels
            whole = np.bincount(slide.nuclei.beneath.ravel(), minlength=len(slide.nuclei) + 1) == 0
            for number in np.flatnonzero((slide.nuclei.class_of == class_id(name)) & whole):
                points = np.argwhere(labels == number)
                if number == 0 or points.min() == 0 or points.max() == labels.shape[0] - 1 or len(points) < 3:
                    continue
                # An ellipse's variance along an axis is a quarter of the semi-axis squared.
                found.append(2 * np.sqrt(np.linalg.eigvalsh(np.cov(points.T)))[::-1])
        major, minor = np.median(found, axis=0)
        return float(major), float(minor)

    for name in ("Stroma", "Tumor", "Helper T cell", "Macrophage"):
        kind = CLASSES[class_id(name) - 1]
        major, minor = axes(name)
        assert major == pytest.approx(kind.major_px, rel=0.2), name
        assert minor == pytest.approx(kind.minor_px, rel=0.25), name
    stroma_major, stroma_minor = axes("Stroma")
    assert stroma_major > 2.4 * stroma_minor


def test_nuclei_lie_where_their_kind_lives(slides: list[DemoSlide]) -> None:
    for slide in slides:
        tissue, classes = slide.tissue, slide.nuclei.classes
        tumour = classes == class_id("Tumor")
        assert np.mean(tissue.nest[tumour]) > 0.95
        assert np.mean(tissue.nest[classes == class_id("Stroma")]) < 0.05
        assert np.mean(tissue.hollow[classes > 0]) < 0.04
        wall = tissue.vessel_rim_px[classes == class_id("Endothelia")]
        assert np.mean((wall > -3) & (wall < 9)) > 0.4, "most endothelium lines a vessel"


def test_stroma_lies_along_the_fibres(slides: list[DemoSlide]) -> None:
    along = []
    for slide in slides:
        for number in np.flatnonzero(slide.nuclei.class_of == class_id("Stroma")):
            points = np.argwhere(slide.nuclei.labels == number)
            if number == 0 or len(points) < 60:
                continue
            axis = np.linalg.eigh(np.cov(points.T))[1][:, -1]
            y, x = points[len(points) // 2]
            along.append(abs(axis[0] * slide.tissue.sin[y, x] + axis[1] * slide.tissue.cos[y, x]))
    assert np.mean(along) > 0.9  # 0.64 would be chance

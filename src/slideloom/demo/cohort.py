"""The synthetic cohort: paired H&E and 16-marker slides of the same tissue, with every nucleus and its class known.

It stands in for real slides where none can be had: in the demo, in tests and in benchmarks. Everything follows from
one seed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideloom.demo.nuclei import Nuclei, place_nuclei
from slideloom.demo.panel import CLASSES, class_id
from slideloom.demo.render_he import cell_map, draw_he, draw_stain
from slideloom.demo.render_sp import draw_acquisition, draw_sp
from slideloom.demo.tissue import Tissue, grow_tissue
from slideloom.demo.write import (
    write_class_table,
    write_he,
    write_labels,
    write_markers_and_classes,
    write_sp,
    write_table,
)
from slideloom.errors import SlideloomError

__all__ = ["DemoSlide", "SlidePlan", "grow_slide", "make_slide", "plan_cohort", "write_cohort"]

_LOG = logging.getLogger(__name__)

_MIN_SIZE_PX = 128
_PLATFORMS = ("synthetic-a", "synthetic-b")
_LYMPHOCYTES = ("Helper T cell", "Cytotoxic T cell", "Treg", "B cells")
# Nuclei lose a little to those laid over them later.
_OVERLAP_ALLOWANCE = {"Endothelia": 1.03, "Tumor": 1.025, "Stroma": 1.02}
_SPREAD = {"Tumor": 0.30, "Stroma": 0.16, "Endothelia": 0.25, "B cells": 0.6, "Treg": 0.4}
_RARE_NUCLEI = 3.0  # a class with fewer nuclei than this a training slide is dealt to training slides alone


@dataclass(frozen=True)
class SlidePlan:
    """What one slide is to be.

    Attributes
    ----------
    slide_id, patient_id, platform, split : str
        As in the sheet.
    seed : tuple of int
        Entropy of the slide's own generators.
    size_px : int
        Height and width.
    target_px : ndarray
        (n_classes,) float64, pixels that each class is to show.
    glandular, pleomorphism : float
        The tumour's growth pattern and how unlike its nuclei are.
    """

    slide_id: str
    patient_id: str
    platform: str
    split: str
    seed: tuple[int, int]
    size_px: int
    target_px: NDArray[np.float64]
    glandular: float
    pleomorphism: float


@dataclass(frozen=True)
class DemoSlide:
    """One slide in memory.

    Attributes
    ----------
    tissue : Tissue
        Its maps.
    nuclei : Nuclei
        Its nuclei.
    he : ndarray
        (h, w, 3) uint8 RGB.
    sp : ndarray
        (16, h, w) uint16, counts.
    """

    tissue: Tissue
    nuclei: Nuclei
    he: NDArray[np.uint8]
    sp: NDArray[np.uint16]


def _splits(n_slides: int) -> list[str]:
    """Role of every slide: about 5 train, 1 val and 2 test in 8; one slide trains, two leave no validation."""
    test = 0 if n_slides < 2 else max(1, round(n_slides / 4))
    val = 0 if n_slides < 3 else max(1, round(n_slides / 8))
    return ["train"] * (n_slides - test - val) + ["val"] * val + ["test"] * test


def _patients(splits: list[str]) -> list[int]:
    """Patient of every slide: one or two slides each, never in two roles."""
    patients: list[int] = []
    for place, role in enumerate(splits):
        new = place == 0 or splits[place - 1] != role or patients.count(patients[-1]) == 2 or patients[-1] % 2 == 0
        patients.append((patients[-1] if patients else 0) + int(new))
    return patients


def _deal(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round numbers of nuclei to whole ones and keep their running sum."""
    return np.diff(np.floor(np.cumsum(expected) + 0.5), prepend=0.0)


def plan_cohort(seed: int, n_slides: int, size_px: int) -> list[SlidePlan]:
    """Decide what every slide is to be, so that the cohort as a whole has the report's class frequencies.

    Parameters
    ----------
    seed : int
        Not negative.
    n_slides : int
        At least 1.
    size_px : int
        Side of every slide, at least 128.

    Returns
    -------
    list of SlidePlan
        A plan a slide. Classes with few nuclei come in whole ones; the rarest, too few to give every slide some, go to
        training slides alone, so that no slide is tested on a class that none taught.

    Raises
    ------
    SlideloomError
        A number is out of range.
    """
    for name, value, least in (("seed", seed, 0), ("n_slides", n_slides, 1), ("size_px", size_px, _MIN_SIZE_PX)):
        if value < least:
            raise SlideloomError(f"{name} is {value}", where="demo cohort", expected=f"at least {least}", code="demo")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 0))))
    splits = _splits(n_slides)
    patients = _patients(splits)
    n_patients = patients[-1]
    # Slides of one patient are alike.
    slide_of = np.array(patients) - 1
    target = np.empty((n_slides, len(CLASSES)))
    training = np.array([role == "train" for role in splits])
    immune = np.exp(rng.normal(0, 0.3, n_patients))[slide_of]
    for place, kind in enumerate(CLASSES):
        spread = _SPREAD.get(kind.name, 0.22)
        weight = np.exp(rng.normal(0, spread, n_patients)[slide_of] + rng.normal(0, spread / 3, n_slides))
        if kind.name not in {"Tumor", "Stroma", "Endothelia"}:
            weight *= immune
        weight = np.clip(weight, 0.35 * weight.mean(), 1.75 * weight.mean())
        total = kind.frequency * size_px**2 * n_slides
        nuclei = total / kind.area_px
        if nuclei < _RARE_NUCLEI * n_slides:
            weight *= training
        share = weight / weight.sum()
        if nuclei < 40 * n_slides:
            target[:, place] = _deal(share * nuclei) * kind.area_px
        else:
            target[:, place] = share * total
    return [
        SlidePlan(
            slide_id=f"slide_{number + 1:0{max(2, len(str(n_slides)))}d}",
            patient_id=f"patient_{patients[number]:0{max(2, len(str(n_slides)))}d}",
            platform=_PLATFORMS[(patients[number] - 1) // 2 % 2],
            split=splits[number],
            seed=(seed, number + 1),
            size_px=size_px,
            target_px=target[number],
            glandular=float(rng.uniform(0, 1)),
            pleomorphism=float(rng.uniform(0.8, 1.35)),
        )
        for number in range(n_slides)
    ]


def _generators(plan: SlidePlan) -> list[np.random.Generator]:
    """One source of chance each for ground, nuclei, H&E and SP: a change in one leaves the others as they were."""
    return [np.random.Generator(np.random.PCG64(seed)) for seed in np.random.SeedSequence(plan.seed).spawn(4)]


def grow_slide(plan: SlidePlan) -> tuple[Tissue, Nuclei]:
    """Make one slide's tissue and nuclei without painting it.

    Parameters
    ----------
    plan : SlidePlan
        What the slide is to be.

    Returns
    -------
    tissue : Tissue
        The slide's maps.
    nuclei : Nuclei
        Labels, classes and centres.
    """
    ground_rng, nuclei_rng, _, _ = _generators(plan)
    target = plan.target_px.copy()
    for name, factor in _OVERLAP_ALLOWANCE.items():
        target[class_id(name) - 1] *= factor
    endothelia = class_id("Endothelia") - 1
    tissue = grow_tissue(
        ground_rng,
        (plan.size_px, plan.size_px),
        tumour_px=float(target[class_id("Tumor") - 1]),
        endothelial_nuclei=round(target[endothelia] / CLASSES[endothelia].area_px),
        lymphocyte_px=float(sum(target[class_id(name) - 1] for name in _LYMPHOCYTES)),
        glandular=plan.glandular,
    )
    return tissue, place_nuclei(nuclei_rng, tissue, target, plan.pleomorphism)


def make_slide(plan: SlidePlan) -> DemoSlide:
    """Make one slide. It depends on its plan alone, so slides can be made in any order.

    Parameters
    ----------
    plan : SlidePlan
        What the slide is to be.

    Returns
    -------
    DemoSlide
        Both images and the nuclei, pixel for pixel in one frame of 0.5 µm.
    """
    _, _, he_rng, sp_rng = _generators(plan)
    tissue, nuclei = grow_slide(plan)
    cells, away_px = cell_map(tissue, nuclei)
    he = draw_he(he_rng, tissue, nuclei, cells, away_px, draw_stain(he_rng))
    sp = draw_sp(sp_rng, tissue, nuclei, cells, draw_acquisition(sp_rng))
    return DemoSlide(tissue, nuclei, he, sp)


def _points(slide_id: str, nuclei: Nuclei) -> list[tuple[str, int, int, int, int]]:
    """One row a nucleus: the pixel of it that lies nearest to its centre, its class and its label."""
    order = np.argsort(nuclei.labels, axis=None, kind="stable")
    names = nuclei.labels.ravel()[order]
    rows, columns = np.divmod(order, nuclei.labels.shape[1])
    starts = np.searchsorted(names, np.arange(1, len(nuclei) + 2))
    points = []
    for name in range(1, len(nuclei) + 1):
        own = slice(int(starts[name - 1]), int(starts[name]))
        y, x = rows[own], columns[own]
        best = int(np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2))
        points.append((slide_id, int(x[best]), int(y[best]), int(nuclei.class_of[name]), name))
    return points


def write_cohort(folder: Path, *, seed: int = 0, n_slides: int = 8, size_px: int = 960) -> Path:
    """Make a cohort and write it as real slides with their sheet and tables.

    Parameters
    ----------
    folder : Path
        Where it goes; files of the same names are replaced.
    seed : int
        Equal seeds give equal bytes.
    n_slides : int
        How many slides.
    size_px : int
        Side of every slide, pixels of 0.5 µm.

    Returns
    -------
    Path
        ``folder/slides.tsv``, written last. Beside it: ``markers.tsv``, ``classes.tsv``, ``he/*.svs``,
        ``sp/*.ome.tif``, ``instances/*.tif``, ``classes/*.tif`` (class label images of every other slide) and
        ``classes/nuclei.csv`` (a row a nucleus, of the remaining slides).

    Raises
    ------
    SlideloomError
        A number is out of range.
    """
    plans = plan_cohort(seed, n_slides, size_px)
    rows: list[tuple[str, ...]] = []
    points: list[tuple[str, int, int, int, int]] = []
    for number, plan in enumerate(plans):
        slide = make_slide(plan)
        name = plan.slide_id
        write_he(folder / "he" / f"{name}.svs", slide.he)
        write_sp(folder / "sp" / f"{name}.ome.tif", slide.sp)
        write_labels(folder / "instances" / f"{name}.tif", slide.nuclei.labels)
        if number % 2 == 0:
            classes = f"classes/{name}.tif"
            write_labels(folder / classes, slide.nuclei.classes)
        else:
            classes = f"classes/nuclei.csv::{name}"
            points += _points(name, slide.nuclei)
        images = (f"he/{name}.svs", f"sp/{name}.ome.tif", f"instances/{name}.tif")
        rows.append((name, plan.patient_id, plan.platform, *images, classes, plan.split))
        _LOG.info("%s: %d nuclei", name, len(slide.nuclei))
    if points:
        write_class_table(folder / "classes" / "nuclei.csv", points)
    write_markers_and_classes(folder)
    sheet = folder / "slides.tsv"
    write_table(sheet, ("slide_id", "patient_id", "platform", "he", "sp", "instances", "classes", "split"), rows)
    return sheet

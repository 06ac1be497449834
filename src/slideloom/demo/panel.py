"""What the synthetic cohort is made of: its markers, its classes, how often each occurs and how each looks.

Class names and their pixel frequencies are those of Table 1 of the SP/H&E report that Slideloom reproduces; the
marker list is its panel. Sizes are in pixels of 0.5 µm. Expression levels are in units of a bright cell of that marker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BACKGROUND_FREQUENCY",
    "CLASSES",
    "MARKERS",
    "MPP_UM",
    "CellClass",
    "Expression",
    "Locus",
    "Marker",
    "class_id",
    "marker_index",
]

MPP_UM = 0.5
"""Pixel size of every image of the cohort, µm."""

Locus = Literal["membrane", "cytoplasm", "nucleus"]


@dataclass(frozen=True)
class Marker:
    """One channel of the panel.

    Attributes
    ----------
    name : str
        Channel name in the files, and marker name.
    uniprot : str
        UniProt accession of the protein.
    locus : {"membrane", "cytoplasm", "nucleus"}
        Where in the cell the antibody binds.
    peak : float
        Counts of a bright cell, before the slide's own gain.
    haze : float
        Counts of tissue without the marker (autofluorescence and unspecific binding).
    nuclear_haze : float
        Haze over a nucleus as a multiple of the haze beside it: below 1 where nuclei show as dips.
    """

    name: str
    uniprot: str
    locus: Locus
    peak: float
    haze: float
    nuclear_haze: float


MARKERS: tuple[Marker, ...] = (
    Marker("CD31", "P16284", "membrane", 1500, 90, 0.55),
    Marker("CD45", "P08575", "membrane", 1800, 70, 0.60),
    Marker("CD68", "P34810", "cytoplasm", 1400, 110, 0.50),
    Marker("CD4", "P01730", "membrane", 1100, 100, 0.60),
    Marker("FOXP3", "Q9BZS1", "nucleus", 1200, 80, 1.75),
    Marker("CD8a", "P01732", "membrane", 1600, 70, 0.60),
    Marker("CD45RO", "P08575-4", "membrane", 1300, 80, 0.60),
    Marker("CD20", "P11836", "membrane", 1900, 60, 0.65),
    Marker("PD-L1", "Q9NZQ7", "membrane", 700, 120, 0.60),
    Marker("CD3e", "P07766", "membrane", 1500, 80, 0.60),
    Marker("CD163", "Q86VB7", "cytoplasm", 1200, 90, 0.55),
    Marker("E-cadherin", "P12830", "membrane", 1600, 110, 0.45),
    Marker("PD-1", "Q15116", "membrane", 650, 110, 0.65),
    Marker("Ki67", "P46013", "nucleus", 2000, 70, 2.10),
    Marker("Pan-CK", "P05787", "cytoplasm", 2600, 100, 0.40),
    Marker("SMA", "P62736", "cytoplasm", 2200, 120, 0.45),
)


@dataclass(frozen=True)
class Expression:
    """How much of a marker the cells of a class carry.

    Attributes
    ----------
    level : float
        Mean of a positive cell, 1 being a bright one.
    share : float
        Share of the class's cells that are positive.
    """

    level: float
    share: float = 1.0


@dataclass(frozen=True)
class CellClass:
    """One nucleus class.

    Attributes
    ----------
    name : str
        As the report writes it.
    colour : str
        ``#rrggbb`` for pictures.
    frequency : float
        Share of all pixels of the cohort (not of the nuclei).
    major_px, minor_px : float
        Mean semi-axes of the nucleus.
    size_spread : float
        Relative standard deviation of the semi-axes.
    taper : float
        How far the outline falls short of an ellipse between its axes: above 0 a spindle, below 0 a brick.
    waviness : float
        Size of the outline's Fourier terms relative to the radius.
    bend : float
        Largest sideways bow of the long axis, as a share of the long semi-axis.
    cytoplasm_px : float
        How far the cell reaches beyond its nucleus where no neighbour stops it.
    chromatin : float
        Optical density of the nucleus in haematoxylin.
    clumping : float
        Strength of the chromatin's texture.
    rim : float
        Extra density along the nuclear membrane (vesicular nuclei have much).
    body : tuple of float
        Haematoxylin and eosin that the cytoplasm adds.
    expression : dict of str to Expression
        Markers the class carries; the others are negative.
    """

    name: str
    colour: str
    frequency: float
    major_px: float
    minor_px: float
    size_spread: float
    taper: float
    waviness: float
    bend: float
    cytoplasm_px: float
    chromatin: float
    clumping: float
    rim: float
    body: tuple[float, float]
    expression: dict[str, Expression]

    @property
    def area_px(self) -> float:
        """Rough mean area of a nucleus, px²."""
        return math.pi * (1 - self.taper) * self.major_px * self.minor_px


_T_CELL = {"CD45": Expression(0.9), "CD3e": Expression(0.9)}

CLASSES: tuple[CellClass, ...] = (
    CellClass(
        "Stroma",
        "#e8a33d",
        0.084,
        11.8,
        3.5,
        0.20,
        0.06,
        0.05,
        0.18,
        3.5,
        0.78,
        0.16,
        0.08,
        (0.0, 0.05),
        {
            "SMA": Expression(0.55, 0.4),
            "CD31": Expression(0.05),
            "PD-L1": Expression(0.25, 0.08),
            "Ki67": Expression(0.7, 0.02),
        },
    ),
    CellClass(
        "Tumor",
        "#c63d3d",
        0.103,
        11.2,
        9.2,
        0.11,
        -0.02,
        0.045,
        0.0,
        15.0,
        0.50,
        0.20,
        0.36,
        (0.12, 0.29),
        {
            "Pan-CK": Expression(0.85),
            "E-cadherin": Expression(0.85),
            "Ki67": Expression(0.8, 0.3),
            "PD-L1": Expression(0.7, 0.2),
        },
    ),
    CellClass(
        "Macrophage",
        "#3f8f5b",
        0.019,
        9.2,
        6.8,
        0.12,
        -0.02,
        0.09,
        0.22,
        8.0,
        0.55,
        0.22,
        0.24,
        (0.05, 0.22),
        {
            "CD68": Expression(0.9),
            "CD163": Expression(0.8, 0.6),
            "CD45": Expression(0.4),
            "CD4": Expression(0.22),
            "PD-L1": Expression(0.8, 0.4),
            "CD45RO": Expression(0.3, 0.3),
        },
    ),
    CellClass(
        "Helper T cell",
        "#3d6fd1",
        0.011,
        7.1,
        6.5,
        0.07,
        -0.03,
        0.03,
        0.0,
        2.5,
        1.0,
        0.22,
        0.10,
        (0.04, 0.06),
        {**_T_CELL, "CD4": Expression(0.9), "CD45RO": Expression(0.8, 0.75), "PD-1": Expression(0.8, 0.35)},
    ),
    CellClass(
        "Cytotoxic T cell",
        "#7a4fc9",
        0.004,
        7.0,
        6.4,
        0.07,
        -0.03,
        0.03,
        0.0,
        2.5,
        1.0,
        0.22,
        0.10,
        (0.04, 0.06),
        {
            **_T_CELL,
            "CD8a": Expression(0.95),
            "CD45RO": Expression(0.75, 0.5),
            "PD-1": Expression(0.85, 0.45),
            "Ki67": Expression(0.6, 0.06),
        },
    ),
    CellClass(
        "Endothelia",
        "#20a6b8",
        0.006,
        9.6,
        3.0,
        0.12,
        0.02,
        0.03,
        0.2,
        2.5,
        0.85,
        0.14,
        0.08,
        (0.02, 0.12),
        {"CD31": Expression(0.95), "PD-L1": Expression(0.2, 0.2)},
    ),
    CellClass(
        "Other",
        "#8a8a8a",
        0.005,
        7.0,
        5.2,
        0.11,
        0.0,
        0.13,
        0.1,
        5.0,
        0.9,
        0.30,
        0.10,
        (0.12, 0.34),
        {"CD45": Expression(0.45)},
    ),
    CellClass(
        "Treg",
        "#d14fa0",
        0.001,
        7.1,
        6.5,
        0.07,
        -0.03,
        0.03,
        0.0,
        2.5,
        1.0,
        0.22,
        0.10,
        (0.04, 0.06),
        {
            **_T_CELL,
            "CD4": Expression(0.85),
            "FOXP3": Expression(0.95),
            "CD45RO": Expression(0.9, 0.9),
            "PD-1": Expression(0.8, 0.55),
        },
    ),
    CellClass(
        "B cells",
        "#b8c41f",
        0.00007,
        7.5,
        7.0,
        0.07,
        -0.03,
        0.03,
        0.0,
        2.5,
        0.95,
        0.22,
        0.12,
        (0.05, 0.06),
        {"CD45": Expression(0.9), "CD20": Expression(0.95)},
    ),
)

BACKGROUND_FREQUENCY = 1.0 - sum(kind.frequency for kind in CLASSES)
"""Share of all pixels that lie in no nucleus (0.767 in the report)."""


def class_id(name: str) -> int:
    """Label value of a class: its place in ``CLASSES``, counted from 1 (0 is background)."""
    return 1 + next(place for place, kind in enumerate(CLASSES) if kind.name == name)


def marker_index(name: str) -> int:
    """Channel of a marker, counted from 0."""
    return next(place for place, marker in enumerate(MARKERS) if marker.name == name)

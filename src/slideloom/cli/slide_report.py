"""What the doctor says of a slide and of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Fault", "ImageReport", "SlideReport"]


@dataclass(frozen=True)
class Fault:
    """Why a slide will fail: the reason code of ``reports/failures.parquet``, a message and a hint."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class ImageReport:
    """What could be told of one image; None where it could not.

    Attributes
    ----------
    image : {"he", "sp"}
        Which image of the slide.
    source : str
        As the sheet names it.
    """

    image: str
    source: str
    reader: str | None = None
    height_px: int | None = None
    width_px: int | None = None
    n_channels: int | None = None
    dtype: str | None = None
    mpp_um: float | None = None
    mpp_source: str | None = None
    channels: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlideReport:
    """What the doctor says of one slide.

    Attributes
    ----------
    annotation : tuple of int or None
        Height and width of the annotated instances, px.
    n_annotated : int or None
        Annotated nuclei; counted only when all pixels are read.
    faults : tuple of Fault
        Empty when the slide can run.
    warnings : tuple of str
        What is worth knowing.
    tiles : mapping of str to int
        Tiles that a run will cut, by grid; empty where the slide was not looked at.
    annotated : bool
        Whether the sheet names its nuclei.
    """

    slide_id: str
    patient_id: str
    platform: str
    images: tuple[ImageReport, ...] = ()
    annotation: tuple[int, int] | None = None
    n_annotated: int | None = None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    tiles: Mapping[str, int] = field(default_factory=dict)
    annotated: bool = False

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

"""Published figures of the public literature, read from two files of this package: protocols, and figures under them.

``pannuke``: CellViT's results on PanNuke by split, class and tissue, its ablations, and the figures of other networks
as they are commonly quoted. ``cpdmi``: InstanSeg with and without ChannelNet. ``stain_agnostic``: all tables of that
report, but for the times of Table 1, which are of other machines. Figures are as printed, or as the authors' files
have them to six decimals.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["DATA", "MEAN_OF_SPLITS", "Protocol", "ReferenceFigure", "read_references"]

#: Folder of ``reference_protocols.csv`` and ``reference_figures.csv``.
DATA = Path(__file__).with_name("data")
#: What ``split`` says of a figure that is the mean over several splits.
MEAN_OF_SPLITS = "mean_of_splits"


@dataclass(frozen=True)
class Protocol:
    """How a group of figures was measured.

    Attributes
    ----------
    name : str
        Its name in the file.
    reference : str
        The literature, as ``StudyConfig.references`` names it.
    source, place : str
        Who published it, and where in it.
    dataset, split, role : str
        Data, part of the data, and what that part was: ``test`` or ``val``.
    image : str
        ``he`` or ``sp``.
    convention : str or None
        As ``evaluation.convention``; ``None`` where nothing is matched by IoU, or the source does not say.
    iou_threshold, detection_radius_um : float or None
        Of the matching; ``None`` where it does not apply.
    tile_px, mpp_um : number or None
        Side and resolution of the predicted images; ``None`` where not told.
    own_resolution : bool
        The resolution is that of the images themselves.
    n_images, n_tissues : int or None
        Images and tissues of the part; ``None`` where not told, or where tissues play no part.
    known : bool
        Everything that the figures depend on is known.
    obstacle : str
        Respects in which no experiment can be like it, parted by ``"; "``; empty for none.
    caveat : str
        What must be known to read its figures.
    """

    name: str
    reference: str
    source: str
    place: str
    dataset: str
    split: str
    role: str
    image: str
    convention: str | None
    iou_threshold: float | None
    detection_radius_um: float | None
    tile_px: int | None
    mpp_um: float | None
    own_resolution: bool
    n_images: int | None
    n_tissues: int | None
    known: bool
    obstacle: str
    caveat: str


@dataclass(frozen=True)
class ReferenceFigure:
    """One published figure.

    Attributes
    ----------
    protocol : Protocol
        How it was measured.
    model : str
        What made the predictions.
    metric, averaging : str
        The column of our tables that means the same, and how it is averaged; ``unknown`` where the source does not say.
    class_name, tissue : str or None
        What it is about; ``None`` for all.
    value : float
        As published.
    std : float or None
        Standard deviation over splits (n - 1).
    n : int
        Splits that it is the mean of.
    obstacle, caveat : str
        As the protocol's, of this figure alone.
    """

    protocol: Protocol
    model: str
    metric: str
    averaging: str
    class_name: str | None
    tissue: str | None
    value: float
    std: float | None
    n: int
    obstacle: str
    caveat: str

    @property
    def name(self) -> str:
        """Its name: protocol, model, metric, averaging, and what it is about."""
        about = self.class_name or self.tissue or ""
        return "/".join(part for part in (self.protocol.name, self.model, self.metric, self.averaging, about) if part)


@cache
def read_references() -> tuple[ReferenceFigure, ...]:
    """All published figures, in the order of the file."""
    protocols = {line["protocol"]: _protocol(line) for line in _lines("reference_protocols.csv")}
    return tuple(_figure(line, protocols[line["protocol"]]) for line in _lines("reference_figures.csv"))


def _lines(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _count(text: str) -> int | None:
    return int(text) if text else None


def _protocol(line: Mapping[str, str]) -> Protocol:
    return Protocol(
        name=line["protocol"],
        reference=line["reference"],
        source=line["source"],
        place=line["place"],
        dataset=line["dataset"],
        split=line["split"],
        role=line["role"],
        image=line["image"],
        convention=line["convention"] or None,
        iou_threshold=_number(line["iou_threshold"]),
        detection_radius_um=_number(line["detection_radius_um"]),
        tile_px=_count(line["tile_px"]),
        mpp_um=_number(line["mpp_um"]),
        own_resolution=line["own_resolution"] == "yes",
        n_images=_count(line["n_images"]),
        n_tissues=_count(line["n_tissues"]),
        known=line["protocol_known"] == "yes",
        obstacle=line["obstacle"],
        caveat=line["caveat"],
    )


def _figure(line: Mapping[str, str], protocol: Protocol) -> ReferenceFigure:
    return ReferenceFigure(
        protocol=protocol,
        model=line["model"],
        metric=line["metric"],
        averaging=line["averaging"],
        class_name=line["class_name"] or None,
        tissue=line["tissue"] or None,
        value=float(line["value"]),
        std=_number(line["std"]),
        n=int(line["n"]),
        obstacle=line["obstacle"],
        caveat=line["caveat"],
    )

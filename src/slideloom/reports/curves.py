"""Precision-recall and calibration curves of an experiment, all slides of a role together.

Pixels are counted by stored probability, so every point is exact for the stored maps, and the averages of many slides
are those of one large one. Figures of the nucleus map have intervals over patients, as other pooled figures do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slideloom.metrics.panoptic import mean_defined
from slideloom.metrics.probability import CALIBRATION_BINS, EXACT_FROM, calibration, precision_recall
from slideloom.metrics.semantic import ScoreHistogram
from slideloom.reports.aggregate import pooled_line
from slideloom.reports.averages import divide
from slideloom.reports.summary_schemas import CURVES

__all__ = ["PooledScores"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_LEVELS = 256
#: Stands for the missing class of the nucleus map's rows.
_OF_NUCLEUS = -1
_CODES = np.arange(_LEVELS, dtype=np.float64)
#: First score of each bin of the calibration.
_BINS = np.searchsorted(np.arange(_LEVELS) * CALIBRATION_BINS // (_LEVELS - 1), np.arange(CALIBRATION_BINS))


class PooledScores:
    """Pixels by stored probability, of one experiment and role."""

    def __init__(self) -> None:
        #: Of the nucleus map and of the predicted class, by patient: (256, 2), others first, true ones second.
        self._by_patient: dict[str, dict[str, Counts]] = {"nucleus": {}, "class": {}}
        self._slides: dict[str, set[str]] = {"nucleus": set(), "class": set()}
        self._won: dict[int, Counts] = {}
        self._true: dict[int, int] = {}
        self._slides_of: dict[int, set[str]] = {}
        self._names: dict[int, str] = {}

    def add(self, scores: pa.Table, slide: str, patient: str) -> None:
        """Take in a slide.

        Parameters
        ----------
        scores : pyarrow.Table
            Its ``scores.parquet``.
        slide, patient : str
            Whose it is.
        """
        if not scores.num_rows:
            return
        score = scores["score"].to_numpy()
        counts = np.stack([scores["negative"].to_numpy(), scores["positive"].to_numpy()], axis=1)
        class_id = pc.fill_null(scores["class_id"].cast(pa.int64()), _OF_NUCLEUS).to_numpy()
        for one, first in zip(*(part.tolist() for part in np.unique(class_id, return_index=True)), strict=True):
            rows = class_id == one
            of = "nucleus" if one == _OF_NUCLEUS else "class"
            # No score stands twice in a class, so that plain indices add every row.
            self._by_patient[of].setdefault(patient, _empty())[score[rows]] += counts[rows]
            self._slides[of].add(slide)
            if of == "class":
                self._won.setdefault(one, _empty())[score[rows]] += counts[rows]
                self._true[one] = self._true.get(one, 0) + int(scores["n_true"][first].as_py())
                self._names[one] = str(scores["class_name"][first].as_py())
                self._slides_of.setdefault(one, set()).add(slide)

    def curves(self) -> pa.Table:
        """Rows of ``curves.parquet``, without study, experiment, role and random_weights: the nucleus map first."""
        parts = [_curve(_histogram(self._by_patient["nucleus"].values()), None, "", None, len(self._slides["nucleus"]))]
        for class_id in sorted(self._won):
            whose = class_id, self._names[class_id], self._true[class_id], len(self._slides_of[class_id])
            parts.append(_curve(_histogram([self._won[class_id]]), *whose))
        return pa.concat_tables([part for part in parts if part is not None] or [_no_curve()])

    def calibration(self) -> list[dict[str, Any]]:
        """Rows of ``calibration.parquet``, without study, experiment, role and random_weights."""
        return [
            {"of": of, **row}
            for of, found in self._by_patient.items()
            if found
            for row in calibration(_histogram(found.values())).rows()
        ]

    def figures(self) -> dict[str, dict[str, Any]]:
        """Pooled figures by column of ``slides.parquet``, as :func:`summarise_experiments` takes them."""
        found: dict[str, dict[str, Any]] = {}
        for of, names in (("nucleus", ("map", "brier", "ece", "mce")), ("class", ("ece_class",))):
            by_patient = self._by_patient[of]
            counts = np.array(list(by_patient.values()), np.float64).reshape(-1, _LEVELS, 2)
            wanted = _of_nucleus if of == "nucleus" else _of_classes
            lines = pooled_line(counts, list(by_patient), len(self._slides[of]), wanted)
            found |= dict(zip(names, lines, strict=True))
        won = [line["mean"] for class_id, line in self._average_precisions().items() if class_id]
        n = len(self._slides["class"])
        about = {"n": n, "n_slides": n, "n_patients": len(self._by_patient["class"])}
        found["map_won"] = {**about, "mean": mean_defined(won), "std": None, "ci_low": None, "ci_high": None}
        return found

    def class_figures(self) -> dict[tuple[int, str], dict[str, Any]]:
        """Pooled figures by class and column of ``classes.parquet``."""
        return {(class_id, "ap_won"): line for class_id, line in self._average_precisions().items()}

    def _average_precisions(self) -> dict[int, dict[str, Any]]:
        found = {}
        for class_id, counts in sorted(self._won.items()):
            histogram, total = _histogram([counts]), self._true[class_id]
            # The histogram knows only the true pixels that were won; the steps of recall shrink by their share.
            won = (histogram.average_precision or 0.0) * int(histogram.positive.sum())
            n = len(self._slides_of[class_id])
            found[class_id] = {
                "n": n, "n_slides": n, "n_patients": len(self._by_patient["class"]), "std": None,
                "mean": won / total if total else None, "ci_low": None, "ci_high": None,
            }  # fmt: skip
        return found


def _empty() -> Counts:
    return np.zeros((_LEVELS, 2), np.int64)


def _histogram(parts: Iterable[Counts]) -> ScoreHistogram:
    found = ScoreHistogram()
    for part in parts:
        found.counts += part
    return found


def _no_curve() -> pa.Table:
    return pa.table({c.name: pa.array([], c.type) for c in CURVES.columns if c.name in _CURVE})


_CURVE = ("of", "class_id", "class_name", "threshold", "precision", "recall", "tp", "fp", "n_true", "exact", "n_slides")


def _curve(
    histogram: ScoreHistogram, class_id: int | None, class_name: str, n_true: int | None, n_slides: int
) -> pa.Table | None:
    """Points of a curve; ``None`` where no pixel is true, or none has a score."""
    of_class = class_id is not None
    points = precision_recall(histogram, n_true, exact_from=EXACT_FROM if of_class else 0)
    if points is None or not points.threshold.size:
        return None
    n = points.threshold.size
    total = int(histogram.positive.sum()) if n_true is None else n_true
    return pa.table(
        {
            "of": pa.repeat("class" if of_class else "nucleus", n),
            "class_id": pa.array([class_id] * n, pa.uint8()),
            "class_name": pa.array([class_name if of_class else None] * n, pa.string()),
            **{name: pa.array(getattr(points, name)) for name in ("threshold", "precision", "recall", "tp", "fp")},
            "n_true": pa.repeat(pa.scalar(total, pa.int64()), n),
            "exact": pa.array(points.exact),
            "n_slides": pa.repeat(pa.scalar(n_slides, pa.int64()), n),
        }
    )


def _of_nucleus(counts: Floats) -> Floats:
    """Average precision, Brier score, expected and greatest calibration error of sets of counts, (sets, 256, 2)."""
    others, true = counts[..., 0], counts[..., 1]
    tp, fp = np.cumsum(true[:, ::-1], axis=1), np.cumsum(others[:, ::-1], axis=1)
    steps = np.where(tp + fp > 0, true[:, ::-1] * divide(tp, tp + fp), 0.0)
    squares = others @ _CODES**2 + true @ (_CODES[::-1]) ** 2
    brier = divide(squares, (_LEVELS - 1) ** 2 * (others + true).sum(axis=1))
    ece, mce = _calibration(counts)
    return np.stack([divide(steps.sum(axis=1), true.sum(axis=1)), brier, ece, mce], axis=1)


def _of_classes(counts: Floats) -> Floats:
    return _calibration(counts)[0][:, None]


def _calibration(counts: Floats) -> tuple[Floats, Floats]:
    """Expected and greatest gap between the mean probability and the true share of a bin."""
    total = counts.sum(axis=2)
    pixels, true, codes = (np.add.reduceat(x, _BINS, axis=1) for x in (total, counts[..., 1], total * _CODES))
    gaps = np.abs((_LEVELS - 1) * true - codes)
    greatest = divide(gaps, (_LEVELS - 1) * pixels)
    ece = divide(gaps.sum(axis=1), (_LEVELS - 1) * pixels.sum(axis=1))
    return ece, np.where(np.isfinite(ece), np.nanmax(np.nan_to_num(greatest), axis=1), np.nan)

"""What an evaluated slide leaves beside its figures: confusion matrix, pixels by score, squares of the slide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from slideloom.metrics.class_figures import NucleusClasses
from slideloom.metrics.contingency import Contingency
from slideloom.metrics.panoptic import mostly_on_unknown
from slideloom.metrics.scan import Tally
from slideloom.metrics.semantic import UNKNOWN, ScoreHistogram
from slideloom.slides.tables import ClassTable

__all__ = ["SQUARE_PX", "Matches", "confusion_rows", "score_rows", "tile_table"]

#: Side of the squares of a slide without tiles, pixels.
SQUARE_PX = 256
_TOP_SCORE = 255


@dataclass(frozen=True)
class Matches:
    """A contingency table and its matched pairs.

    Attributes
    ----------
    table : Contingency
        Of true and predicted nuclei, with centroids.
    at : (n_pairs,) int64 array
        Positions of the matched pairs in the table, of :func:`~slideloom.metrics.panoptic.matched_pairs`.
    """

    table: Contingency
    at: NDArray[np.int64]

    @property
    def gt(self) -> NDArray[np.int64]:
        """True nucleus of each pair, as position in ``gt_ids``."""
        return self.table.gt_index[self.at]

    @property
    def pred(self) -> NDArray[np.int64]:
        """Predicted nucleus of each pair, as position in ``pred_ids``."""
        return self.table.pred_index[self.at]

    @property
    def gt_alone(self) -> NDArray[np.bool_]:
        """(n_gt,) true nuclei without a match."""
        alone = np.ones(self.table.gt_ids.size, np.bool_)
        alone[self.gt] = False
        return alone

    @property
    def pred_alone(self) -> NDArray[np.bool_]:
        """(n_pred,) predicted nuclei without a match."""
        alone = np.ones(self.table.pred_ids.size, np.bool_)
        alone[self.pred] = False
        return alone


def confusion_rows(tally: Tally, matches: Matches, of: NucleusClasses, classes: ClassTable) -> list[dict[str, Any]]:
    """Rows of ``confusion.parquet`` without the slide.

    Parameters
    ----------
    tally : Tally
        Pixels.
    matches : Matches
        Nuclei.
    of : NucleusClasses
        Their classes.
    classes : ClassTable
        Nuclear classes.

    Returns
    -------
    list of dict
        Every pair of the background and the classes; none when classes are unknown or were not predicted.
    """
    if not of.known or of.pred is None or tally.confusion is None:
        return []
    nuclei = np.zeros((256, 256), np.int64)
    known = of.gt[matches.gt] != UNKNOWN
    np.add.at(nuclei, (of.gt[matches.gt][known], of.pred[matches.pred][known]), 1)
    missed = matches.gt_alone & (of.gt != UNKNOWN)
    nuclei[:, 0] += np.bincount(of.gt[missed], minlength=256)
    invented = matches.pred_alone & ~mostly_on_unknown(matches.table, of.gt, unknown=UNKNOWN)
    nuclei[0] += np.bincount(of.pred[invented], minlength=256)
    named = [(0, "background"), *zip(classes.ids, classes.names, strict=True)]
    pixels = tally.confusion.known
    return [
        {
            "true_class_id": true,
            "true_class_name": true_name,
            "pred_class_id": pred,
            "pred_class_name": pred_name,
            "pixels": int(pixels[true, pred]),
            "nuclei": int(nuclei[true, pred]) if true or pred else None,
        }
        for true, true_name in named
        for pred, pred_name in named
    ]


def score_rows(tally: Tally, of: NucleusClasses, classes: ClassTable) -> list[dict[str, Any]]:
    """Rows of ``scores.parquet`` without the slide.

    Parameters
    ----------
    tally : Tally
        Pixels by score.
    of : NucleusClasses
        Tells whether any true class is known.
    classes : ClassTable
        Nuclear classes.

    Returns
    -------
    list of dict
        By falling score; the nucleus map first, then the classes, the background the first of them.
    """
    rows: list[dict[str, Any]] = []
    if tally.scores is not None:
        about = {"of": "nucleus", "class_id": None, "class_name": None, "n_true": int(tally.scores.positive.sum())}
        rows += [about | line for line in _met(tally.scores)]
    if tally.class_scores is not None and of.known:
        for class_id, name in [(0, "background"), *zip(classes.ids, classes.names, strict=True)]:
            n_true = int(tally.class_scores.true_pixels[class_id])
            about = {"of": "class", "class_id": class_id, "class_name": name, "n_true": n_true}
            rows += [about | line for line in _met(tally.class_scores.won(class_id))]
    return rows


def _met(histogram: ScoreHistogram) -> Iterator[dict[str, int]]:
    met = np.flatnonzero(histogram.counts.sum(axis=1))
    # The highest has a row even where nothing was won, so that n_true is told.
    for score in np.union1d(met, [_TOP_SCORE])[::-1].tolist():
        yield {
            "score": score,
            "positive": int(histogram.positive[score]),
            "negative": int(histogram.negative[score]),
        }


def tile_table(
    about: dict[str, str], tally: Tally, matches: Matches, of: NucleusClasses, shape: tuple[int, int], square_px: int
) -> pa.Table:
    """``tiles.parquet``: the slide in squares.

    Parameters
    ----------
    about : dict of str to str
        ``slide_id`` and ``image``.
    tally : Tally
        Tells which squares were looked at.
    matches : Matches
        Nuclei, with centroids.
    of : NucleusClasses
        Their classes.
    shape : (int, int)
        Height and width of the slide, grid pixels.
    square_px : int
        Side of the squares; those at the right and lower border are smaller.

    Returns
    -------
    pyarrow.Table
        By ascending number of the square.

    Raises
    ------
    ValueError
        The table has no centroids.
    """
    table = matches.table
    if table.gt_centroid is None or table.pred_centroid is None:
        raise ValueError("squares need centroids: count the blocks with their origin")
    rows, cols = tally.looked.shape
    gt_at, pred_at = (_square_of(one, cols, square_px) for one in (table.gt_centroid, table.pred_centroid))
    # A matched prediction counts where its nucleus does. Backwards: of several pairs the first decides.
    pred_at[matches.pred[::-1]] = gt_at[matches.gt[::-1]]

    def count(squares: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(squares, minlength=rows * cols).astype(np.int64)

    pair_at = gt_at[matches.gt]
    found = {
        "n_gt": count(gt_at),
        "n_pred": count(pred_at),
        "tp": count(pair_at),
        "fp": count(pred_at[matches.pred_alone]),
        "fn": count(gt_at[matches.gt_alone]),
    }
    if of.known and of.pred is not None:
        true, predicted = of.gt[matches.gt], of.pred[matches.pred]
        found["wrong_class"] = count(pair_at[(true != UNKNOWN) & (true != predicted)])
    iou_sum = _sums(pair_at, table.iou[matches.at], rows * cols)
    nuclei = 2 * found["tp"] + found["fp"] + found["fn"]
    pq = np.divide(2 * iou_sum, nuclei, out=np.full(nuclei.size, np.nan), where=nuclei > 0)
    keep = np.flatnonzero(tally.looked.ravel() | (nuclei > 0))
    y, x = (keep // cols) * square_px, (keep % cols) * square_px
    columns: dict[str, Any] = {name: pa.array([text] * keep.size, pa.string()) for name, text in about.items()}
    columns |= {"tile": keep, "y_px": y, "x_px": x}
    columns |= {"height_px": np.minimum(square_px, shape[0] - y), "width_px": np.minimum(square_px, shape[1] - x)}
    columns |= {name: values[keep] for name, values in found.items()}
    return pa.table(columns | {"iou_sum": iou_sum[keep], "pq": pq[keep]})


def _square_of(centroid: NDArray[np.float64], cols: int, square_px: int) -> NDArray[np.int64]:
    """Number of the square that each centroid, (n, 2), lies in; pixel centres have whole coordinates."""
    at = np.floor((centroid + 0.5) / square_px).astype(np.int64)
    return at[:, 0] * cols + at[:, 1]


def _sums(squares: NDArray[np.int64], values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Sum by square, each rounded once, so that the order of the nuclei plays no part."""
    total = np.zeros(n)
    order = np.argsort(squares, kind="stable")
    squares, values = squares[order], values[order]
    starts = np.flatnonzero(np.diff(squares, prepend=-1))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), squares.size], strict=False):
        total[squares[start]] = math.fsum(values[start:stop])
    return total

"""Classes of an experiment, counts of all slides pooled, with intervals over patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from slideloom.metrics.conventions import DEFAULT, convention_named
from slideloom.reports.averages import columns_of, divide, pooled_figures

__all__ = ["CLASS_METRICS_OF_COUNTS", "MACRO_METRICS_OF_COUNTS", "PooledClasses"]

Floats = NDArray[np.float64]

_PIXELS = ("gt_pixels", "pred_pixels", "tp_pixels")
_NUCLEI = ("tp", "fp", "fn", "iou_sum")
_PAIRED = ("tp_d", "fp_paired_d", "fn_paired_d", "fp_alone_d", "fn_alone_d")


def _share(counts: Floats) -> Floats:
    return divide(counts[..., 0], counts[..., 0].sum(axis=1, keepdims=True))


def _pq(counts: Floats) -> Floats:
    tp, fp, fn, iou_sum = np.moveaxis(counts, -1, 0)
    return divide(2 * iou_sum, 2 * tp + fp + fn)


#: Counts that a class's figure follows from, and how: (sets, classes, counts) to (sets, classes).
_OF_CLASS: dict[str, tuple[tuple[str, ...], Callable[[Floats], Floats]]] = {
    "dice": (_PIXELS, lambda c: divide(2 * c[..., 2], c[..., 0] + c[..., 1])),
    "iou": (_PIXELS, lambda c: divide(c[..., 2], c[..., 0] + c[..., 1] - c[..., 2])),
    "precision": (_PIXELS, lambda c: divide(c[..., 2], c[..., 1])),
    "recall": (_PIXELS, lambda c: divide(c[..., 2], c[..., 0])),
    "gt_fraction": (("gt_pixels",), _share),
    "pred_fraction": (("pred_pixels",), _share),
    "gt_percent": (("gt_pixels",), lambda c: 100 * _share(c)),
    "pred_percent": (("pred_pixels",), lambda c: 100 * _share(c)),
    "pq": (_NUCLEI, _pq),
    "dq": (_NUCLEI, lambda c: divide(2 * c[..., 0], 2 * c[..., 0] + c[..., 1] + c[..., 2])),
    "sq": (_NUCLEI, lambda c: divide(c[..., 3], c[..., 0])),
    "f1_d": (_PAIRED, lambda c: divide(2 * c[..., 0], c[..., 0] + c.sum(axis=-1))),
    "precision_d": (_PAIRED, lambda c: divide(c[..., 0], c[..., 0] + c[..., 1] + c[..., 3])),
    "recall_d": (_PAIRED, lambda c: divide(c[..., 0], c[..., 0] + c[..., 2] + c[..., 4])),
    "f1_d_hovernet": (
        _PAIRED,
        lambda c: divide(2 * c[..., 0], c[..., 0] + c.sum(axis=-1) + c[..., 1] + c[..., 2]),
    ),
}
#: Means over classes of a pooled figure: of which one, and whether the background is one more class.
_OVER_CLASSES: dict[str, tuple[str, bool]] = {
    "class_dice_mean": ("dice", False),
    "class_dice_mean_with_background": ("dice", True),
    **{f"{figure}_macro": (figure, False) for figure in ("dice", "iou", "precision", "recall")},
    **{f"{figure}_macro_with_background": (figure, True) for figure in ("dice", "iou", "precision", "recall")},
    "mpq": ("pq", False),
}
#: Columns of classes.parquet that have a pooled form.
CLASS_METRICS_OF_COUNTS = tuple(name for name in _OF_CLASS if not name.endswith("_percent"))
#: Columns of slides.parquet that are means over classes and have a pooled form.
MACRO_METRICS_OF_COUNTS = tuple(name for name in _OVER_CLASSES if not name.startswith("class_"))


class PooledClasses:
    """Counts of one experiment's classes.

    Parameters
    ----------
    rows : sequence of mapping, or pyarrow.Table
        Its rows of ``classes.parquet``, of one role. A row whose counts are null plays no part in figures of them.
    convention : str
        How instances matched (``evaluation.convention``); says whether a class without a true nucleus has a part in
        the mean over classes.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]] | pa.Table, convention: str = DEFAULT.name) -> None:
        self._rows = rows
        self._skip_untrue = convention_named(convention).empty_truth == "undefined"
        self._slides, self._patients, self._folds = (_texts(rows, name) for name in ("slide_id", "patient_id", "fold"))
        ids, self._class_of = np.unique(columns_of(rows, ["class_id"])[:, 0].astype(np.int64), return_inverse=True)
        self.ids: list[int] = ids.tolist()
        self._found: dict[str, tuple[Floats, Floats, Floats]] = {}
        self._known: dict[tuple[str, ...], tuple[Floats, NDArray[np.bool_], dict[str, int]]] = {}

    def figure(self, metric: str, class_id: int | None) -> dict[str, Any]:
        """One figure with its interval.

        Parameters
        ----------
        metric : str
            A name of :data:`CLASS_METRICS_OF_COUNTS`, ``gt_percent`` or ``pred_percent`` of a class; of
            :data:`MACRO_METRICS_OF_COUNTS`, ``class_dice_mean`` or ``class_dice_mean_with_background`` of all.
        class_id : int or None
            The class.

        Returns
        -------
        dict
            ``mean``, ``ci_low``, ``ci_high`` (with 2 patients or more), ``n_slides``, ``n_patients``, ``n_folds``;
            empty where undefined.
        """
        if class_id is not None and class_id not in self.ids:
            return {}
        at = 0 if class_id is None else self.ids.index(class_id)
        needed = _OF_CLASS[metric if class_id is not None else _OVER_CLASSES[metric][0]][0]
        mean, low, high = self._figures(metric, needed)
        if not np.isfinite(mean[at]):
            return {}
        line = {"mean": float(mean[at]), **self._counts(needed)[2]}
        return line | ({"ci_low": float(low[at]), "ci_high": float(high[at])} if np.isfinite(low[at]) else {})

    def _figures(self, metric: str, needed: tuple[str, ...]) -> tuple[Floats, Floats, Floats]:
        if metric not in self._found:
            counts, known, _ = self._counts(needed)
            patients = self._patients[known]
            self._found[metric] = pooled_figures(counts, patients.tolist(), lambda c: self._of(metric, c))
        return self._found[metric]

    def _of(self, metric: str, counts: Floats) -> Floats:
        """The figure of every class, (sets, classes), or of all classes, (sets, 1)."""
        if metric in _OF_CLASS:
            return _OF_CLASS[metric][1](counts)
        name, with_background = _OVER_CLASSES[metric]
        kept = [k for k, one in enumerate(self.ids) if one or with_background]
        values = _OF_CLASS[name][1](counts)[:, kept]
        there = np.isfinite(values)
        if metric == "mpq" and self._skip_untrue:
            there &= (counts[:, kept, 0] + counts[:, kept, 2]) > 0
        return divide(np.where(there, values, 0.0).sum(axis=1, keepdims=True), there.sum(axis=1, keepdims=True))

    def _counts(self, needed: tuple[str, ...]) -> tuple[Floats, NDArray[np.bool_], dict[str, int]]:
        """Counts of the rows that have them, (rows, classes, counts); which rows these are; and what they stand for."""
        if needed not in self._known:
            values = columns_of(self._rows, needed)
            known = np.asarray(np.isfinite(values).all(axis=1), np.bool_)
            counts = np.zeros((int(known.sum()), len(self.ids), len(needed)))
            counts[np.arange(len(counts)), self._class_of[known]] = values[known]
            about = {
                "n_slides": int(np.unique(self._slides[known]).size),
                "n_patients": int(np.unique(self._patients[known]).size),
                "n_folds": int(np.unique(self._folds[known]).size),
            }
            self._known[needed] = counts, known, about
        return self._known[needed]


def _texts(rows: Sequence[Mapping[str, Any]] | pa.Table, name: str) -> NDArray[np.str_]:
    found = rows.column(name).to_pylist() if isinstance(rows, pa.Table) else [row.get(name) for row in rows]
    return np.array([str(value) for value in found], np.str_)

"""Sentences about differences, and what must be known of a published report to read its figures."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from scipy.special import stdtrit

from slideloom.reports.comparisons import LEVEL
from slideloom.reports.published import Figure, PublishedReport
from slideloom.reports.resampling import t_half_width

__all__ = ["finding", "published_notes"]


def finding(row: Mapping[str, Any], sign: int) -> str:
    """What a measured difference says of a stated one.

    Parameters
    ----------
    row : mapping
        A row of ``published.parquet`` with its figures.
    sign : int
        Sign of the difference that is stated.

    Returns
    -------
    str
        "holds", "does not hold" or "cannot be told", and why. A statement holds when the adjusted p value is below
        0.05, the interval leaves out 0, and the sign is the stated one; it does not hold when the sign is the other.
    """
    measured, p = row["difference"], row["p_adjusted"]
    if measured is None:
        return "cannot be told: not measured here"
    if p is None:
        why = "one patient" if row["n_slides"] else "a figure of the training, which no test can judge"
        return f"cannot be told: {measured:+.4f}; {why}"
    low, high = row["difference_low"], row["difference_high"]
    told = f"{measured:+.4f} ({low:+.4f} to {high:+.4f}), p_adj = {p:.2g}"
    if p < LEVEL and (low > 0 or high < 0):
        return f"holds: {told}" if measured * sign > 0 else f"does not hold, the reverse was measured: {told}"
    if row["p_adjusted_smallest"] >= LEVEL:
        told += f"; with {row['n_paired']} patients no p_adj is below {row['p_adjusted_smallest']:.2g}"
    published = row["published_difference"]
    if published is not None and not low <= published <= high:
        told += f"; the published {published:+.4f} lies outside our interval"
    return f"cannot be told: {told}"


def published_notes(report: PublishedReport) -> dict[str, list[str]]:
    """What must be known of a report's figures, by the number of the table; ``""`` for all of them.

    Every number in the sentences is worked out from the printed figures.
    """
    return {"sp_he": _sp_he}[report.name](report)


def _value(report: PublishedReport, table: str, experiment: str, metric: str) -> float:
    figure = _figure(report, table, experiment, metric)
    if figure.value is None:
        raise KeyError(f"table {table} prints no {metric} of {experiment}")
    return figure.value


def _figure(report: PublishedReport, table: str, experiment: str, metric: str = "dice_macro") -> Figure:
    figure = report.table(table).figure(experiment, metric)
    if figure is None:
        raise KeyError(f"table {table} has no {metric} of {experiment}")
    return figure


def _welch(a: Figure, b: Figure) -> tuple[float, float]:
    """Welch's 95 % interval of the difference of two printed means over folds."""
    parts = []
    for one in (a, b):
        n = one.n_folds or 0
        parts.append(((one.std or 0.0) ** 2 / (n - 1), n - 1))  # the squared error of the mean, from the ± over n
    total = sum(variance for variance, _ in parts)
    degrees = total**2 / sum(variance**2 / free for variance, free in parts)
    difference, half = (b.value or 0.0) - (a.value or 0.0), float(stdtrit(degrees, 0.975)) * sqrt(total)
    return difference - half, difference + half


def _paired_of_two(a: Figure, b: Figure) -> list[tuple[float, float]]:
    """Paired 95 % intervals of two printed means of two folds each, for either way in which the folds may pair.

    Two folds whose deviation is s (n in the denominator) lie at the mean ± s exactly.
    """
    difference, intervals = (b.value or 0.0) - (a.value or 0.0), []
    for way in (1, -1):
        spread = abs((b.std or 0.0) - way * (a.std or 0.0))
        half = float(t_half_width(sqrt(2) * spread, 2))
        intervals.append((difference - half, difference + half))
    return intervals


def _between(ends: tuple[float, float]) -> str:
    return f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def _sp_he(report: PublishedReport) -> dict[str, list[str]]:
    plain, best = _figure(report, "2", "ce_dice"), _figure(report, "2", "ce_dice_ft")
    repeats = [_value(report, table, "ce_dice_ft", "dice_macro") for table in ("2", "3", "4")]
    stds = [_figure(report, table, "ce_dice_ft").std or 0.0 for table in ("2", "3", "4")]
    overall = {name: _value(report, "6", name, "dice_macro") for name in ("sp_classes", "he_classes")}
    variant = _value(report, "8", "sp_classes", "val_dice_macro_best")
    skips = _figure(report, "3", "no_skips")
    mean = sum(skips.folds) / 2
    sample = sqrt(sum((fold - mean) ** 2 for fold in skips.folds))
    same, crossed = _paired_of_two(plain, best)
    gain = 100 * ((best.value or 0.0) / (plain.value or 1.0) - 1)
    with_background = [_value(report, "6", name, "class_dice_mean_with_background") for name in overall]
    without = [_value(report, "6", name, "class_dice_mean") for name in overall]
    sampling = [_figure(report, "4", name).std or 0.0 for name in ("ce_dice_ft", "gamma_045", "gamma_085")]
    names = ("sp_classes", "sp_boundary", "sp_boundary_context", "sp_boundary_attention")
    peaks = [_value(report, "8", name, "val_dice_macro_best") for name in names]
    errors = [_value(report, "7", name, "hv_mse") for name in ("sp_instances", "he_instances")]
    return {
        "": [
            "Runs of one configuration differ: it is printed as "
            + ", ".join(f"{value:.4f}" for value in repeats)
            + f" (± {', '.join(f'{std:.4f}' for std in stds)}) in Tables 2, 3 and 4, and the SP baseline as "
            f"{overall['sp_classes']:.4f} and {variant:.4f} in section 5.2 and Table 8. Differences below "
            f"{overall['sp_classes'] - variant:.4f} are within that noise.",
            f"Each ± is a deviation with n in the denominator: the folds of Table 3 give {skips.std:.4f} so, "
            f"{sample:.4f} with n - 1. The intervals here use n - 1.",
            "The best epoch was chosen on the slides that are reported, so published figures flatter. Ours are of test "
            "slides that chose nothing, but for the columns that say validation.",
            "Its SP runs with skips gave the decoder 19 image channels, H&E among them; ours give what the row says. "
            "Its encoder saw each 8×8 patch by itself, without context.",
            "Its figures are of 35 slides: 28 train and 7 validate (Tables 6 to 8), or quarters of them. Slides' own "
            "figures are not printed, so that its differences cannot be tested slide by slide.",
        ],
        "1": [
            "The printed frequencies are those of one tissue, not of the data set; Table 6 has its validation slides'."
        ],
        "2": [
            f"What two folds can say of {best.value:.4f} ± {best.std:.4f} against {plain.value:.4f} ± {plain.std:.4f}: "
            f"nothing. The 95 % interval of the difference is {_between(same)} when the better fold is the same in "
            f"both, {_between(crossed)} when not, {_between(_welch(plain, best))} unpaired (Welch).",
            f"The improvement that the text gives as 2.92 % is {gain:.2f} % of the printed figures.",
        ],
        "4": [
            "The text says that oversampling makes folds more alike; the printed deviations grow: "
            + ", ".join(f"{std:.4f}" for std in sampling)
            + ". At γ = 0.45 the printed Dice falls."
        ],
        "5": ["The printed table has the two means side by side, under folds 1 and 2; here they stand in their rows."],
        "6": [
            f"The class Dice average {without[1]:.3f} (CellViT) and {without[0]:.3f} (Virtues), with the background "
            f"{with_background[1]:.3f} and {with_background[0]:.3f}; the text's {overall['he_classes']:.4f} and "
            f"{overall['sp_classes']:.4f} are neither, and how they average is not told.",
            "The report numbers the classes; their names are those of the data. Classes are matched by name.",
        ],
        "7": [
            f"The HV error of SP is {100 * (errors[0] / errors[1] - 1):.0f} % above that of H&E, which the text calls "
            "marginal. Whether it averages over nuclei or over all pixels is not told (ours: nuclei), nor are the "
            "weights of the loss: only the direction can be compared.",
        ],
        "8": [
            f"One fold; the ± is over epochs and says nothing about noise between runs. All four peaks lie within "
            f"{max(peaks) - min(peaks):.4f}; the two runs of the baseline differ by "
            f"{overall['sp_classes'] - variant:.4f}.",
            "Our columns of the validation are from the epochs of training; the test slides judge the differences.",
        ],
    }

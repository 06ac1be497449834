"""The published figures against the sums that must hold among them, and what is said of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_ind_from_stats, ttest_rel

from slideloom.reports.findings import finding, published_notes
from slideloom.reports.published import OWN, REPORTS, Figure

SP_HE = REPORTS["sp_he"]
FIGURES = [figure for table in SP_HE.tables for figure in table.figures]


def printed(number: str, metric: str, experiment: str | None) -> list[float]:
    """Figures of a column of a table, those of classes too."""
    found = [f.value for f in SP_HE.table(number).figures if (f.metric, f.experiment) == (metric, experiment)]
    return [value for value in found if value is not None]


def test_every_table_and_row_is_there() -> None:
    assert [table.number for table in SP_HE.tables] == ["1", "2", "3", "4", "5", "6", "7", "8", OWN]
    assert [len(table.figures) for table in SP_HE.tables] == [10, 4, 2, 3, 2, 8 + 50, 6, 12, 4]
    for table in SP_HE.tables:
        keys = [(figure.row, figure.metric) for figure in table.figures]
        assert len(keys) == len(set(keys)), table.number
    names = {figure.experiment for figure in FIGURES} - {None}
    assert names == {
        "ce_dice", "ce_dice_cw", "ce_dice_ft", "ce_dice_ft_cw", "no_skips", "gamma_045", "gamma_085", "plain",
        "augmented", "he_classes", "sp_classes", "he_instances", "sp_instances", "sp_boundary", "sp_boundary_context",
        "sp_boundary_attention", "mean_marker", "mean_marker_linear", "sp_classes_isolated",
    }  # fmt: skip


def test_percentages_add_up() -> None:
    assert sum(printed("1", "gt_percent", None)) == pytest.approx(100, abs=0.01)
    assert sum(printed("6", "gt_percent", None)) == pytest.approx(100, abs=0.02)
    for experiment in ("he_classes", "sp_classes"):
        assert sum(printed("6", "pred_percent", experiment)) == pytest.approx(100, abs=0.02)


def test_no_class_dice_is_above_what_its_percentages_allow() -> None:
    true = printed("6", "gt_percent", None)
    for experiment in ("he_classes", "sp_classes"):
        predicted, dice = printed("6", "pred_percent", experiment), printed("6", "dice", experiment)
        assert len(true) == len(predicted) == len(dice) == 10
        for t, p, d in zip(true, predicted, dice, strict=True):
            assert 0 <= d <= 2 * min(t, p) / (t + p) + 1e-4
            assert (d == 0) == (p == 0)


def test_folds_give_the_printed_means_and_their_deviation_over_n() -> None:
    folded = [figure for figure in FIGURES if figure.folds]
    assert [len(figure.folds) for figure in folded] == [2, 2, 3, 3]
    for figure in folded:
        assert figure.value == pytest.approx(np.mean(figure.folds), abs=1.01e-4)
        # n in the denominator gives what is printed, up to the rounding of the folds; n - 1 does not.
        assert figure.std == pytest.approx(np.std(figure.folds), abs=1.01e-4)
        assert abs(np.std(figure.folds, ddof=1) - (figure.std or 0)) > 0.004


def test_tables_that_share_a_configuration_nearly_agree() -> None:
    same = [printed(number, "dice_macro", "ce_dice_ft")[0] for number in "234"]
    assert max(same) - min(same) == pytest.approx(0.0011)
    assert printed("6", "dice_macro", "sp_classes")[0] > printed("8", "val_dice_macro_best", "sp_classes")[0]
    assert max(printed("8", "val_dice_macro_mean", name)[0] for name in ("sp_boundary", "sp_boundary_attention")) < min(
        f.value for f in SP_HE.table("8").figures if f.metric == "val_dice_macro_best" and f.value
    )


def test_signs_are_those_of_the_printed_differences_but_where_the_text_differs() -> None:
    against = [(t, f) for t in SP_HE.tables for f in t.figures if f.against and f.sign and f.value is not None]
    differ = []
    for table, figure in against:
        other = table.figure(figure.against or "", figure.metric, figure.of_class)
        assert other is not None
        assert other.value is not None
        if np.sign((figure.value or 0) - other.value) != figure.sign:
            differ.append((table.number, figure.experiment))
    assert differ == [("4", "gamma_045")]  # "moderate to strong oversampling improves": its own figure falls


def test_intervals_of_published_means_are_students() -> None:
    figure = SP_HE.table("5").figure("augmented", "dice_macro")
    assert figure is not None
    low, high = student.interval(0.95, 2, np.mean(figure.folds), np.std(figure.folds, ddof=1) / np.sqrt(3))
    assert figure.interval == pytest.approx((low, high))
    two = SP_HE.table("2").figure("ce_dice_ft", "dice_macro")
    assert two is not None
    assert two.interval is not None
    # Two folds whose deviation over n is s lie at the mean plus and minus s.
    folds = np.array([0.4788 - 0.0431, 0.4788 + 0.0431])
    assert two.interval == pytest.approx(student.interval(0.95, 1, folds.mean(), folds.std(ddof=1) / np.sqrt(2)))
    assert Figure("x", "x", "dice_macro", 0.5, 0.1).interval is None
    assert Figure("x", "x", "dice_macro", 0.5, n_folds=2).interval is None


def test_the_notes_are_worked_out_rightly() -> None:
    notes = published_notes(SP_HE)
    a, b = np.array([0.4653 - 0.0241, 0.4653 + 0.0241]), np.array([0.4788 - 0.0431, 0.4788 + 0.0431])
    intervals = [ttest_rel(b, a).confidence_interval(), ttest_rel(b[::-1], a).confidence_interval()]
    intervals.append(ttest_ind_from_stats_interval(a, b))
    for low, high in intervals:
        assert f"{low:+.2f} to {high:+.2f}" in notes["2"][0]
    assert "2.92 % is 2.90 %" in notes["2"][1]
    assert "0.4788, 0.4787, 0.4798" in notes[""][0]
    assert "0.0038" in notes[""][0]
    assert "0.0295 so, 0.0416 with n - 1" in notes[""][1]
    assert "0.0624, 0.0719, 0.0778" in notes["4"][0]
    assert "0.218 (CellViT) and 0.573 (Virtues), with the background 0.287 and 0.604" in notes["6"][0]
    assert "31 % above" in notes["7"][0]
    assert "within 0.0054" in notes["8"][0]
    assert set(notes) <= {"", *(table.number for table in SP_HE.tables)}


def ttest_ind_from_stats_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Welch's interval, from its p value: the shifts of b at which the test just fails."""
    ends = []
    for way in (-1, 1):
        low, high = 0.0, 5.0
        for _ in range(60):
            middle = (low + high) / 2
            shift = b.mean() - a.mean() + way * middle
            p = ttest_ind_from_stats(
                b.mean() - shift, b.std(ddof=1), 2, a.mean(), a.std(ddof=1), 2, equal_var=False
            ).pvalue
            low, high = (low, middle) if p < 0.05 else (middle, high)
        ends.append(b.mean() - a.mean() + way * low)
    return ends[0], ends[1]


LINE = {
    "difference": 0.05, "difference_low": 0.02, "difference_high": 0.08, "p_adjusted": 0.01,
    "p_adjusted_smallest": 0.001, "n_paired": 11, "n_slides": 11, "published_difference": 0.06,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sign", "said"),
    [
        ({}, 1, "holds: +0.0500 (+0.0200 to +0.0800), p_adj = 0.01"),
        ({}, -1, "does not hold, the reverse was measured: +0.0500 (+0.0200 to +0.0800), p_adj = 0.01"),
        ({"p_adjusted": 0.2}, 1, "cannot be told: +0.0500 (+0.0200 to +0.0800), p_adj = 0.2"),
        ({"difference_low": -0.01}, 1, "cannot be told: +0.0500 (-0.0100 to +0.0800), p_adj = 0.01"),
        ({"difference": None}, 1, "cannot be told: not measured here"),
        ({"p_adjusted": None}, 1, "cannot be told: +0.0500; one patient"),
        ({"p_adjusted": None, "n_slides": 0}, 1, "cannot be told: +0.0500; a figure of the training, which no test"),
        ({"p_adjusted": 0.1, "p_adjusted_smallest": 0.06}, 1, "with 11 patients no p_adj is below 0.06"),
        ({"p_adjusted": 0.1, "published_difference": 0.4}, 1, "the published +0.4000 lies outside our interval"),
    ],
)
def test_findings_follow_the_numbers(change: dict[str, float | None], sign: int, said: str) -> None:
    text = finding(LINE | change, sign)
    assert said in text
    assert sum(text.startswith(word) for word in ("holds", "does not hold", "cannot be told")) == 1


def test_every_statement_has_its_other_side() -> None:
    for table in SP_HE.tables:
        for figure, other in itertools.product(table.figures, repeat=2):
            if figure is other:
                assert figure.against is None or table.figure(figure.against, figure.metric, figure.of_class)
                assert figure.sign == 0 or figure.against

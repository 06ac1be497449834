"""Figures of published reports that a study can be set beside: plain data, every figure as printed.

``sp_he``: M. Mizia, J. Kuci, H. Li, *Nuclei Instance and Semantic Segmentation using Spatial Proteomics and H&E Data*,
EPFL, 18 December 2025. Its experiments are keyed by the names that the study ``config/studies/sp_he.yaml`` gives them;
the same configuration stands in several tables under one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from slideloom.reports.resampling import t_half_width

__all__ = ["OWN", "REPORTS", "Figure", "PublishedReport", "PublishedTable"]

#: Number of the table of rows that a report does not have.
OWN = "own"


@dataclass(frozen=True)
class Figure:
    """One printed figure, and the experiment that stands beside it.

    Attributes
    ----------
    row : str
        Its row, in the report's words.
    experiment : str or None
        Name of ours; ``None`` for a figure of the data.
    metric : str
        As in ``published.parquet``.
    value : float or None
        As printed; ``None`` for a figure that only ours has.
    std : float or None
        Its ±, as printed: the standard deviation with n in the denominator.
    folds : tuple of float
        The folds' figures, where printed.
    n_folds : int or None
        Folds behind the figure, where told.
    against : str or None
        Experiment that ours is set against: the one that differs from it in the row's one respect.
    sign : int
        Of the difference to ``against`` that the report states, or the study expects: 1, -1, or 0 for no statement.
    of_class : str
        Name of the class that the figure is about; empty for none.
    """

    row: str
    experiment: str | None
    metric: str
    value: float | None
    std: float | None = None
    folds: tuple[float, ...] = ()
    n_folds: int | None = None
    against: str | None = None
    sign: int = 0
    of_class: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean over folds; ``None`` without folds or their deviation."""
        if self.value is None or self.n_folds is None or self.n_folds < 2:
            return None
        n = self.n_folds
        if self.folds:
            mean = sum(self.folds) / n
            sample = sqrt(sum((fold - mean) ** 2 for fold in self.folds) / (n - 1))
        elif self.std is not None:
            mean, sample = self.value, self.std * sqrt(n / (n - 1))
        else:
            return None
        half = float(t_half_width(sample, n))
        return mean - half, mean + half


@dataclass(frozen=True)
class PublishedTable:
    """One table.

    Attributes
    ----------
    number : str
        As printed, or ``own``.
    title : str
        What it shows.
    claim : str
        What the report concludes from it, or the study expects.
    figures : tuple of Figure
        In the order of its rows.
    """

    number: str
    title: str
    claim: str
    figures: tuple[Figure, ...]

    def figure(self, experiment: str, metric: str, of_class: str = "") -> Figure | None:
        """The figure of an experiment, if the table has it."""
        wanted = (experiment, metric, of_class)
        return next((one for one in self.figures if (one.experiment, one.metric, one.of_class) == wanted), None)


@dataclass(frozen=True)
class PublishedReport:
    """A report's tables.

    Attributes
    ----------
    name : str
        As ``published`` of the config names it.
    title : str
        Who, what, when.
    tables : tuple of PublishedTable
        In order.
    """

    name: str
    title: str
    tables: tuple[PublishedTable, ...]

    def table(self, number: str) -> PublishedTable:
        """A table by its number."""
        return next(table for table in self.tables if table.number == number)


#: Numbers of the annotation's classes and their names. The report prints the numbers only; the names are the data's.
_CLASSES = (
    "Background", "Stroma", "Endothelia", "Macrophage", "Tumor", "Helper T cell", "Cytotoxic T cell", "Other", "Treg",
    "B cells",
)  # fmt: skip

_FREQUENCY = PublishedTable(
    "1",
    "Relative pixel frequency of the classes",
    "",
    tuple(
        Figure(name, None, "gt_percent", value, of_class=name)
        for name, value in (
            ("Background", 76.7), ("Stroma", 8.4), ("Tumor", 10.3), ("Macrophage", 1.9), ("Helper T cell", 1.1),
            ("Cytotoxic T cell", 0.4), ("Endothelia", 0.6), ("Other", 0.5), ("Treg", 0.1), ("B cells", 0.007),
        )
    ),
)  # fmt: skip


def _dice(row: str, experiment: str, value: float, std: float, against: str | None = None, sign: int = 0,
          folds: tuple[float, ...] = (), n_folds: int = 2) -> Figure:  # fmt: skip
    return Figure(row, experiment, "dice_macro", value, std, folds, n_folds, against, sign)


_LOSS = PublishedTable(
    "2",
    "Loss functions (FT: focal Tversky; CW: class weights)",
    "Focal Tversky helps; class weights on top of it do not.",
    (
        _dice("CE + Dice", "ce_dice", 0.4653, 0.0241),
        _dice("CE + Dice, CW", "ce_dice_cw", 0.4622, 0.0289, "ce_dice", -1),
        _dice("CE + Dice + FT", "ce_dice_ft", 0.4788, 0.0431, "ce_dice", 1),
        _dice("CE + Dice + FT, CW", "ce_dice_ft_cw", 0.4644, 0.0294, "ce_dice_ft", -1),
    ),
)

_SKIPS = PublishedTable(
    "3",
    "Skip connections",
    "Skip connections raise the Dice substantially.",
    (
        _dice("SP-only, no skips", "no_skips", 0.4330, 0.0295, folds=(0.4036, 0.4625)),
        _dice("SP-only, with skips", "ce_dice_ft", 0.4787, 0.0492, "no_skips", 1, folds=(0.4295, 0.5280)),
    ),
)

_SAMPLING = PublishedTable(
    "4",
    "Oversampling of patches with rare classes",
    "Moderate to strong oversampling helps, and makes folds more alike.",
    (
        _dice("γ = 0.0", "ce_dice_ft", 0.4798, 0.0624),
        _dice("γ = 0.45", "gamma_045", 0.4743, 0.0719, "ce_dice_ft", 1),
        _dice("γ = 0.85", "gamma_085", 0.4930, 0.0778, "ce_dice_ft", 1),
    ),
)

_AUGMENTATION = PublishedTable(
    "5",
    "Augmentation",
    "Light augmentation helps modestly and consistently.",
    (
        _dice("No augmentation", "plain", 0.5491, 0.0226, folds=(0.5811, 0.5340, 0.5322), n_folds=3),
        _dice("With augmentation", "augmented", 0.5604, 0.0249, "plain", 1, (0.5947, 0.5498, 0.5367), 3),
    ),
)

#: Table 6 by class: truth %; CellViT: predicted %, Dice; Virtues: predicted %, Dice.
_BY_CLASS = (
    (67.47, 67.67, 0.9092, 64.81, 0.8888),
    (10.40, 10.90, 0.5102, 11.29, 0.5530),
    (0.97, 0.00, 0.0000, 1.21, 0.5754),
    (8.72, 10.13, 0.4966, 7.88, 0.5833),
    (7.12, 8.07, 0.7325, 8.69, 0.7905),
    (2.30, 3.23, 0.2211, 2.64, 0.5963),
    (1.46, 0.00, 0.0000, 1.41, 0.6563),
    (0.83, 0.00, 0.0000, 0.87, 0.3457),
    (0.37, 0.00, 0.0000, 0.72, 0.5117),
    (0.37, 0.00, 0.0000, 0.48, 0.5415),
)


def _encoder_figures() -> tuple[Figure, ...]:
    pair = ("he_classes", "sp_classes")
    figures = [
        Figure("CellViT", pair[0], "dice_macro", 0.2696),
        Figure("Virtues", pair[1], "dice_macro", 0.6293, against=pair[0], sign=1),
    ]
    for metric, first in (("class_dice_mean", 1), ("class_dice_mean_with_background", 0)):
        for name, experiment, column in (("CellViT", pair[0], 2), ("Virtues", pair[1], 4)):
            own = [line[column] for line in _BY_CLASS[first:]]
            figures.append(Figure(name, experiment, metric, round(sum(own) / len(own), 4)))
    figures += [
        Figure("CellViT", pair[0], "dice_rare", None),
        Figure("Virtues", pair[1], "dice_rare", None, against=pair[0], sign=1),
    ]
    for number, (name, line) in enumerate(zip(_CLASSES, _BY_CLASS, strict=True)):
        truth, he_percent, he_dice, sp_percent, sp_dice = line
        row = f"{number} {name}"
        sign = 1 if sp_dice > he_dice else -1
        figures += [
            Figure(f"truth, {row}", None, "gt_percent", truth, of_class=name),
            Figure(f"CellViT, {row}", pair[0], "pred_percent", he_percent, of_class=name),
            Figure(f"CellViT, {row}", pair[0], "dice", he_dice, of_class=name),
            Figure(f"Virtues, {row}", pair[1], "pred_percent", sp_percent, of_class=name),
            Figure(f"Virtues, {row}", pair[1], "dice", sp_dice, against=pair[0], sign=sign, of_class=name),
        ]
    return tuple(figures)


_ENCODERS = PublishedTable(
    "6",
    "Encoders, semantic segmentation, by class",
    "Spatial proteomics outperforms H&E by far, most on rare classes.",
    _encoder_figures(),
)


def _instance_figures() -> tuple[Figure, ...]:
    he, sp = "he_instances", "sp_instances"
    return (
        Figure("CellViT (H&E)", he, "hv_mse", 0.0566),
        Figure("CellViT (H&E)", he, "dice_binary", 0.7170),
        Figure("CellViT (H&E)", he, "val_loss", 0.4178),
        Figure("Virtues (SP)", sp, "hv_mse", 0.0743, against=he, sign=1),
        Figure("Virtues (SP)", sp, "dice_binary", 0.7156, against=he, sign=-1),
        Figure("Virtues (SP)", sp, "val_loss", 0.4827, against=he, sign=1),
    )


_INSTANCES = PublishedTable(
    "7",
    "Encoders, HV maps and nucleus map",
    "H&E is slightly better than spatial proteomics at nuclei and HV maps.",
    _instance_figures(),
)


def _variant_figures() -> tuple[Figure, ...]:
    figures = []
    for row, experiment, best, mean, std, against, sign in (
        ("SP only (baseline)", "sp_classes", 0.6255, 0.6065, 0.0299, None, 0),
        ("SP + boundary", "sp_boundary", 0.6291, 0.6106, 0.0312, "sp_classes", 1),
        ("SP + boundary + global context", "sp_boundary_context", 0.6275, 0.6075, 0.0306, "sp_boundary", -1),
        ("SP + boundary + masked attention", "sp_boundary_attention", 0.6309, 0.6104, 0.0299, "sp_boundary", 1),
    ):
        figures += [
            Figure(row, experiment, "val_dice_macro_best", best, against=against, sign=sign),
            Figure(row, experiment, "val_dice_macro_mean", mean, std, against=against),
            Figure(row, experiment, "dice_macro", None, against=against, sign=sign),
        ]
    return tuple(figures)


_VARIANTS = PublishedTable(
    "8",
    "Variants of the decoder",
    "Boundary supervision helps; masked attention on top of it has the highest peak, global context does not help.",
    _variant_figures(),
)

_BASELINES = PublishedTable(
    OWN,
    "Not in the report: what a decoder, a learned encoder and its context are worth",
    "Expected: a decoder beats a linear map of the markers' means, the encoder beats those means, and patches that see "
    "their neighbours beat patches by themselves, which the report encoded.",
    (
        Figure("Mean of each marker, linear map", "mean_marker_linear", "dice_macro", None),
        Figure("Mean of each marker, decoder", "mean_marker", "dice_macro", None, None, (), None,
               "mean_marker_linear", 1),
        Figure("Encoder, decoder", "sp_classes", "dice_macro", None, None, (), None, "mean_marker", 1),
        Figure("Encoder on patches by themselves, decoder", "sp_classes_isolated", "dice_macro", None, None, (), None,
               "sp_classes", -1),
    ),
)  # fmt: skip

#: Reports by the name that the config's ``published`` takes.
REPORTS = {
    "sp_he": PublishedReport(
        "sp_he",
        "Mizia, Kuci, Li: Nuclei instance and semantic segmentation using spatial proteomics and H&E data. EPFL, 2025",
        (_FREQUENCY, _LOSS, _SKIPS, _SAMPLING, _AUGMENTATION, _ENCODERS, _INSTANCES, _VARIANTS, _BASELINES),
    )
}

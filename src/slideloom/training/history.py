"""``history.parquet``: what every epoch of a training brought."""

from __future__ import annotations

import pyarrow as pa

from slideloom.artefacts.tables import Column, TableSchema
from slideloom.training.terms import TERMS

__all__ = ["HISTORY", "SCORES"]

#: Pooled validation scores.
SCORES = ("val_dice_binary", "val_dice_macro", "val_hv_mse")
_NO_TERM = "the loss does not have the term"
_NO_NOTE = "a version of Slideloom trained that did not note it"
_NO_VAL = "there is no validation slide"


def _losses(part: str, null: str) -> tuple[Column, ...]:
    total = Column(f"{part}_loss", pa.float64(), f"Weighted sum of the terms, mean over {part} patches.", null)
    # The pooled score of the same name says the same thing better.
    names = [term for term in TERMS if part == "train" or term != "hv_mse"]
    absent = _NO_TERM + (f", or {null}" if null else "")
    return total, *(
        Column(f"{part}_{name}", pa.float64(), f"Loss term {name} before its weight, mean over {part} patches.", absent)
        for name in names
    )


#: Columns of ``models/{experiment}/{fold}/history.parquet``.
HISTORY = TableSchema(
    name="history",
    version=1,
    row="an epoch of a training",
    key=("epoch",),
    columns=(
        Column("epoch", pa.int32(), "Epoch, from 0 on."),
        Column("lr", pa.float64(), "Learning rate of the epoch."),
        Column("seconds", pa.float64(), "Wall time of the epoch, training and validation.", unit="s"),
        Column("train_patches_per_s", pa.float64(), "Patches trained on per second, validation left out."),
        *_losses("train", ""),
        *_losses("val", _NO_VAL),
        Column(
            "val_dice_binary",
            pa.float64(),
            "Dice of the nucleus head, pooled over all validation pixels.",
            f"{_NO_VAL}, or none of its pixels is annotated as nucleus",
        ),
        Column(
            "val_dice_macro",
            pa.float64(),
            "Mean Dice of the classes that the validation annotation holds, background left out, each pooled over all "
            "validation pixels; pixels of unknown class do not count.",
            f"{_NO_VAL}, no class head, or no annotated class",
        ),
        Column(
            "val_hv_mse",
            pa.float64(),
            "Mean squared error of the HV maps over all validation pixels.",
            f"{_NO_VAL}, or no HV head",
        ),
        Column("is_best", pa.bool_(), "Whether the weights of this epoch were kept: true in one row."),
        Column("encoder_lr", pa.float64(), "Learning rate of the encoder's weights.", "they were not trained"),
        Column(
            "grad_norm",
            pa.float64(),
            "Length of the gradient over all trained weights before clipping, mean over the epoch's steps.",
            "no step had a finite gradient",
        ),
        Column("skipped_steps", pa.int32(), "Steps not taken as fp16 had no finite gradient at the scale of the loss."),
        Column("wait_share", pa.float64(), "Part of the training's time that was spent waiting for patches."),
        Column(
            "encode_share",
            pa.float64(),
            "Part of the training's time that the encoder's forward passes took.",
            "tokens were read, not made",
        ),
        Column("n_slides_train", pa.int32(), "Slides that were learned from.", _NO_NOTE),
        Column("n_slides_val", pa.int32(), "Slides that were validated on.", _NO_NOTE),
    ),
)

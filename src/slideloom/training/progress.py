"""A line of the log for every epoch."""

from __future__ import annotations

import logging
import time

from slideloom.training.job import TrainJob
from slideloom.training.resume import TrainState

__all__ = ["Progress"]

_LOG = logging.getLogger(__name__)
_TOLD = {
    "val_loss": "val loss",
    "val_dice_binary": "val dice_binary",
    "val_dice_macro": "val dice_macro",
    "val_hv_mse": "val hv_mse",
}


class Progress:
    """Tells how a training comes along.

    Parameters
    ----------
    job : TrainJob
        Its name, epochs and processes.
    begun_with : int
        Epochs that lay behind it when the clock started: those of a run before this one cost nothing now.
    """

    def __init__(self, job: TrainJob, begun_with: int) -> None:
        self._job, self._begun_with, self._begun_at = job, begun_with, time.monotonic()

    def report(self, state: TrainState) -> None:
        """Log the latest epoch: loss and scores, rate, what the time went to, time left at most."""
        row, job = state.rows[-1], self._job
        done, left = state.epochs_done - self._begun_with, job.training.epochs - state.epochs_done
        eta_s = round((time.monotonic() - self._begun_at) / done * left)
        parts = [f"train {row['train_loss']:.4f}"]
        parts += [f"{told} {row[name]:.4f}" for name, told in _TOLD.items() if row.get(name) is not None]
        best = "best" if state.best_epoch == row["epoch"] else f"best was {state.best_epoch + 1}"
        shares = [f"{row['wait_share']:.1%} waiting for data"]
        shares += [f"{row['encode_share']:.1%} encoding"] if row["encode_share"] is not None else []
        skipped = f", {row['skipped_steps']} steps skipped" if row["skipped_steps"] else ""
        rate = f"{row['train_patches_per_s']:.1f} patches/s ({', '.join(shares)}){skipped}, {row['seconds']:.1f} s"
        left_text = f"at most {eta_s // 3600}:{eta_s // 60 % 60:02d}:{eta_s % 60:02d} left"
        _LOG.info(
            "%s epoch %d/%d: %s (%s), lr %.3g, %s, %s",
            job.name, state.epochs_done, job.training.epochs, ", ".join(parts), best, row["lr"], rate, left_text,
        )  # fmt: skip

"""Which epoch is best, when to stop, and when a training is lost."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from slideloom.config.model import Head
from slideloom.errors import SlideloomError
from slideloom.training.job import TrainJob
from slideloom.training.resume import TrainState

__all__ = ["Judge"]

_LOG = logging.getLogger(__name__)
#: Whether less is better, of every figure that can be monitored.
_LOWER_IS_BETTER = {"loss": True, "hv_mse": True, "dice_macro": False, "dice_binary": False}
#: The head that a figure is of.
_HEAD: dict[str, Head] = {"hv_mse": "hv", "dice_macro": "classes", "dice_binary": "nucleus"}


class Judge:
    """The monitored figure of a training, and what follows from it.

    Parameters
    ----------
    job : TrainJob
        ``training.monitor``, ``patience``, ``keep``; its heads and its name.
    n_val : int
        Validation patches. Without any the training loss is monitored instead, and the log says so.

    Attributes
    ----------
    monitor : str
        Column of the history that is monitored.
    lower_is_better : bool
        Which way it improves.

    Raises
    ------
    SlideloomError
        ``monitor_undefined``: the figure is that of a head which there is not.
    """

    def __init__(self, job: TrainJob, n_val: int) -> None:
        self._job = job
        wanted = job.training.monitor
        head = _HEAD.get(wanted)
        if head is not None and head not in job.heads:
            raise SlideloomError(
                f"training.monitor {wanted} needs the {head} head",
                where=job.name,
                hint="Add the head, or monitor loss or the figure of a head that there is",
                code="monitor_undefined",
            )
        self.monitor, self.lower_is_better = f"val_{wanted}", _LOWER_IS_BETTER[wanted]
        if not n_val:
            _LOG.warning("%s: no validation slides; the training loss chooses the best epoch", job.name)
            self.monitor, self.lower_is_better = "train_loss", True

    def is_best(self, state: TrainState, row: Mapping[str, Any]) -> bool:
        """Whether an epoch is better than all before it; notes it in the state.

        Parameters
        ----------
        state : TrainState
            Its ``best`` and ``best_epoch`` are brought up to date.
        row : mapping
            The epoch's row of the history.

        Raises
        ------
        SlideloomError
            ``monitor_undefined``: the figure has no value.
        """
        value = row[self.monitor]
        if value is None:
            raise SlideloomError(
                f"{self.monitor} has no value: no validation pixel is annotated with what it scores",
                where=self._job.name,
                hint="Choose another training.monitor, or validate on slides that hold nuclei",
                code="monitor_undefined",
            )
        better = state.best is None or (value < state.best if self.lower_is_better else value > state.best)
        if better:
            state.best, state.best_epoch = value, row["epoch"]
        return better

    def patience_spent(self, state: TrainState) -> bool:
        """Whether ``training.patience`` epochs brought nothing better."""
        patience = self._job.training.patience
        return patience is not None and state.best is not None and state.epochs_done - 1 - state.best_epoch >= patience

    def kept_epoch(self, state: TrainState) -> int:
        """The epoch whose weights are kept."""
        return state.best_epoch if self._job.training.keep == "best" else state.epochs_done - 1

    # ---- lost trainings -------------------------------------------------------------------------------------------

    def check_finite(self, values: Mapping[str, float], epoch: int, part: str) -> None:
        """Refuse to go on with a loss that is not finite.

        Parameters
        ----------
        values : mapping of str to float
            Loss and terms of one batch; may be empty.
        epoch : int
            Of the batch.
        part : str
            ``training`` or ``validation``.

        Raises
        ------
        SlideloomError
            ``diverged``, with the terms that are to blame.
        """
        wild = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not wild:
            return
        told = ", ".join(f"{name} {value:.4g}" for name, value in {**wild, **values}.items())
        _LOG.error("%s epoch %d: %s loss is not finite: %s", self._job.name, epoch, part, told)
        blamed = ", ".join(name for name in wild if name != "loss") or "only their sum"
        raise self._diverged(f"the {part} loss is not finite in epoch {epoch}, by {blamed}: {told}")

    def check_weights(self, epoch: int, networks: Mapping[str, nn.Module]) -> None:
        """Refuse to go on with a weight that is not finite.

        Raises
        ------
        SlideloomError
            ``diverged``.
        """
        weights = {f"{name}.{key}": part for name, one in networks.items() for key, part in one.state_dict().items()}
        if torch.stack([part.isfinite().all() for part in weights.values()]).all():
            return
        spoilt = [name for name, part in weights.items() if not part.isfinite().all()]
        _LOG.error("%s epoch %d: weights are not finite: %s", self._job.name, epoch, ", ".join(spoilt))
        raise self._diverged(f"{len(spoilt)} weights are not finite after epoch {epoch}, such as {spoilt[0]}")

    def scale_lost(self, epoch: int, scale: float) -> SlideloomError:
        """The error of a training whose every fp16 step is skipped."""
        _LOG.error("%s epoch %d: the loss scale fell to %.3g", self._job.name, epoch, scale)
        return self._diverged(
            f"the gradients are not finite at any loss scale: it fell to {scale:.3g} in epoch {epoch}, and every step "
            "is skipped"
        )

    def _diverged(self, what: str) -> SlideloomError:
        training = self._job.training
        hints = ["Lower training.lr" if training.clip_norm else "Lower training.lr or set training.clip_norm"]
        hints += ["choose bf16, as fp16 ends at 65504"] if training.precision == "fp16" else []
        hints += ["look at the inputs: one wild channel is enough"]
        return SlideloomError(what, where=self._job.name, hint=", or ".join(hints), code="diverged")

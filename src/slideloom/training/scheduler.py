"""The learning rate as a function of the epoch and of what earlier epochs brought.

Nothing is remembered from one epoch to the next but the figures that stand in the history anyway, so a resumed run
needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from slideloom.config.model import TrainingConfig

__all__ = ["cosine_warm_restarts", "learning_rate", "plateau_falls"]


def learning_rate(
    epoch: int,
    training: TrainingConfig,
    past: Sequence[float] = (),
    *,
    lower_is_better: bool = True,
    peak: float | None = None,
) -> float:
    """Learning rate of an epoch.

    Parameters
    ----------
    epoch : int
        Epoch from 0 on.
    training : TrainingConfig
        ``schedule`` and the numbers that it needs, ``warmup_epochs``.
    past : sequence of float
        The monitored figure of every epoch before this one, warm-up and all; only the plateau schedule looks at it.
    lower_is_better : bool
        Which way that figure improves.
    peak : float, optional
        Highest rate; ``training.lr`` when left out. The encoder's weights follow the same shape to another height.

    Returns
    -------
    float
        Learning rate.

    Notes
    -----
    With ``warmup_epochs`` w, epoch e < w has the rate ``peak · (e + 1) / (w + 1)``: never 0, and never the peak. Epoch
    w is the schedule's first: the schedule is put off, not cut short, and meets the warm-up at the peak. A plateau is
    looked for among the epochs from w on. No rate falls below ``eta_min``, unless the peak itself lies below it, and
    then the rate is the peak.

    Examples
    --------
    >>> training = TrainingConfig(lr=1.0, schedule="exponential", decay=0.5, warmup_epochs=3)
    >>> [learning_rate(epoch, training) for epoch in range(6)]
    [0.25, 0.5, 0.75, 1.0, 0.5, 0.25]
    """
    top = training.lr if peak is None else peak
    floor = min(training.eta_min, top)
    begun = epoch - training.warmup_epochs
    if begun < 0:
        return top * (epoch + 1) / (training.warmup_epochs + 1)
    if training.schedule == "cosine":
        return cosine_warm_restarts(begun, top, training.t_0, floor)
    if training.schedule == "constant":
        return top
    falls = begun
    if training.schedule == "plateau":
        seen = past[training.warmup_epochs : epoch]
        falls = plateau_falls(seen, training.plateau_epochs, lower_is_better=lower_is_better)
    return float(max(floor, top * training.decay**falls))


def plateau_falls(values: Sequence[float], patience: int, *, lower_is_better: bool) -> int:
    """How often a figure has stood still for so many epochs.

    Parameters
    ----------
    values : sequence of float
        The figure, epoch by epoch.
    patience : int
        Epochs without a new best value that make one fall; the count then starts anew.
    lower_is_better : bool
        Which way the figure improves.

    Returns
    -------
    int
        Number of falls.

    Examples
    --------
    >>> plateau_falls([3.0, 2.0, 2.0, 2.5, 2.1, 2.2, 1.0], 2, lower_is_better=True)
    2
    """
    falls = waited = 0
    best = -math.inf
    for value in values:
        gain = -value if lower_is_better else value
        waited = 0 if gain > best else waited + 1
        best = max(best, gain)
        if waited == patience:
            falls, waited = falls + 1, 0
    return falls


def cosine_warm_restarts(epoch: int, lr: float, t_0: int, eta_min: float) -> float:
    """Cosine annealing with warm restarts, all periods equally long (SGDR, Loshchilov & Hutter 2017, T_mult 1).

    Parameters
    ----------
    epoch : int
        Epoch from 0 on.
    lr : float
        Rate at the start of every period.
    t_0 : int
        Epochs of a period.
    eta_min : float
        Rate that a period falls towards.

    Returns
    -------
    float
        Learning rate of the epoch.

    Examples
    --------
    >>> cosine_warm_restarts(0, 1.0, 4, 0.0), cosine_warm_restarts(2, 1.0, 4, 0.0), cosine_warm_restarts(4, 1.0, 4, 0.0)
    (1.0, 0.5, 1.0)
    """
    phase = (epoch % t_0) / t_0
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * phase)) / 2

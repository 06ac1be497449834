"""The learning rate as a function of the epoch, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

__all__ = ["cosine_warm_restarts"]


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

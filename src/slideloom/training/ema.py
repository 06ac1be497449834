"""A running mean of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RunningMean"]


class RunningMean:
    """Exponential moving average of a network's weights, kept beside it.

    Every update moves the mean by ``1 - d`` of the way towards the weights, where ``d`` is ``decay``, but no more than
    ``(1 + t) / (10 + t)`` at update t = 0, 1, …, so that the weights that the network was born with are soon forgotten
    and short trainings have something of their mean. The statistics of batch normalisation are averaged like the
    weights: they belong to the weights of their time, and the mean of both lags behind by the same number of steps;
    the latest statistics would not be those of the mean weights. Counters, being whole numbers, are copied.

    Parameters
    ----------
    module : nn.Module
        The network; its weights are copied at once.
    decay : float
        Between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self.updates = 0
        self._mean = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's weights as they are now."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        latest = self._module.state_dict()
        moving = [name for name, value in latest.items() if value.is_floating_point()]
        # Towards the weights, not a sum of two products: what does not change stays to the bit.
        torch._foreach_lerp_([self._mean[name] for name in moving], [latest[name] for name in moving], 1 - decay)
        for name in latest.keys() - set(moving):
            self._mean[name].copy_(latest[name])
        self.updates += 1

    @property
    def weights(self) -> dict[str, Tensor]:
        """The mean, as a state dict of the network."""
        return self._mean

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network the mean's weights for a while; its own come back bit by bit."""
        own = {name: value.detach().clone() for name, value in self._module.state_dict().items()}
        self._module.load_state_dict(self._mean)
        try:
            yield
        finally:
            self._module.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """All that an update depends on besides the network."""
        return {"updates": self.updates, "mean": self._mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        with torch.no_grad():
            for name, value in self._mean.items():
                value.copy_(state["mean"][name])
        self.updates = int(state["updates"])

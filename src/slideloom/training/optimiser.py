"""From the gradients of some batches to one step of the optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from slideloom.config.model import TrainingConfig
from slideloom.errors import SlideloomError
from slideloom.training.distributed import World

__all__ = ["Stepper", "autocast", "check_precision", "make_optimiser"]

#: A loss scale below this is no scale: the gradients are not finite, however small they are made.
_LEAST_SCALE = 1e-4


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse arithmetic that the device does not have.

    Raises
    ------
    SlideloomError
        ``precision_needs_gpu``: fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise SlideloomError(
            "training.precision fp16 on a CPU",
            expected="a GPU",
            hint="Choose bf16 or fp32, or train on a GPU",
            code="precision_needs_gpu",
        )


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """The arithmetic of a forward pass."""
    kinds = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    with torch.autocast(device.type, dtype=kinds[precision], enabled=kinds[precision] is not None):
        yield


def make_optimiser(
    training: TrainingConfig, decoder: Sequence[nn.Parameter], encoder: Sequence[nn.Parameter] = ()
) -> Optimizer:
    """The optimiser that the config names.

    Parameters
    ----------
    training : TrainingConfig
        ``optimiser``, ``lr``, ``encoder_lr``, ``betas``, ``weight_decay``.
    decoder, encoder : sequence of Parameter
        A group each; the encoder's is left out when empty. Parameters without a gradient are not touched.

    Returns
    -------
    Optimizer
        Fused. ``adamw`` shrinks the weights beside the step (Loshchilov & Hutter 2019); ``adam`` adds
        ``weight_decay · weight`` to the gradient, which the second moments then divide.
    """
    groups: list[dict[str, Any]] = [{"params": list(decoder), "lr": training.lr}]
    if encoder:
        groups.append({"params": list(encoder), "lr": training.encoder_lr})
    kind = AdamW if training.optimiser == "adamw" else Adam
    return kind(groups, lr=training.lr, betas=training.betas, weight_decay=training.weight_decay, fused=True)


class Stepper:
    """Adds up gradients and takes steps.

    For every step: :meth:`backward` for each of its batches, then :meth:`step`.

    Parameters
    ----------
    optimiser : Optimizer
        Of :func:`make_optimiser`.
    training : TrainingConfig
        ``clip_norm``, ``precision``.
    device : torch.device
        Of the weights.
    world : World
        The processes whose gradients are added up.
    scaler : GradScaler, optional
        Scale of the loss; one is made for fp16, and none for other arithmetic, when left out.

    Attributes
    ----------
    scaler : GradScaler
        Scale of the loss.
    """

    def __init__(
        self,
        optimiser: Optimizer,
        training: TrainingConfig,
        device: torch.device,
        world: World,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.optimiser = optimiser
        self.scaler = scaler or torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self._clip_norm = training.clip_norm
        self._device = device
        self._world = world
        self._followed: list[Tensor] = []
        self._parameters: list[nn.Parameter] = []
        self.begin([])

    def begin(self, statistics: Sequence[Tensor]) -> None:
        """Start an epoch.

        Parameters
        ----------
        statistics : sequence of Tensor
            Running statistics of batch normalisation, which the processes shall have in common.
        """
        self._statistics = list(statistics)
        self._trained = [
            part for group in self.optimiser.param_groups for part in group["params"] if part.requires_grad
        ]
        self._parameters = []
        self._norms = torch.zeros(2, dtype=torch.float64, device=self._device)
        self._tried = 0
        self._done_before = self._steps_done()

    def backward(self, loss: Tensor, share: float) -> None:
        """Add a batch's gradient.

        Parameters
        ----------
        loss : Tensor ()
            Mean over the batch.
        share : float
            The batch's part of all patches of the step, over all batches and processes.
        """
        scaled = self.scaler.scale(loss if share == 1 else loss * share)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, share: float = 1.0) -> None:
        """Take a step along the mean gradient, and forget it.

        Parameters
        ----------
        share : float
            This process's part of all patches of the step; its statistics weigh as much.
        """
        self._bring_together(share)
        self.scaler.unscale_(self.optimiser)
        gradients = [part.grad for part in self._trained if part.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self._clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained, self._clip_norm, norm)
        # Of a skipped step the norm is not finite; it does not count.
        usable = norm.isfinite()
        self._norms += torch.stack([norm.where(usable, 0.0), usable.to(norm.dtype)])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self._tried += 1

    def figures(self) -> dict[str, Any]:
        """What the epoch's steps were like; waits for the device.

        Returns
        -------
        dict
            ``grad_norm``: mean length of the gradient over all trained weights before clipping, None when no step had
            a finite one. ``skipped_steps``: steps not taken as fp16 had no finite gradient at the loss scale of the
            moment.
        """
        total, count = self._norms.tolist()
        skipped = self._tried - (self._steps_done() - self._done_before) if self.scaler.is_enabled() else 0
        return {"grad_norm": total / count if count else None, "skipped_steps": skipped}

    @property
    def hopeless(self) -> bool:
        """Whether the loss scale has fallen so low that steps will be skipped for ever."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < _LEAST_SCALE

    def _steps_done(self) -> int:
        states = self.optimiser.state.values()
        return max((int(state["step"]) for state in states if "step" in state), default=0)

    def _bring_together(self, share: float) -> None:
        """Gradients become their sum over the processes, statistics their mean by patches."""
        if self._world.size == 1:
            return
        if not self._parameters:
            # A weight that the network does not use has no gradient, and must not get one of zeros: it would decay.
            has = torch.tensor([part.grad is not None for part in self._trained], dtype=torch.int32)
            has = has.to(self._device)
            self._world.add_up(has)
            self._parameters = [part for part, count in zip(self._trained, has.tolist(), strict=True) if count]
        for part in self._parameters:
            if part.grad is None:
                part.grad = torch.zeros_like(part)
        with torch.no_grad():
            for value in self._statistics:
                value.mul_(share)
            gradients = [part.grad for part in self._parameters if part.grad is not None]
            self._world.add_up_together([*gradients, *self._statistics])

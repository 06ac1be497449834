"""One pass over the training patches, and one over those of validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slideloom.training.data import batches_in_order
from slideloom.training.distributed import World
from slideloom.training.ema import RunningMean
from slideloom.training.feed import Feed
from slideloom.training.job import TrainJob
from slideloom.training.judge import Judge
from slideloom.training.optimiser import Stepper, autocast
from slideloom.training.scores import PooledScores
from slideloom.training.terms import Drawn, terms_of, total_loss

__all__ = ["Passes"]

Order = Sequence[NDArray[np.intp]]
#: Tells the draws of InstanSeg's loss from all others of the same seed, epoch and step.
_SEEDS = 0x5EED


class Passes:
    """What a pass needs besides the patches and their order.

    Parameters
    ----------
    job : TrainJob
        Loss, heads, batches.
    model : nn.Module
        The decoder.
    weights : Tensor (k,), optional
        Class weights.
    judge : Judge
        Ends a training that is lost.
    world : World
        The processes that share each batch.
    device : torch.device
        Where all is worked out.
    """

    def __init__(
        self, job: TrainJob, model: nn.Module, weights: Tensor | None, judge: Judge, world: World, device: torch.device
    ) -> None:
        self._job, self._model, self._weights = job, model, weights
        self._judge, self._world, self._device = judge, world, device
        self._names = ("loss", *terms_of(job.heads, job.loss))

    def train(
        self, feed: Feed, order: Order, epoch: int, stepper: Stepper, means: Sequence[RunningMean] = ()
    ) -> dict[str, float]:
        """Learn from some patches.

        Parameters
        ----------
        feed : Feed
            Where they come from.
        order : sequence of (k,) int array
            Patches of each batch, over all processes.
        epoch : int
            Its number.
        stepper : Stepper
            Takes the steps, one every ``training.accumulate`` batches and one for the rest.
        means : sequence of RunningMean
            Take in the weights after each step.

        Returns
        -------
        dict of str to float
            Loss and terms, mean over the patches of all processes.

        Notes
        -----
        A step goes along the mean over its batches, weighted by their patches, also where the last step of an epoch
        has fewer. (Not the gradient of one large batch: Dice and its kind are worked out batch by batch.)
        """
        world = self._world
        self._model.train()
        sums = _Sums(self._names, self._device)
        batches = feed.batches(_shares(order, world), epoch, training=True)
        hot = epoch < self._job.loss.instanseg_hot_start
        step = 0
        for group in _groups(order, self._job.training.accumulate):
            patches = sum(indices.size for indices in group)
            mine = [indices for indices in _shares(group, world) if indices.size]
            for _ in mine:
                batch = next(batches)
                with autocast(self._job.training.precision, self._device):
                    outputs = self._model(batch.tokens, batch.image, batch.size)
                drawn = self._drawn(epoch, step, hot)
                loss, terms = total_loss(outputs, batch.targets, self._job.loss, self._weights, drawn)
                step += 1
                stepper.backward(loss, batch.n / patches)
                # A batch late, so that a GPU need not be waited for.
                self._judge.check_finite(sums.last(), epoch, "training")
                sums.add({"loss": loss.detach(), **terms}, batch.n)
            stepper.step(sum(indices.size for indices in mine) / patches)
            for mean in means:
                mean.update()
        next(batches, None)  # lets the readers end
        self._judge.check_finite(sums.last(), epoch, "training")
        if stepper.hopeless:
            raise self._judge.scale_lost(epoch, stepper.scaler.get_scale())
        return sums.means(world)

    @torch.no_grad()
    def validate(self, feed: Feed, epoch: int) -> dict[str, float | None]:
        """Loss, terms and scores of some patches, over all processes."""
        job, world = self._job, self._world
        self._model.eval()
        sums = _Sums(self._names, self._device)
        scores = PooledScores(job.heads, job.n_classes, self._device)
        order = _shares(batches_in_order(feed.n, job.training.batch_size), world)
        for step, batch in enumerate(feed.batches(order, epoch, training=False)):
            with autocast(job.training.precision, self._device):
                outputs = self._model(batch.tokens, batch.image, batch.size)
            # The same draws in every epoch, and never the hot start's loss: epochs are compared by it.
            loss, terms = total_loss(outputs, batch.targets, job.loss, self._weights, self._drawn(0, step, False))
            self._judge.check_finite(sums.last(), epoch, "validation")
            sums.add({"loss": loss, **terms}, batch.n)
            scores.add(outputs, batch.targets)
        self._judge.check_finite(sums.last(), epoch, "validation")
        world.add_up(*scores.counts)
        return {**sums.means(world), **scores.figures()}

    def _drawn(self, epoch: int, step: int, hot: bool) -> Drawn | None:
        """What InstanSeg's loss needs; None without its head."""
        classifier = getattr(self._model, "pixel_classifier", None)
        if classifier is None:
            return None
        draws = np.random.default_rng([self._job.training.seed, epoch, step, self._world.rank, _SEEDS])
        return Drawn(classifier, draws, hot)


def _shares(order: Order, world: World) -> list[NDArray[np.intp]]:
    """The part of each batch that this process takes, where it has one."""
    return [part for part in map(world.share, order) if part.size]


def _groups(order: Order, count: int) -> Iterator[Order]:
    """Batches of each step."""
    for start in range(0, len(order), count):
        yield order[start : start + count]


class _Sums:
    """Means of the terms over patches, kept on the device."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self._names = names
        self._total = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self._told: Tensor | None = None
        self._ready = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def add(self, values: Mapping[str, Tensor], count: int) -> None:
        last = torch.stack([values[name] for name in self._names]).double()
        self._total[:-1] += last * count
        self._total[-1] += count
        self._told = last.to("cpu", non_blocking=True)
        if self._ready is not None:
            self._ready.record()

    def last(self) -> dict[str, float]:
        """Values of the latest batch; waits until the device has come so far, and no further."""
        if self._told is None:
            return {}
        if self._ready is not None:
            self._ready.synchronize()
        return dict(zip(self._names, self._told.tolist(), strict=True))

    def means(self, world: World) -> dict[str, float]:
        """Over the patches of all processes."""
        world.add_up(self._total)
        *totals, count = self._total.tolist()
        return dict(zip(self._names, (total / max(1.0, count) for total in totals), strict=True))

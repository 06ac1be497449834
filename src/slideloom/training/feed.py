"""All that lies between the patches on disk and the decoder's input: reading, augmentation, live encoding.

Whatever is random follows from the seed, the epoch and the number of the step, so a training that goes on after a kill
sees what it would have seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import count as count_from

import numpy as np
import torch
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.training.annotated import Geometry
from slideloom.training.appearance import has_appearance
from slideloom.training.batch import Batch
from slideloom.training.data import PatchData, prefetched
from slideloom.training.job import TrainJob
from slideloom.training.live import Front
from slideloom.training.symmetry import draw_symmetries

__all__ = ["Feed", "Geometry"]

#: Tells these draws from all others of the same seed, epoch and step.
_AUGMENTATION = 0xA6


class Feed:
    """Batches of patches, ready for the decoder.

    Parameters
    ----------
    data : PatchData
        The patches.
    job : TrainJob
        Augmentation, seed, threads.
    device : torch.device
        Where batches go.
    front : Front, optional
        The encoder of a live training; the slides are fitted to it.

    Attributes
    ----------
    data : PatchData
        The patches.
    n : int
        Their number.
    waited_s : float
        Seconds that the caller waited for patches, live encoding not counted. Set it to 0 to count anew.

    Raises
    ------
    SlideloomError
        ``augmentation_stored``: the look of stored tokens should change. What :meth:`slideloom.training.live.Front.fit`
        refuses.
    """

    def __init__(self, data: PatchData, job: TrainJob, device: torch.device, front: Front | None = None) -> None:
        self.data, self.n = data, data.n
        self.waited_s = 0.0
        self._job, self._device, self._front = job, device, front
        self._moves = job.augmentation.flips > 0 or job.augmentation.turns > 0
        self._clock = _Clock(device)
        if front is not None:
            front.fit(data.slides)
        elif any(has_appearance(job.augmentation, "rgb" if one.patches.is_rgb else "markers") for one in data.slides):
            raise self._impossible("colours, stains and channels cannot be changed in stored tokens")

    @property
    def geometry(self) -> Geometry:
        """What the decoder is fed: of stored and of live tokens alike.

        The encoder's record has the notes of all slides; ``statistics`` is None where slides differ in them.
        """
        found = [slide.geometry for slide in self.data.slides]
        first = found[0]
        records = [part for one in found for part in (one.encoder_record, *one.encoder_record.get("fused", ()))]
        notes = list(dict.fromkeys(note for record in records for note in record["notes"]))
        alike = all(one.statistics == first.statistics for one in found)
        return first._replace(
            encoder_record=first.encoder_record | {"notes": notes}, statistics=first.statistics if alike else None
        )

    @property
    def encoded_s(self) -> float:
        """Seconds of live encoding, forward only. Set it to 0 to count anew.

        On a GPU the time between two marks in its queue, which are read when this is asked for, and not step by step:
        asking waits for the last batch to be encoded.
        """
        return self._clock.seconds()

    @encoded_s.setter
    def encoded_s(self, value: float) -> None:
        self._clock.reset(value)

    def batches(self, order: Iterable[NDArray[np.intp]], epoch: int, *, training: bool) -> Iterator[Batch]:
        """Batches in order, read in the background while the caller works.

        Parameters
        ----------
        order : iterable of (k,) int array
            Patches of each step.
        epoch : int
            Its number.
        training : bool
            Augment; and let gradients reach the encoder while it is trained.

        Returns
        -------
        iterator of Batch
            On the device, with tokens and image.

        Raises
        ------
        SlideloomError
            ``augmentation_stored``: flips or turns of stored tokens, and a slide has none.
        """
        moves = training and self._moves
        if moves and self._front is None:
            lacking = [slide.slide_id for slide in self.data.slides if not slide.has_symmetries]
            if lacking:
                raise self._impossible(f"no tokens of flipped and turned patches are stored of {lacking[0]}")
        return self._batches(order, epoch, training, moves)

    def _batches(self, order: Iterable[NDArray[np.intp]], epoch: int, training: bool, moves: bool) -> Iterator[Batch]:
        def draw(step: int, count: int) -> NDArray[np.uint8]:
            return draw_symmetries(self._job.augmentation, count, self._rng(epoch, step))

        workers = self._job.read_threads
        with closing(prefetched(self.data, order, self._device, workers=workers, draw=draw if moves else None)) as read:
            for step in count_from(0):
                start = time.perf_counter()
                batch = next(read, None)
                self.waited_s += time.perf_counter() - start
                if batch is None:
                    return
                if self._front is not None:
                    batch = self._encoded(self._front, batch, epoch, step, training)
                yield batch

    def _encoded(self, front: Front, batch: Batch, epoch: int, step: int, training: bool) -> Batch:
        augmentation = self._job.augmentation
        with self._clock.running():
            if not training:
                return front.prepare(batch, self.data.slides)
            rng = self._rng(epoch, step)
            draw_symmetries(augmentation, batch.n, rng)  # the reader's; what follows is drawn behind them
            return front.prepare(batch, self.data.slides, augmentation, rng)

    def _rng(self, epoch: int, step: int) -> np.random.Generator:
        return np.random.default_rng([self._job.training.seed, epoch, step, _AUGMENTATION])

    def _impossible(self, what: str) -> SlideloomError:
        return SlideloomError(
            what,
            where=self._job.name,
            expected="flips and turns only, of an encoder that stores its symmetries; or patches encoded in every step",
            hint="Set the encoder's 'symmetries: true' for flips and turns, 'training.input: live' for all else, or "
            "leave the augmentation out",
            code="augmentation_stored",
        )


class _Clock:
    """Seconds spent in a block of work, over many runs of it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record(torch.cuda.current_stream(self._device))
            yield
            end.record(torch.cuda.current_stream(self._device))
            self._marks.append((begin, end))
        else:
            start = time.perf_counter()
            yield
            self._spent += time.perf_counter() - start

    def seconds(self) -> float:
        if self._marks:
            self._marks[-1][1].synchronize()
            self._spent += sum(begin.elapsed_time(end) for begin, end in self._marks) / 1e3
            self._marks.clear()
        return self._spent

    def reset(self, value: float) -> None:
        self._marks.clear()
        self._spent = value

"""Where the time of predicting goes: by the clock on a CPU, by marks in its work on a GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from slideloom.encoders.embedding.account import Account

__all__ = ["MAP_PARTS", "MapsAccount", "Timing", "is_gpu", "new_account"]

#: Parts of the time, with the words that the log uses.
MAP_PARTS: Mapping[str, str] = {
    "read_s": "waiting for tiles",
    "copy_s": "copying and normalising",
    "forward_s": "in the networks' forward",
    "blend_s": "blending and quantising",
    "write_s": "waiting for the disk",
}


def is_gpu(device: torch.device) -> bool:
    """Whether a device works through what it is given by itself, while its feeder goes on."""
    return device.type == "cuda"


@dataclass
class MapsAccount(Account):
    """Tiles predicted, and seconds by what they were spent on.

    Attributes
    ----------
    parts : dict of str to float
        Seconds by the keys of :data:`MAP_PARTS`. On a GPU, of its own time: a wait counts where its work stood still.
    beside : tuple of str
        Parts that a thread of its own spends while the networks compute; they are not part of the whole.
    """

    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MAP_PARTS, 0.0))
    beside: tuple[str, ...] = ()

    def total(self) -> float:
        """Sum of the parts that follow each other."""
        return sum(value for name, value in self.parts.items() if name not in self.beside)

    @property
    def busy_s(self) -> float:
        """Seconds that the device worked."""
        return sum(self.parts[name] for name in ("copy_s", "forward_s", "blend_s"))

    def __str__(self) -> str:
        whole = max(self.seconds, self.total(), 1e-9)
        shares = {name: f"{100 * value / whole:.1f} % {MAP_PARTS[name]}" for name, value in self.parts.items()}
        listed = [share for name, share in shares.items() if name not in self.beside]
        listed.append(f"{100 * (1 - self.total() / whole):.1f} % other")
        listed += [f"{shares[name]} meanwhile" for name in self.beside]
        return f"{self.n_tiles} tiles in {self.seconds:.1f} s ({self.n_tiles / whole:.3g} tiles/s): {', '.join(listed)}"


def new_account(device: torch.device) -> MapsAccount:
    """An empty account: only on a GPU, which works at one thing after the other, blending is part of the whole."""
    return MapsAccount(beside=() if is_gpu(device) else ("blend_s",))


class Timing:
    """Time of one batch, part after part.

    Parameters
    ----------
    device : device
        Where it is computed.
    waited : mapping of str to float
        Seconds, by part, that passed before the networks could have it. A GPU that has work queued does not mind: of
        them, only what fits into the gap between two batches' work is time lost.
    before : Timing, optional
        Of the batch before it.
    """

    def __init__(self, device: torch.device, waited: Mapping[str, float], before: Timing | None = None) -> None:
        self._on_gpu = is_gpu(device)
        self._device = device
        self._seconds = dict(waited)
        self._since = 0.0
        self._marks: list[tuple[str, torch.cuda.Event]] = []
        self._before = before._marks[-1][1] if before is not None and before._marks else None
        self.mark("")

    def mark(self, part: str) -> None:
        """Say that what was done since the last mark belongs to a part; with the empty name, to none."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((part, event))
            return
        now = time.perf_counter()
        if part:
            self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
        self._since = now

    def wait(self) -> None:
        """Until the batch is computed."""
        if self._marks:
            self._marks[-1][1].synchronize()

    def seconds(self) -> dict[str, float]:
        """Seconds by part; waits for the batch."""
        if not self._on_gpu:
            return dict(self._seconds)
        self.wait()
        lost = 1.0
        if self._before is not None:
            gap = self._before.elapsed_time(self._marks[0][1]) / 1e3
            lost = min(1.0, gap / max(sum(self._seconds.values()), 1e-9))
        spent = {part: value * lost for part, value in self._seconds.items()}
        for (_, begun), (part, ended) in pairwise(self._marks):
            if part:
                spent[part] = spent.get(part, 0.0) + begun.elapsed_time(ended) / 1e3
        return spent

"""Where the time of embedding goes, as the accounts and the log say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PARTS", "Account"]

#: Parts of the time, with the words that the log uses.
PARTS: Mapping[str, str] = {
    "build_s": "building the encoder",
    "read_s": "waiting for pixels",
    "preprocess_s": "preprocessing",
    "forward_s": "in the encoder's forward",
    "copy_s": "converting",
    "write_s": "waiting for the disk",
}


@dataclass
class Account:
    """Tiles, and seconds by what they were spent on.

    Attributes
    ----------
    n_tiles, n_padding : int
        Tiles embedded, and rows that only filled up a batch.
    seconds : float
        Of a job: by the clock. Of a slide: the sum of its parts.
    parts : dict of str to float
        Seconds by the keys of :data:`PARTS`: of one worker, where several share the work evenly.
    """

    n_tiles: int = 0
    n_padding: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def add(self, spent: Mapping[str, float], share: float = 1.0) -> None:
        """Add a share of some parts."""
        for name, value in spent.items():
            self.parts[name] += value * share

    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())

    def as_dict(self) -> dict[str, float]:
        """``n_tiles``, ``n_padding``, ``seconds``, the parts, and ``idle_s``: what is left of the seconds."""
        counts = {"n_tiles": float(self.n_tiles), "n_padding": float(self.n_padding), "seconds": self.seconds}
        return counts | self.parts | {"idle_s": max(0.0, self.seconds - self.total())}

    def __str__(self) -> str:
        whole = max(self.seconds, self.total(), 1e-9)
        listed = [f"{100 * self.parts['forward_s'] / whole:.1f} % {PARTS['forward_s']}"]
        listed += [f"{100 * v / whole:.1f} % {PARTS[k]}" for k, v in self.parts.items() if k != "forward_s" and v > 0]
        listed.append(f"{100 * (1 - self.total() / whole):.1f} % other")
        filled = f" and {self.n_padding} to fill up" if self.n_padding else ""
        rate = self.n_tiles / whole
        return f"{self.n_tiles} tiles{filled} in {self.seconds:.1f} s ({rate:.3g} tiles/s): {', '.join(listed)}"

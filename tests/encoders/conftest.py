"""Patches in memory that answer as a patch store does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from slideloom.slides.tables import Channel


@dataclass
class MemoryPatches:
    """As much of a patch store as the encoders ask for."""

    data: NDArray[Any]
    channels: list[Channel]
    slide_id: str = "s1"
    image: str = "sp"
    mpp_um: float | None = 0.5
    path: Path = Path("memory.zarr")
    reads: list[slice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n, _, self.tile_px, _ = self.data.shape
        self.dtype = self.data.dtype
        self.is_rgb = self.image == "he"
        self.row = np.arange(self.n) // 3
        self.col = np.arange(self.n) % 3
        self.tissue = np.ones(self.n, np.float32)

    def pixels(self, indices: Any) -> NDArray[Any]:
        self.reads.append(indices)
        return self.data[indices]

    def valid(self, indices: Any) -> NDArray[np.bool_]:
        return np.ones_like(self.data[indices][:, 0], dtype=np.bool_)


def _channels(*markers: str) -> list[Channel]:
    return [Channel(name=f"{marker} raw", marker=marker, uniprot="", nuclear=False) for marker in markers]


@pytest.fixture(scope="session")
def channels() -> Callable[..., list[Channel]]:
    """Marker channels by marker."""
    return _channels


@pytest.fixture(scope="session")
def rgb_channels() -> list[Channel]:
    """Channels of an RGB image."""
    return [Channel(name=name, marker="", uniprot="", nuclear=False) for name in ("red", "green", "blue")]


@pytest.fixture
def marker_patches() -> Callable[..., MemoryPatches]:
    """Seeded uint16 patches of some markers."""

    def make(markers: tuple[str, ...] = ("DNA", "CD3", "CD8"), n: int = 7, tile_px: int = 24) -> MemoryPatches:
        data = np.random.default_rng(3).integers(0, 4000, (n, len(markers), tile_px, tile_px), dtype=np.uint16)
        return MemoryPatches(data, _channels(*markers))

    return make


@pytest.fixture
def rgb_patches(rgb_channels: list[Channel]) -> Callable[..., MemoryPatches]:
    """Seeded RGB patches."""

    def make(n: int = 5, tile_px: int = 32) -> MemoryPatches:
        data = np.random.default_rng(4).integers(0, 256, (n, 3, tile_px, tile_px), dtype=np.uint8)
        return MemoryPatches(data, rgb_channels, image="he")

    return make

"""Made scenes with known truth: nuclei, false instances among them, and merged ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from slideloom.instances.refine.found import LabelArray
from slideloom.patches.hv import hv_map

MPP = 0.5


@dataclass(frozen=True)
class Scene:
    """Instances that were found, whether each is a nucleus, how many nuclei there are, and the maps."""

    found: LabelArray
    real: NDArray[np.bool_]
    n_true: int
    maps: dict[str, NDArray[np.uint8] | NDArray[np.int8]]


def scene(seed: int, *, side: int = 320, false_rate: float = 0.35) -> Scene:
    """Nuclei, and false instances planted among them: smaller, ragged or of lower probability, no two alike in all."""
    rng = np.random.default_rng([seed, 9])
    labels = np.zeros((side, side), np.int32)
    probability = np.zeros((side, side), np.float32)
    real = [False]
    missed = 0
    cells = [(y, x) for y in range(20, side - 19, 40) for x in range(20, side - 19, 40)]
    for cy, cx in cells:
        y, x = cy + int(rng.integers(-3, 4)), cx + int(rng.integers(-3, 4))
        mask = np.zeros(labels.shape, np.uint8)
        is_real = bool(rng.random() > false_rate)
        if is_real or rng.random() < 0.6:
            axes = tuple(int(value) for value in rng.integers(*((7, 13) if is_real else (5, 11)), 2))
            cv2.ellipse(mask, (x, y), axes, int(rng.integers(0, 180)), 0, 360, 1, -1)
        else:
            for _ in range(4):
                at = (x + int(rng.integers(-5, 6)), y + int(rng.integers(-5, 6)))
                cv2.circle(mask, at, int(rng.integers(5, 9)), 1, -1)
            _, pieces = cv2.connectedComponents(mask, connectivity=4)
            mask = (pieces == (pieces[y, x] or 1)).astype(np.uint8)
        if is_real and rng.random() < 0.1:
            missed += 1
            continue
        labels[mask > 0] = len(real)
        probability[mask > 0] = np.clip(rng.normal(0.86 if is_real else 0.74, 0.08), 0.55, 0.99)
        real.append(is_real)
    probability = cv2.GaussianBlur(probability, (0, 0), 1.2)
    probability += cv2.GaussianBlur(rng.normal(0, 0.3, labels.shape).astype(np.float32), (0, 0), 1.5)
    hv = np.stack([cv2.GaussianBlur(plane, (0, 0), 1) for plane in hv_map(labels)])
    grain = np.stack([cv2.GaussianBlur(rng.normal(0, 1, labels.shape).astype(np.float32), (0, 0), 2) for _ in range(2)])
    found = LabelArray.of(labels)
    order = np.zeros(found.n, bool)
    for label in range(1, len(real)):
        place = np.argwhere(labels == label)[0]
        order[found.labels[tuple(place)] - 1] = real[label]
    maps = {
        "nucleus": np.rint(np.clip(probability, 0, 1) * 255).astype(np.uint8),
        "hv": np.rint(np.clip(hv + 0.5 * grain, -1, 1) * 127).astype(np.int8),
    }
    return Scene(found, order, int(order.sum()) + missed, maps)


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    return scene

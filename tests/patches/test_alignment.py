from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slideloom.patches.alignment import alignment_remarks
from slideloom.slides.tables import Channel


@dataclass
class Field:
    """A field in one tile, as a store of patches shows it."""

    image: np.ndarray
    is_rgb: bool
    channels: list[Channel]
    mpp_um: float = 0.25
    parts: list[tuple[int, int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = self.parts or [(0, 0, *self.image.shape[-2:])]

    def __getattr__(self, name: str) -> Any:
        if name in (columns := ("y_px", "x_px", "height_valid", "width_valid")):
            return np.array([part[columns.index(name)] for part in self.parts])
        raise AttributeError(name)

    def pixels(self, tiles: list[int]) -> np.ndarray:
        (tile,) = tiles
        y, x, height, width = self.parts[tile]
        padding = [(0, 0), (0, 20), (0, 11)]
        return np.pad(self.image[:, y : y + height, x : x + width], padding, constant_values=77)[np.newaxis]


def he(pixels: np.ndarray) -> Field:
    return Field(np.moveaxis(pixels, -1, 0), True, [Channel(name, "") for name in "rgb"])


def stained(pixels: np.ndarray, nuclear: bool = True) -> Field:
    return Field(pixels[np.newaxis], False, [Channel("DAPI", "DNA", nuclear=nuclear)])


def real_fields(shared: Path) -> list[tuple[Field, np.ndarray]]:
    """Annotated fields with twenty nuclei at least: H&E, purple stain and fluorescence."""
    found = []
    for place in sorted((shared / "data" / "nucls_he_15").glob("*_image.png")):
        labels = np.asarray(Image.open(str(place).replace("_image", "_labels")))
        found.append((he(np.asarray(Image.open(place))), labels.astype(np.int32)))
    for place in sorted((shared / "data").rglob("dsb2018_*.npz")):
        with np.load(place) as stack:
            images, labels = stack["images"][:8], stack["labels"][:8].astype(np.int32)
        make = he if images.shape[-1] == 3 else stained
        found += [(make(image), drawn) for image, drawn in zip(images, labels, strict=True)]
    return [(image, drawn) for image, drawn in found if np.unique(drawn).size > 20]


def test_real_annotations_fit_and_shifted_or_foreign_ones_do_not(shared: Path) -> None:
    fields = real_fields(shared)
    assert len(fields) > 40
    silent = [alignment_remarks(drawn, image) for image, drawn in fields]
    assert silent == [()] * len(fields)
    right = foreign = 0
    for place, (image, drawn) in enumerate(fields):
        told = "".join(alignment_remarks(np.roll(drawn, (-5, 7), (0, 1)), image))
        right += "further down" in told and "further left" in told
        other = fields[place - 1][1]
        # What another field of this size has drawn, or else this one turned by half.
        other = other if other.shape == drawn.shape else drawn[::-1, ::-1]
        foreign += "does not follow" in "".join(alignment_remarks(np.ascontiguousarray(other), image))
    assert right >= 0.95 * len(fields)
    assert foreign >= 0.95 * len(fields)


def discs(seed: int = 0, side: int = 200, n: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    drawn = np.zeros((side, side), np.int32)
    for number, (cy, cx) in enumerate(rng.uniform(10, side - 10, (n, 2)), 1):
        drawn[(y - cy) ** 2 + (x - cx) ** 2 < 36] = number
    return drawn


@pytest.mark.parametrize(("down", "right"), [(3, 0), (0, -3), (-9, 4), (12, 12)])
def test_the_shift_is_told_in_pixels_and_micrometres(down: int, right: int) -> None:
    image = stained(np.where(np.roll(discs(), (down, right), (0, 1)) > 0, 900, 100).astype(np.uint16))
    (told,) = alignment_remarks(discs(), image)
    for step, words in ((down, ("up", "down")), (right, ("left", "right"))):
        phrase = f"{abs(step)} px ({abs(step) * 0.25:.2g} µm) further {words[step > 0]}"
        assert (phrase in told) == (step != 0), told


def test_tiles_add_up_and_padding_plays_no_part() -> None:
    drawn = discs()
    image = np.where(np.roll(drawn, 4, 0) > 0, 900, 100).astype(np.uint16)
    tiled = stained(image)
    tiled.parts = [(y, x, 60, 70) for y in (0, 60, 120) for x in (0, 70, 130)] + [(190, 0, 10, 70)]
    (told,) = alignment_remarks(drawn, tiled)
    assert "4 px (1 µm) further down than" in told


def test_where_too_little_is_known_nothing_is_told() -> None:
    drawn, foreign = discs(), discs(1)
    image = np.where(drawn > 0, 900, 100).astype(np.uint16)
    assert alignment_remarks(foreign, stained(image)), "this much is enough"
    few = np.where(foreign < 15, foreign, 0)
    assert alignment_remarks(few, stained(image)) == ()
    assert alignment_remarks(foreign, stained(image, nuclear=False)) == ()
    assert alignment_remarks(foreign, stained(np.zeros_like(image))) == ()
    assert alignment_remarks(foreign * 0, stained(image)) == ()
    assert alignment_remarks(foreign, stained(np.full(image.shape, np.nan, np.float32))) == ()

"""Small slides on disk for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slideloom.config.model import GridConfig, TissueConfig
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts
from slideloom.slides.headers import read_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, MarkerTable
from slideloom.slides.tissue import write_tissue

NAMES = ("DAPI", "CD3", "CD8", "CK")


@dataclass(frozen=True)
class Slide:
    """A slide on disk, and how to cut it."""

    row: SlideRow
    root: Path
    facts: SlideFacts
    tissue: Path
    place: Path

    def cut(self, **grid: object) -> PatchStore:
        cut_patches(self.row, self.root, self.facts, self.tissue, GridConfig.model_validate(grid), self.place)
        return PatchStore(self.place)


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Slide]:
    """Write ``sp`` (c, h, w) and/or ``he`` (h, w, 3), and everything that cutting needs; all of it counts as tissue."""
    count = 0

    def make(
        sp: np.ndarray | None = None,
        he: np.ndarray | None = None,
        instances: np.ndarray | None = None,
        names: tuple[str, ...] = NAMES,
        mpp_um: float = 0.5,
        **columns: object,
    ) -> Slide:
        nonlocal count
        count += 1
        root = tmp_path / f"slide{count}"
        root.mkdir()
        values: dict[str, object] = dict(columns)
        if sp is not None:
            np.save(root / "sp.npy", sp)
            values |= {"sp": "sp.npy", "sp_mpp_um": mpp_um, "sp_channels": names[: len(sp)]}
        if he is not None:
            Image.fromarray(he).save(root / "he.png")
            values |= {"he": "he.png", "he_mpp_um": mpp_um}
        if instances is not None:
            np.save(root / "instances.npy", instances)
            values |= {"instances": "instances.npy"}
        row = SlideRow(**{"slide_id": f"slide{count}", **values})
        markers = MarkerTable(tuple(Channel(name, f"m_{name}", "", name == "DAPI") for name in names))
        facts = read_facts(row, root, markers)
        write_tissue(facts, row, root, TissueConfig(method="all"), root / "tissue.geojson", root / "thumbnail.png")
        return Slide(row, root, facts, root / "tissue.geojson", root / "patches.zarr")

    return make

"""Time the tokens of two encoders against those of the first alone, from stores on disk.

Run ``python benchmarks/bench_fused.py`` from the repository; it prints the processor time that it measured on this
machine, in one run.

The first encoder is a ViT-256 on H&E (256 px at 0.25 µm, tokens of 16 px, 384 wide), the further one a VirTues on SP
(120 px at 0.5 µm, tokens of 8 px, 512 wide), four blocks each, on a slide of about a square millimetre. Both kinds of
token are 4 µm wide, so the lattices agree; at 0.2527 µm they do not, and every token is a blend of four to nine.
Tiles are read in order, as inference does, and at random, as training does, in batches of 16. Files are in the page
cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.artefacts.stage import SCHEMA_VERSION
from slideloom.artefacts.zarrio import create_array, create_group, write_array
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.fused import TokenReader, open_tokens
from slideloom.patches.store import PatchStore
from slideloom.slides.grid import TileGrid

BLOCKS = (3, 6, 9, 12)
BATCH = 16


def write_stores(place: Path, side_um: float, tile_px: int, mpp_um: float, patch_px: int, width: int) -> None:
    """Patches (no more than their places) and embeddings of a slide."""
    size = round(side_um / mpp_um)
    grid = TileGrid.make(size, size, tile_px, tile_px)
    shared = {"slide_id": "a", "image": "he", "tile_px": tile_px, "n_tiles": grid.n}
    about: dict[str, Any] = shared | {"is_rgb": True, "channels": [], "scale": 1.0, "mpp_um": mpp_um}
    about |= {"height_px": size, "width_px": size, "stride_px": tile_px, "n_rows": grid.n_rows, "n_cols": grid.n_cols}
    create_group(place / "patches.zarr", about)
    create_array(place / "patches.zarr/pixels", (grid.n, 3, tile_px, tile_px), np.uint8)
    for name, column in {"row": grid.rows, "col": grid.cols, "y_px": grid.y_px, "x_px": grid.x_px}.items():
        write_array(place / "patches.zarr" / name, column)
    tokens: dict[str, Any] = shared | {"schema": SCHEMA_VERSION, "kind": "embeddings", "blocks": list(BLOCKS)}
    tokens |= {"width": width, "patch_px": patch_px, "markers": [], "weights": "none", "statistics": None}
    tokens |= {"final_norm": False}
    tokens |= {name: [] for name in ("encoder", "spec", "notes", "dropped", "precision")}
    create_group(place / "embeddings.zarr", tokens)
    side = tile_px // patch_px
    drawn = np.random.default_rng(0).normal(size=(grid.n, side, side, width)).astype(np.float16)
    for block in BLOCKS:
        write_array(place / f"embeddings.zarr/block_{block}", drawn)


def seconds_per_tile(reader: TokenReader, order: NDArray[np.intp]) -> float:
    """Processor time of reading every block of the tiles."""
    start = time.process_time()
    for first in range(0, order.size, BATCH):
        for block in reader.blocks:
            reader.tokens(block, order[first : first + BATCH])
    return (time.process_time() - start) / order.size


def measure(folder: Path, mpp_um: float, what: str, side_um: float, rounds: int) -> None:
    """Print what reading costs, alone and together."""
    he, sp = folder / "he", folder / "sp"
    write_stores(he, side_um, 256, mpp_um, 16, 384)
    write_stores(sp, side_um, 120, 0.5, 8, 512)
    patches, first, other = PatchStore(he / "patches.zarr"), he / "embeddings.zarr", sp / "embeddings.zarr"
    for name, order in (
        ("in order", np.arange(patches.n)),
        ("at random", np.random.default_rng(1).permutation(patches.n)),
    ):
        seconds = np.inf + np.zeros(3)
        for _ in range(rounds):
            fused = open_tokens(first, patches, ((sp / "patches.zarr", other),))
            readers: list[TokenReader] = [EmbeddingStore(first), EmbeddingStore(other), fused]
            seconds = np.minimum(seconds, [seconds_per_tile(reader, order) for reader in readers])
        told = "first alone {:.2f}, further as stored {:.2f}, both fused {:.2f} ms a tile".format(*seconds * 1e3)
        print(f"{what}, {name}: {told}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=float, default=1000.0, help="of the slide, µm")
    parser.add_argument("--rounds", type=int, default=3, help="runs; the shortest counts")
    arguments = parser.parse_args()
    for mpp_um, what in ((0.25, "equal lattices"), (0.2527, "blended lattices")):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), mpp_um, what, arguments.side, arguments.rounds)


if __name__ == "__main__":
    main()

"""The patch store: the pixels of every tile of a slide, in sharded Zarr.

A slide is read in bands of whole tile rows, each pixel once where the memory budget allows; shards are written whole,
while the next band is read.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import tensorstore as ts
from numpy.typing import NDArray

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import (
    Codec,
    create_array,
    create_group,
    write_array,
)
from slideloom.config.model import GridConfig
from slideloom.errors import SlideError
from slideloom.patches.bands import read_bands
from slideloom.patches.store import PATCH_SCHEMA, rows_per_shard
from slideloom.patches.watch import ChannelWatch
from slideloom.slides.facts import ImageFacts, SlideFacts, image_source
from slideloom.slides.grid import TileGrid, grid_scale, grid_size
from slideloom.slides.image import SlideImage
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tissue import read_tissue, tissue_fraction, tissue_on_grid

__all__ = ["cut_patches"]

_LOG = logging.getLogger(__name__)
_WHITE = 255


def cut_patches(row: SlideRow, root: Path, facts: SlideFacts, tissue_path: Path, grid: GridConfig, place: Path) -> None:
    """Cut a slide into the tiles of a grid.

    Tiles at the lower and right border are padded (H&E white, SP 0) and say how much of them lies on the slide; none is
    dropped unless its share of tissue is below ``grid.min_tissue``, and those are counted in ``n_dropped``.

    Parameters
    ----------
    row : SlideRow
        The slide's row of the sheet.
    root : Path
        Folder that the sheet's paths start from.
    facts : SlideFacts
        The slide.
    tissue_path : Path
        Its ``tissue.geojson``.
    grid : GridConfig
        Image, tile side, stride, resolution, least share of tissue.
    place : Path
        Zarr group to write: ``pixels`` (n, c, p, p) in the source's dtype; ``row``, ``col``, ``y_px``, ``x_px`` (grid
        pixels), ``height_valid``, ``width_valid`` (n) int32; ``y_lv0_px``, ``x_lv0_px`` (n) float64; ``tissue`` (n)
        float32; ``outline`` (bytes) uint8, the tissue in grid pixels as well-known binary.

    Raises
    ------
    SlideError
        ``no_image``; ``no_tissue``: no tile has enough; ``non_finite_pixels``: a tile holds NaN or infinity, which
        would spoil the statistics of every slide; whatever keeps the image from being read.
    """
    start = time.perf_counter()
    image = facts.image(grid.image)
    scale = grid_scale(image.mpp_um, grid.mpp_um)
    finer: tuple[str, ...] = ()
    if scale < 1:
        finer = (
            f"the grid asks for {grid.mpp_um:.4g} µm a pixel, finer than the image's {image.mpp_um:.4g} µm: pixels are "
            "interpolated",
        )
    tiles = TileGrid.make(*grid_size(*image.shape, scale), grid.tile_px, grid.step_px)
    polygons = read_tissue(tissue_path)
    share = tissue_fraction(polygons, facts, grid.image, tiles, scale)
    keep = np.flatnonzero(share >= grid.min_tissue) if grid.min_tissue > 0 else np.arange(tiles.n)
    if not keep.size:
        raise SlideError(
            f"none of {tiles.n} tiles is {grid.min_tissue:.0%} tissue",
            where=facts.slide_id,
            hint="Lower the grid's min_tissue, or look at the tissue outline",
            code="no_tissue",
        )
    with publish(place) as draft:
        draft.mkdir(parents=True)
        _write_places(draft, tiles, scale, share, keep)
        outline = tissue_on_grid(polygons, facts, grid.image, scale)
        write_array(draft / "outline", np.frombuffer(shapely.to_wkb(outline), np.uint8))
        codec: Codec = "none" if image.is_rgb or np.dtype(image.dtype).kind == "f" else "counts"
        shape = (keep.size, image.n_channels, grid.tile_px, grid.tile_px)
        pixels = create_array(
            draft / "pixels", shape, image.dtype, codec=codec, dimension_names=("tile", "c", "y", "x")
        )
        where = f"{facts.slide_id}, {grid.image} image {image.source}"
        watch = ChannelWatch(image.channels, np.dtype(image.dtype), where, tiles, share, outline)
        with open_image(image_source(row, grid.image, root), grid.image) as opened:
            _copy(opened, image, tiles, scale, keep, pixels, watch)
        warnings = finer if image.is_rgb else (*finer, *watch.warnings())
        for warning in warnings:
            _LOG.warning("%s: %s", facts.slide_id, warning)
        create_group(draft, _attributes(facts, image, grid, tiles, scale, keep) | {"warnings": list(warnings)})
    took = time.perf_counter() - start
    _LOG.info(
        "%s: %d tiles of %d px (%d left out) in %.1f s: %.0f tiles/s, %.1f MB/s",
        facts.slide_id,
        keep.size,
        grid.tile_px,
        tiles.n - keep.size,
        took,
        keep.size / took,
        np.prod(shape) * np.dtype(image.dtype).itemsize / took / 1e6,
    )


def _attributes(
    facts: SlideFacts,
    image: ImageFacts,
    grid: GridConfig,
    tiles: TileGrid,
    scale: float,
    keep: NDArray[np.intp],
) -> dict[str, Any]:
    return {
        "schema": PATCH_SCHEMA,
        "slideloom_version": __version__,
        "slide_id": facts.slide_id,
        "image": grid.image,
        "source": image.source,
        "source_digest": image.digest,
        "reader": image.reader,
        "is_rgb": image.is_rgb,
        "channels": [channel.as_dict() for channel in image.channels],
        "scale": scale,
        "mpp_um": image.mpp_um * scale,
        "image_mpp_um": image.mpp_um,
        "height_px": tiles.height_px,
        "width_px": tiles.width_px,
        "height_lv0_px": image.height_px,
        "width_lv0_px": image.width_px,
        "tile_px": tiles.tile_px,
        "stride_px": tiles.stride_px,
        "n_rows": tiles.n_rows,
        "n_cols": tiles.n_cols,
        "n_dropped": int(tiles.n - keep.size),
        "min_tissue": grid.min_tissue,
        "padding": _WHITE if image.is_rgb else 0,
        "units": {
            "pixels": "as in the source",
            "y_px": "grid px",
            "x_px": "grid px",
            "y_lv0_px": "level-0 px",
            "x_lv0_px": "level-0 px",
            "tissue": "share of the tile's part on the slide",
            "outline": "x y in grid px, WKB",
            "height_valid": "grid px",
            "width_valid": "grid px",
        },
    }


def _write_places(
    draft: Path, tiles: TileGrid, scale: float, share: NDArray[np.float32], keep: NDArray[np.intp]
) -> None:
    columns: dict[str, NDArray[Any]] = {
        "row": tiles.rows,
        "col": tiles.cols,
        "y_px": tiles.y_px,
        "x_px": tiles.x_px,
        "y_lv0_px": tiles.y_px.astype(np.float64) * scale,
        "x_lv0_px": tiles.x_px.astype(np.float64) * scale,
        "tissue": share,
        "height_valid": tiles.height_valid,
        "width_valid": tiles.width_valid,
    }
    for name, column in columns.items():
        write_array(draft / name, column[keep])


def _copy(
    opened: SlideImage,
    image: ImageFacts,
    tiles: TileGrid,
    scale: float,
    keep: NDArray[np.intp],
    pixels: ts.TensorStore,
    watch: ChannelWatch,
) -> None:
    """Fill whole shards in the order of the tiles and write each while the next is being filled."""
    per_shard = rows_per_shard(pixels)
    fill = _WHITE if image.is_rgb else 0
    written: Any = None
    shard = np.empty((0, *pixels.shape[1:]), image.dtype)
    filled = first = seen = 0
    for patches in read_bands(opened, image, tiles, scale, keep, fill):
        if not image.is_rgb:
            watch.add(patches, keep[seen : seen + len(patches)])
        seen += len(patches)
        taken = 0
        while taken < len(patches):
            if filled == 0:
                shard = np.empty((min(per_shard, pixels.shape[0] - first), *pixels.shape[1:]), image.dtype)
            step = min(len(shard) - filled, len(patches) - taken)
            shard[filled : filled + step] = patches[taken : taken + step]
            filled, taken = filled + step, taken + step
            if filled == len(shard):
                if written is not None:
                    written.result()
                written = pixels[first : first + filled].write(shard)
                first, filled = first + filled, 0
    if written is not None:
        written.result()

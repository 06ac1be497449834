"""Tissue outlines: found on an overview, kept as GeoJSON that a person may edit in QuPath, measured tile by tile.

The mask is made at ``tissue.mpp_um``, or finer where a field is so small that fewer than 256 px would be left of its
shorter side, or coarser where an image is so large that more than 32 million pixels would be; it is smoothed to
``tissue.mpp_um`` either way, so that tissue is told from glass, not nuclei from stroma.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slideloom._version import __version__
from slideloom.artefacts.files import publish, write_json, write_text
from slideloom.artefacts.keys import digest_file
from slideloom.config.model import Modality, TissueConfig
from slideloom.errors import SlideError
from slideloom.slides.facts import ImageFacts, SlideFacts, image_source
from slideloom.slides.grid import TileGrid, grid_size
from slideloom.slides.image import SlideImage
from slideloom.slides.open import open_image
from slideloom.slides.outlines import area_in_cells, feature_collection, mask_to_polygons, read_tissue
from slideloom.slides.region import read_region
from slideloom.slides.sheet import SlideRow

if TYPE_CHECKING:
    import shapely

__all__ = ["finest_scale", "read_tissue", "tissue_fraction", "tissue_on_grid", "write_tissue"]

_LOG = logging.getLogger(__name__)
_SMALLEST_SIDE_PX = 256
#: Of the mask: a whole slide of 75 x 26 mm at 8 µm has less. Larger images are looked at more coarsely.
_MOST_PX = 32 << 20
_THUMBNAIL_PX = 1024
_READ_BYTES = 256 << 20
_OPEN_UM, _CLOSE_UM = 8.0, 24.0
#: Of a small field, no piece larger than this share is dropped or filled.
_SMALL_SHARE = 0.05
#: H&E: darker pixels (scan edges, folds of the cover slip) are neither; their saturation is noise.
_DARK = 30.0
#: H&E: tissue is at least this many times as saturated as glass (11 real images with glass: 4 to 140, 70 without: up to
#: 2.5) ...
_SATURATION_RATIO = 3.0
#: ... and paler than this is glass.
_PALEST_TISSUE = 0.02
#: SP: how much rarer the signal at the threshold is than at the lower of the two peaks beside it (3 images with glass:
#: 0.80 to 0.90; 22 without: up to 0.36).
_VALLEY = 0.6
#: A signal that differs by less is one value, give or take rounding.
_FLAT = 1e-6
_VALLEY_BINS = 48


@dataclass(frozen=True)
class _Overview:
    """A low-resolution look at a slide.

    ``picture`` (h, w, 3) uint8 for people; ``signal`` (h, w) float32 for the threshold; ``seen`` (h, w) where it
    counts.
    """

    picture: NDArray[np.uint8]
    signal: NDArray[np.float32]
    seen: NDArray[np.bool_]
    scale: float


def write_tissue(
    facts: SlideFacts, row: SlideRow, root: Path, config: TissueConfig, place: Path, thumbnail: Path
) -> None:
    """Outline the tissue and draw an overview.

    An outline that a person has edited, one that differs from what Slideloom itself wrote last, is kept;
    ``tissue.made`` beside it holds the digest of the latter.

    Parameters
    ----------
    facts : SlideFacts
        The slide.
    row : SlideRow
        The slide's row of the sheet.
    root : Path
        Folder that the sheet's paths start from.
    config : TissueConfig
        How tissue is found. ``otsu`` splits H&E by saturation, SP by the mean of log(1 + x) over the channels. Where
        the two sides are not clearly apart (H&E: one at least three times as saturated as the other; SP: the histogram
        at the threshold at least 60 % below both peaks), the whole slide counts as tissue, and a warning stands in the
        outline's metadata.
    place : Path
        Where ``tissue.geojson`` belongs: polygons (x, y) in level-0 pixels of the reference image.
    thumbnail : Path
        Where the overview belongs, PNG.

    Raises
    ------
    SlideError
        ``no_tissue``; ``bad_tissue``: an edited outline cannot be read; whatever keeps the image from being read.
    """
    image = facts.images[facts.reference]
    scale, *finer = _scales(image, config)
    overview = _look(facts, row, root, scale, config.mpp_um)
    made = place.with_suffix(".made")
    edited = place.is_file() and not (made.is_file() and made.read_text(encoding="utf-8").strip() == digest_file(place))
    if edited:
        _LOG.info("%s: %s was edited by a person and is kept", facts.slide_id, place.name)
        polygons = read_tissue(place)
        if not polygons:
            what = "the edited outline holds no tissue"
            raise SlideError(what, where=facts.slide_id, hint=f"Draw some, or delete {place.name}", code="no_tissue")
    else:
        polygons, warning = _find(facts, overview, config)
        if warning:
            # Usual for small fields, and recorded in the outline: no cry for help.
            _LOG.info("%s: %s", facts.slide_id, warning)
        _publish(facts, polygons, warning, config, place, made)
    if finer:
        overview = _look(facts, row, root, finer[0], 0)
    _draw(overview, polygons, image.is_rgb, thumbnail)


def finest_scale(image: ImageFacts, config: TissueConfig) -> float:
    """Level-0 pixels per pixel of the finest look that :func:`write_tissue` takes at an image."""
    return min(scale / (1 if image.is_rgb else _finer(scale)) for scale in _scales(image, config))


def _scales(image: ImageFacts, config: TissueConfig) -> list[float]:
    """Level-0 pixels per pixel of the mask, and of the picture where that is finer."""
    scale = max(1.0, min(config.mpp_um / image.mpp_um, min(image.shape) / _SMALLEST_SIDE_PX))
    scale = max(scale, math.sqrt(image.height_px * image.width_px / _MOST_PX))
    picture = max(1.0, max(image.shape) / _THUMBNAIL_PX)
    return [scale, picture] if picture < scale else [scale]


def _finer(scale: float) -> int:
    """How much finer counts are read, to be averaged as floats: the source's integers would round sparse ones away."""
    return max(1, min(4, int(scale)))


def _publish(
    facts: SlideFacts,
    polygons: Sequence[shapely.Polygon],
    warning: str,
    config: TissueConfig,
    place: Path,
    made: Path,
) -> None:
    note = {"slideloom": __version__, "slide_id": facts.slide_id, "image": facts.reference, "unit": "level-0 px, x y"}
    note |= {"method": config.method} | ({"warning": warning} if warning else {})
    body = feature_collection(polygons, note, uuid.uuid5(uuid.NAMESPACE_OID, facts.slide_id))
    # With the old outline gone first, no interruption leaves one that looks as if a person had edited it.
    place.unlink(missing_ok=True)
    with publish(place) as draft:
        write_json(draft, body)
        write_text(made, digest_file(draft) + "\n")


def _find(facts: SlideFacts, overview: _Overview, config: TissueConfig) -> tuple[list[shapely.Polygon], str]:
    image = facts.images[facts.reference]
    everything = np.ones(overview.signal.shape, bool)
    if config.method == "all":
        return mask_to_polygons(everything, overview.scale, image.shape), ""
    mask, warning = _threshold(overview, image.is_rgb)
    if mask is not None and not warning:
        mask = _clean(mask, overview.scale * image.mpp_um, config)
    if mask is None or not mask.any():
        signal = overview.signal[overview.seen]
        flat = bool(signal.size) and float(np.ptp(signal)) < _FLAT
        why = ": no part has more colour than the rest" if image.is_rgb else ": the whole image looks the same"
        raise SlideError(
            "no tissue was found" + (why if flat else ""),
            where=f"{facts.slide_id}, {facts.reference} image {image.source}",
            hint="Look at the image; if there is tissue, outline it in QuPath, or set tissue.method to all",
            code="no_tissue",
        )
    return mask_to_polygons(mask, overview.scale, image.shape), warning


def _threshold(overview: _Overview, is_rgb: bool) -> tuple[NDArray[np.bool_] | None, str]:
    """Tissue mask, None when there is none, and a warning when it is the whole slide for want of a threshold."""
    values = overview.signal[overview.seen]
    if not values.size or float(np.ptp(values)) < _FLAT:
        return None, ""
    cut, low, high = _otsu(values)
    if is_rgb:
        if high < _PALEST_TISSUE:
            return None, ""
        apart = high >= _SATURATION_RATIO * low
        measure = f"the more saturated part is only {high / max(low, 1e-6):.1f} times as saturated as the rest"
    else:
        depth = _valley(values, cut)
        apart = depth >= _VALLEY
        measure = f"the signal's histogram falls by only {depth:.0%} between them"
    if apart:
        return overview.seen & (overview.signal > cut), ""
    if is_rgb and (low + high) / 2 < _PALEST_TISSUE:
        return None, ""
    return overview.seen.copy(), f"tissue and background cannot be told apart ({measure}): all of it counts as tissue"


def _otsu(values: NDArray[np.float32]) -> tuple[float, float, float]:
    """Otsu's threshold, and the means below and above it."""
    counts, edges = np.histogram(values.astype(np.float64), bins=256)
    centre = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    partial = np.cumsum(counts * centre)
    total = partial[-1]
    mean_below = partial[:-1] / np.maximum(below, 1)
    mean_above = (total - partial[:-1]) / np.maximum(above, 1)
    best = int(np.argmax(below * above.astype(np.float64) * (mean_below - mean_above) ** 2))
    return float(edges[best + 1]), float(mean_below[best]), float(mean_above[best])


def _valley(values: NDArray[np.float32], cut: float) -> float:
    """Depth of the histogram's valley at a threshold: 0 when there is none, 1 when nothing lies there."""
    counts, edges = np.histogram(values, bins=_VALLEY_BINS)
    smooth = np.convolve(counts, (0.25, 0.5, 0.25), "same")
    at = int(np.clip(np.searchsorted(edges, cut) - 1, 0, _VALLEY_BINS - 1))
    lower_peak = min(float(smooth[: at + 1].max()), float(smooth[at:].max()))
    return 1 - float(smooth[at]) / lower_peak if lower_peak else 1.0


def _clean(mask: NDArray[np.bool_], mpp_um: float, config: TissueConfig) -> NDArray[np.bool_]:
    import cv2

    result = mask.astype(np.uint8)
    limit_px = min(mask.shape) // 20
    for operation, radius_um in ((cv2.MORPH_OPEN, _OPEN_UM), (cv2.MORPH_CLOSE, _CLOSE_UM)):
        radius = min(round(radius_um / mpp_um), limit_px)
        if radius > 0:
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
            # With room around it, closing does not run tissue into a border that it comes close to.
            room = 2 * radius if operation == cv2.MORPH_CLOSE else 0
            wide = cv2.morphologyEx(np.pad(result, room), operation, disc)
            result = np.ascontiguousarray(np.asarray(wide, np.uint8)[room:, room:][: mask.shape[0], : mask.shape[1]])
    largest = _SMALL_SHARE * mask.size
    holes = _pieces(1 - result, min(config.min_hole_um2 / mpp_um**2, largest), connectivity=4)
    result[holes] = 1
    result[_pieces(result, min(config.min_area_um2 / mpp_um**2, largest), connectivity=8)] = 0
    return result.astype(bool)


def _pieces(mask: NDArray[np.uint8], smaller_than_px: float, connectivity: int) -> NDArray[np.bool_]:
    """Pixels of the connected pieces that are too small."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    small = np.asarray(stats)[:, cv2.CC_STAT_AREA] < smaller_than_px
    small[0] = False
    chosen: NDArray[np.bool_] = small[np.asarray(labels)]
    return chosen


def _look(facts: SlideFacts, row: SlideRow, root: Path, scale: float, smooth_um: float) -> _Overview:
    image = facts.images[facts.reference]
    sigma_px = smooth_um / (scale * image.mpp_um)
    with open_image(image_source(row, facts.reference, root), facts.reference) as opened:
        if image.is_rgb:
            return _look_rgb(opened, image, scale, sigma_px)
        return _look_channels(opened, image, scale, sigma_px)


def _look_rgb(opened: SlideImage, image: ImageFacts, scale: float, sigma_px: float) -> _Overview:
    import cv2

    height, width = grid_size(*image.shape, scale)
    picture = np.empty((height, width, 3), np.uint8)
    band = max(1, _READ_BYTES // (width * 3 * max(1, round(scale)) ** 2))
    for y in range(0, height, band):
        rows = min(band, height - y)
        picture[y : y + rows] = read_region(opened, y, 0, rows, width, scale, 255).transpose(1, 2, 0)
    seen = _brightest(picture) >= _DARK
    if not sigma_px:
        return _Overview(picture, np.zeros(seen.shape, np.float32), seen, scale)
    smooth = np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), sigma_px))
    top, bottom = _brightest(smooth), -_brightest(-smooth)
    seen &= top >= _DARK
    saturation = np.where(seen, (top - bottom) / np.maximum(top, 1), 0).astype(np.float32)
    return _Overview(picture, saturation, seen, scale)


def _brightest(picture: NDArray[Any]) -> NDArray[Any]:
    """Largest of the three colours; several times faster than a reduction over so short an axis."""
    largest: NDArray[Any] = np.maximum(np.maximum(picture[:, :, 0], picture[:, :, 1]), picture[:, :, 2])
    return largest


def _look_channels(opened: SlideImage, image: ImageFacts, scale: float, sigma_px: float) -> _Overview:
    import cv2

    height, width = grid_size(*image.shape, scale)
    finer = _finer(scale)
    signal = np.zeros((2, height, width), np.float32)
    nuclear = np.array([channel.nuclear for channel in image.channels])
    if not nuclear.any():
        nuclear[:] = True
    one_row = width * finer**2 * image.n_channels * (4 + np.dtype(image.dtype).itemsize)
    band = max(1, _READ_BYTES // one_row)
    for y in range(0, height, band):
        rows = min(band, height - y)
        counts = read_region(opened, y * finer, 0, rows * finer, width * finer, scale / finer, 0)
        blocks = counts.reshape(image.n_channels, rows, finer, width, finer)
        # What is no number says nothing of tissue; the slide fails where its tiles are cut, if they hold such pixels.
        mean = np.nan_to_num(blocks.mean(axis=(2, 4), dtype=np.float32), posinf=0, neginf=0)
        mean = np.log1p(np.maximum(mean, 0))
        signal[0, y : y + rows] = mean[nuclear].mean(axis=0)
        signal[1, y : y + rows] = mean.mean(axis=0)
    blue, grey = (_stretch(plane) for plane in signal)
    picture = np.stack([grey // 2 + grey // 4, grey // 2 + grey // 4, np.maximum(blue, grey // 2)], axis=2)
    smooth = cv2.GaussianBlur(signal[1], (0, 0), sigma_px) if sigma_px else signal[1]
    return _Overview(picture, np.asarray(smooth, np.float32), np.ones((height, width), bool), scale)


def _stretch(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.quantile(plane, (0.01, 0.995))
    stretched: NDArray[np.uint8] = np.clip((plane - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    return stretched


def _draw(overview: _Overview, polygons: Sequence[shapely.Polygon], is_rgb: bool, place: Path) -> None:
    import cv2

    picture = overview.picture
    height, width = picture.shape[:2]
    shrink = min(1.0, _THUMBNAIL_PX / max(height, width))
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    picture = np.ascontiguousarray(picture[:, :, ::-1])
    factor = shrink / overview.scale
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
    outlines = [np.rint(np.asarray(ring.coords) * factor - 0.5).astype(np.int32) for ring in rings]
    cv2.polylines(picture, outlines, True, (40, 140, 0) if is_rgb else (0, 220, 255), 2, cv2.LINE_AA)
    ok, raw = cv2.imencode(".png", picture)
    if not ok:
        raise SlideError("the overview cannot be encoded as PNG", where=place.name, code="internal")
    with publish(place) as draft:
        draft.write_bytes(np.asarray(raw).tobytes())


def tissue_on_grid(
    polygons: Sequence[shapely.Polygon], facts: SlideFacts, modality: Modality, scale: float
) -> shapely.Geometry:
    """Tissue as one geometry, (x, y) in grid pixels; the parameters are those of :func:`tissue_fraction`."""
    import shapely

    factor = facts.images[facts.reference].mpp_um / facts.image(modality).mpp_um / scale
    return shapely.transform(shapely.union_all(list(polygons)), lambda xy: xy * factor)


def tissue_fraction(
    polygons: Sequence[shapely.Polygon], facts: SlideFacts, modality: Modality, grid: TileGrid, scale: float
) -> NDArray[np.float32]:
    """Share of each tile that is tissue, exact by area.

    Parameters
    ----------
    polygons : sequence of shapely.Polygon
        Tissue, (x, y) in level-0 pixels of the slide's reference image; holes are not tissue.
    facts : SlideFacts
        The slide.
    modality : {"he", "sp"}
        The image that the grid lies on. The tissue is placed on the other image by physical size.
    grid : TileGrid
        The tiles.
    scale : float
        Level-0 pixels of that image per grid pixel.

    Returns
    -------
    (n,) float32 array
        Tissue area over the area of the tile's part that lies on the slide; 0 to 1.
    """
    if not polygons:
        return np.zeros(grid.n, np.float32)
    tissue = tissue_on_grid(polygons, facts, modality, scale)
    bottom, right = grid.y_px + grid.height_valid, grid.x_px + grid.width_valid
    y_lines, x_lines = np.unique([grid.y_px, bottom]), np.unique([grid.x_px, right])
    within = np.zeros((y_lines.size, x_lines.size))
    within[1:, 1:] = area_in_cells(tissue, y_lines, x_lines).cumsum(axis=0).cumsum(axis=1)
    top_at, bottom_at = (np.searchsorted(y_lines, lines) for lines in (grid.y_px, bottom))
    left_at, right_at = (np.searchsorted(x_lines, lines) for lines in (grid.x_px, right))
    covered = within[bottom_at, right_at] - within[top_at, right_at] - within[bottom_at, left_at]
    covered += within[top_at, left_at]
    share: NDArray[np.float32] = (covered / (grid.height_valid * grid.width_valid.astype(np.float64))).astype(
        np.float32
    )
    # Differences of sums: what is all or nothing must not miss it by a rounding.
    share[share < 1e-6] = 0
    share[share > 1 - 1e-6] = 1
    return share

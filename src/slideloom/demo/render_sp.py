"""The multiplexed image of a synthetic slide: 16 antibody channels, none of them DNA.

Nuclei have to be read from what surrounds them: rings of membrane and cytoplasm markers, dips in the haze of most
channels, a slight nuclear haze in two, and the nuclear markers of the few cells that carry them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideloom.demo.noise import blur, normal_image, smooth_noise, smoothstep, streaks
from slideloom.demo.nuclei import Nuclei
from slideloom.demo.panel import CLASSES, MARKERS, Locus, marker_index
from slideloom.demo.tissue import Tissue

__all__ = ["Acquisition", "draw_acquisition", "draw_expression", "draw_sp"]

Image = NDArray[np.float32]

_OFFSET = 95.0  # camera offset, counts
_READ_NOISE = 5.0  # counts
_SHOT_GAIN = 1.9  # counts² of noise per count of light
# Bleed-through: giver, taker, share. A giver comes before its taker in the panel.
_LEAKS = (
    ("CD31", "SMA", 0.03),
    ("CD45", "CD3e", 0.03),
    ("CD68", "CD163", 0.04),
    ("CD68", "CD4", 0.04),
    ("CD4", "FOXP3", 0.04),
    ("CD8a", "CD45RO", 0.03),
    ("E-cadherin", "Pan-CK", 0.03),
    ("Ki67", "Pan-CK", 0.04),
)


@dataclass(frozen=True)
class Acquisition:
    """How one slide was stained and imaged.

    Attributes
    ----------
    gain, haze : ndarray
        (n_markers,) float64, brightness of each channel and of its haze against the usual.
    tilt : ndarray
        (n_markers, 2) float64, relative change of brightness over the slide's height and width.
    blur_px : float
        Softness of the optics.
    """

    gain: NDArray[np.float64]
    haze: NDArray[np.float64]
    tilt: NDArray[np.float64]
    blur_px: float


def draw_acquisition(rng: np.random.Generator) -> Acquisition:
    """Draw a slide's imaging: every channel a little brighter or darker than on the next slide."""
    count = len(MARKERS)
    whole = rng.normal(0, 0.10)
    return Acquisition(
        gain=np.exp(whole + rng.normal(0, 0.16, count)),
        haze=np.exp(whole + rng.normal(0, 0.20, count)),
        tilt=rng.normal(0, 0.07, (count, 2)),
        blur_px=float(rng.uniform(0.7, 0.95)),
    )


def draw_expression(rng: np.random.Generator, nuclei: Nuclei) -> NDArray[np.float32]:
    """How much of each marker each cell carries.

    Returns
    -------
    ndarray
        (n + 1, n_markers) float32, in units of a bright cell; row 0 (no cell) is zero.
    """
    count = len(nuclei) + 1
    level = np.zeros((count, len(MARKERS)))
    for number, kind in enumerate(CLASSES, 1):
        members = np.flatnonzero(nuclei.class_of == number)
        for name, wanted in kind.expression.items():
            positive = rng.random(members.size) < wanted.share
            amount = wanted.level * np.exp(rng.normal(-0.04, 0.28, members.size))
            level[members, marker_index(name)] = np.where(positive, amount, 0.03 * amount)
    # A stray trace in every cell, and a cell's own brightness in all channels.
    level += np.abs(rng.normal(0, 0.012, level.shape))
    level *= np.exp(rng.normal(0, 0.10, (count, 1)))
    level[0] = 0
    return level.astype(np.float32)


def _places(nuclei: Nuclei, cells: NDArray[np.int32]) -> dict[Locus, Image]:
    """Where in a cell a marker shows: one weight map (h, w) float32 a locus."""
    nucleus = (nuclei.labels > 0).astype(np.float32)
    border = np.zeros(cells.shape, np.bool_)
    for ours, theirs in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differ = cells[ours] != cells[theirs]
        border[ours] |= differ
        border[theirs] |= differ
    border &= cells > 0
    # A lymphocyte's membrane hugs its nucleus: the border is where the cell ends, whatever lies inside.
    edge = np.minimum(blur(border.astype(np.float32), 0.8) * np.float32(2.0), 1.25)
    rest = (cells > 0) - nucleus
    return {
        "membrane": np.asarray(edge * (1 - 0.35 * nucleus) + 0.38 * rest + 0.20 * nucleus, np.float32),
        "cytoplasm": np.asarray(0.25 * edge * (1 - nucleus) + 0.9 * rest + 0.16 * nucleus, np.float32),
        "nucleus": np.asarray(nucleus + 0.05 * rest, np.float32),
    }


def draw_sp(
    rng: np.random.Generator,
    tissue: Tissue,
    nuclei: Nuclei,
    cells: NDArray[np.int32],
    acquisition: Acquisition,
) -> NDArray[np.uint16]:
    """Image the slide in every channel of the panel.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    tissue : Tissue
        The slide's maps.
    nuclei : Nuclei
        Its nuclei.
    cells : ndarray
        (h, w) int32, what `slideloom.demo.render_he.cell_map` gives.
    acquisition : Acquisition
        How it was imaged.

    Returns
    -------
    ndarray
        (n_markers, h, w) uint16, counts.
    """
    shape = tissue.shape
    expression = draw_expression(rng, nuclei)
    places = _places(nuclei, cells)
    nucleus = nuclei.labels > 0
    solid = (~(tissue.hollow)).astype(np.float32)
    fibre = streaks(smooth_noise(rng, shape, 1.4), tissue.cos, tissue.sin, 5)
    fibre = fibre / np.float32(fibre.std() + 1e-6)
    stroma = solid * ~tissue.nest
    # Autofluorescence: fibrous in stroma, even in nests, faint on glass.
    auto = solid * (0.72 + 0.20 * smooth_noise(rng, shape, 40)) + stroma * (0.30 + 0.24 * fibre)
    auto = np.clip(auto, 0.1, None) * (1 - 0.35 * tissue.cluster)
    chromatin = blur(normal_image(rng, shape), 1.2) / np.float32(0.23)
    granules = smoothstep(blur(normal_image(rng, shape), 0.9) / np.float32(0.31), -0.6, 1.4)
    speckle = 0.75 + 0.5 * granules
    lining = np.exp(-((tissue.vessel_rim_px - 2.5) ** 2) / np.float32(6.0)) * solid
    front = np.exp(-np.clip(-tissue.nest_depth_px - 3, 0, None) / 16) * (tissue.nest_depth_px < -3) * stroma
    reactive = front * smoothstep(smooth_noise(rng, shape, 34), 0.1, 1.2) * np.clip(0.7 + 0.45 * fibre, 0, None)
    rows = np.linspace(-0.5, 0.5, shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, shape[1], dtype=np.float32)[None, :]

    owner = cells.astype(np.intp)
    # Expanded once: every channel looks its haze, its cells and its noise up in these.
    haze_beside, haze_over = (np.where(nucleus, 0, auto) + 0.12).astype(np.float32), np.where(nucleus, auto, 0)
    picture = np.empty((len(MARKERS), *shape), np.uint16)
    leaks: dict[str, list[tuple[Image, float]]] = {}
    for channel, marker in enumerate(MARKERS):
        signal = np.take(np.ascontiguousarray(expression[:, channel]), owner)
        signal *= places[marker.locus]
        if marker.locus == "nucleus":
            signal *= 1 + 0.16 * chromatin
        elif marker.locus == "cytoplasm":
            signal *= speckle if marker.name in {"CD68", "CD163"} else 0.9 + 0.2 * granules
        if marker.name == "CD31":
            signal = np.maximum(signal, 0.6 * lining * ~nucleus)
        if marker.name == "SMA":
            wall = (0.75 + 0.15 * fibre) * tissue.muscle * ~nucleus
            signal = np.maximum(signal, np.maximum(wall, 0.5 * reactive * ~nucleus))
        light = np.asarray(signal * np.float32(marker.peak * acquisition.gain[channel]), np.float32)
        for source, share in leaks.pop(marker.name, []):
            light += np.float32(share) * source
        for giver, taker, share in _LEAKS:
            if giver == marker.name:
                leaks.setdefault(taker, []).append((light, share))
        haze = np.float32(marker.haze * acquisition.haze[channel])
        light = light + haze * haze_beside
        light += (haze * np.float32(marker.nuclear_haze)) * haze_over
        light = blur(light, acquisition.blur_px)
        down, right = acquisition.tilt[channel].astype(np.float32)
        light *= 1 + rows * down + columns * right
        counts = np.sqrt(np.float32(_SHOT_GAIN) * light + np.float32(_READ_NOISE**2))
        counts *= normal_image(rng, shape)
        counts += light
        counts += np.float32(_OFFSET)
        picture[channel] = np.clip(np.rint(counts, out=counts), 0, 65535, out=counts).astype(np.uint16)
    return picture

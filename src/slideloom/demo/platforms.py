"""The synthetic cohort as several imaging platforms see it: each with a panel, gains, optics and numbers of its own.

For studies that learn on some platforms and are judged on one whose panel they never saw. The tissue is that of
:mod:`slideloom.demo.cohort`; a stain of DNA is added, which its panel lacks. Everything follows from one seed.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideloom.demo.cohort import grow_slide, plan_cohort
from slideloom.demo.noise import blur, normal_image, smooth_noise, smoothstep
from slideloom.demo.nuclei import Nuclei
from slideloom.demo.panel import MARKERS, MPP_UM, marker_index
from slideloom.demo.render_he import cell_map
from slideloom.demo.render_sp import draw_acquisition, draw_sp
from slideloom.demo.write import write_labels, write_table
from slideloom.slides.layouts.multiplexed import write_channels

__all__ = ["PLATFORMS", "Platform", "draw_dna", "image_channels", "write_platforms"]

_LOG = logging.getLogger(__name__)

Image = NDArray[np.float32]

_DNA, _BLANK = "DNA", "blank"
_DNA_COUNTS = 2400.0  # of a usual nucleus, beside the panel's own counts
_OFFSET_COUNTS = 95.0  # of the camera that the panel is drawn with
_SPREAD = 0.18  # of a slide's gains round its platform's, a logarithm


@dataclass(frozen=True)
class Platform:
    """How one platform images.

    Attributes
    ----------
    name : str
        As in the sheet; begins with ``synthetic-``, as all of the demo's.
    channels : tuple of (str, str)
        Name of each channel in its files and what it shows: a marker of the panel, ``DNA`` or ``blank``.
    bits : int
        8 or 16.
    light : float
        Digital numbers for each count of light.
    background : float
        Digital numbers without light.
    noise : float
        Deviation of the noise, digital numbers.
    blur_px : float
        Softness that its optics add.
    uneven : float
        How far brightness differs over the field, as a share.
    fading : float
        Share of the DNA stain that is left at each further round of staining.
    """

    name: str
    channels: tuple[tuple[str, str], ...]
    bits: int
    light: float
    background: float
    noise: float
    blur_px: float
    uneven: float
    fading: float = 1.0


def _cycles(*rounds: tuple[str, str, str]) -> tuple[tuple[str, str], ...]:
    """Channels of rounds of staining: DNA first in each, then three antibodies."""
    return tuple(
        (f"{shown}_{number}" if shown in (_DNA, _BLANK) else shown, shown)
        for number, three in enumerate(rounds, start=1)
        for shown in (_DNA, *three)
    )


#: Three that differ in number, order and depth of their channels, and share the markers DNA, CD3e, CD68 and Pan-CK.
PLATFORMS: tuple[Platform, ...] = (
    Platform(
        "synthetic-vectra",
        (
            ("Opal 520", "CD3e"),
            ("Opal 540", "CD8a"),
            ("Opal 570", "CD68"),
            ("Opal 620", "FOXP3"),
            ("Opal 650", "PD-L1"),
            ("DAPI", _DNA),
            ("Opal 690", "Pan-CK"),
        ),
        bits=8,
        light=0.05,
        background=4.0,
        noise=1.6,
        blur_px=0.6,
        uneven=0.05,
    ),
    Platform(
        "synthetic-zeiss",
        (("Hoechst", _DNA), ("AF488", "Pan-CK"), ("AF555", "CD68"), ("AF647", "CD3e"), ("AF750", "CD20")),
        bits=16,
        light=6.5,
        background=620.0,
        noise=210.0,
        blur_px=1.1,
        uneven=0.25,
    ),
    Platform(
        "synthetic-codex",
        _cycles(
            ("CD31", "CD45", "CD68"),
            ("CD4", "CD20", "CD163"),
            ("CD3e", "E-cadherin", "Ki67"),
            ("Pan-CK", "SMA", _BLANK),
        ),
        bits=16,
        light=2.2,
        background=150.0,
        noise=60.0,
        blur_px=0.35,
        uneven=0.12,
        fading=0.8,
    ),
)


def draw_dna(rng: np.random.Generator, nuclei: Nuclei) -> Image:
    """Light of a DNA stain, in counts.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    nuclei : Nuclei
        The slide's nuclei.

    Returns
    -------
    ndarray
        (h, w) float32: bright nuclei, each with a brightness and grain of its own and dimmer towards its outline, and
        a faint haze. Where two overlap, both shine.
    """
    shape = nuclei.labels.shape
    own = np.exp(rng.normal(0, 0.25, len(nuclei) + 1)).astype(np.float32)
    own[0] = 0
    grain = blur(normal_image(rng, shape), 1.3) / np.float32(0.22)
    profile = 1.0 - 0.45 * smoothstep(nuclei.radius, 0.55, 1.0)
    light = own[nuclei.labels] * profile * np.clip(1 + 0.16 * grain, 0.4, None) + 0.5 * own[nuclei.beneath]
    haze = 0.05 + 0.02 * smooth_noise(rng, shape, 20)
    return np.asarray(_DNA_COUNTS * (light + np.clip(haze, 0, None)), np.float32)


def image_channels(
    rng: np.random.Generator, platform: Platform, counts: NDArray[np.uint16], dna: Image
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Image a slide as a platform does.

    Parameters
    ----------
    rng : Generator
        Source of chance: of the slide's gains and noise.
    platform : Platform
        The platform.
    counts : ndarray
        (n_markers, h, w) uint16, what :func:`~slideloom.demo.render_sp.draw_sp` gives.
    dna : ndarray
        (h, w) float32, what :func:`draw_dna` gives.

    Returns
    -------
    ndarray
        (c, h, w) uint8 or uint16, the platform's channels in their order.
    """
    height, width = dna.shape
    gains = platform.light * _gains(platform) * np.exp(rng.normal(0, _SPREAD, len(platform.channels)))
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    vignette = 1 - np.float32(platform.uneven) * (rows**2 + columns**2) / 2
    largest = 2**platform.bits - 1
    picture = np.empty((len(platform.channels), height, width), np.uint8 if platform.bits == 8 else np.uint16)
    rounds = 0
    for index, (_, shown) in enumerate(platform.channels):
        if shown == _DNA:
            light = dna * np.float32(platform.fading**rounds)
            rounds += 1
        elif shown == _BLANK:
            light = np.full((height, width), 20, np.float32)
        else:
            light = np.clip(counts[marker_index(shown)].astype(np.float32) - np.float32(_OFFSET_COUNTS), 0, None)
        seen = blur(light, platform.blur_px) * vignette * np.float32(gains[index])
        seen += np.float32(platform.background) + np.float32(platform.noise) * normal_image(rng, (height, width))
        picture[index] = np.clip(np.rint(seen), 0, largest).astype(picture.dtype)
    return picture


def _gains(platform: Platform) -> NDArray[np.float64]:
    """A platform's own brightness of each channel: the same on all of its slides, from its name and nothing else."""
    seed = int.from_bytes(hashlib.sha256(platform.name.encode()).digest()[:8], "big")
    rng = np.random.Generator(np.random.PCG64(seed))
    gains = np.exp(rng.normal(0, 0.3, len(platform.channels)))
    # One stain in one instrument: the rounds of DNA differ by its fading alone.
    gains[[shown == _DNA for _, shown in platform.channels]] = 1.0
    return gains


def write_platforms(folder: Path, *, seed: int = 0, n_slides: int = 2, size_px: int = 384) -> Path:
    """Make slides of every platform and write them with their sheet and tables.

    Parameters
    ----------
    folder : Path
        Where they go; files of the same names are replaced.
    seed : int
        Equal seeds give equal bytes.
    n_slides : int
        How many slides of each platform; each has a tissue and a patient of its own.
    size_px : int
        Side of every slide, pixels of 0.5 µm; at least 128.

    Returns
    -------
    Path
        ``folder/slides.tsv``, written last. Beside it: ``markers.tsv``, ``sp/*.ome.tif`` and ``instances/*.tif``.

    Raises
    ------
    SlideloomError
        A number is out of range.
    """
    plans = plan_cohort(seed, len(PLATFORMS) * n_slides, size_px)
    rows: list[tuple[str, ...]] = []
    for number, plan in enumerate(plans):
        platform = PLATFORMS[number % len(PLATFORMS)]
        dna_rng, sp_rng, camera_rng = (
            np.random.Generator(np.random.PCG64(one)) for one in np.random.SeedSequence((*plan.seed, 1)).spawn(3)
        )
        tissue, nuclei = grow_slide(plan)
        counts = draw_sp(sp_rng, tissue, nuclei, cell_map(tissue, nuclei)[0], draw_acquisition(sp_rng))
        picture = image_channels(camera_rng, platform, counts, draw_dna(dna_rng, nuclei))
        name = f"{plan.slide_id}_{platform.name.removeprefix('synthetic-')}"
        image, instances = f"sp/{name}.ome.tif", f"instances/{name}.tif"
        write_channels(folder / image, picture, [channel for channel, _ in platform.channels], MPP_UM)
        write_labels(folder / instances, nuclei.labels)
        rows.append((name, name, platform.name, image, instances))
        _LOG.info("%s: %d nuclei", name, len(nuclei))
    accessions = {marker.name: marker.uniprot for marker in MARKERS}
    shown_by = {channel: shown for platform in PLATFORMS for channel, shown in platform.channels}
    write_table(
        folder / "markers.tsv",
        ("channel", "marker", "uniprot", "nuclear"),
        [
            (channel, shown, accessions.get(shown, ""), "yes" if shown == _DNA else "no")
            for channel, shown in sorted(shown_by.items())
        ],
    )
    sheet = folder / "slides.tsv"
    write_table(sheet, ("slide_id", "patient_id", "platform", "sp", "instances"), rows)
    return sheet

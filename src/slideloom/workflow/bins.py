"""Which slides share a job: bins of bounded number and size that a new slide hardly disturbs.

Bins are the leaves of a binary tree over a checksum of the slides' ids. A bin that holds too many slides, or too many
bytes, is split in two by the next bit; no other bin is touched. So the bins follow from the slides alone, whatever
order they came in, and a slide that comes or goes changes its own bin: it fills, splits, or is joined to its twin.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source, parse_source

__all__ = ["JOB_PATTERN", "Load", "gather_bins", "load_of", "weigh_slides"]

#: Regular expression of the names of bins; job records and logs are named after them.
JOB_PATTERN = r"\d+-\d+|slide-[^/]+"
#: Bits of the checksum: two slides of equal checksum stay together, however heavy they are.
_BITS = 32
_GB = 10**9


@dataclass(frozen=True)
class Load:
    """What a job has before it.

    Attributes
    ----------
    slides : int
        Number of slides.
    gb, heaviest_gb : float
        Size of the image files of all slides, and of the slide with the largest, 10⁹ bytes.
    """

    slides: int
    gb: float
    heaviest_gb: float


def weigh_slides(rows: Iterable[SlideRow], root: Path) -> dict[str, int]:
    """Size of the image files of each slide, as the file system tells it: no slide is opened.

    Parameters
    ----------
    rows : iterable of SlideRow
        The sheet.
    root : Path
        Where the sheet's paths start.

    Returns
    -------
    dict of str to int
        Bytes, by slide. A file that several slides lie in counts in equal parts. A Zarr folder counts as half of what
        its metadata declares, since its thousands of chunks would have to be listed. What is not there counts nothing.
    """
    sources = {
        row.slide_id: [parse_source(text, root) for text in dict.fromkeys((row.he, row.sp)) if text] for row in rows
    }
    taken = {source: _taken(source) for source in {one for several in sources.values() for one in several}}
    places = {slide: dict(taken[source] for source in several) for slide, several in sources.items()}
    holders = Counter(place for several in places.values() for place in several)
    return {slide: sum(size // holders[place] for place, size in several.items()) for slide, several in places.items()}


def _taken(source: Source) -> tuple[Path | Source, int]:
    """What takes the place, a file or an image in a folder, and its bytes."""
    try:
        status = source.path.stat()
    except OSError:
        return source.path, 0
    return (source, _folder_bytes(source)) if S_ISDIR(status.st_mode) else (source.path, status.st_size)


def _folder_bytes(source: Source) -> int:
    # A plan without such slides does not pay for what this imports.
    from slideloom.slides.zarr_layout import declared_bytes, read_layout

    try:
        return declared_bytes(read_layout(source)) // 2
    except Exception:  # whatever a folder from elsewhere holds: its slide fails where it is opened, not the plan of all
        return 0


def gather_bins(weights: Mapping[str, int], most_slides: int, most_gb: float) -> dict[str, tuple[str, ...]]:
    """Gather slides in bins.

    Parameters
    ----------
    weights : mapping of str to int
        Bytes of each slide.
    most_slides : int
        Slides that a bin holds at most.
    most_gb : float
        Size that a bin holds at most, 10⁹ bytes. A heavier slide has a bin of its own.

    Returns
    -------
    dict of str to tuple of str
        Slides by the bin's name, both sorted. ``8-3``: the slides whose CRC-32 modulo 8 is 3; ``slide-x``: slide x,
        alone because it is heavy.

    Examples
    --------
    >>> gather_bins({"a": 10**9, "b": 10**9, "c": 9 * 10**9}, most_slides=4, most_gb=5)
    {'1-0': ('a', 'b'), 'slide-c': ('c',)}
    """
    most_bytes = most_gb * _GB
    bins: dict[str, tuple[str, ...]] = {}
    light: list[tuple[int, str]] = []
    for slide in sorted(weights):
        if weights[slide] > most_bytes:
            bins[f"slide-{slide}"] = (slide,)
        else:
            light.append((zlib.crc32(slide.encode()), slide))
    waiting = [(0, 0, light)]
    while waiting:
        depth, index, members = waiting.pop()
        small = len(members) <= most_slides and sum(weights[slide] for _, slide in members) <= most_bytes
        if members and (small or depth == _BITS):
            count = 1 << depth
            bins[f"{count}-{index:0{len(str(count - 1))}d}"] = tuple(slide for _, slide in members)
        elif members:
            for bit in (0, 1):
                half = [member for member in members if member[0] >> depth & 1 == bit]
                waiting.append((depth + 1, index | bit << depth, half))
    return {name: bins[name] for name in sorted(bins)}


def load_of(slides: Iterable[str], weights: Mapping[str, int]) -> Load:
    """What a job that works through the slides has before it.

    Parameters
    ----------
    slides : iterable of str
        The job's slides.
    weights : mapping of str to int
        Bytes of each slide.
    """
    sizes = [weights[slide] for slide in slides]
    return Load(len(sizes), sum(sizes) / _GB, max(sizes, default=0) / _GB)

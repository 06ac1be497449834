"""Merged nuclei split by clustering their pixels, each instance by itself in its bounding box.

Two ways. ``hv``: the HV maps of a nucleus' pixels all point to its centre, also where the instance holds several
nuclei; pixels are put where they point to and fall into a cluster a nucleus. ``tokens``: pixels are clustered by place
and by what the encoder makes of the tissue there. How an instance is split depends on its own pixels and maps alone, so
not on windows; no pixel is lost or won.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.instances.pool import in_order
from slideloom.instances.refine.clusters import best_parts, pointed_at
from slideloom.instances.refine.features import Features
from slideloom.instances.refine.found import Found, Piece, Refined, replace_instances
from slideloom.instances.refine.tokens import TokenPlane
from slideloom.instances.windows import Box, LabelTable
from slideloom.slides.binary_labels import LARGEST_NUCLEUS_UM2

__all__ = ["SplitSettings", "split_instances", "suspects"]

#: Distance over which HV's slope is taken.
_LAG_UM = 1.0
_SQUARE_PX = 1024
#: Across a nucleus beyond which none is taken for one.
_LONGEST_UM = LARGEST_NUCLEUS_UM2**0.5


@dataclass(frozen=True)
class SplitSettings:
    """Which instances are looked at, and when they are split.

    Attributes
    ----------
    by : {"hv", "tokens"}
        The way.
    min_part_um2 : float
        No part is smaller, µm²; what is smaller than two is not looked at.
    max_solidity : float
        Instances more solid than this are not looked at, unless their HV says otherwise.
    max_hv_fit : float
        Those whose HV fits one nucleus better are not, unless their shape says otherwise.
    most : int
        Parts at most.
    silhouette : float
        How well parted the clusters must be, 0 to 1.
    apart_um : float
        How far apart the clusters' centres are at least, µm.
    token_um : float
        What a difference of one standard deviation of a reduced token counts for, µm.
    """

    by: Literal["hv", "tokens"] = "hv"
    min_part_um2: float = 8.0
    max_solidity: float = 0.92
    max_hv_fit: float = 0.9
    most: int = 4
    silhouette: float = 0.7
    apart_um: float = 2.0
    token_um: float = 4.0


def suspects(features: Features, settings: SplitSettings, table: LabelTable, mpp_um: float) -> NDArray[np.int64]:
    """Instances that may be several nuclei.

    None is longer than ``most`` of the largest nuclei in a row: no such parts would be nuclei, and memory stays bounded
    where a decoder's foreground runs over a whole slide.

    Parameters
    ----------
    features : Features
        Of n instances; with ``hv_fit`` where there are HV maps.
    settings : SplitSettings
        Thresholds.
    table : LabelTable
        Where the instances lie.
    mpp_um : float
        Pixel size, µm.

    Returns
    -------
    (m,) int64 array
        Ids, rising.
    """
    odd = features["solidity"] <= settings.max_solidity
    if "hv_fit" in features.names:
        odd |= features["hv_fit"] <= settings.max_hv_fit
    odd &= features["area_um2"] >= 2 * settings.min_part_um2
    sides = table.box[1:, 2:] - table.box[1:, :2]
    return np.flatnonzero(odd & (sides.max(axis=1) * mpp_um <= settings.most * _LONGEST_UM)) + 1


def split_instances(
    found: Found,
    maps: Mapping[str, Any],
    ids: NDArray[np.integer[Any]],
    settings: SplitSettings,
    *,
    mpp_um: float,
    tokens: TokenPlane | None = None,
    workers: int = 1,
) -> Refined:
    """Split some instances.

    Parameters
    ----------
    found : Found
        Instances of a slide.
    maps : mapping of str to array
        ``hv`` (2, H, W) int8, 127 times the HV map, for the way ``hv``.
    ids : (m,) int array
        Those to look at, such as :func:`suspects`.
    settings : SplitSettings
        The way, and when to split.
    mpp_um : float
        Pixel size of the maps, µm.
    tokens : TokenPlane, optional
        For the way ``tokens``.
    workers : int
        Squares of the slide in work at once; changes nothing.

    Returns
    -------
    Refined
        Ids 1 … n in raster order of first pixels.

    Raises
    ------
    SlideloomError
        ``missing_head``: the HV maps or the tokens that the way reads are not there.
    """
    if settings.by == "hv" and "hv" not in maps:
        raise _missing("HV maps", "the head hv", "Add hv to the experiment's heads, or split by tokens")
    if settings.by == "tokens" and tokens is None:
        raise _missing("tokens", "an encoder whose tokens are stored", "Split by hv")
    lag = max(1, round(_LAG_UM / mpp_um))
    least_px = max(1, int(np.ceil(settings.min_part_um2 / mpp_um**2)))
    apart = settings.apart_um / mpp_um

    def work(labels: NDArray[np.int64]) -> list[Piece]:
        around = _around(found.table.box[labels])
        read = found.read(around)
        hv = np.asarray(maps["hv"][(slice(None), *around.slices)], np.int8) if settings.by == "hv" else None
        made = []
        for label in labels.tolist():
            box = found.table.box_of(label)
            within = box.within(around)
            mask = np.ascontiguousarray(read[within] == label)
            if hv is not None:
                points, *slopes = pointed_at(mask, np.ascontiguousarray(hv[(slice(None), *within)]), lag)
                if min(slopes) <= 0:
                    continue
            else:
                assert tokens is not None
                places = np.argwhere(mask)[:, ::-1].astype(np.float64)
                values = tokens.values(box)[mask] * (settings.token_um / mpp_um)
                points = np.ascontiguousarray(np.append(places, values, axis=1))
            parts = best_parts(points, mask, settings.most, settings.silhouette, apart, least_px)
            made.append(Piece(label, box, parts))
        return made

    pieces: list[Piece] = []
    for made in in_order(work, _neighbours(np.asarray(ids, np.int64), found.table.box), workers):
        pieces += [piece for piece in made if piece.n > 1]
    return replace_instances(found, pieces)


def _neighbours(ids: NDArray[np.int64], box: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Ids by the square of the slide in which their boxes begin: read together, nothing is read often."""
    square, at = np.unique(box[ids, :2] // _SQUARE_PX, axis=0, return_inverse=True)
    order = np.argsort(at.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(at.reshape(-1), minlength=len(square)))
    return np.split(ids[order], ends[:-1]) if len(ids) else []


def _around(box: NDArray[np.int64]) -> Box:
    """What holds some boxes."""
    return Box(*map(int, box[:, :2].min(0)), *map(int, box[:, 2:].max(0)))


def _missing(what: str, expected: str, hint: str) -> SlideloomError:
    return SlideloomError(f"no {what}", where="refine.split", expected=expected, hint=hint, code="missing_head")

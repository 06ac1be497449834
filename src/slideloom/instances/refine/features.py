"""What can be said of an instance from its labels and the slide's maps, so that others can judge it.

Lengths are in µm, areas in µm² and shapes are ratios, so that features mean the same at any pixel size; a ring is a
pixel wide, though. Every feature is a fixed expression in whole-number sums (:mod:`slideloom.instances.refine.sums`):
neither the windows nor the number of workers changes a bit of it. Time is linear in the pixels of the slide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.instances.refine.found import Found
from slideloom.instances.refine.sums import Sums, gather_sums
from slideloom.instances.refine.tokens import TOKEN_SCALE, TokenPlane

__all__ = ["FEATURES", "Feature", "Features", "instance_features"]

_HV = 127
_BYTE = 255


@dataclass(frozen=True)
class Feature:
    """A feature.

    Attributes
    ----------
    unit : str
        µm, µm² or 1.
    reads : tuple of str
        Maps without which there is no such feature.
    about : str
        What it is.
    logarithmic : bool
        Whether it is a size, which a model reads on a logarithmic scale.
    """

    unit: str
    reads: tuple[str, ...]
    about: str
    logarithmic: bool = False


_SHAPE: tuple[str, ...] = ()
#: Every feature but those of tokens (``token_0`` …), in the order of the columns.
FEATURES: dict[str, Feature] = {
    "area_um2": Feature("µm²", _SHAPE, "Area of the pixels.", True),
    "perimeter_um": Feature("µm", _SHAPE, "Length of the outline by Cauchy and Crofton, in four directions.", True),
    "circularity": Feature("1", _SHAPE, "4π · area over perimeter²; 1 of a disc."),
    "solidity": Feature("1", _SHAPE, "Pixels over the pixel centres in their convex hull; 1 of a convex shape."),
    "hull_deficit_um2": Feature("µm²", _SHAPE, "What the shape lacks to its convex hull."),
    "eccentricity": Feature("1", _SHAPE, "Of the ellipse with the same second moments; 0 of a disc."),
    "major_um": Feature("µm", _SHAPE, "Long axis of that ellipse.", True),
    "minor_um": Feature("µm", _SHAPE, "Short axis.", True),
    "contact": Feature("1", _SHAPE, "Share of the outline along which another instance lies."),
    "nucleus_mean": Feature("1", ("nucleus",), "Mean nucleus probability of the pixels."),
    "nucleus_std": Feature("1", ("nucleus",), "Its standard deviation."),
    "nucleus_min": Feature("1", ("nucleus",), "Lowest."),
    "nucleus_max": Feature("1", ("nucleus",), "Highest."),
    "ring_nucleus_mean": Feature("1", ("nucleus",), "Mean of the pixels outside that share a side with it."),
    "ring_nucleus_std": Feature("1", ("nucleus",), "Standard deviation there."),
    "nucleus_contrast": Feature("1", ("nucleus",), "Mean inside less mean of the ring."),
    "boundary_mean": Feature("1", ("boundary",), "Mean boundary probability."),
    "boundary_max": Feature("1", ("boundary",), "Highest."),
    "distance_mean": Feature("1", ("distance",), "Mean of the distance map."),
    "distance_max": Feature("1", ("distance",), "Highest."),
    "hv_offset": Feature(
        "1", ("hv",), "From the centroid to the mean of the centres that HV points to, over the disc's radius."
    ),
    "hv_spread": Feature("1", ("hv",), "Spread (RMS) of the centres that HV points to, over that radius."),
    "hv_fit": Feature("1", ("hv",), "Correlation of HV and place, the lower of x and y; 1 of one whole nucleus."),
    "class_share": Feature("1", ("class_id",), "Share of the most frequent class but background."),
    "class_background": Feature("1", ("class_id",), "Share of pixels whose class is background."),
    "class_probability": Feature("1", ("class_probability",), "Mean probability of the pixels' own classes."),
}


@dataclass(frozen=True, eq=False)
class Features:
    """Features of n instances.

    Attributes
    ----------
    names : tuple of str
        Columns: of :data:`FEATURES` those whose maps there are, then ``token_0`` ….
    values : (n, f) float64 array
        Row i: instance i + 1. NaN where undefined, such as HV's correlation of an instance one pixel wide.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """One column, (n,)."""
        return self.values[:, self.names.index(name)]

    def columns(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Some columns, (n, k).

        Raises
        ------
        SlideloomError
            ``missing_feature``: a column is not there, mostly for a head that the decoder lacks.
        """
        absent = [name for name in names if name not in self.names]
        if absent:
            heads = sorted({head for name in absent if name in FEATURES for head in FEATURES[name].reads})
            raise SlideloomError(
                f"no features {', '.join(absent)}",
                where="instances",
                expected=f"maps {', '.join(heads)}" if heads else "tokens",
                hint="Use the experiment whose maps the verifier was fitted on",
                code="missing_feature",
            )
        return self.values[:, [self.names.index(name) for name in names]]

    @classmethod
    def stack(cls, parts: Sequence[Features]) -> Features:
        """Instances of several images, all with the same columns."""
        if len({part.names for part in parts}) != 1:
            raise ValueError("no features, or of different columns")
        return cls(parts[0].names, np.concatenate([part.values for part in parts]))


def instance_features(
    found: Found,
    maps: Mapping[str, Any],
    *,
    mpp_um: float,
    n_classes: int = 0,
    tokens: TokenPlane | None = None,
    window_px: int = 2048,
    workers: int = 1,
) -> Features:
    """Features of all instances of a slide.

    Parameters
    ----------
    found : Found
        The instances, each with at least one pixel.
    maps : mapping of str to array
        Of the slide's maps those that there are, NumPy or open Zarr arrays: ``nucleus``, ``boundary``, ``distance``
        (H, W) uint8; ``hv`` (2, H, W) int8; ``class_id`` and ``class_probability`` (H, W) uint8. Others are not read.
    mpp_um : float
        Pixel size of the maps, µm.
    n_classes : int
        Classes including background; 0: the class maps are not read.
    tokens : TokenPlane, optional
        Reduced tokens; an instance gets their mean, weighted by area.
    window_px : int
        Side of the windows; changes memory alone.
    workers : int
        Windows in work at once; changes nothing.

    Returns
    -------
    Features
        A row an instance, by rising id.

    Raises
    ------
    SlideloomError
        ``unknown_class``: the class map holds an id of ``n_classes`` or above.
    """
    if not n_classes:
        maps = {name: values for name, values in maps.items() if not name.startswith("class_")}
    sums = gather_sums(found, maps, n_classes=n_classes, tokens=tokens, window_px=window_px, workers=workers)
    area = found.table.area[1:].astype(np.float64)
    columns = _shape(sums, area, mpp_um) | _levels(sums, area) | _classes(sums, area)
    if "hv" in maps:
        box = found.table.box[1:].astype(np.float64)
        columns |= _pointing(sums, area, (box[:, 3] - box[:, 1]) / 2, (box[:, 2] - box[:, 0]) / 2)
    names = [name for name in FEATURES if name in columns]
    values = [columns[name] for name in names]
    if tokens is not None:
        means = _over(sums.tokens.astype(np.float64), sums.covered[:, None] * float(TOKEN_SCALE))
        names += [f"token_{index}" for index in range(tokens.depth)]
        values += list(means.T)
    return Features(tuple(names), np.stack(values, axis=1) if len(area) else np.zeros((0, len(names))))


_Columns = dict[str, NDArray[np.float64]]


def _over(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Quotient; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def _spread(sums: NDArray[Any], squares: NDArray[Any], count: NDArray[Any]) -> NDArray[np.float64]:
    """Variance from sums; whole numbers are subtracted before anything is rounded, where they are below 2**53."""
    return np.maximum(_over(_over(count * squares - sums * sums, count), count), 0)


def _shape(sums: Sums, area: NDArray[np.float64], mpp_um: float) -> _Columns:
    part = {name: values.astype(np.float64) for name, values in sums.plain.items()}
    perimeter = np.pi / 8 * (part["sides"] + part["corners"] / np.sqrt(2)) * mpp_um
    # A pixel is a square, with moments of its own.
    xx, yy = (_spread(part[one], part[one * 2], area) + 1 / 12 for one in ("x", "y"))
    xy = (part["xy"] - part["x"] * part["y"] / area) / area
    middle, half = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    long, short = middle + half, np.maximum(middle - half, 0)
    hull = sums.hull.astype(np.float64)
    return {
        "area_um2": area * mpp_um**2,
        "perimeter_um": perimeter,
        "circularity": 4 * np.pi * area * mpp_um**2 / perimeter**2,
        "solidity": area / hull,
        "hull_deficit_um2": (hull - area) * mpp_um**2,
        "eccentricity": np.sqrt(np.maximum(1 - short / long, 0)),
        "major_um": 4 * np.sqrt(long) * mpp_um,
        "minor_um": 4 * np.sqrt(short) * mpp_um,
        "contact": _over(part["contact"], part["sides"]),
    }


def _levels(sums: Sums, area: NDArray[np.float64]) -> _Columns:
    columns: _Columns = {}
    for name, values in sums.bytes.items():
        total, squares, low, high = values.astype(np.float64).T
        columns |= {
            f"{name}_mean": total / (_BYTE * area),
            f"{name}_std": np.sqrt(_spread(total, squares, area)) / _BYTE,
            f"{name}_min": low / _BYTE,
            f"{name}_max": high / _BYTE,
        }
    if "nucleus" in sums.bytes:
        ring, total, squares = (sums.plain[f"ring{end}"].astype(np.float64) for end in ("", "_nucleus", "_nucleus2"))
        mean = _over(total, ring * _BYTE)
        columns |= {
            "ring_nucleus_mean": mean,
            "ring_nucleus_std": np.sqrt(_spread(total, squares, ring)) / _BYTE,
            "nucleus_contrast": columns["nucleus_mean"] - mean,
        }
    return columns


def _pointing(
    sums: Sums, area: NDArray[np.float64], half_width: NDArray[np.float64], half_height: NDArray[np.float64]
) -> _Columns:
    """How well HV agrees with one nucleus of the instance's extent: centre = place - HV · half the box."""
    part = {name: values.astype(np.float64) for name, values in sums.plain.items()}
    offset, spread, fit = np.zeros_like(area), np.zeros_like(area), np.ones_like(area)
    undefined = np.ones(area.shape, np.bool_)
    for place, value, half in (("x", "h", half_width), ("y", "v", half_height)):
        step = half / _HV
        offset += (part[value] / area * step) ** 2
        places, values = (_spread(part[one], part[one * 2], area) for one in (place, value))
        common = (part[place + value] - part[place] * part[value] / area) / area
        spread += np.maximum(places - 2 * step * common + step**2 * values, 0)
        # A rounding away from flat is no slope.
        flat = (places < 1e-9) | (values < 1e-9)
        fit = np.where(flat, fit, np.minimum(fit, _over(common, np.sqrt(places * values))))
        undefined &= flat
    radius = np.sqrt(area / np.pi)
    return {
        "hv_offset": np.sqrt(offset) / radius,
        "hv_spread": np.sqrt(spread) / radius,
        "hv_fit": np.where(undefined, np.nan, np.maximum(fit, -1)),
    }


def _classes(sums: Sums, area: NDArray[np.float64]) -> _Columns:
    pixels = sums.class_pixels
    if not pixels.shape[1]:
        return {}
    columns = {"class_share": pixels[:, 1:].max(axis=1, initial=0) / area, "class_background": pixels[:, 0] / area}
    return columns | {"class_probability": sums.plain["class_weight"] / (_BYTE * area)}

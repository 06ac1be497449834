"""All that may follow the instances of a slide, in order: merged ones split, then false ones dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slideloom.instances.refine.features import FEATURES, Features, instance_features
from slideloom.instances.refine.found import Found, keep_instances
from slideloom.instances.refine.splitter import SplitSettings, split_instances, suspects
from slideloom.instances.refine.tokens import TokenPlane
from slideloom.instances.refine.verifier import Verifier

__all__ = ["FEATURE_MAPS", "Refining", "refine_instances"]

#: Maps that features are made of, where a slide has them.
FEATURE_MAPS = tuple(dict.fromkeys(name for feature in FEATURES.values() for name in feature.reads))


@dataclass(frozen=True, eq=False)
class Refining:
    """Instances after refinement.

    Attributes
    ----------
    found : Found
        The instances.
    features : Features or None
        Of those that are left, where they were worked out for a verifier; row i is instance i + 1.
    counts : dict of str to int
        ``found``, instances before; ``suspects``, those looked at for a split; ``split``, those that were;
        ``after_split``, instances then; ``dropped``, by the verifier; ``left``.
    """

    found: Found
    features: Features | None
    counts: dict[str, int]


def refine_instances(
    found: Found,
    maps: Mapping[str, Any],
    *,
    mpp_um: float,
    split: SplitSettings | None = None,
    verifier: Verifier | None = None,
    threshold: float | None = None,
    n_classes: int = 0,
    tokens: TokenPlane | None = None,
    window_px: int = 2048,
    workers: int = 1,
) -> Refining:
    """Split merged instances and drop false ones.

    Parameters
    ----------
    found : Found
        Instances of a slide, such as :class:`~slideloom.instances.stitch.Stitched`.
    maps : mapping of str to array
        Of :data:`FEATURE_MAPS` those that there are; NumPy or open Zarr arrays.
    mpp_um : float
        Pixel size of the maps, µm.
    split : SplitSettings, optional
        How to split; left out, nothing is.
    verifier : Verifier, optional
        What to drop; left out, nothing is. It judges what is there after the split, so it is fitted on that, too.
    threshold : float, optional
        Least probability, in place of the verifier's own.
    n_classes : int
        Classes including background; 0: the class maps are not read.
    tokens : TokenPlane, optional
        Of the slide, reduced by the verifier's own projection.
    window_px, workers
        Change no byte.

    Returns
    -------
    Refining
        Ids are 1 … n in raster order of first pixels.

    Raises
    ------
    SlideloomError
        ``missing_head``, ``missing_feature``, ``unknown_class``.
    """
    options: dict[str, Any] = {"mpp_um": mpp_um, "window_px": window_px, "workers": workers}
    counts = {"found": found.n, "suspects": 0, "split": 0}
    if split is not None:
        shapes = {name: maps[name] for name in ("hv",) if name in maps}
        ids = suspects(instance_features(found, shapes, **options), split, found.table, mpp_um)
        divided = split_instances(found, maps, ids, split, mpp_um=mpp_um, tokens=tokens, workers=workers)
        counts |= {"suspects": len(ids), "split": len(divided.pieces)}
        found = divided
    counts["after_split"] = found.n
    features = None
    if verifier is not None:
        features = instance_features(found, maps, **options, n_classes=n_classes, tokens=tokens)
        keep = verifier.keep(features, threshold)
        found = keep_instances(found, keep)
        features = Features(features.names, features.values[np.flatnonzero(keep)])
    return Refining(found, features, counts | {"dropped": counts["after_split"] - found.n, "left": found.n})

"""The HV watershed of one map in memory: ours, or the original's to the bit."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.parity import parity_watershed
from slideloom.instances.stitch import SlideMaps, find_instances

__all__ = ["hv_watershed"]

_HV_SCALE = 127


def hv_watershed(
    nucleus: NDArray[Any],
    hv: NDArray[Any],
    *,
    config: InstancesConfig | None = None,
    mpp_um: float = 0.25,
    parity: bool = False,
    magnification: Literal[20, 40] = 40,
) -> NDArray[np.int32]:
    """Instances of one map that fits in memory.

    Parameters
    ----------
    nucleus : (H, W) array
        uint8, 255 times the nucleus probability; or floating point, the probability itself.
    hv : (2, H, W) array
        int8, 127 times the HV map, x then y; or floating point, the HV map itself.
    config : InstancesConfig, optional
        Thresholds and physical sizes; the defaults when left out.
    mpp_um : float
        Pixel size, µm.
    parity : bool
        Compute exactly what CellViT computes (:func:`slideloom.instances.parity.parity_watershed`): extremes of the
        map as scales, sizes in pixels, ids not contiguous. ``config`` and ``mpp_um`` then play no part.
    magnification : {40, 20}
        For ``parity``.

    Returns
    -------
    (H, W) int32 array
        0 background.
    """
    codes = nucleus if nucleus.dtype == np.uint8 else np.rint(np.clip(nucleus, 0, 1) * 255).astype(np.uint8)
    if parity:
        values = hv.astype(np.float32) / np.float32(_HV_SCALE if hv.dtype == np.int8 else 1)
        return parity_watershed(codes >= 128, values, magnification=magnification).instances
    slopes = hv if hv.dtype == np.int8 else np.rint(np.clip(hv, -1, 1) * _HV_SCALE).astype(np.int8)
    method = HVWatershed.from_config(config or InstancesConfig(), mpp_um)
    return find_instances(SlideMaps({"nucleus": codes, "hv": slopes}), method)

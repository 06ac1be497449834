"""Which pixel sizes are believed, of files and of the sheet."""

from __future__ import annotations

import math

__all__ = ["COARSEST_UM", "FINEST_UM", "plausible_mpp"]

#: Pixel sizes outside are slips of the unit: 250 for nanometres, 0.00025 for millimetres. No light microscope resolves
#: less, and no nucleus can be seen in larger pixels; brought to a grid's fine resolution, they would fill the disk.
FINEST_UM, COARSEST_UM = 0.005, 10.0
#: Larger ones of a file are left aside, as if it stated none; up to here they are refused as too coarse.
_LARGEST_READ_UM = 100.0


def plausible_mpp(
    y_um: float, x_um: float, stated_by: str, largest_um: float = _LARGEST_READ_UM
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Take a pixel size from a file, unless it cannot be one.

    Parameters
    ----------
    y_um, x_um : float
        As the file states them, µm.
    stated_by : str
        Which part of the file; for the warning.
    largest_um : float
        Larger sizes are not believed. Print resolutions (72, 96, 300 dpi) are 85 µm and more.

    Returns
    -------
    mpp_um : tuple of float or None
        (y, x), or None when not believed.
    warnings : tuple of str
        Why not.
    """
    if all(math.isfinite(value) and FINEST_UM <= value <= largest_um for value in (y_um, x_um)):
        return (y_um, x_um), ()
    return None, (f"{stated_by} states a pixel size of {y_um:.4g} x {x_um:.4g} µm, which is not believed",)

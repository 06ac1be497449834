"""The layouts that are understood, and which of them a folder has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from slideloom.errors import SlideloomError
from slideloom.slides.layouts.cellbindb import is_cellbindb, read_cellbindb
from slideloom.slides.layouts.consep import is_consep, read_consep
from slideloom.slides.layouts.cpdmi import is_cpdmi, read_cpdmi
from slideloom.slides.layouts.dsb2018 import is_dsb2018, read_dsb2018
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.listing import one_look
from slideloom.slides.layouts.lizard import is_conic, is_lizard, read_conic, read_lizard
from slideloom.slides.layouts.monuseg import is_monuseg, read_monuseg
from slideloom.slides.layouts.nucls import is_nucls, read_nucls
from slideloom.slides.layouts.nuinsseg import is_nuinsseg, read_nuinsseg
from slideloom.slides.layouts.orion_subset import is_orion_subset, read_orion_subset
from slideloom.slides.layouts.pairs import is_pairs, read_pairs
from slideloom.slides.layouts.pannuke import is_pannuke, read_pannuke
from slideloom.slides.layouts.spora import is_spora, read_spora
from slideloom.slides.layouts.tissuenet import is_tissuenet, read_tissuenet

__all__ = ["LAYOUTS", "find_layout", "read_data_set"]

_Look = Callable[[Path], bool]
_Read = Callable[[Path, Path, float | None], Imported]
_LAYOUTS: Mapping[str, tuple[_Look, _Read]] = MappingProxyType(
    {
        "spora": (is_spora, read_spora),
        "orion_subset": (is_orion_subset, read_orion_subset),
        "pannuke": (is_pannuke, read_pannuke),
        "conic": (is_conic, read_conic),
        "consep": (is_consep, read_consep),
        "lizard": (is_lizard, read_lizard),
        "monuseg": (is_monuseg, read_monuseg),
        "nuinsseg": (is_nuinsseg, read_nuinsseg),
        "nucls": (is_nucls, read_nucls),
        "cpdmi": (is_cpdmi, read_cpdmi),
        "tissuenet": (is_tissuenet, read_tissuenet),
        "dsb2018": (is_dsb2018, read_dsb2018),
        "cellbindb": (is_cellbindb, read_cellbindb),
        # The last: it asks least of a folder.
        "pairs": (is_pairs, read_pairs),
    }
)
#: Names of the layouts.
LAYOUTS = tuple(_LAYOUTS)


def find_layout(folder: Path) -> str | None:
    """Name of the layout that a folder has; None when it has none of them. Each folder below it is read once.

    Raises
    ------
    SlideloomError
        The folder does not exist.
    """
    if not folder.is_dir():
        raise SlideloomError("this folder does not exist", where=str(folder))
    with one_look():
        return next((name for name, (looks_so, _) in _LAYOUTS.items() if looks_so(folder)), None)


def read_data_set(layout: str, folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring a data set in.

    Parameters
    ----------
    layout : str
        One of :data:`LAYOUTS`.
    folder : Path
        The data set's top.
    out : Path
        Folder that the sheet will lie in: its paths start there, and what has to be made is written below it.
    mpp_um : float, optional
        Pixel size of every image, µm per pixel, over what the data set says.

    Returns
    -------
    Imported
        Rows, tables and notes. Slides that lack something are told in the notes; the others go on.

    Raises
    ------
    SlideloomError
        The folder does not exist or does not have that layout: what is missing is named.
    """
    if not folder.is_dir():
        raise SlideloomError("this folder does not exist", where=str(folder))
    return _LAYOUTS[layout][1](folder, out, mpp_um)

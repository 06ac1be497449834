"""Channel names of CPDMI 2023, where its files hold them and where they do not, and what the channels show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from slideloom.slides.tables import Channel

__all__ = ["CODEX_MPP_UM", "ZEISS_MPP_UM", "codex_names", "markers_of", "vectra_mpp", "vectra_names", "zeiss_names"]

ZEISS_MPP_UM, CODEX_MPP_UM = 0.325, 0.377
_VECTRA_MPP_UM = (0.25, 0.5)
#: Pixels per cm above which the set's users take a Vectra image for one of 0.25 µm.
_FINE_PX_PER_CM = 30_000.0
_UM_PER_CM = 10_000.0
#: Off by more, a resolution is no measurement of a Vectra.
_TOLERATED = 0.1
#: Order of the channels by specimen, as the set's users took it down; the files do not hold it.
_ZEISS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ZP-9999": ("DAPI", "CD8", "CD4", "FoxP3", "PanCK"),
        "ZP-10001": ("DAPI", "CD3", "PD-L1", "FoxP3", "PanCK"),
        "ZP-10002": ("PanCK", "PD-L1", "DAPI", "CD68", "CD3", "FoxP3", "CD8"),
        "SPLEEN": ("DAPI", "CD8", "CD68", "PD-L1", "PanCK"),
        "PDAC": ("DAPI", "CD8", "CD68", "PD-L1", "PanCK"),
    }
)
_PER_CYCLE = 4
#: Channels by cycle, DAPI first; empty where nothing was stained. None: the list that went round names two of the
#: cycle's three markers, and not their places.
_CODEX: Mapping[str, tuple[tuple[str, ...] | None, ...]] = MappingProxyType(
    {
        "LN": (
            ("", "", ""),
            ("CD8", "CD3", "CD20"),
            ("Ki67", "CD68", "PanCK"),
            ("CD21", "CD4", "CD31"),
            ("CD45RO", "CD11c", ""),
            ("", "HLA-DR", ""),
            ("", "", ""),
        ),
        "TNSL": (
            ("", "", ""),
            ("", "CD4", ""),
            ("CD8", "CD3e", "CD20"),
            None,
            ("", "CD68", "CD31"),
            ("CD45RO", "CD11c", ""),
            ("CD21", "", ""),
            ("", "", ""),
        ),
    }
)
_UNIPROT: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "cd3": ("CD3e", "P07766"),
        "cd3e": ("CD3e", "P07766"),
        "cd4": ("CD4", "P01730"),
        "cd8": ("CD8a", "P01732"),
        "cd8a": ("CD8a", "P01732"),
        "cd11c": ("CD11c", "P20702"),
        "cd14": ("CD14", "P08571"),
        "cd16": ("CD16", "P08637"),
        "cd20": ("CD20", "P11836"),
        "cd21": ("CD21", "P20023"),
        "cd31": ("CD31", "P16284"),
        "cd45": ("CD45", "P08575"),
        "cd45ro": ("CD45RO", "P08575-4"),
        "cd56": ("CD56", "P13591"),
        "cd68": ("CD68", "P34810"),
        "cd138": ("CD138", "P18827"),
        "cd163": ("CD163", "Q86VB7"),
        "foxp3": ("FOXP3", "Q9BZS1"),
        "granzymeb": ("Granzyme B", "P10144"),
        "gzmb": ("Granzyme B", "P10144"),
        "hladr": ("HLA-DR", "P01903"),
        "ki67": ("Ki67", "P46013"),
        "lag3": ("LAG3", "P18627"),
        "panck": ("Pan-CK", "P05787"),
        "pancytokeratin": ("Pan-CK", "P05787"),
        "pd1": ("PD-1", "Q15116"),
        "pdl1": ("PD-L1", "Q9NZQ7"),
        "sox10": ("SOX10", "P56693"),
        "tim3": ("TIM3", "Q8TDQ0"),
        "tox": ("TOX", "O94900"),
    }
)
_NAMED = re.compile(r"^\s*Name\s*#\s*(\d+)\s*=[ \t]*(.*?)\s*$", re.MULTILINE)
_RESOLUTION = re.compile(r"^\s*XResolution\s*=\s*([0-9.eE+]+)", re.MULTILINE)
_NUCLEAR = re.compile(r"dapi|hoechst", re.IGNORECASE)
_LETTERS = re.compile(r"[^a-z0-9]+")


def vectra_names(info: str, n_channels: int) -> tuple[str, ...] | None:
    """Channel names from the text that ImageJ keeps as ``Info``: lines such as ``Name #3 = CD8 (Opal 520)``.

    Parameters
    ----------
    info : str
        The text.
    n_channels : int
        Channels of the image.

    Returns
    -------
    tuple of str or None
        In the order of the channels; None where the text does not name each of them. Of names that stand there twice
        the second is told apart by its number.
    """
    found: dict[int, str] = {}
    for number, name in _NAMED.findall(info):
        found.setdefault(int(number), name)
    names = [found[number] for number in sorted(found)]
    if len(names) != n_channels or not all(names):
        return None
    # The sheet parts names by semicolons.
    clean = [name.replace(";", ",") for name in names]
    return tuple(name if name not in clean[:k] else f"{name} #{k + 1}" for k, name in enumerate(clean))


def vectra_mpp(info: str) -> tuple[float, str]:
    """Pixel size from the same text, µm, and what to tell where it is not what the text says.

    The text has pixels per cm. A Vectra 3.0 measures about 0.5 or about 0.25 µm; where the text says neither, the rule
    of the set's users is followed: 0.25 above 30 000, else 0.5.
    """
    match = _RESOLUTION.search(info)
    try:
        px_per_cm = float(match[1]) if match else 0.0
    except ValueError:
        px_per_cm = 0.0
    if px_per_cm > 0:
        mpp_um = _UM_PER_CM / px_per_cm
        if any(abs(mpp_um / nominal - 1) <= _TOLERATED for nominal in _VECTRA_MPP_UM):
            return round(mpp_um, 5), ""
    nominal = _VECTRA_MPP_UM[px_per_cm <= _FINE_PX_PER_CM]
    said = f"{px_per_cm:g} px/cm" if px_per_cm else "no resolution"
    return nominal, f"{said} in its text is no pixel size of a Vectra: {nominal} µm is taken"


def zeiss_names(panel: str, n_channels: int) -> tuple[str, ...] | None:
    """Channel names of a Zeiss specimen; None where the specimen or the number of channels is another."""
    names = next((names for key, names in _ZEISS.items() if panel.upper().startswith(key)), None)
    return names if names is not None and len(names) == n_channels else None


def codex_names(panel: str, n_channels: int) -> tuple[tuple[str, ...], bool]:
    """Channel names of a CODEX tissue: four a cycle, the first of which is DAPI.

    Parameters
    ----------
    panel : str
        ``LN`` or ``Tnsl``.
    n_channels : int
        A multiple of four.

    Returns
    -------
    names : tuple of str
        ``DAPI1`` …, markers, and ``blank_<cycle>_<place>`` where nothing was stained, or ``unnamed_<cycle>_<place>``
        where nobody knows what was.
    known : bool
        Whether the tissue and its number of cycles are known; else only DAPI is named.
    """
    cycles = next((cycles for key, cycles in _CODEX.items() if panel.upper().startswith(key)), ())
    known = len(cycles) * _PER_CYCLE == n_channels
    names = []
    for cycle in range(n_channels // _PER_CYCLE):
        stained = cycles[cycle] if known else None
        names.append(f"DAPI{cycle + 1}")
        for place in range(_PER_CYCLE - 1):
            name = stained[place] if stained is not None else f"unnamed_{cycle + 1}_{place + 2}"
            names.append(name or f"blank_{cycle + 1}_{place + 2}")
    return tuple(names), known


def markers_of(names: Iterable[str]) -> tuple[Channel, ...]:
    """Rows of the markers table for channel names, sorted by name; those that nobody knows keep their name as marker.

    Parameters
    ----------
    names : iterable of str
        Such as ``DAPI3``, ``CD8 (Opal 520)``, ``blank_1_2``; repeated ones count once.
    """
    return tuple(_channel(name) for name in sorted(set(names)))


def _channel(name: str) -> Channel:
    if _NUCLEAR.search(name):
        return Channel(name, "DNA", nuclear=True)
    # "CD8 (Opal 520)" and "Opal 520 CD8" name a dye, too.
    bare = re.sub(r"\(.*?\)|\bopal\s*\d+\b", " ", name, flags=re.IGNORECASE)
    marker, uniprot = _UNIPROT.get(_LETTERS.sub("", bare.lower()), (name, ""))
    return Channel(name, marker, uniprot)

"""Named conventions of matching true and predicted instances: the same words mean different numbers elsewhere.

The default is ``pannuke``: a match needs an IoU strictly greater than the threshold, as panoptic quality was defined
(Kirillov et al., CVPR 2019) and as HoVer-Net, PanNuke and CellViT compute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CONVENTIONS", "DEFAULT", "PANNUKE", "STARDIST", "Convention", "convention_named"]


@dataclass(frozen=True)
class Convention:
    """How instances match, and what an image without true instances is worth.

    Attributes
    ----------
    name : str
        What tables and reports call it.
    inclusive : bool
        An IoU that equals the threshold matches.
    one_to_one : bool
        An instance matches once at most. Without it every pair at the threshold counts as a true positive, and an
        instance in several pairs counts several times.
    assignment : {"best_iou", "most_pairs"}
        Which matching is taken where more than one is possible (thresholds below 0.5, and equals at 0.5):
        ``best_iou`` takes the one-to-one matching of all overlapping pairs with the highest sum of IoU and cuts it at
        the threshold; ``most_pairs`` takes the one with the most pairs at the threshold and, among those, the highest
        sum of IoU over all its pairs.
    empty_truth : {"undefined", "scored"}
        An image (or class of an image) without true instances is left out of averages, or takes part with 0 when
        something was predicted there. Without predictions it is undefined under both.
    source : str
        Who computes so.
    """

    name: str
    inclusive: bool
    one_to_one: bool
    assignment: Literal["best_iou", "most_pairs"]
    empty_truth: Literal["undefined", "scored"]
    source: str


PANNUKE = Convention(
    "pannuke",
    inclusive=False,
    one_to_one=True,
    assignment="best_iou",
    empty_truth="undefined",
    source="PanNuke metrics, HoVer-Net, CellViT",
)
STARDIST = Convention(
    "stardist",
    inclusive=True,
    one_to_one=True,
    assignment="most_pairs",
    empty_truth="scored",
    source="StarDist 0.9.2 matching",
)
_INSTANSEG = Convention(
    "instanseg",
    inclusive=True,
    one_to_one=True,
    assignment="most_pairs",
    empty_truth="scored",
    source="InstanSeg's papers, which match as StarDist does",
)
_INSTANSEG_PAIRS = Convention(
    "instanseg_pairs",
    inclusive=True,
    one_to_one=False,
    assignment="most_pairs",
    empty_truth="scored",
    source="InstanSeg's repository at 835ce66, which counts pairs: one merged nucleus can be two true positives",
)

#: By name.
CONVENTIONS: dict[str, Convention] = {each.name: each for each in (PANNUKE, STARDIST, _INSTANSEG, _INSTANSEG_PAIRS)}
#: What is meant where nothing is said.
DEFAULT = PANNUKE


def convention_named(name: str | Convention) -> Convention:
    """Look a convention up.

    Parameters
    ----------
    name : str or Convention
        ``pannuke``, ``stardist``, ``instanseg`` or ``instanseg_pairs``; a convention is given back as it is.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if isinstance(name, Convention):
        return name
    if name not in CONVENTIONS:
        raise ValueError(f"there is no convention {name!r}; there are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]

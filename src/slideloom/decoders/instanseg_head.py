"""InstanSeg's head, whatever decoder gives it: what its five channels mean, and the small network that reads them.

Source: Goldsborough et al., "InstanSeg: an embedding-based instance segmentation algorithm" (2024), and the program
``instanseg``. The module :mod:`slideloom.decoders.instanseg` describes the channels.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from slideloom.config.model import Head

__all__ = ["INSTANSEG_HEADS", "PARTS", "UNITS_PER_PX", "Fields", "PixelClassifier", "fields"]

#: Heads of five channels, nuclei before cells as the published models have them.
INSTANSEG_HEADS: tuple[Head, ...] = ("instanseg", "instanseg_cells")
#: Channels of the three convolutions of such a head: place, spreads, seed.
PARTS = (2, 2, 1)
#: Places are told in units of four pixels.
UNITS_PER_PX = 0.25
_REACH_UNITS = 4.0
_SEED_SCALE = 15.0
_CLASSIFIER_WIDTH = 5


class Fields(NamedTuple):
    """What the channels of an InstanSeg head mean.

    Attributes
    ----------
    offset : Tensor
        (n, 2, h, w) x then y of the step from a pixel to its nucleus' place, in units of four pixels, -4 to 4. The
        place itself is this plus :data:`UNITS_PER_PX` times the pixel's own x and y.
    sigma : Tensor
        (n, 2, h, w) spreads, any number.
    seed : Tensor
        (n, 1, h, w) about 0 outside nuclei to about 1 in their middle, not bounded.
    """

    offset: Tensor
    sigma: Tensor
    seed: Tensor


def fields(raw: Tensor) -> Fields:
    """What the raw maps of an InstanSeg head mean.

    Parameters
    ----------
    raw : Tensor
        (n, 5, h, w) of the head ``instanseg`` or ``instanseg_cells``.

    Returns
    -------
    Fields
        Of the same dtype.
    """
    return Fields(2 * _REACH_UNITS * (raw[:, :2].sigmoid() - 0.5), raw[:, 2:4], raw[:, 4:] / _SEED_SCALE + 0.5)


class PixelClassifier(nn.Module):
    """Whether a pixel is of a seed's nucleus: 4 → 5 → 5 → 1 with ReLU between.

    Attributes
    ----------
    fc1, fc2, fc3 : Linear
        Its layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sum(PARTS[:2]), _CLASSIFIER_WIDTH)
        self.fc2 = nn.Linear(_CLASSIFIER_WIDTH, _CLASSIFIER_WIDTH)
        self.fc3 = nn.Linear(_CLASSIFIER_WIDTH, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Classify pixels.

        Parameters
        ----------
        features : Tensor
            (..., 4): x and y of the pixel's place less the seed's, units; the pixel's two spreads.

        Returns
        -------
        Tensor
            (...) logits.
        """
        hidden = functional.relu(self.fc2(functional.relu(self.fc1(features))))
        return self.fc3(hidden)[..., 0]  # type: ignore[no-any-return]

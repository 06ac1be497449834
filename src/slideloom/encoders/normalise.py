"""Marker intensities to network input on the pixels' own device, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slideloom.errors import SlideloomError
from slideloom.patches.statistics import ChannelStatistics

__all__ = ["normalise"]


def normalise(pixels: Tensor, statistics: ChannelStatistics | None, markers: Sequence[str], where: str) -> Tensor:
    """Clip, take the logarithm, standardise: :meth:`ChannelStatistics.apply` for tensors.

    Parameters
    ----------
    pixels : Tensor
        (n, c, h, w) raw intensities of any type, channels in the order of ``markers``; left as they are.
    statistics : ChannelStatistics
        Of the same markers in the same order, with clipping points.
    markers : sequence of str
        That the encoder reads.
    where : str
        The encoder's name, for messages.

    Returns
    -------
    Tensor
        (n, c, h, w) float32, on the same device.

    Raises
    ------
    SlideloomError
        ``encoder_statistics``: none given, of other markers, or without clipping points. ``encoder_channels``: another
        number of channels.
    """
    wanted = tuple(markers)
    if statistics is None or statistics.markers != wanted or not statistics.clip:
        got = "no channel statistics"
        if statistics is not None:
            open_clip = "" if statistics.clip else ", without the slide's own clipping points"
            got = f"channel statistics of {', '.join(statistics.markers)}{open_clip}"
        raise SlideloomError(
            got,
            where=where,
            expected=", ".join(wanted),
            hint="Run the statistics stage for this encoder again",
            code="encoder_statistics",
        )
    if pixels.shape[1] != len(wanted):
        raise SlideloomError(
            f"{pixels.shape[1]} channels", where=where, expected=str(len(wanted)), code="encoder_channels"
        )
    columns = torch.tensor(
        [statistics.clip, statistics.mean, statistics.std], dtype=torch.float32, device=pixels.device
    )
    clip, mean, std = columns[:, :, None, None]
    values = torch.minimum(pixels.to(torch.float32), clip)
    if statistics.log1p:
        values = values.clamp_min_(0).log1p_()
    return values.sub_(mean).div_(std)

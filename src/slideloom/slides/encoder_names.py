"""Encoders by name, as far as a config can be checked without loading one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["ENCODERS", "EncoderKind", "encoder_kind"]

_PATCH = re.compile(r"patch(\d+)")
_TIMM = "timm/"


@dataclass(frozen=True)
class EncoderKind:
    """What a name says about an encoder.

    Attributes
    ----------
    rgb : bool
        Reads RGB; otherwise marker channels.
    weights : bool
        Needs a checkpoint, or a seed to run without.
    token_px : int or None
        Side of one token, pixels; None when the name does not tell.
    free_token : bool
        Whether ``patch_px`` may choose another side.
    """

    rgb: bool
    weights: bool
    token_px: int | None
    free_token: bool = False


#: What may stand as ``encoders.*.model``; ``<name>`` is any name of that library.
ENCODERS: Mapping[str, EncoderKind] = MappingProxyType(
    {
        "mean_marker": EncoderKind(rgb=False, weights=False, token_px=8, free_token=True),
        "timm/<name>": EncoderKind(rgb=True, weights=True, token_px=None),
    }
)


def encoder_kind(model: str) -> EncoderKind | None:
    """What is known of an encoder.

    Parameters
    ----------
    model : str
        Such as ``mean_marker`` or ``timm/vit_tiny_patch16_224``.

    Returns
    -------
    EncoderKind or None
        None when no encoder has that name.

    Examples
    --------
    >>> encoder_kind("timm/vit_small_patch14_dinov2").token_px
    14
    """
    if model.startswith(_TIMM) and len(model) > len(_TIMM):
        patch = _PATCH.search(model)
        base = ENCODERS["timm/<name>"]
        return EncoderKind(base.rgb, base.weights, int(patch[1]) if patch else None)
    return ENCODERS.get(model) if "<" not in model else None

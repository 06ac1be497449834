"""One line of the catalogue of encoders: its form. Plain data; nothing here imports a library of arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from slideloom.config.model import NormalisationConfig

__all__ = ["IMAGENET", "EncoderEntry", "Family"]

Family = Literal["mean_marker", "virtues", "cellvit", "timm"]
#: Mean and standard deviation of ImageNet, of RGB scaled to [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class EncoderEntry:
    """One line of the catalogue.

    Attributes
    ----------
    name : str
        What a config's ``model`` says; ``<name>`` stands for a model's own name.
    family : str
        Who builds it.
    kind : {"rgb", "markers"}
        Reads red, green and blue, or any list of markers.
    summary : str
        For people.
    weights : bool
        Whether it needs a checkpoint, or a seed to run without.
    embedding : bool
        Whether each marker needs a row of a table of protein embeddings.
    token_px : int, optional
        Side of the square of pixels that one token stands for; None: the name does not tell.
    free_token : bool
        Whether ``patch_px`` may choose another side.
    width, depth, heads : int, optional
        Length of a token, number of blocks, attention heads; None: the checkpoint or the library tells.
    params : int, optional
        Parameters of the encoder (without the decoder, heads and classifier of its file); None: the checkpoint tells.
    prefix_tokens : int
        Tokens before those of the image (class and register tokens), which are left out of the maps.
    tile_px : int, optional
        Side of the tiles that it was trained on.
    mpp_um : (float, float), optional
        Lowest and highest resolution that its weights were made for, µm per pixel; None: any, or not known.
    mean, std : tuple of float
        Of RGB scaled to [0, 1].
    normalisation : NormalisationConfig, optional
        Of marker channels: what its weights expect, and a config gets where it says nothing.
    licence : str
        Of the published weights.
    gated : str
        What the authors ask for before they give the weights; empty: nothing.
    source : str
        Where model and weights are published.
    files : tuple of str
        Names of the published files, with the folder (the name of their hub repository) where the name alone is
        common to many.
    arch : str
        Architecture, in the words of the family's builder.
    settings : mapping
        Its settings there, where they differ from the architecture's own.
    """

    name: str
    family: Family
    kind: Literal["rgb", "markers"]
    summary: str
    weights: bool = True
    embedding: bool = False
    token_px: int | None = None
    free_token: bool = False
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    params: int | None = None
    prefix_tokens: int = 0
    tile_px: int | None = None
    mpp_um: tuple[float, float] | None = None
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    normalisation: NormalisationConfig | None = None
    licence: str = "none"
    gated: str = ""
    source: str = ""
    files: tuple[str, ...] = ()
    arch: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

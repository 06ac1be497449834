"""What every decoder is from outside: its heads, its recipe, and what it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from slideloom.config.model import DecoderConfig, Head
from slideloom.encoders.base import DECODER_INPUTS
from slideloom.errors import SlideloomError

__all__ = ["HEADS", "HEAD_MODULES", "Decoder", "resized"]

HEADS: tuple[Head, ...] = get_args(Head)
#: Name of the submodule that gives each head's output; the first three are those of the published models.
HEAD_MODULES: dict[Head, str] = {
    "nucleus": "nuclei_binary_map_decoder",
    "hv": "hv_map_decoder",
    "classes": "nuclei_type_maps_decoder",
    "boundary": "boundary_map_decoder",
    "distance": "distance_map_decoder",
    "three_class": "three_class_map_decoder",
    "instanseg": "instanseg_map_decoder",
    "instanseg_cells": "instanseg_cells_map_decoder",
}


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (n, c, h, w) brought bilinearly to another height and width; the same tensor where they have it already."""
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


class Decoder(nn.Module, ABC):
    """A trained network from four token maps, and for some the image, to the maps of its heads.

    Parameters
    ----------
    config : DecoderConfig
        Kind and variants.
    heads : sequence of str
        Which outputs (:data:`HEADS`); each once, any subset.
    n_classes : int
        Classes including background.
    token_width : int
        Channels of the token maps.
    upsampling : {8, 14, 16}
        What the tokens' height and width are brought up by; 14 is short for 16 with ``patch_px`` 14.
    image_channels : int
        Channels of the image that the image skip reads; unused without it.
    patch_px : {8, 14, 16}, optional
        Image pixels a token; ``upsampling`` when left out.
    regression : bool
        Whether the nucleus head gives two more channels, as published models with a regression loss do.

    Attributes
    ----------
    upsampling : {8, 16}
        As above.
    patch_px : {8, 14, 16}
        As above.
    reads_tokens : bool
        Whether it reads tokens at all, or is a whole network that reads the image alone.

    Raises
    ------
    SlideloomError
        Upsampling other than 8, 14 or 16, or one that does not fit the tokens' side; no head, or one twice; less than
        two classes for the class head; a regression without the nucleus head.
    """

    reads_tokens: bool = True

    def __init__(
        self,
        config: DecoderConfig,
        heads: Sequence[Head],
        n_classes: int,
        token_width: int,
        upsampling: int,
        image_channels: int,
        *,
        patch_px: int | None = None,
        regression: bool = False,
    ) -> None:
        super().__init__()
        patch_px = upsampling if patch_px is None else patch_px
        upsampling = 16 if upsampling == 14 else upsampling
        _check_sides(upsampling, patch_px)
        _check_heads(heads, n_classes, regression)
        self.config = config
        self.heads: tuple[Head, ...] = tuple(head for head in HEADS if head in heads)
        self.n_classes = n_classes
        self.token_width = token_width
        self.upsampling = upsampling
        self.patch_px = patch_px
        self.regression = regression
        self.image_channels = image_channels

    @property
    def needs_image(self) -> bool:
        """Whether :meth:`forward` reads the image's values, not its size alone."""
        return self.config.image_skip

    @property
    def head_channels(self) -> dict[Head, int]:
        """Output channels of every head that there can be."""
        return {
            "nucleus": 4 if self.regression else 2,
            "hv": 2,
            "classes": self.n_classes,
            "boundary": 1,
            "distance": 1,
            "three_class": 3,
            "instanseg": 5,
            "instanseg_cells": 5,
        }

    @abstractmethod
    def last_layer(self, head: Head) -> str:
        """Name of the 1×1 convolution whose output channels are those of a head."""

    @abstractmethod
    def forward(
        self, tokens: Sequence[Tensor], image: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Decode.

        Parameters
        ----------
        tokens : sequence of Tensor
            z1 … z4, shallow to deep, each (n, d, h, w); see :func:`~slideloom.decoders.cellvit.expand_blocks`.
        image : Tensor, optional
            (n, c, H, W) normalised image; needed by the image skip only.
        size : (int, int), optional
            (H, W) of the maps; that of the image, or of the tokens times ``upsampling``, when left out. With tokens of
            8 or 16 pixels it is ``upsampling`` · (h, w); with tokens of 14 pixels h and w are the whole part of H / 14
            and W / 14.

        Returns
        -------
        dict of str to Tensor
            Of the heads asked for: ``nucleus`` (n, 2, H, W) logits, background first; ``hv`` (n, 2, H, W), x then y;
            ``classes`` (n, n_classes, H, W) logits; ``boundary`` (n, 1, H, W) logits; ``distance`` (n, 1, H, W) logits
            of a pixel's distance to its nucleus' outline, 1 in the middle; ``three_class`` (n, 3, H, W) logits of
            background, interior and boundary; ``instanseg`` and, of whole cells, ``instanseg_cells`` (n, 5, H, W): x,
            y, two spreads and the seed map, raw. With ``regression`` also ``regression`` (n, 2, H, W).

        Raises
        ------
        SlideloomError
            ``decoder_input``: number or shapes of the inputs do not fit.
        """

    def recipe(self) -> dict[str, Any]:
        """JSON values from which :func:`~slideloom.decoders.build.decoder_from_recipe` builds the same decoder.

        Its weights are not among them.
        """
        return {
            "config": self.config.model_dump(mode="json"),
            "heads": list(self.heads),
            "n_classes": self.n_classes,
            "token_width": self.token_width,
            "upsampling": self.upsampling,
            "image_channels": self.image_channels,
            "patch_px": self.patch_px,
            "regression": self.regression,
        }

    def by_head(self, maps: dict[Head, Tensor]) -> dict[str, Tensor]:
        """Maps in the order of the heads, a regression's channels apart from the nucleus head's."""
        outputs: dict[str, Tensor] = {head: maps[head] for head in self.heads}
        if self.regression:
            both = outputs["nucleus"]
            outputs |= {"nucleus": both[:, :2], "regression": both[:, 2:]}
        return outputs

    def check_inputs(
        self, tokens: Sequence[Tensor], image: Tensor | None, size: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Refuse what does not fit; returns height and width of the maps."""
        shapes = {tuple(token.shape) for token in tokens}
        if len(tokens) != DECODER_INPUTS or len(shapes) != 1:
            raise _refused(
                f"token maps of shapes {[tuple(token.shape) for token in tokens]}", "four of one shape (n, d, h, w)"
            )
        count, width, height, breadth = shapes.pop()
        if width != self.token_width:
            raise _refused(f"tokens are {width} wide", f"{self.token_width}")
        exact = self.patch_px == self.upsampling
        if size is None and image is not None:
            size = (int(image.shape[-2]), int(image.shape[-1]))
        elif size is None and exact:
            size = (self.patch_px * height, self.patch_px * breadth)
        elif size is None:
            raise _refused("neither an image nor a size", f"one of them, for tokens of {self.patch_px} pixels")
        cut = [divmod(side, self.patch_px) for side in size]
        if [whole for whole, _ in cut] != [height, breadth] or (exact and any(rest for _, rest in cut)):
            what = f"maps of {size[0]} by {size[1]} pixels from {height} by {breadth} tokens of {self.patch_px} pixels"
            about = "" if exact else "about "
            raise _refused(what, f"{about}{self.patch_px * height} by {self.patch_px * breadth} pixels")
        expected = (count, self.image_channels, *size)
        if self.needs_image and (image is None or tuple(image.shape) != expected):
            got = "no image" if image is None else f"an image of shape {tuple(image.shape)}"
            raise _refused(got, f"{expected}")
        return size


def _refused(what: str, expected: str) -> SlideloomError:
    return SlideloomError(what, where="decoder", expected=expected, code="decoder_input")


def _check_sides(upsampling: int, patch_px: int) -> None:
    if (upsampling, patch_px) not in ((8, 8), (16, 16), (16, 14)):
        raise SlideloomError(
            f"the decoder cannot bring tokens of {patch_px} pixels up {upsampling}-fold",
            expected="8-fold for 8 pixels, 16-fold for 16 or 14",
            hint="Choose an encoder with tokens of 8, 14 or 16 pixels",
            code="decoder_upsampling",
        )


def _check_heads(heads: Sequence[Head], n_classes: int, regression: bool) -> None:
    if not heads or len(set(heads)) != len(heads) or not set(heads) <= set(HEADS):
        raise SlideloomError(f"heads {list(heads)}", expected=f"some of {list(HEADS)}, each once", code="decoder_heads")
    if "classes" in heads and n_classes < 2:
        raise SlideloomError(f"{n_classes} classes", expected="background and at least one more", code="decoder_heads")
    if regression and "nucleus" not in heads:
        raise SlideloomError("a regression without the nucleus head", expected="both", code="decoder_heads")

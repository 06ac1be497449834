"""The base of whole networks: they read an image of any size and no tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.base import Decoder
from slideloom.errors import SlideloomError

__all__ = ["WholeNetwork", "reflected"]


class WholeNetwork(Decoder):
    """A network from the image alone to the maps of its heads, of the image's own height and width.

    A subclass says what kind it is, of what number sides must be a multiple, and computes maps of an image that has
    such sides (:meth:`maps`). Any other image is padded right and below by reflection, and its maps are cropped.

    Parameters
    ----------
    config, heads, n_classes, image_channels, regression
        As for :class:`~slideloom.decoders.base.Decoder`.
    token_width, upsampling, patch_px
        Kept for the recipe and, but for their own check, not read: the network sees no tokens.

    Attributes
    ----------
    reads_tokens : bool
        False.
    kind : str
        ``decoder.kind`` in the config.
    multiple_px : int
        Height and width of what :meth:`maps` reads are multiples of it.
    rescale : (float, float), optional
        Factor and summand that bring an image to the values for which a published network was made, before all else;
        part of the recipe.

    Raises
    ------
    SlideloomError
        What :class:`~slideloom.decoders.base.Decoder` refuses; ``decoder_kind``: the config is another decoder's,
        or asks for attention.
    """

    reads_tokens = False
    kind: ClassVar[str]
    multiple_px: int = 1
    rescale: tuple[float, float] | None = None

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
        super().__init__(
            config,
            heads,
            n_classes,
            token_width,
            upsampling,
            image_channels,
            patch_px=patch_px,
            regression=regression,
        )
        wanted = [name for name in ("global_context", "masked_attention") if getattr(config, name)]
        if config.kind != self.kind or wanted:
            raise SlideloomError(
                f"a decoder of kind {config.kind} with {' and '.join(wanted) or 'no attention'}, built as {self.kind}",
                expected=f"kind: {self.kind} without global_context and masked_attention",
                hint="Switch attention off, or take kind: cellvit",
                code="decoder_kind",
            )

    @property
    def needs_image(self) -> bool:
        """Always: there is nothing else to read."""
        return True

    @abstractmethod
    def maps(self, image: Tensor) -> dict[Head, Tensor]:
        """Maps of an image whose sides fit.

        Parameters
        ----------
        image : Tensor
            (n, c, h, w) as :meth:`margins` has padded it.

        Returns
        -------
        dict of str to Tensor
            Every head's (n, k, H, W) logits or values; the upper left pixel is the image's. What they have beyond the
            image's size is cropped.
        """

    def margins(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels that an image gets by reflection: above, below, left, right."""
        return 0, -height % self.multiple_px, 0, -width % self.multiple_px

    def forward(
        self, tokens: Sequence[Tensor], image: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Compute the maps of an image.

        Parameters
        ----------
        tokens : sequence of Tensor
            Not read; may be empty.
        image : Tensor
            (n, c, H, W) normalised, of any height and width.
        size : (int, int), optional
            The image's own height and width, where given.

        Returns
        -------
        dict of str to Tensor
            As :meth:`Decoder.forward <slideloom.decoders.base.Decoder.forward>`.

        Raises
        ------
        SlideloomError
            ``decoder_input``: no image, one of another number of channels, or a size that is not its own.
        """
        image, (height, width) = self._checked(image, size)
        if self.rescale is not None:
            image = image * self.rescale[0] + self.rescale[1]
        found = self.maps(reflected(image, *self.margins(height, width)))
        return self.by_head({head: found[head][..., :height, :width] for head in self.heads})

    def recipe(self) -> dict[str, Any]:
        """As of any decoder, and ``rescale`` where there is one."""
        own = super().recipe()
        return own if self.rescale is None else own | {"rescale": list(self.rescale)}

    def _checked(self, image: Tensor | None, size: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int]]:
        expected = f"(n, {self.image_channels}, {'H, W' if size is None else f'{size[0]}, {size[1]}'})"
        if image is None or image.ndim != 4 or image.shape[1] != self.image_channels or 0 in image.shape:
            fits = False
        else:
            fits = size is None or image.shape[-2:] == torch.Size(size)
        if image is None or not fits:
            got = "no image" if image is None else f"an image of shape {tuple(image.shape)}"
            raise SlideloomError(got, where="decoder", expected=expected, code="decoder_input")
        return image, (int(image.shape[-2]), int(image.shape[-1]))


def reflected(image: Tensor, above: int, below: int, left: int, right: int) -> Tensor:
    """An image continued by reflection about its outermost pixels, again and again where a margin is wider than it.

    Parameters
    ----------
    image : Tensor
        (..., H, W).
    above, below, left, right : int
        Pixels to add.

    Returns
    -------
    Tensor
        (..., above + H + below, left + W + right); the same tensor where nothing is added.
    """
    for axis, (before, after) in ((-2, (above, below)), (-1, (left, right))):
        if before or after:
            image = image.index_select(axis, _places(image.shape[axis], before, after, image.device))
    return image


def _places(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Index of the pixel that stands at each place of a line and its margins."""
    # There and back again is one period; a line of one pixel repeats it.
    period = max(1, 2 * (length - 1))
    places = torch.arange(-before, length + after, device=device) % period
    return torch.minimum(places, period - places) if length > 1 else places

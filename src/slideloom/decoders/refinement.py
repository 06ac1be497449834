"""A small network that looks at a decoder's maps once more, with the image and the tokens, and mends them.

What it gives is added to the decoder's own logits, and its last layer begins at zero: before the first step of a
training its maps are the decoder's to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slideloom.adapters.blocks import DecoderBlock, EncoderBlock
from slideloom.config.model import Head
from slideloom.decoders.base import Decoder, resized
from slideloom.decoders.build import decoder_from_recipe
from slideloom.decoders.whole import reflected
from slideloom.encoders.base import DECODER_INPUTS
from slideloom.errors import SlideloomError

__all__ = ["RefinedDecoder", "Refinement", "refine_decoder", "refined_from_recipe"]


@dataclass(frozen=True)
class Refinement:
    """What a refinement network is like.

    Attributes
    ----------
    width : int
        Channels at the maps' own resolution; doubled with each halving.
    depth : int
        How often height and width are halved.
    image : bool
        Whether it reads the image, too.
    token_channels : int
        Channels that the deepest tokens are brought to before they are brought up to the maps' size; 0: none are read.
    frozen : bool
        Whether the decoder's own weights stay as they are; else they are trained with it.
    """

    width: int = 16
    depth: int = 2
    image: bool = True
    token_channels: int = 8
    frozen: bool = True


class RefinedDecoder(Decoder):
    """A decoder and the network that mends its maps; in all else that decoder.

    Parameters
    ----------
    inner : Decoder
        Gives the maps.
    settings : Refinement
        What is added.

    Attributes
    ----------
    inner : Decoder
        As above; kept in evaluation mode where it is frozen.
    settings : Refinement
        As above.

    Raises
    ------
    SlideloomError
        ``refinement``: a width or depth below 1, or tokens of a decoder that reads none.
    """

    def __init__(self, inner: Decoder, settings: Refinement) -> None:
        super().__init__(
            inner.config,
            inner.heads,
            inner.n_classes,
            inner.token_width,
            inner.upsampling,
            inner.image_channels,
            patch_px=inner.patch_px,
            regression=inner.regression,
        )
        _check(inner, settings)
        self.reads_tokens = inner.reads_tokens
        self.inner = inner.requires_grad_(not settings.frozen)
        self.settings = settings
        self._sizes = {head: 2 if head == "nucleus" else self.head_channels[head] for head in self.heads}
        read = sum(self._sizes.values()) + (inner.image_channels if settings.image else 0) + settings.token_channels
        widths = [settings.width * 2**level for level in range(settings.depth + 1)]
        self.reduce = nn.Conv2d(inner.token_width, settings.token_channels, 1) if settings.token_channels else None
        self.down = nn.ModuleList(
            EncoderBlock(before, own, pool=level > 0, norm="batch")
            for level, (before, own) in enumerate(zip([read, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList(
            DecoderBlock(widths[level + 1], widths[level], widths[level], norm="batch")
            for level in reversed(range(settings.depth))
        )
        self.last = nn.Conv2d(widths[0], sum(self._sizes.values()), 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)
        self.train(inner.training)

    @property
    def needs_image(self) -> bool:
        """Whether the decoder or what mends its maps reads the image."""
        return self.inner.needs_image or self.settings.image

    @property
    def pixel_classifier(self) -> Any:
        """The decoder's own, of those that have one (InstanSeg)."""
        return self.inner.pixel_classifier

    def train(self, mode: bool = True) -> RefinedDecoder:
        """Set the mode; a frozen decoder stays in evaluation."""
        super().train(mode)
        if self.settings.frozen:
            self.inner.eval()
        return self

    def last_layer(self, head: Head) -> str:
        """The decoder's own last layer of a head; what is added to its output comes from ``last``."""
        return f"inner.{self.inner.last_layer(head)}"

    def recipe(self) -> dict[str, Any]:
        """The decoder's own, and what was added; :func:`refined_from_recipe` builds both."""
        return self.inner.recipe() | {"refinement": asdict(self.settings)}

    def forward(
        self, tokens: Sequence[Tensor], image: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Decode and mend; see :meth:`Decoder.forward <slideloom.decoders.base.Decoder.forward>`.

        A regression's maps are the decoder's own.
        """
        if self.settings.image and image is None:
            raise SlideloomError("no image", where="decoder", expected="one to refine by", code="decoder_input")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.frozen):
            outputs: dict[str, Tensor] = self.inner(tokens, image, size)
        height, width = next(iter(outputs.values())).shape[-2:]
        read = [_bounded(head, outputs[head].float()) for head in self.heads]
        if self.settings.image:
            assert image is not None
            read.append(resized(image.to(read[0].dtype), (height, width)))
        if self.reduce is not None:
            read.append(resized(self.reduce(tokens[DECODER_INPUTS - 1]), (height, width)).to(read[0].dtype))
        multiple = 2**self.settings.depth
        change = self._change(reflected(torch.cat(read, 1), 0, -height % multiple, 0, -width % multiple))
        parts = torch.split(change[..., :height, :width], list(self._sizes.values()), dim=1)
        mended = {head: outputs[head] + part for head, part in zip(self.heads, parts, strict=True)}
        return outputs | mended

    def _change(self, maps: Tensor) -> Tensor:
        levels: list[Tensor] = []
        for block in self.down:
            maps = block(maps)
            levels.append(maps)
        for block, finer in zip(self.up, reversed(levels[:-1]), strict=True):
            maps = block(maps, finer)
        change: Tensor = self.last(maps)
        return change


def refine_decoder(inner: Decoder, settings: Refinement, seed: int | None = None) -> RefinedDecoder:
    """Put a refinement network behind a decoder.

    Parameters
    ----------
    inner : Decoder
        Trained, as a rule.
    settings : Refinement
        What is added.
    seed : int, optional
        Draw the new weights from this seed and leave the global generator as it was; left out: draw from that.
    """
    if seed is None:
        return RefinedDecoder(inner, settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return RefinedDecoder(inner, settings)


def refined_from_recipe(recipe: Mapping[str, Any]) -> RefinedDecoder:
    """Build the decoder that :meth:`RefinedDecoder.recipe` described; its weights are yours to load."""
    own = dict(recipe)
    settings = Refinement(**own.pop("refinement"))
    return RefinedDecoder(decoder_from_recipe(own), settings)


def _bounded(head: Head, maps: Tensor) -> Tensor:
    """A head's logits or values within bounds."""
    if head in ("nucleus", "classes", "three_class"):
        return maps.softmax(1)
    if head in ("boundary", "distance"):
        return maps.sigmoid()
    if head == "hv":
        return maps.clamp(-1, 1)
    # InstanSeg's raw values: steps and spreads of some units, seeds of up to ±15.
    return (maps / 8).tanh()


def _check(inner: Decoder, settings: Refinement) -> None:
    if settings.width < 1 or settings.depth < 1 or settings.token_channels < 0:
        raise SlideloomError(
            f"a refinement of width {settings.width}, depth {settings.depth} and {settings.token_channels} channels of "
            "tokens",
            expected="width and depth of at least 1",
            code="refinement",
        )
    if settings.token_channels and not inner.reads_tokens:
        raise SlideloomError(
            f"a refinement that reads tokens, behind a decoder of kind {inner.config.kind}",
            expected="token_channels 0 for a decoder that reads no tokens",
            hint="Set token_channels to 0",
            code="refinement",
        )

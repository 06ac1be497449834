"""HoVer-Net: one encoder of the image, and a decoder for each head.

Source: Graham et al., HoVer-Net: simultaneous segmentation and classification of nuclei in multi-tissue histology
images, Medical Image Analysis 58 (2019), and the network of its published models.

The decoders' convolutions have no padding, so that the published network gives the middle of what it reads:

========  ======  ===========  =======  =======  ====================
mode      kernel  first layer  reads    gives    fewer, whatever size
========  ======  ===========  =======  =======  ====================
fast      3×3     padded       256 px   164 px   92 px
original  5×5     not padded   270 px   80 px    190 px
========  ======  ===========  =======  =======  ====================

Here maps have the image's own size: it is first continued by reflection so far that the middle is all of it. The
margin above and on the left is a multiple of 8 pixels, so that pixels fall together in the deeper layers as they do
without it. Then the maps are the published network's wherever its own zeros beyond the border are out of reach, 110
pixels from there in fast mode and 156 in original mode; nearer, they are computed from the reflection. A 256 px tile is
worked on at 352 or 454 px: HoVer-Net is slow on small tiles.

The published network divides its input by 255. This one reads images as the study normalises them, and divides by
nothing: published weights expect RGB from 0 to 1, to which ``rescale`` brings what the study gives.

``width`` multiplies all channel counts (1 is the published network); ``backbone``, ``skips``, ``image_skip``,
``branches`` and ``dropout`` have no meaning here. Weights begin as drawn by He et al. (fan out), since no encoder
trained on ImageNet comes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.base import HEAD_MODULES
from slideloom.decoders.hovernet_blocks import HeadBranch, PreactResNet50, cropped, doubled
from slideloom.decoders.whole import WholeNetwork
from slideloom.errors import SlideloomError

__all__ = ["MODES", "HoVerNet", "Mode"]

#: Pixels of the image for one of the deepest map.
_COARSEST = 8


@dataclass(frozen=True)
class Mode:
    """Sizes of a published mode.

    Attributes
    ----------
    kernel : int
        Side of the decoders' kernels.
    stem_margin : int
        Pixels that the first layer takes off on each side.
    margin : int
        Pixels that the whole network takes off on each side.
    """

    kernel: int
    stem_margin: int
    margin: int

    @property
    def before(self) -> int:
        """Margin that an image gets above and on the left: whole pixels of the deepest map."""
        return -(-self.margin // _COARSEST) * _COARSEST

    def after(self, side: int) -> int:
        """Margin that an image of some side gets below or on the right."""
        rest = self.before + side + self.margin - 2 * self.stem_margin
        return self.margin + -rest % _COARSEST


MODES: dict[Literal["fast", "original"], Mode] = {"fast": Mode(3, 0, 46), "original": Mode(5, 3, 95)}


class HoVerNet(WholeNetwork):
    """HoVer-Net, from an image to maps of its size.

    Parameters
    ----------
    config, heads, n_classes, token_width, upsampling, image_channels, patch_px, regression
        As for :class:`~slideloom.decoders.whole.WholeNetwork`. The published heads are ``nucleus``, ``hv`` and
        ``classes``; any other has a decoder of the same shape.

    Attributes
    ----------
    mode : Mode
        Sizes of ``config.mode``.

    Raises
    ------
    SlideloomError
        What :class:`~slideloom.decoders.whole.WholeNetwork` refuses.
    """

    kind: ClassVar[str] = "hovernet"

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
        self.mode = MODES[config.mode]
        self.encoder = PreactResNet50(image_channels, padded=self.mode.stem_margin == 0, width=config.width)
        for head in self.heads:
            branch = HeadBranch(self.encoder.channels, self.head_channels[head], self.mode.kernel, config.width)
            self.add_module(HEAD_MODULES[head], branch)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def last_layer(self, head: Head) -> str:
        """Name of the 1×1 convolution whose output channels are those of a head."""
        return f"{HEAD_MODULES[head]}.last"

    def margins(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels that an image gets by reflection: above, below, left, right."""
        mode = self.mode
        return mode.before, mode.after(height), mode.before, mode.after(width)

    def maps(self, image: Tensor) -> dict[Head, Tensor]:
        """Maps of an image with its margins, from its upper left pixel on."""
        beyond = self.mode.before - self.mode.margin
        return {head: maps[..., beyond:, beyond:] for head, maps in self.valid_maps(image).items()}

    def valid_maps(self, image: Tensor) -> dict[Head, Tensor]:
        """Maps of the middle of an image, as the published network gives them.

        Parameters
        ----------
        image : Tensor
            (n, c, H, W); H and W multiples of 8, in original mode 6 more than one, such as 256 and 270.

        Returns
        -------
        dict of str to Tensor
            Of every head (n, k, H - 92, W - 92), in original mode (n, k, H - 190, W - 190).

        Raises
        ------
        SlideloomError
            ``decoder_input``: another height or width.
        """
        sides, lost = image.shape[-2:], 2 * self.mode.margin
        if any((side - 2 * self.mode.stem_margin) % _COARSEST or side <= lost for side in sides):
            more = f" and {2 * self.mode.stem_margin}" if self.mode.stem_margin else ""
            raise SlideloomError(
                f"an image of {sides[0]} by {sides[1]} pixels",
                where="decoder",
                expected=f"sides of a multiple of {_COARSEST}{more}, greater than {lost}",
                code="decoder_input",
            )
        full, half, quarter, deepest = self.encoder(image)
        branches = {head: self._branch(head) for head in self.heads}
        at_quarter, at_half = next(iter(branches.values())).lost
        quarter = doubled(deepest) + quarter
        half = cropped(half, 2 * at_quarter)
        full = cropped(full, 4 * at_quarter + 2 * at_half)
        return {head: branch(quarter, half, full) for head, branch in branches.items()}

    def _branch(self, head: Head) -> HeadBranch:
        branch = self.get_submodule(HEAD_MODULES[head])
        assert isinstance(branch, HeadBranch)
        return branch

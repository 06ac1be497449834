"""U-Net, through the library segmentation_models_pytorch.

Source: Ronneberger et al., U-Net: convolutional networks for biomedical image segmentation, MICCAI (2015); its encoder
is a network for classification, as the library has them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.whole import WholeNetwork
from slideloom.encoders.timm_models.torchvision_guard import ensure_torchvision
from slideloom.errors import SlideloomError

__all__ = ["UNet"]

#: What the library calls encoders that it takes from timm.
_TIMM = "tu-"


class UNet(WholeNetwork):
    """A U-Net from an image to maps of its size; one last convolution gives the channels of all heads.

    ``config.backbone`` names the encoder: one of the library's own, or ``tu-`` and the name of a convolutional network
    of timm. Its weights are drawn, never fetched. ``width``, ``skips``, ``image_skip``, ``branches`` and ``dropout``
    have no meaning here.

    Parameters
    ----------
    config, heads, n_classes, token_width, upsampling, image_channels, patch_px, regression
        As for :class:`~slideloom.decoders.whole.WholeNetwork`.

    Attributes
    ----------
    multiple_px : int
        Pixels of the image for one of the encoder's deepest map, 32 for most.

    Raises
    ------
    SlideloomError
        What :class:`~slideloom.decoders.whole.WholeNetwork` refuses; ``decoder_backbone``: the library knows no encoder
        of that name, or cannot make a U-Net of it.
    """

    kind: ClassVar[str] = "unet"

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
        self._channels = [self.head_channels[head] for head in self.heads]
        self.network = _network(config.backbone, image_channels, sum(self._channels))
        self.multiple_px = _multiple(self.network)

    def last_layer(self, head: Head) -> str:
        """Name of the convolution whose output channels are those of all heads, in their order; 3×3, not 1×1."""
        return "network.segmentation_head.0"

    def maps(self, image: Tensor) -> dict[Head, Tensor]:
        """Maps of an image whose sides are multiples of :attr:`multiple_px`."""
        maps: Tensor = self.network(image)
        return dict(zip(self.heads, torch.split(maps, self._channels, dim=1), strict=True))


def _network(backbone: str, image_channels: int, channels: int) -> nn.Module:
    # Slow to import, and only networks of this kind need it; timm, which it imports, needs the guard.
    ensure_torchvision()
    library: Any = importlib.import_module("segmentation_models_pytorch")
    _check_name(library, backbone)
    try:
        network: nn.Module = library.Unet(
            encoder_name=backbone, encoder_weights=None, in_channels=image_channels, classes=channels
        )
        _try(network, image_channels)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SlideloomError(
            f"backbone {backbone!r} makes no U-Net: {error}",
            where="decoder.backbone",
            expected=f"an encoder that halves images of {image_channels} channels and any size again and again",
            hint="Take resnet34",
            code="decoder_backbone",
        ) from error
    return network


def _multiple(network: nn.Module) -> int:
    encoder: Any = network.get_submodule("encoder")
    return int(encoder.output_stride)


@torch.inference_mode()
def _try(network: nn.Module, image_channels: int) -> None:
    """Run it once: transformers that are bound to one size of image say so no earlier."""
    side = _multiple(network)
    network.eval()(torch.zeros(1, image_channels, 3 * side, 2 * side))
    network.train()


def _check_name(library: Any, backbone: str) -> None:
    import timm

    known = [str(name) for name in library.encoders.get_encoder_names()]
    if backbone in known or (backbone.startswith(_TIMM) and timm.is_model(backbone.removeprefix(_TIMM))):
        return
    names = known + [f"{_TIMM}{name}" for name in timm.list_models()]
    near = difflib.get_close_matches(backbone.casefold(), names, 3, 0.5)
    raise SlideloomError(
        f"backbone {backbone!r} is no encoder of segmentation_models_pytorch",
        where="decoder.backbone",
        expected=f"such as {', '.join(near or known[:3])}",
        hint="Its documentation lists them; those of timm begin with tu-",
        code="decoder_backbone",
    )

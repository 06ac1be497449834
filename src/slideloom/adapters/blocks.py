"""Residual convolution blocks that ChannelNet and InstanSeg are built of, with the names that their state dicts carry.

Facts: Goldsborough et al. 2024, bioRxiv 2024.09.04.611150, and the program `instanseg` 0.1.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Activation", "ConvNormAct", "DecoderBlock", "EncoderBlock", "Norm", "conv_norm_act"]

Norm = Literal["batch", "instance", "none"]
Activation = Literal["relu", "relu6", "mish", "none"]

#: Weight of a batch in the running statistics, as the original has it (torch's own default is 0.1).
_MOMENTUM = 0.05


class ConvNormAct(nn.Sequential):
    """Convolution ``0``, normalisation ``1`` and activation ``2``, each that is not there the identity.

    In eval mode without gradients batch normalisation is folded into the convolution, which spares a pass over the
    maps; values change by rounding alone.

    Parameters
    ----------
    conv : Conv2d
        With bias, stride 1, padded to keep height and width.
    norm, act : Module
        What follows.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, act: nn.Module) -> None:
        super().__init__(conv, norm, act)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, in, h, w) → (n, out, h, w)."""
        (weight, bias), after = self.convolution()
        return after(functional.conv2d(maps, weight, bias, padding=weight.shape[-1] // 2))

    def convolution(self) -> tuple[tuple[Tensor, Tensor], Callable[[Tensor], Tensor]]:
        """Weight (out, in, k, k) and bias (out,) of the convolution, and what follows it.

        In eval mode without gradients batch normalisation is part of the first.
        """
        conv, norm, act = cast(nn.Conv2d, self[0]), self[1], self[2]
        weight, bias = conv.weight, cast(Tensor, conv.bias)
        if self.training and isinstance(norm, nn.BatchNorm2d) and weight.device.type == "cpu":
            # Of channels-last maps torch sums a batch's values on a CPU one after the other in float32: the mean and
            # variance of a million lose three digits, which the plain layout keeps.
            plain = weight.clone(memory_format=torch.contiguous_format)
            return (plain, bias), lambda maps: cast(Tensor, act(norm(maps.contiguous())))
        if self.training or torch.is_grad_enabled() or not isinstance(norm, nn.BatchNorm2d):
            return (weight, bias), lambda maps: cast(Tensor, act(norm(maps)))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return (weight * scale[:, None, None, None], (bias - norm.running_mean) * scale + norm.bias), act


def conv_norm_act(c_in: int, c_out: int, kernel: int, norm: Norm, act: Activation = "relu") -> ConvNormAct:
    """Convolution with bias that keeps height and width, normalisation, activation.

    Parameters
    ----------
    c_in, c_out : int
        Channels.
    kernel : int
        Side, odd.
    norm : {"batch", "instance", "none"}
        Batch normalisation with momentum 0.05; instance normalisation with weights and without running statistics; or
        none.
    act : {"relu", "relu6", "mish", "none"}
        Activation.
    """
    norms: dict[Norm, nn.Module] = {
        "batch": nn.BatchNorm2d(c_out, momentum=_MOMENTUM),
        "instance": nn.InstanceNorm2d(c_out, affine=True),
        "none": nn.Identity(),
    }
    # What comes before an activation is needed by no gradient but Mish's own, so the others may write over it.
    activations: dict[Activation, nn.Module] = {
        "relu": nn.ReLU(inplace=True),
        "relu6": nn.ReLU6(inplace=True),
        "mish": nn.Mish(),
        "none": nn.Identity(),
    }
    return ConvNormAct(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2), norms[norm], activations[act])


class EncoderBlock(nn.Module):
    """Two residual steps of two 3×3 convolutions each, the first beside a 1×1 projection, after a max-pool or none.

    Parameters
    ----------
    c_in, c_out : int
        Channels.
    pool : bool
        Halve height and width first, by the largest of 2×2.
    norm, act
        As for :func:`conv_norm_act`.
    """

    def __init__(self, c_in: int, c_out: int, *, pool: bool, norm: Norm, act: Activation = "relu") -> None:
        super().__init__()
        self.pool = pool
        self.conv0 = conv_norm_act(c_in, c_out, 1, norm, act)
        self.conv1 = conv_norm_act(c_in, c_out, 3, norm, act)
        self.conv2 = conv_norm_act(c_out, c_out, 3, norm, act)
        self.conv3 = conv_norm_act(c_out, c_out, 3, norm, act)
        self.conv4 = conv_norm_act(c_out, c_out, 3, norm, act)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, in, h, w) → (n, out, h, w), or half of h and w."""
        if self.pool:
            maps = functional.max_pool2d(maps, 2)
        out = self.conv0(maps) + self.conv2(self.conv1(maps))
        summed: Tensor = out + self.conv4(self.conv3(out))
        return summed


class DecoderBlock(nn.Module):
    """Double height and width by repeating pixels, then two residual steps; a finer skip is added in the first.

    Parameters
    ----------
    c_in, c_skip, c_out : int
        Channels of the coarse maps, of the skip and of the output.
    norm, act
        As for :func:`conv_norm_act`.
    """

    def __init__(self, c_in: int, c_skip: int, c_out: int, *, norm: Norm, act: Activation = "relu") -> None:
        super().__init__()
        self.conv0 = conv_norm_act(c_in, c_out, 1, norm, act)
        self.conv_skip = conv_norm_act(c_skip, c_out, 1, norm, act)
        self.conv1 = conv_norm_act(c_in, c_out, 3, norm, act)
        self.conv2 = conv_norm_act(c_out, c_out, 3, norm, act)
        self.conv3 = conv_norm_act(c_out, c_out, 3, norm, act)
        self.conv4 = conv_norm_act(c_out, c_out, 3, norm, act)

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        """(n, in, h, w) and (n, skip, 2h, 2w) → (n, out, 2h, 2w)."""
        if self.training:
            maps = _doubled(maps)
            projected = self.conv0(maps)
        else:
            # Pixel by pixel it makes no difference which comes first, but for how many pixels there are to compute
            # (and, in training, to count: the running variance depends on their number).
            projected, maps = _doubled(self.conv0(maps)), _doubled(maps)
        out = projected + self.conv2(self.conv1(maps) + self.conv_skip(skip))
        summed: Tensor = out + self.conv4(self.conv3(out))
        return summed


def _doubled(maps: Tensor) -> Tensor:
    """Every pixel as 2×2."""
    return functional.interpolate(maps, scale_factor=2, mode="nearest")

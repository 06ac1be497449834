"""ChannelNet: the same small U-Net on every channel, which tell each other their largest values after every block.

Any number of channels in any order, to a fixed number. Facts: Goldsborough et al. 2024, bioRxiv 2024.09.04.611150, and
the program `instanseg` 0.1.1 (there ``ChannelInvariantNet``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from slideloom.adapters.base import Adapter
from slideloom.adapters.blocks import ConvNormAct, DecoderBlock, EncoderBlock, conv_norm_act
from slideloom.adapters.channels import checked_present
from slideloom.config.model import AdapterConfig

__all__ = ["ChannelNet"]

#: Pixels of channels that one pass takes where no gradient is wanted and many at once are faster: not on a CPU.
_PASS_PX = 2**22

#: Channels of several images in one part with their number for each image, or several parts of one image.
_Parts = list[Tensor]


class ChannelNet(Adapter):
    """Any number of channels, in any order, to ``config.out_channels``.

    Every channel goes alone through one network with shared weights: blocks at full, half and quarter resolution and
    back. After each block it hears the largest value that any channel of its image has at a place: beside its own
    (``concat``), added to it (``sum``), or not at all (``none``). After the last block only the largest values remain,
    and a 1×1 convolution gives the output. So the order of the channels changes nothing, and neither does a channel
    that is there twice (batch statistics in training apart): on a CPU without gradients to the bit, else to rounding.
    A channel of zeros does change the output.

    Channels that only pad a batch of different panels (``present`` False) are not computed: no maximum and no batch
    statistic knows of them, and an image gives the same alone as in any batch. With ``config.original`` they count as
    images of zeros, as the original program counts them.

    Images may have any height and width; those that are no multiples of 4 are continued by reflection below and to the
    right, and the output is cropped. Two windows of one slide give equal values where they overlap only if they start
    at multiples of 4 pixels from each other.

    Without gradients and in eval mode channels pass one or a few at a time, so that memory beyond what an image's
    channels carry from block to block (14 values per channel and pixel with the published widths) does not grow with
    them, nor with the number of images.

    Parameters
    ----------
    config : AdapterConfig
        ``aggregation``, ``widths``, ``norm``, ``original``, ``out_channels``. With the defaults the weights are those
        of the published networks, under their names without a prefix: ``conv_0``, ``down_1``, ``down_2``, ``upcat_2``,
        ``upcat_1`` (whose ``reduce_block`` is carried, as there, and used by nothing) and ``final_conv``.
    """

    multiple_px = 4

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        fine, half, quarter = config.widths
        norm = config.norm
        self.conv_0 = EncoderBlock(1, fine, pool=False, norm=norm)
        self.down_1 = EncoderBlock(fine, half, pool=True, norm=norm)
        self.down_2 = EncoderBlock(half, quarter, pool=True, norm=norm)
        self.upcat_2 = DecoderBlock(quarter, half, half, norm=norm)
        self.upcat_1 = DecoderBlock(half, fine, fine, norm=norm)
        if config.aggregation != "sum":
            blocks = (self.conv_0, self.down_1, self.down_2, self.upcat_2, self.upcat_1)
            for block, width in zip(blocks, (fine, half, quarter, half, fine), strict=True):
                block.add_module("reduce_block", conv_norm_act(2 * width, width, 3, norm))
        # Instance normalisation of the output would take the brightness out of every channel.
        last = "none" if norm == "instance" else norm
        self.final_conv = conv_norm_act(fine, config.out_channels, 1, last, "none")

    def forward(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """Map images.

        Parameters
        ----------
        images : Tensor
            (n, c, H, W) floating, normalised; c of at least one, H and W of any size.
        present : Tensor, optional
            (n, c) bool: False for channels that pad. All are there when left out.

        Returns
        -------
        Tensor
            (n, out_channels, H, W) float32.

        Raises
        ------
        SlideloomError
            ``adapter_input``: images without channels or pixels, a mask that does not fit, or an image none of whose
            channels is there.
        """
        present = checked_present(images, present)
        count, channels, height, width = images.shape
        if present is None or self.config.original:
            flat, counts = images.flatten(0, 1), [channels] * count
        else:
            flat, counts = images[present], present.sum(dim=1).tolist()
        pairs = _continued(flat[:, None].contiguous(), self.multiple_px)
        if not self.training:
            # The strides of channels-last, which one channel allows at no cost; all that follows takes its layout.
            pairs = pairs[:, 0, :, :, None].permute(0, 3, 1, 2)
        if self.training or torch.is_grad_enabled():
            largest = self._features([pairs], counts)
        else:
            largest = torch.cat([self._features(parts, group) for parts, group in _passes(pairs, counts)])
        out: Tensor = self.final_conv(largest)
        return out[..., :height, :width].float().contiguous()

    def _features(self, parts: _Parts, counts: Sequence[int]) -> Tensor:
        """Largest features of every image, (n, fine, h, w).

        A list gives up what is not needed any more as the next one fills, so that one of each remains at most.
        """
        fine = [self.conv_0(part) for part in parts]
        half = [self.down_1(own) for own in self._exchanged(self.conv_0, fine, counts)]
        quarter = [self.down_2(own) for own in self._exchanged(self.down_1, half, counts)]
        for place, own in enumerate(self._exchanged(self.down_2, quarter, counts)):
            half[place] = self.upcat_2(own, half[place])
        ups = self._exchanged(self.upcat_2, half, counts)
        return _largest((self.upcat_1(own, fine[place]) for place, own in enumerate(ups)), counts)

    def _exchanged(self, block: nn.Module, parts: _Parts, counts: Sequence[int]) -> Iterator[Tensor]:
        """Replace the parts, one by one, by what they are after hearing of the other channels, and give each."""
        if self.config.aggregation == "sum":
            heard = _largest(parts, counts)
            for place, part in enumerate(parts):
                parts[place] = _added(part, heard, counts)
                yield parts[place]
            return
        reduce = cast(ConvNormAct, block.get_submodule("reduce_block"))
        (weight, bias), after = reduce.convolution()
        # The convolution of the largest values beside a channel's own is the sum of two, and the one of the largest
        # values is the same for all channels of an image.
        width = weight.shape[0]
        if self.config.aggregation == "concat":
            heard = functional.conv2d(_largest(parts, counts), weight[:, :width], bias, padding=1)
        else:
            heard = bias[None, :, None, None].expand(len(counts), -1, 1, 1)
        for place, part in enumerate(parts):
            own = functional.conv2d(part, weight[:, width:], padding=1)
            parts[place] = after(_added(own, heard, counts))
            yield parts[place]


def _passes(pairs: Tensor, counts: Sequence[int]) -> Iterator[tuple[_Parts, list[int]]]:
    """Cut the channels of a batch into passes: one image in parts, or as many whole images as one part takes."""
    most = _most(pairs)
    group: list[int] = []
    start = 0
    for count in counts:
        if group and sum(group) + count > most:
            yield [pairs[start : start + sum(group)]], group
            start, group = start + sum(group), []
        if count > most:
            yield list(torch.split(pairs[start : start + count], most)), [count]
            start += count
        else:
            group.append(count)
    if group:
        yield [pairs[start:]], group


def _most(pairs: Tensor) -> int:
    """How many channels one pass takes.

    One on a CPU, where it stays in the cache, and where convolutions round a batch's places differently.
    """
    if pairs.device.type == "cpu":
        return 1
    return max(1, _PASS_PX // (pairs.shape[-2] * pairs.shape[-1]))


def _largest(parts: Iterable[Tensor], counts: Sequence[int]) -> Tensor:
    """Largest value of any channel of every image, (n, k, h, w)."""
    largest: Tensor | None = None
    for part in parts:
        if len(part) == 1:
            found = part
        elif len(set(counts)) == 1:
            found = part.view(len(counts), -1, *part.shape[1:]).amax(dim=1)
        else:
            found = torch.stack([channels.amax(dim=0) for channels in torch.split(part, list(counts))])
        if part.is_contiguous(memory_format=torch.channels_last):
            found = found.contiguous(memory_format=torch.channels_last)  # a reduction gives the plain layout
        largest = found if largest is None else torch.maximum(largest, found)
    assert largest is not None
    return largest


def _added(part: Tensor, values: Tensor, counts: Sequence[int]) -> Tensor:
    """Every channel of a part with its image's values added."""
    if len(counts) == 1:
        return part + values
    if len(set(counts)) == 1:
        return (part.view(len(counts), -1, *part.shape[1:]) + values[:, None]).flatten(0, 1)
    return part + values[torch.repeat_interleave(torch.tensor(counts, device=part.device))]


def _continued(maps: Tensor, multiple: int) -> Tensor:
    """Maps continued by reflection below and to the right to multiples; by their edge where they are too small."""
    height, width = maps.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if not below and not right:
        return maps
    mode = "reflect" if below < height and right < width else "replicate"
    return functional.pad(maps, (0, right, 0, below), mode=mode)

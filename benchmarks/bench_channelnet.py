"""ChannelNet as Slideloom runs it against the same weights run straight through.

Plain: all channels of a batch at once, every convolution, normalisation and activation by itself, the largest values
laid beside each channel's own, tensors contiguous (NCHW). Slideloom: see ``slideloom.adapters.channelnet``. Both are
checked to give the same; the two take turns, times are the least of several rounds, and CPU time is what counts on a
busy machine. Peak memory is that of a process of its own a way, over what it held before.

Run: ``python benchmarks/bench_channelnet.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.adapters.build import build_adapter
from slideloom.adapters.channelnet import ChannelNet
from slideloom.config.model import AdapterConfig

Way = Callable[[ChannelNet, Tensor], Tensor]


def layers(block: nn.Module, name: str, maps: Tensor) -> Tensor:
    """Convolution, normalisation and activation, one after the other."""
    for layer in block.get_submodule(name):  # type: ignore[attr-defined]
        maps = layer(maps)
    return maps


def encode(block: nn.Module, maps: Tensor, pool: bool) -> Tensor:
    """A block on the way down."""
    maps = functional.max_pool2d(maps, 2) if pool else maps
    out = layers(block, "conv0", maps) + layers(block, "conv2", layers(block, "conv1", maps))
    return out + layers(block, "conv4", layers(block, "conv3", out))


def decode(block: nn.Module, maps: Tensor, skip: Tensor) -> Tensor:
    """A block on the way up."""
    maps = functional.interpolate(maps, scale_factor=2)
    first = layers(block, "conv1", maps) + layers(block, "conv_skip", skip)
    out = layers(block, "conv0", maps) + layers(block, "conv2", first)
    return out + layers(block, "conv4", layers(block, "conv3", out))


def plain(net: ChannelNet, images: Tensor) -> Tensor:
    """The network as its description reads."""
    count, channels, height, width = images.shape

    def by_image(maps: Tensor) -> Tensor:
        return maps.view(count, channels, *maps.shape[1:])

    def exchanged(block: nn.Module, maps: Tensor) -> Tensor:
        parts = by_image(maps)
        largest = parts.max(dim=1, keepdim=True).values.expand_as(parts)
        return layers(block, "reduce_block", torch.cat([largest.flatten(0, 1), maps], dim=1))

    fine = exchanged(net.conv_0, encode(net.conv_0, images.reshape(-1, 1, height, width), pool=False))
    half = exchanged(net.down_1, encode(net.down_1, fine, pool=True))
    quarter = exchanged(net.down_2, encode(net.down_2, half, pool=True))
    up = exchanged(net.upcat_2, decode(net.upcat_2, quarter, half))
    last = by_image(decode(net.upcat_1, up, fine)).max(dim=1).values
    return layers(net, "final_conv", last)


def slideloom(net: ChannelNet, images: Tensor) -> Tensor:
    """The network as it is used."""
    return net(images)


WAYS: dict[str, Way] = {"plain": plain, "slideloom": slideloom}


def prepared(channels: int, tile: int, batch: int, train: bool) -> tuple[ChannelNet, Tensor]:
    """A network whose normalisations have seen something, and images."""
    net = build_adapter(AdapterConfig(), seed=0)
    assert isinstance(net, ChannelNet)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, channels, tile, tile, generator=generator)
    with torch.no_grad():
        for _ in range(20):
            net(images[:, :4, :64, :64])
    return net.train(train), images


def once(way: str, net: ChannelNet, images: Tensor, train: bool) -> Tensor:
    """One forward pass, or one forward and backward."""
    with nullcontext() if train else torch.inference_mode():
        out = WAYS[way](net, images)
    if train:
        net.zero_grad(set_to_none=True)
        out.square().mean().backward()
    return out.detach()


def high_water() -> int:
    """Most memory that this process has held, KiB; unlike getrusage's it knows nothing of the parent process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def peak(way: str, channels: int, tile: int, batch: int, train: bool, threads: int) -> float:
    """Peak of memory of a pass over what was held before, MiB; for a process of its own."""
    torch.set_num_threads(threads)
    net, images = prepared(channels, tile, batch, train)
    before = high_water()
    once(way, net, images, train)
    return (high_water() - before) / 1024


def main() -> None:
    """Parse the options, check equality, time and weigh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tile", type=int, default=256, help="tile side, pixels")
    parser.add_argument("--batch", type=int, default=1, help="tiles a pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", action="store_true", help="forward and backward instead of inference")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.threads} thread(s), load {os.getloadavg()[0]:.1f};"
        f" {options.batch} tile(s) of {options.tile} px; {'forward and backward' if options.train else 'inference'}"
    )
    for channels in options.channels:
        net, images = prepared(channels, options.tile, options.batch, options.train)
        outs = {way: once(way, net, images, options.train) for way in WAYS}
        worst = float((outs["slideloom"] - outs["plain"]).abs().max())
        print(f"{channels} channels: largest difference {worst:.1e} of {float(outs['plain'].abs().max()):.1f}")
        if worst > 1e-4:
            raise SystemExit("the two ways differ")
        seconds = {way: float("inf") for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                mark = time.process_time()
                once(way, net, images, options.train)
                seconds[way] = min(seconds[way], time.process_time() - mark)
        for way in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                mib = alone.apply(peak, (way, channels, options.tile, options.batch, options.train, options.threads))
            ratio = seconds["plain"] / seconds[way]
            print(f"  {way:<12} {seconds[way]:8.3f} s CPU   {mib:8.0f} MiB   {ratio:5.2f}x the plain one's speed")


if __name__ == "__main__":
    main()

"""Memory and time of the decoder's attention: in windows, among all foreground pixels of a tile, in a whole decoder.

Every figure comes from a process of its own: the peak of its memory over what it held before, and CPU time. ``fused``
is what torch does where it has a kernel that never writes the scores down; ``written`` is what it does elsewhere.

Run: ``python benchmarks/bench_attention.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.config.model import DecoderConfig
from slideloom.decoders.attention import MaskedAttention
from slideloom.decoders.build import build_decoder

#: Side times window above which scores are not written down: 256 times 256 are 32 GiB.
_MOST_WRITTEN = 128 * 128
VARIANTS = {
    "plain": {},
    "global": {"global_context": True},
    "masked": {"masked_attention": True},
    "both": {"global_context": True, "masked_attention": True},
}


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Peak of memory over what was held before, MiB, and CPU seconds."""
    before, mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    work()
    seconds = time.process_time() - mark
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, seconds


def module(side: int, window: int, train: bool, written: bool) -> None:
    """One tile of 64 channels, two fifths of it foreground; a window as large as the tile sees all of it."""
    layer = MaskedAttention(64, window)
    maps = torch.randn(1, 64, side, side).contiguous(memory_format=torch.channels_last).requires_grad_(train)
    foreground = torch.rand(1, side, side) < 0.4

    def work() -> None:
        kernel = sdpa_kernel(SDPBackend.MATH) if written else nullcontext()
        with kernel, torch.set_grad_enabled(train):
            out = layer(maps, foreground)
            if train:
                out.sum().backward()

    peak, seconds = spent(work)
    how = ("forward and backward" if train else "forward", "written" if written else "fused")
    print(f"{side:4d} px, window {window:4d}, {how[0]:<20} {how[1]:<8} {peak:8.0f} MiB {seconds:7.2f} s", flush=True)


def decoder(side: int, patch_px: int, variant: str) -> None:
    """One tile through a decoder of full width with three heads, forward and backward; twice, the second timed."""
    config = DecoderConfig(**VARIANTS[variant])
    made = build_decoder(config, ["nucleus", "hv", "classes"], 6, 384, patch_px, 3, seed=0)
    made.to(memory_format=torch.channels_last)
    tokens = [torch.randn(1, side // patch_px, side // patch_px, 384).permute(0, 3, 1, 2) for _ in range(4)]
    image = torch.randn(1, 3, side, side).contiguous(memory_format=torch.channels_last)

    def work() -> None:
        values: dict[str, Tensor] = made(tokens, image)
        torch.stack([value.square().mean() for value in values.values()]).sum().backward()

    peak, _ = spent(work)
    _, seconds = spent(work)
    print(f"{side:4d} px, {patch_px:2d}x, {variant:<8} {peak:8.0f} MiB {seconds:7.2f} s", flush=True)


def main() -> None:
    """Parse the options and start a process for every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256, 512], help="tile sides, pixels")
    parser.add_argument("--window", type=int, default=16, help="side of the windows, pixels")
    parser.add_argument("--whole", type=int, default=128, help="largest side at which all pixels see each other")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.one:
        kind, *rest = options.one
        if kind == "decoder":
            decoder(int(rest[0]), int(rest[1]), rest[2])
        else:
            module(int(rest[0]), int(rest[1]), rest[2] == "train", rest[3] == "written")
        return
    print(f"torch {torch.__version__}, one thread; a tile of 64 channels, 40 % foreground", flush=True)
    windows = [(side, options.window) for side in options.sides]
    windows += [(side, side) for side in options.sides if side <= options.whole]
    runs = [
        ["module", str(side), str(window), mode, kernel]
        for side, window in windows
        for mode in ("infer", "train")
        for kernel in ("fused", "written")
        if kernel == "fused" or side * window <= _MOST_WRITTEN
    ]
    runs += [["decoder", "256", str(patch), variant] for patch in (16, 8) for variant in VARIANTS]
    for run in runs:
        subprocess.run(
            [sys.executable, __file__, "--one", *run], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


if __name__ == "__main__":
    main()

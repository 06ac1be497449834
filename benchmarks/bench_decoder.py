"""The decoder as Slideloom runs it against the same weights run as the original does.

Naive: every branch computes the skips anew, tensors contiguous (NCHW). Slideloom: skips once, channels-last. Both are
checked to give the same maps; times are the least of several rounds, the two taking turns, so that a busy machine
troubles both alike. Wall time and CPU time stand side by side: where they differ much from each other per thread,
something else was running.

Run: ``python benchmarks/bench_decoder.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.build import build_decoder
from slideloom.decoders.cellvit import CellViTDecoder

HEADS: tuple[Head, ...] = ("nucleus", "hv", "classes")
BRANCHES = ("nuclei_binary_map_decoder", "hv_map_decoder", "nuclei_type_maps_decoder")
Outputs = dict[Head, Tensor]


def naive(decoder: CellViTDecoder, tokens: Sequence[Tensor], image: Tensor) -> Outputs:
    """One branch after the other, each with its own pass through the skips."""
    outputs: Outputs = {}
    for head, name in zip(HEADS, BRANCHES, strict=True):
        outputs[head] = decoder.get_submodule(name)(tokens[3], decoder.skip_maps(tokens, image))
    return outputs


def train_step(decoder: CellViTDecoder, run: Callable[[], Outputs]) -> None:
    """Forward and backward of a plain squared loss."""
    decoder.zero_grad(set_to_none=True)
    torch.stack([value.square().mean() for value in run().values()]).sum().backward()


def clock(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(
    label: str, ways: dict[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, tuple[float, float]]:
    """Time the ways in turns and print a row each, with the ratio to the first; returns wall and CPU seconds."""
    best = {name: (float("inf"), float("inf")) for name in ways}
    for work in ways.values():
        work()
    for _ in range(rounds):
        for name, work in ways.items():
            wall, cpu = clock(work, device)
            best[name] = (min(best[name][0], wall), min(best[name][1], cpu))
    first = best[next(iter(ways))]
    for name, (wall, cpu) in best.items():
        ratio = f"{first[0] / wall:5.2f}x wall {first[1] / cpu:5.2f}x CPU"
        print(f"{label:<10} {name:<28} {wall * 1e3:9.1f} ms wall {cpu * 1e3:9.1f} ms CPU   {ratio}")
    return best


def main() -> None:
    """Parse the options, check equality, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=256, help="tile side, pixels")
    parser.add_argument("--batch", type=int, default=2, help="tiles a pass")
    parser.add_argument("--upsampling", type=int, choices=(8, 16), default=16)
    parser.add_argument("--width", type=float, default=1.0, help="decoder width multiplier")
    parser.add_argument("--token-width", type=int, default=384)
    parser.add_argument("--image-channels", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--train", action="store_true", help="time forward and backward, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    def build() -> CellViTDecoder:
        config = DecoderConfig(width=options.width)
        arguments = (options.token_width, options.upsampling, options.image_channels)
        return build_decoder(config, HEADS, 6, *arguments, seed=0).to(options.device)

    plain, fast = build(), build().to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    side = options.tile // options.upsampling
    stored = [
        torch.randn(options.batch, side, side, options.token_width, generator=generator).to(options.device)
        for _ in range(4)
    ]
    image = torch.randn(options.batch, options.image_channels, options.tile, options.tile, generator=generator)
    image = image.to(options.device)
    rows = [tokens.permute(0, 3, 1, 2).contiguous() for tokens in stored]
    last, last_image = [tokens.permute(0, 3, 1, 2) for tokens in stored], image.to(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], Outputs]] = {
        "naive": lambda: naive(plain, rows, image),
        "skips once": lambda: plain(rows, image),
        "channels-last": lambda: naive(fast, last, last_image),
        "skips once + channels-last": lambda: fast(last, last_image),
    }
    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} thread(s); {options.batch} tiles of"
        f" {options.tile} px, {options.upsampling}x, width {options.width:g}, tokens {options.token_width} wide"
    )
    plain.eval(), fast.eval()
    with torch.inference_mode():
        reference = ways["naive"]()
        for name, way in ways.items():
            worst = max(float((value - reference[head]).abs().max()) for head, value in way().items())
            print(f"{'equality':<10} {name:<28} largest difference {worst:.1e}")
            if worst > 1e-4:
                raise SystemExit(f"{name} differs from the naive decoder by {worst}")
        compare("inference", ways, options.rounds, options.device)
    if options.train:
        plain.train(), fast.train()
        steps: dict[str, Callable[[], object]] = {
            "naive": lambda: train_step(plain, ways["naive"]),
            "skips once + channels-last": lambda: train_step(fast, ways["skips once + channels-last"]),
        }
        compare("training", steps, options.rounds, options.device)


if __name__ == "__main__":
    main()

"""What augmentation costs a training step: everything off, and each change alone.

Two batches of 16 patches: markers (16 channels, 120 px, uint16) and H&E (3 channels, 256 px, uint8). Flips and turns
take the pixels and all targets with them; changes of look take the pixels to float32. Every probability is 1 (0.5 and
0.75 for flips and turns: the eight symmetries alike), so these are upper bounds. Off, the very tensors that came in
must come out, which is checked. Beside them stands one training step of a decoder an eighth as wide, forward and
backward; of live training, whose step holds the encoder's pass as well, the shares are smaller. Times are the least of
several rounds, the ways taking turns.

Run: ``python benchmarks/bench_augment.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.config.model import AugmentationConfig, DecoderConfig, Head
from slideloom.decoders.build import build_decoder
from slideloom.training.appearance import apply_appearance, draw_appearance, leave_out
from slideloom.training.symmetry import draw_symmetries, transform_batch, transform_targets

HEADS: tuple[Head, ...] = ("nucleus", "hv", "classes")
Kind = Literal["rgb", "markers"]
#: Channels, tile side, dtype; token side and width.
CASES: dict[Kind, tuple[int, int, Any, int, int]] = {
    "markers": (16, 120, np.uint16, 8, 512),
    "rgb": (3, 256, np.uint8, 16, 384),
}
CHANGES: dict[Kind, dict[str, dict[str, float]]] = {
    "markers": {"channel dropout": {"channel_dropout": 1.0}, "intensity scaling": {"intensity_scaling": 1.0}},
    "rgb": {
        "brightness": {"colour_jitter": 1.0, "contrast": 0, "saturation": 0, "hue": 0},
        "contrast": {"colour_jitter": 1.0, "brightness": 0, "saturation": 0, "hue": 0},
        "saturation": {"colour_jitter": 1.0, "brightness": 0, "contrast": 0, "hue": 0},
        "hue": {"colour_jitter": 1.0, "brightness": 0, "contrast": 0, "saturation": 0},
        "all four": {"colour_jitter": 1.0},
        "stain jitter": {"stain_jitter": 1.0},
    },
}


def augment(
    pixels: Tensor, targets: dict[str, Tensor], config: AugmentationConfig, kind: Kind, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """As a training does it."""
    rng = np.random.default_rng(seed)
    symmetries = draw_symmetries(config, len(pixels), rng)
    look = draw_appearance(config, kind, *pixels.shape[:2], rng)
    pixels = apply_appearance(transform_batch(pixels, symmetries), look)
    if look.left_out is not None:
        # In a training these are the normalised pixels, which normalisation made float32.
        pixels = leave_out(pixels.to(torch.float32), look)
    return pixels, transform_targets(targets, symmetries)


def make_batch(kind: Kind, n: int, device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Seeded pixels and targets."""
    channels, side, dtype, *_ = CASES[kind]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255 if kind == "rgb" else 4000, (n, channels, side, side)).astype(dtype)
    targets: dict[str, Any] = {name: rng.integers(0, 2, (n, side, side)).astype(np.uint8) for name in HEADS}
    targets["hv"] = rng.integers(-127, 128, (n, 2, side, side)).astype(np.int8)
    targets["valid"] = np.ones((n, side, side), bool)
    moved = {name: torch.from_numpy(values).to(device) for name, values in targets.items()}
    return torch.from_numpy(pixels).to(device), moved


def make_step(kind: Kind, n: int, width: float, device: str) -> Callable[[], object]:
    """Forward and backward of a decoder with a plain squared loss."""
    channels, side, _, token_px, token_width = CASES[kind]
    decoder = build_decoder(DecoderConfig(width=width), HEADS, 6, token_width, token_px, channels, seed=0).to(device)
    decoder = decoder.to(memory_format=torch.channels_last).train()
    lattice = (n, token_width, side // token_px, side // token_px)
    tokens = [torch.randn(lattice, device=device).to(memory_format=torch.channels_last) for _ in range(4)]
    image = torch.randn((n, channels, side, side), device=device).to(memory_format=torch.channels_last)

    def step() -> None:
        decoder.zero_grad(set_to_none=True)
        torch.stack([value.square().mean() for value in decoder(tokens, image).values()]).sum().backward()

    return step


def seconds(work: Callable[[], object], device: str, times: int = 1) -> float:
    """Wall time of a call, mean of some."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def measure(kind: Kind, options: argparse.Namespace) -> None:
    """Print a row for each way."""
    pixels, targets = make_batch(kind, options.batch, options.device)
    off = AugmentationConfig()
    got, moved = augment(pixels, targets, off, kind)
    if got is not pixels or any(moved[name] is not values for name, values in targets.items()):
        raise SystemExit(f"{kind}: with everything off, other tensors come out than went in")
    asked = {"everything off": {}, "flips and turns": {"flips": 0.5, "turns": 0.75}, **CHANGES[kind]}
    ways: dict[str, Callable[[], object]] = {
        "training step": make_step(kind, options.batch, options.width, options.device)
    }
    for name, values in asked.items():
        config = AugmentationConfig(**values)
        ways[name] = lambda config=config: augment(pixels, targets, config, kind)  # type: ignore[misc]
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(options.rounds + 1):  # the first warms up
        for name, work in ways.items():
            best[name] = min(best[name], seconds(work, options.device, 100 if name == "everything off" else 1))
    print(f"{kind}: {tuple(pixels.shape)} {str(pixels.dtype).removeprefix('torch.')}")
    for name, value in best.items():
        print(f"  {name:<18} {value * 1e3:10.3f} ms {value / best['training step']:9.3%} of a step")


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="patches a step")
    parser.add_argument("--width", type=float, default=0.125, help="decoder width multiplier")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} thread(s)")
    for kind in CASES:
        measure(kind, options)


if __name__ == "__main__":
    main()

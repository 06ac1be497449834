"""The whole CellViT-256 as Slideloom runs it against the reference formulation, with the same weights.

Reference: every branch computes the skips anew, all tensors contiguous (NCHW). Slideloom: skips once, channels-last;
and the same in bfloat16, as an extra. The encoder is the same in all. Outputs in float32 must agree to 1e-4 and the
throughput must be at least 1.2 times the reference's, or the exit status is 1. Times are the least of several rounds,
the ways taking turns, so that a busy machine troubles all alike. With one thread of a CPU the ratio is that of CPU
time, the throughput of a machine with nothing else to do; else that of wall time.

Run: ``python benchmarks/bench_cellvit.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse

import torch
from bench_decoder import compare, naive
from torch import Tensor

from slideloom.decoders.cellvit_model import CellViT
from slideloom.encoders.base import even_blocks
from slideloom.encoders.cellvit.file import CellViTFile
from slideloom.encoders.registry import find_encoder

WANTED = 1.2
LARGEST_DIFFERENCE = 1e-4
NAMES = {"nucleus": "nuclei_binary_map", "hv": "hv_map", "classes": "nuclei_type_map"}
ARCHS = ("vit256", "sam_b", "sam_l", "sam_h", "uni")


def build(arch: str, device: str) -> CellViT:
    """A model with weights from a seed, scaled so that its maps have values like those of a trained one."""
    layers = even_blocks(find_encoder(f"cellvit/{arch}").depth or 0)
    model = CellViT(CellViTFile(arch, {}, layers, num_nuclei_classes=6, num_tissue_classes=19))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in model.state_dict().items():
            drawn = torch.randn(values.shape, generator=generator)
            if name.endswith("running_var"):
                values.copy_(0.5 + drawn.abs())
            elif name.endswith(("bias", "running_mean")):
                values.copy_(0.1 * drawn)
            elif name.endswith("weight") and values.ndim > 1:
                values.copy_(drawn * ((2 if values.ndim == 4 else 1) / values[0].numel()) ** 0.5)
            elif values.ndim > 1:
                values.copy_(0.2 * drawn)
    return model.eval().requires_grad_(False).to(device)


def reference(model: CellViT, images: Tensor) -> dict[str, Tensor]:
    """The original's order of work: contiguous maps, and each branch with its own pass through the skips."""
    levels, tissue = model.encoder.run_all(images, model.about.extract_layers)
    if model.classifier_head is not None:
        tissue = model.classifier_head(tissue)
    tokens = [levels[layer].permute(0, 3, 1, 2).contiguous() for layer in model.about.extract_layers]
    maps = naive(model.decoding, tokens, images)
    return {"tissue_types": tissue} | {NAMES[head]: value for head, value in maps.items()}


def main() -> None:
    """Parse the options, check equality, time, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHS, default="vit256")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tile", type=int, default=256, help="tile side, pixels")
    parser.add_argument("--batch", type=int, default=2, help="tiles a pass")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the fastest counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false", help="leave bfloat16 out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    plain = build(options.arch, options.device)
    fast = build(options.arch, options.device).to(memory_format=torch.channels_last)
    shape = (options.batch, 3, options.tile, options.tile)
    images = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(options.device)
    last = images.contiguous(memory_format=torch.channels_last)
    ways = {"reference": lambda: reference(plain, images), "Slideloom": lambda: fast(last)}
    if options.bf16:
        ways["Slideloom bf16"] = lambda: fast(last, precision="bf16")
    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} thread(s); CellViT {options.arch},"
        f" {options.batch} tiles of {options.tile} px"
    )
    with torch.inference_mode():
        expected = ways["reference"]()
        spread = ", ".join(f"{name} {float(value.std()):.2f}" for name, value in expected.items())
        print(f"{'outputs':<10} standard deviations: {spread}")
        for name in list(ways)[1:]:
            worst = max(float((value - expected[key]).abs().max()) for key, value in ways[name]().items())
            print(f"{'equality':<10} {name:<28} largest difference {worst:.1e}")
            if name == "Slideloom" and worst > LARGEST_DIFFERENCE:
                raise SystemExit(f"differs from the reference by {worst}")
        best = compare("inference", ways, options.repeats, options.device)
    kind = 1 if options.device == "cpu" and options.threads == 1 else 0
    for name, times in best.items():
        print(f"{'throughput':<10} {name:<28} {options.batch / times[0]:9.2f} tiles/s")
    ratio = best["reference"][kind] / best["Slideloom"][kind]
    print(f"Slideloom has {ratio:.2f} times the throughput of the reference; at least {WANTED} is wanted")
    if ratio < WANTED:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

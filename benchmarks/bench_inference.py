"""Prediction of many slides in one process, against the bare forward pass.

Several synthetic slides go through one decoder as the workflow takes them: tiles from the stores, and tiles cut and
encoded on the fly; read, normalised, computed, blended, quantised, written. Beside it, in the same run and taking
turns, the bare forward: the same networks on one batch that lies on the device already, as many tiles. Printed for each
input: the share of wall time inside the networks' forward (on a GPU: the share that the GPU was busy), tiles a second
end to end and bare, and the stall account of the best round.

A CPU takes a narrow decoder on four markers, with their means as tokens (``--model mean_marker``); the forward must
have 90 % of the time. A GPU takes ViT-256 with random weights and a decoder of full width on H&E; it must be busy 85 %
of the time and give 0.7 of the bare forward's tiles a second.

Run: ``python benchmarks/bench_inference.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.config.model import DecoderConfig, EncoderConfig, GridConfig, NormalisationConfig, TissueConfig
from slideloom.decoders.base import Decoder
from slideloom.decoders.build import build_decoder
from slideloom.encoders.base import Encoder
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.registry import build_encoder
from slideloom.inference.account import MapsAccount, new_account
from slideloom.inference.forward import Networks
from slideloom.inference.live import LiveTiles
from slideloom.inference.predict import Predictor, SlideTask
from slideloom.inference.tiles import StoredTiles, TileSource, joined, normalised
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, MarkerTable
from slideloom.slides.tissue import write_tissue

PANEL = ("DNA", "CD3", "CD8", "CD20")
N_CLASSES = 6
#: Least share inside the forward on a CPU; least busy share and least rate against the bare forward on a GPU.
CPU_SHARE, GPU_SHARE, GPU_RATE = 0.90, 0.85, 0.70


@dataclass(frozen=True)
class Slide:
    """A slide with its stores."""

    row: SlideRow
    facts: SlideFacts
    tissue: Path
    patches: PatchStore
    tokens: EmbeddingStore


def write_slide(root: Path, name: str, side_px: int, grid: GridConfig, config: EncoderConfig, device: str) -> Slide:
    """A seeded slide: cells as bright dots on noise, with a border that no tile fits."""
    rng = np.random.default_rng(sum(name.encode()))
    shape = (side_px - 7, side_px + 5)
    rgb = grid.image == "he"
    data = rng.integers(90, 200, (*shape, 3), np.uint8) if rgb else rng.poisson(80, (len(PANEL), *shape)).astype("<u2")
    for y, x in zip(rng.integers(0, shape[0] - 9, side_px), rng.integers(0, shape[1] - 9, side_px), strict=True):
        spot = (slice(y, y + 9), slice(x, x + 9))
        data[spot if rgb else (slice(None), *spot)] //= 2
    np.save(root / f"{name}.npy", data)
    if rgb:
        row = SlideRow(name, he=f"{name}.npy", he_mpp_um=0.25)
    else:
        row = SlideRow(name, sp=f"{name}.npy", sp_mpp_um=0.5, sp_channels=PANEL)
    markers = MarkerTable(tuple(Channel(one, one, nuclear=one == "DNA") for one in PANEL))
    place = root / name
    place.mkdir()
    facts = write_facts(row, root, markers, place / "slide.json")
    write_tissue(facts, row, root, TissueConfig(method="all"), place / "tissue.geojson", place / "thumbnail.png")
    cut_patches(row, root, facts, place / "tissue.geojson", grid, place / "patches.zarr")
    patches = PatchStore(place / "patches.zarr")
    encoder = build_encoder(config, patches.channels)
    embed_slide(encoder, config, patches, None, place / "tokens.zarr", device=device)
    return Slide(row, facts, place / "tissue.geojson", patches, EmbeddingStore(place / "tokens.zarr"))


def bare(networks: Networks, source: TileSource, size: int, n_tiles: int, device: torch.device) -> float:
    """Seconds of the networks alone, on one batch that lies on the device."""
    raw = next(source.read(size, networks.poses)).moved(lambda values: values.to(device))
    with torch.inference_mode():
        inputs = joined([normalised(source, raw)], size)
        start = time.perf_counter()
        for first in range(0, n_tiles + size, size):
            if first == size:  # the first pass warms up
                _settle(device)
                start = time.perf_counter()
            networks(source, inputs)
        _settle(device)
    passes = -(-n_tiles // size)
    return (time.perf_counter() - start) * n_tiles / (passes * size)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    name: str,
    open_tiles: Callable[[Slide], TileSource],
    slides: list[Slide],
    decoder: Decoder,
    folder: Path,
    args: argparse.Namespace,
) -> bool:
    """Print the figures of one input; whether they are what they must be."""
    device = torch.device(args.device)
    predictor = Predictor(decoder, batch_size=args.batch_size, precision=args.precision, device=args.device)
    networks = Networks(decoder, device, args.precision)
    best: MapsAccount | None = None
    alone = float("inf")
    n_tiles = sum(open_tiles(slide).n for slide in slides)
    for turn in range(args.rounds + (device.type == "cuda")):
        tasks = [
            SlideTask(slide.row.slide_id, folder / f"{name}-{n}.zarr", {}, partial(open_tiles, slide))
            for n, slide in enumerate(slides)
        ]
        predictor.account = new_account(device)
        for slide_id, outcome in predictor.run(tasks):
            if isinstance(outcome, Exception):
                raise SystemExit(f"{slide_id}: {outcome}")
        size = predictor.batch_size
        if device.type == "cuda" and turn == 0:
            continue  # the batch grew, kernels were loaded
        account = predictor.account
        best = account if best is None or account.seconds < best.seconds else best
        alone = min(alone, bare(networks, open_tiles(slides[0]), size, n_tiles, device))
    assert best is not None
    rate, bare_rate = n_tiles / best.seconds, n_tiles / alone
    inside = (best.busy_s if device.type == "cuda" else best.parts["forward_s"]) / best.seconds
    what = "busy" if device.type == "cuda" else "in forward"
    print(
        f"{name:7s} {len(slides)} slides, batches of {size}: {100 * inside:.1f} % {what}; {rate:.1f} tiles/s end to"
        f" end, {bare_rate:.1f} bare, ratio {rate / bare_rate:.3f}"
    )
    print(f"{'':7s} {best}")
    if device.type == "cuda":
        return inside >= GPU_SHARE and rate >= GPU_RATE * bare_rate
    return inside >= CPU_SHARE


def main() -> None:
    """Run both inputs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", help="encoder; by default mean_marker on a CPU, cellvit/vit256 on a GPU")
    parser.add_argument("--width", type=float, help="of the decoder; by default 0.1 on a CPU, 1 on a GPU")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="by default fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--batch-size", default="auto", help="tiles a pass, or auto")
    parser.add_argument("--slides", type=int, default=5)
    parser.add_argument("--side-px", type=int, help="of a slide; by default 1024 on a CPU, 6144 on a GPU")
    parser.add_argument("--tile-px", type=int, default=256)
    parser.add_argument("--overlap-px", type=int, default=64, help="of live tiles")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="cores to compute on")
    parser.add_argument("--check", action="store_true", help="fail where a figure is not what it must be")
    args = parser.parse_args()
    gpu = args.device.startswith("cuda")
    args.model = args.model or ("cellvit/vit256" if gpu else "mean_marker")
    args.width = args.width or (1.0 if gpu else 0.1)
    args.precision = args.precision or ("bf16" if gpu else "fp32")
    args.side_px = args.side_px or (6144 if gpu else 1024)
    args.batch_size = args.batch_size if args.batch_size == "auto" else int(args.batch_size)
    torch.set_num_threads(args.threads)
    markers = args.model == "mean_marker"
    grid = GridConfig(image="sp" if markers else "he", tile_px=args.tile_px)
    if markers:
        config = EncoderConfig(
            model="mean_marker", grid="g", patch_px=16, normalisation=NormalisationConfig(scope="slide")
        )
    else:
        config = EncoderConfig(model=args.model, grid="g", random=0)
    print(f"{args.model}, decoder of width {args.width:g}, {args.precision}, {args.device}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        slides = [
            write_slide(root, f"s{n}", args.side_px // (1 + n % 2), grid, config, args.device)
            for n in range(args.slides)
        ]
        first = slides[0].tokens
        channels = len(slides[0].patches.channels)
        encoder: Encoder = build_encoder(config, slides[0].patches.channels)
        encoder.to(args.device)
        decoder = build_decoder(
            DecoderConfig(width=args.width, branches="shared"),
            ["nucleus", "hv", "classes"],
            N_CLASSES,
            first.width,
            first.patch_px,
            channels,
            seed=0,
        ).eval()

        def stored(slide: Slide) -> TileSource:
            return StoredTiles(slide.patches, slide.tokens, slide.tokens.blocks, decoder.needs_image)

        def live(slide: Slide) -> TileSource:
            return LiveTiles(
                slide.row, root, slide.facts, slide.tissue, grid, args.overlap_px, encoder, config, slide.patches, None
            )

        inputs = {"stored": stored, "live": live}
        passed = [measure(name, make, slides, decoder, root, args) for name, make in inputs.items()]
    if args.check and not all(passed):
        raise SystemExit("a figure is not what it must be")


if __name__ == "__main__":
    main()

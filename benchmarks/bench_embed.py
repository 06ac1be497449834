"""The embed stage on a job of many slides, against the plain loop.

Plain: slide by slide; read a batch, compute it, fetch it, and write the slide's tokens when it is through. Slideloom:
the stage as the workflow runs it, records and digests included; batches run over the borders of slides; reading,
computing and writing overlap. Both take the same tiles through the same encoder, with as many cores, and their tokens
are compared; times are the least of several rounds, the two taking turns. The share is the part of the stage's wall
time that is spent inside the encoder's forward, mean of the cores, in its fastest round; 0.90 is what the stage must
reach with encoders of real size.

Run: ``python benchmarks/bench_embed.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import Outcome, Stage
from slideloom.artefacts.zarrio import create_array, create_group, read_array, write_array
from slideloom.config.catalogue import complete
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import RGB, Encoder
from slideloom.encoders.embedding.account import PARTS, Account
from slideloom.encoders.embedding.embed import Embedder, Request
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.fit import marker_panel, used_statistics
from slideloom.encoders.registry import build_encoder
from slideloom.patches.statistics import ChannelStatistics, channel_statistics
from slideloom.patches.store import PatchStore
from slideloom.slides.tables import Channel

#: Tiles of a small slide for every two large ones, as biopsies and arrays give them.
SMALL = (1, 4, 2, 3)
#: Model, tile side and pixel size.
CASES = {
    "virtues/tiny": (120, 1.0),
    "virtues": (120, 1.0),
    "cellvit/vit256": (256, 0.25),
    "timm/vit_small_patch14_dinov2": (252, 0.5),
}


def write_patches(place: Path, slide: str, panel: Sequence[Channel], n: int, tile_px: int, mpp_um: float) -> None:
    """Seeded patches: cells as bright dots on noise, uint8 RGB or uint16 markers."""
    rgb = len(panel) == len(RGB)
    random = np.random.default_rng(zlib.crc32(slide.encode()))
    shape = (n, len(panel), tile_px, tile_px)
    data = random.poisson(180 if rgb else 60, shape).astype(np.uint8 if rgb else np.uint16)
    dots = random.integers(0, tile_px - 8, (n, 12, 2))
    for tile, spots in enumerate(dots):
        for y, x in spots:
            data[tile, :, y : y + 8, x : x + 8] //= 2
    about = {"slide_id": slide, "image": "he" if rgb else "sp", "is_rgb": rgb, "scale": 1.0, "mpp_um": mpp_um}
    about |= {"channels": [one.as_dict() for one in panel], "tile_px": tile_px, "stride_px": tile_px}
    create_group(place, about | {"height_px": tile_px, "width_px": tile_px * n})
    create_array(place / "pixels", shape, data.dtype, codec="none" if rgb else "counts").write(data).result()
    columns = {"row": np.zeros(n, np.int32), "col": np.arange(n, dtype=np.int32), "tissue": np.ones(n, np.float32)}
    columns |= {"y_px": np.zeros(n, np.int32), "x_px": np.arange(n, dtype=np.int32) * tile_px}
    columns |= {name: np.full(n, tile_px, np.int32) for name in ("height_valid", "width_valid")}
    for name, values in columns.items():
        write_array(place / name, values)


def plain(
    encoder: Encoder,
    config: EncoderConfig,
    slides: dict[str, Path],
    pooled: ChannelStatistics | None,
    out: Path,
    batch: int,
    device: str,
) -> float:
    """Seconds of the plain loop."""
    start = time.perf_counter()
    for slide, place in slides.items():
        patches = PatchStore(place)
        used = used_statistics(encoder, config, patches, pooled)
        done: dict[int, list[np.ndarray]] = {block: [] for block in encoder.blocks}
        for first in range(0, patches.n, batch):
            pixels = torch.from_numpy(patches.pixels(slice(first, first + batch))).to(device)
            with torch.inference_mode():
                tokens = encoder.encode(encoder.preprocess(pixels, used))
            for block, value in tokens.items():
                done[block].append(value.to(torch.float16).cpu().numpy())
        for block, values in done.items():
            write_array(out / slide / f"block_{block}", np.concatenate(values))
    return time.perf_counter() - start


def stage(
    encoder: Encoder,
    config: EncoderConfig,
    slides: dict[str, Path],
    pooled: ChannelStatistics | None,
    paths: Paths,
    threads: int,
    device: str,
) -> tuple[float, Account]:
    """Seconds of the stage, and its account."""
    embedder = Embedder(config, lambda panel: encoder, statistics=pooled, threads=threads, device=device)

    def stream(waiting: Iterator[str]) -> Iterator[tuple[str, Outcome]]:
        requests = (Request(s, lambda s=s: PatchStore(slides[s]), paths.embeddings("e", s)) for s in waiting)
        for slide, outcome in embedder.run(requests):
            yield slide, outcome if isinstance(outcome, Exception) else [paths.embeddings("e", slide)]

    start = time.perf_counter()
    states = Stage("embeddings", "e", paths, "").run_stream(slides, stream, paths.job_record("embeddings", "e", "1-0"))
    seconds = time.perf_counter() - start
    if any(state.status != "ok" for state in states.values()):
        raise SystemExit(str(states))
    return seconds, embedder.account


def measure(model: str, options: argparse.Namespace, folder: Path) -> float:
    """Print one encoder's lines; returns the share."""
    tile_px, mpp_um = CASES.get(model, (224, 0.5))
    markers = [f"M{index}" for index in range(options.markers)]
    virtues = model.startswith(("virtues", "mean_marker"))
    accessions = {marker: f"P{index:05d}" for index, marker in enumerate(markers)}
    panel = marker_panel(markers, accessions) if virtues else tuple(Channel(colour, "") for colour in RGB)
    config = complete(EncoderConfig(model=model, grid="g", random=0 if model != "mean_marker" else None))
    start = time.perf_counter()
    encoder = build_encoder(config, panel).to(options.device)
    built = time.perf_counter() - start
    sizes = [SMALL[index % 4] if index % 3 else options.tiles for index in range(options.slides)]
    slides = {f"s{index:03d}": folder / "patches" / f"s{index:03d}.zarr" for index in range(len(sizes))}
    for (slide, place), n in zip(slides.items(), sizes, strict=True):
        write_patches(place, slide, panel, n, tile_px, mpp_um)
    stores = [PatchStore(place) for place in slides.values()]
    pooled = channel_statistics(stores, markers, config.normalisation) if virtues else None
    plain(encoder, config, {"s000": slides["s000"]}, pooled, folder / "warm", 1, options.device)
    best: dict[str, tuple[float, float]] = {}
    shares: dict[float, Account] = {}
    for turn in range(options.rounds):
        out, paths = folder / f"plain{turn}", Paths(folder / f"results{turn}")
        mark = time.process_time()
        seconds = plain(encoder, config, slides, pooled, out, options.batch, options.device)
        keep_least(best, "plain loop", seconds, time.process_time() - mark)
        mark = time.process_time()
        seconds, account = stage(encoder, config, slides, pooled, paths, options.threads, options.device)
        keep_least(best, "stage", seconds, time.process_time() - mark)
        shares[seconds] = account
    seconds, account = min(shares.items())
    n = sum(sizes)
    print(f"{model} at {tile_px} px: {len(slides)} slides, {n} tiles and {account.n_padding} to fill up")
    print(f"  the encoder was built in {built:.1f} s before")
    for name, (wall, cpu) in best.items():
        ratio = best["plain loop"][0] / wall
        print(f"  {name:<10} {wall:8.2f} s wall {cpu:8.2f} s CPU {n / wall:8.2f} tiles/s {ratio:6.2f}x")
    rest = [(words, account.parts[name]) for name, words in PARTS.items() if name not in ("forward_s", "build_s")]
    rest.append(("other", seconds - account.total()))
    told = ", ".join(f"{words} {100 * value / seconds:.1f} %" for words, value in rest)
    share = account.parts["forward_s"] / seconds
    print(f"  share in the encoder's forward {share:.3f}; {told}")
    print(f"  largest difference of tokens {difference(slides, paths, out):.1e} of the largest token", flush=True)
    return share


def keep_least(best: dict[str, tuple[float, float]], name: str, wall: float, cpu: float) -> None:
    """Least wall and CPU seconds so far."""
    before = best.get(name, (wall, cpu))
    best[name] = (min(before[0], wall), min(before[1], cpu))


def difference(slides: Iterable[str], paths: Paths, out: Path) -> float:
    """Largest difference between the stage's tokens and the plain loop's, of the largest token."""
    worst = 0.0
    for slide in slides:
        store = EmbeddingStore(paths.embeddings("e", slide))
        for block in store.blocks:
            got, want = store.tokens(block, slice(None)), read_array(out / slide / f"block_{block}")
            worst = max(worst, float(np.abs(got.astype(np.float32) - want).max() / np.abs(want).max()))
    return worst


def main() -> None:
    """Parse the options, measure each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["virtues/tiny", "cellvit/vit256", "timm/vit_small_patch14_dinov2"]
    )
    parser.add_argument("--slides", type=int, default=15, help="slides of the job; a third of them large")
    parser.add_argument("--tiles", type=int, default=10, help="tiles of a large slide")
    parser.add_argument("--markers", type=int, default=16, help="channels of a multiplexed slide")
    parser.add_argument("--batch", type=int, default=16, help="tiles a pass of the plain loop")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.device}, {options.threads} thread(s)")
    shares = {}
    for model in options.models:
        folder = Path(tempfile.mkdtemp(prefix="bench_embed"))
        try:
            shares[model] = measure(model, options, folder)
        finally:
            shutil.rmtree(folder)
    print("; ".join(f"{model} {share:.3f}" for model, share in shares.items()))


if __name__ == "__main__":
    main()

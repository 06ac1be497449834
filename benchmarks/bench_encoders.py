"""What each encoder of the catalogue costs a tile: counted operations, and seconds as measured with seeded weights.

Every encoder runs in a process of its own, one tile at a time, after a pass that is not counted; told are the least
wall and CPU seconds of several passes, and the peak memory of the process (of the GPU, where one is used). Where wall
time is much more than CPU time, something else was running. Encoders with more parameters than ``--max-params`` are
counted but not run.

Run: ``python benchmarks/bench_encoders.py`` (options: ``--help``). With ``--write docs/data/encoder_costs.json`` the
figures are kept for ``docs/encoders.md``; those of other devices and of encoders that were not run stay as they are.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.config.catalogue import CATALOGUE, EncoderEntry
from slideloom.config.model import EncoderConfig, NormalisationConfig
from slideloom.slides.tables import Channel

MARKERS = 16
#: Checkpoints of one architecture cost the same; one of them stands for all.
SAME = {"virtues/sp31", "virtues/sp32", "virtues/imc14", "h_optimus_1", "cellvit/vit", "timm/<name>"}


def entries(only: list[str]) -> list[EncoderEntry]:
    """Encoders that are counted."""
    unknown = sorted(set(only) - set(CATALOGUE))
    if unknown:
        raise SystemExit(f"no such encoder: {', '.join(unknown)}")
    return [entry for name, entry in CATALOGUE.items() if (name in only if only else name not in SAME)]


def panel(entry: EncoderEntry) -> list[Channel]:
    """RGB, or made-up markers with made-up accessions."""
    if entry.kind == "rgb":
        return [Channel(name=name, marker="", uniprot="", nuclear=False) for name in ("red", "green", "blue")]
    markers = [(f"M{k}", f"P{10000 + k}") for k in range(MARKERS)]
    return [Channel(name=name, marker=name, uniprot=accession, nuclear=False) for name, accession in markers]


def build(entry: EncoderEntry, folder: Path) -> Any:
    """The encoder with seeded weights."""
    import torch
    from safetensors.torch import save_file

    from slideloom.encoders.registry import build_encoder

    channels = panel(entry)
    settings: dict[str, Any] = {"random": 0} if entry.weights else {}
    if entry.embedding:
        generator = torch.Generator().manual_seed(0)
        vectors = {channel.uniprot: torch.randn(640, generator=generator) * 0.25 for channel in channels}
        settings["marker_embeddings"] = folder / "vectors.safetensors"
        save_file(vectors, settings["marker_embeddings"])
    if entry.kind == "markers":
        settings["normalisation"] = NormalisationConfig(scope="slide")
    return build_encoder(EncoderConfig(model=entry.name, grid="g", **settings), channels)


def measure(name: str, device: str, threads: int, rounds: int) -> dict[str, float]:
    """Least wall and CPU seconds of a pass over one tile, and peak memory in MB."""
    import torch

    from slideloom.encoders.costs import default_tile

    torch.set_num_threads(threads)
    entry = CATALOGUE[name]
    with tempfile.TemporaryDirectory() as folder:
        encoder = build(entry, Path(folder)).to(device)
    side = default_tile(entry)
    images = torch.randn(1, encoder.image_channels, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    walls, cpus = [], []
    for _ in range(rounds + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        encoder.encode(images)
        if device != "cpu":
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak_kb / 1024 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return {"wall_s": round(min(walls[1:]), 5), "cpu_s": round(min(cpus[1:]), 5), "peak_mb": round(peak_mb)}


def count(entry: EncoderEntry) -> dict[str, Any]:
    """Tile, tokens along a side, and 10^9 operations."""
    from slideloom.encoders.costs import default_tile, encoder_gflop

    side, markers = default_tile(entry), MARKERS if entry.kind == "markers" else 0
    assert entry.token_px is not None
    tokens = side // entry.token_px
    gflop = round(encoder_gflop(entry, side, markers), 4)
    return {"tile_px": side, "markers": markers, "tokens": tokens, "gflop": gflop}


def machine(device: str, threads: int) -> str:
    """The machine in words."""
    import torch

    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}, float32"


def in_own_process(name: str, options: argparse.Namespace) -> dict[str, float] | None:
    """Measure in a new process; None where the encoder cannot be run, which is told."""
    command = [sys.executable, __file__, "--child", name]
    for option in ("device", "threads", "rounds"):
        command += [f"--{option}", str(getattr(options, option))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"{name:<18} failed: {run.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def keep(path: Path, counted: dict[str, Any], timed: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the figures into the file, over those that were there."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"encoders": {}, "measured": {}}
    before = known["measured"].get(options.device, {"encoders": {}})
    figures = before["encoders"] | timed
    known["encoders"] |= counted
    order = [name for name in CATALOGUE if name in known["encoders"]]
    command = f"python benchmarks/bench_encoders.py --device {options.device} --threads {options.threads}"
    run = {"command": command, "machine": machine(options.device, options.threads)}
    run["encoders"] = {name: figures[name] for name in order if name in figures}
    content = {
        "encoders": {name: known["encoders"][name] for name in order},
        "measured": known["measured"] | ({options.device: run} if run["encoders"] else {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the options, count, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="encoders, by name; else one of each architecture")
    parser.add_argument("--max-params", type=float, default=1e8, help="larger encoders are counted, not run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path, help="JSON file that the figures are kept in")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.device, options.threads, options.rounds)))
        return
    print(f"{machine(options.device, options.threads)}; one tile a pass, least of {options.rounds}")
    print(f"{'encoder':<18} {'tile':>5} {'GFLOP':>8} {'wall s':>9} {'CPU s':>9} {'GFLOP/s':>8} {'peak MB':>8}")
    counted: dict[str, Any] = {}
    timed: dict[str, Any] = {}
    for entry in entries(options.only):
        about = counted[entry.name] = count(entry)
        start = f"{entry.name:<18} {about['tile_px']:>5} {about['gflop']:>8.1f}"
        if (entry.params or 0) > options.max_params:
            print(f"{start}   not run: {(entry.params or 0) / 1e6:.0f} million parameters", flush=True)
            continue
        figures = in_own_process(entry.name, options)
        if figures is None:
            continue
        timed[entry.name] = figures
        wall, cpu, peak = figures["wall_s"], figures["cpu_s"], figures["peak_mb"]
        rate = about["gflop"] / (cpu if options.device == "cpu" else wall)
        print(f"{start} {wall:>9.3f} {cpu:>9.3f} {rate:>8.1f} {peak:>8.0f}", flush=True)
    if options.write:
        keep(options.write, counted, timed, options)


if __name__ == "__main__":
    main()

"""What waiting for data costs a training on stored tokens.

Demo slides are cut into patches and targets by the very stages that a study runs. Their tokens come from a small
encoder without weights and are then replaced by drawn ones of the size that is asked about, as nothing in reading them
depends on their values: ViT-256 on H&E (256 px, four blocks, 384 wide) and VirTues on 16 markers (120 px, four blocks,
512 wide). A training then runs as in a study, image skip and all, and its history says what part of the time went to
waiting for patches:

disk    patches are read in every epoch, after their files were put out of the page cache
memory  patches are held in memory from the first epoch on

Beside it the rate at which batches can be made when nobody works on them, and the processor time that one takes.

Run: ``python benchmarks/bench_training.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.artefacts.tables import read_table
from slideloom.artefacts.zarrio import create_group, read_attributes, write_array
from slideloom.config.catalogue import complete
from slideloom.config.model import (
    DecoderConfig,
    EncoderConfig,
    GridConfig,
    LossConfig,
    NormalisationConfig,
    TissueConfig,
    TrainingConfig,
)
from slideloom.demo.cohort import write_cohort
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.registry import build_encoder
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import read_sheet
from slideloom.slides.tables import read_classes, read_markers
from slideloom.slides.tissue import write_tissue
from slideloom.training.annotated import Needs, SlideData
from slideloom.training.data import PatchData, epoch_order
from slideloom.training.feed import Feed
from slideloom.training.history import HISTORY
from slideloom.training.job import TrainJob
from slideloom.training.loop import train
from slideloom.training.stored import open_slides

HEADS = ("nucleus", "hv", "classes", "boundary")
BLOCKS = (3, 6, 9, 12)


@dataclass(frozen=True)
class Case:
    """An encoder whose tokens are trained on."""

    grid: GridConfig
    small: EncoderConfig
    token_width: int


CASES = {
    "ViT-256 on H&E": Case(
        GridConfig(image="he", tile_px=256),
        EncoderConfig(model="timm/vit_tiny_patch16_224", grid="g", random=0, off_resolution=True),
        384,
    ),
    "VirTues on 16 markers": Case(
        GridConfig(image="sp", tile_px=120),
        EncoderConfig(model="mean_marker", grid="g", normalisation=NormalisationConfig(scope="slide")),
        512,
    ),
}


def put_tokens(place: Path, width: int, seed: int) -> None:
    """Four blocks of drawn tokens in place of an encoder's."""
    about = read_attributes(place)
    n, side = about["n_tiles"], about["tile_px"] // about["patch_px"]
    shutil.rmtree(place)
    create_group(place, about | {"blocks": list(BLOCKS), "width": width})
    drawn = np.random.default_rng(seed)
    for block in BLOCKS:
        write_array(place / f"block_{block}", drawn.normal(size=(n, side, side, width)).astype(np.float16))


def make_stores(folder: Path, case: Case, sheet: Path, place: Path) -> list[SlideData]:
    """Patches, targets and tokens of every slide of a cohort."""
    (markers, _), (classes, _) = read_markers(folder / "markers.tsv"), read_classes(folder / "classes.tsv")
    made = []
    for seed, row in enumerate(read_sheet(sheet)[0]):
        home = place / row.slide_id
        data = SlideData(row.slide_id, home / "patches.zarr", home / "targets.zarr", home / "embeddings.zarr")
        facts = write_facts(row, folder, markers, home / "slide.json")
        write_tissue(facts, row, folder, TissueConfig(method="all"), home / "tissue.geojson", home / "thumbnail.png")
        cut_patches(row, folder, facts, home / "tissue.geojson", case.grid, data.patches)
        patches = PatchStore(data.patches)
        cut_targets(row, folder, facts, patches, classes, data.targets)
        config = complete(case.small)
        embed_slide(build_encoder(config, patches.channels), config, patches, None, data.embeddings)
        put_tokens(data.embeddings, case.token_width, seed)
        made.append(data)
    return made


def files_of(slides: list[SlideData]) -> Iterator[Path]:
    """Every file of their stores."""
    for data in slides:
        for store in (data.patches, data.targets, data.embeddings):
            yield from (path for path in store.rglob("*") if path.is_file())


def forget(slides: list[SlideData]) -> None:
    """Put their files out of the page cache."""
    os.sync()
    for path in files_of(slides):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def batches_alone(job: TrainJob, held: bool) -> tuple[float, float]:
    """Patches a second that can be made, and the milliseconds of processor time of one."""
    needs = Needs(job.heads, job.decoder.skips, job.decoder.image_skip, job.n_classes)
    data = PatchData(open_slides(job.train, needs, "training"))
    if held:
        data.hold(job.memory_bytes)
    else:
        forget(list(job.train))
    feed = Feed(data, job, torch.device(job.device))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in feed.batches(epoch_order(data.n, job.training.batch_size, 0, 0), 0, training=True):
        pass
    return data.n / (time.perf_counter() - wall), (time.process_time() - cpu) / data.n * 1e3


def measure(job: TrainJob, held: bool) -> tuple[float, float]:
    """Patches a second and the share of waiting, of the last epoch of a training; from disk, of its only one."""
    if not held:
        forget(list(job.train))  # a second epoch would find the files in the page cache
        training = job.training.model_copy(update={"epochs": 1})
        job = replace(job, memory_bytes=0, training=training)
    place = train(job)
    rows = read_table(HISTORY, place.parent / "history.parquet").to_pylist()
    return rows[-1]["train_patches_per_s"], rows[-1]["wait_share"]


def main() -> None:
    """Make the stores, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slides", type=int, default=1, help="demo slides; a GPU needs some more to be busy")
    parser.add_argument("--size", type=int, default=1024, help="side of a slide, pixels of 0.5 µm")
    parser.add_argument("--widths", type=float, nargs="+", help="of the decoder; 0.125, and on a GPU 1")
    parser.add_argument("--batch", type=int, default=4, help="patches a step")
    parser.add_argument("--epochs", type=int, default=1, help="of the training from memory; the last one counts")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--threads", type=int, default=1, help="of the arithmetic")
    parser.add_argument("--readers", type=int, default=1, help="threads that make batches")
    parser.add_argument("--temporary", type=Path, default=None, help="where the stores go; a disk like a study's")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} thread(s), {options.readers} reader(s), "
        f"batches of {options.batch}, {options.precision}"
    )
    with tempfile.TemporaryDirectory(dir=options.temporary) as name:
        folder = Path(name)
        sheet = write_cohort(folder / "cohort", n_slides=options.slides, size_px=options.size)
        for what, case in CASES.items():
            slides = make_stores(sheet.parent, case, sheet, folder / case.grid.image)
            size = sum(path.stat().st_size for path in files_of(slides))
            n = sum(PatchStore(data.patches).n for data in slides)
            print(f"\n{what}: {n} patches, {size / n / 1e6:.2f} MB each on disk")
            job = TrainJob(
                study="bench",
                experiment="bench",
                fold="0",
                grid=case.grid,
                classes=read_classes(sheet.parent / "classes.tsv")[0],
                decoder=DecoderConfig(),
                heads=HEADS,
                loss=LossConfig(),
                training=TrainingConfig(
                    epochs=options.epochs, batch_size=options.batch, precision=options.precision, keep="last"
                ),
                train=tuple(slides),
                val=(),
                place=folder / "model",
                device=options.device,
                threads=options.threads,
                memory_bytes=64 << 30,
                read_threads=options.readers,
                save_every_s=1e9,
            )
            for held in (True, False):
                rate, cpu_ms = batches_alone(job, held)
                source = "memory" if held else "disk"
                print(f"  {source:<7} batches alone  {rate:8.1f} patches/s, {cpu_ms:6.2f} ms CPU a patch")
            for width in options.widths or ([0.125] if options.device == "cpu" else [1.0, 0.125]):
                for held in (True, False):
                    rate, share = measure(replace(job, decoder=DecoderConfig(width=width)), held)
                    source = "memory" if held else "disk"
                    print(f"  {source:<7} width {width:<8g} {rate:8.1f} patches/s, {share:6.2%} waiting for data")


if __name__ == "__main__":
    main()

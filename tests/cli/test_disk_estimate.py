"""The estimate of what a run writes, against stores that are written as a run writes them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slideloom.cli.disk_estimate import Share, _sizes, estimate
from slideloom.cli.examine import examine
from slideloom.cli.slide_report import ImageReport, SlideReport
from slideloom.config.catalogue import CATALOGUE, find_entry
from slideloom.decoders.build import build_decoder
from slideloom.demo.cohort import write_cohort
from slideloom.encoders.embedding.store import token_arrays
from slideloom.encoders.embedding.token_writer import SlideWriter
from slideloom.encoders.timm_models.vit import bare_encoder
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.headers import write_facts
from slideloom.slides.study import Study, load_study
from slideloom.slides.tissue import write_tissue

CONFIG = """\
study: sizes
slides: COHORT/slides.tsv
markers: COHORT/markers.tsv
classes: COHORT/classes.tsv
grids:
  sp96: {image: sp, tile_px: 96}
  he128: {image: he, tile_px: 128, stride_px: 96, mpp_um: 1.0, min_tissue: 0.05}
encoders:
  mm: {model: mean_marker, grid: sp96, normalisation: {scope: slide}}
  vit: {model: timm/vit_tiny_patch16_224, grid: he128, random: 0, blocks: [6, 12]}
splits:
  holdout: {scheme: column}
experiments:
  sp: {encoder: mm, split: holdout, heads: [nucleus, hv]}
  he: {encoder: vit, split: holdout, heads: [classes, boundary], decoder: {branches: shared, width: 0.5}}
"""
#: An estimate is good where it is within this of what is written.
FACTOR = 2.0


def allocated(place: Path) -> int:
    """Bytes that a file system gives to files and folders."""
    paths = [place, *place.rglob("*")]
    return sum(os.lstat(path).st_blocks * 512 for path in paths)


def by_stage(shares: list[Share]) -> Mapping[tuple[str, str], Share]:
    return {(share.stage, share.context): share for share in shares}


def load(cohort: Path, *changes: tuple[str, str]) -> Study:
    text = CONFIG.replace("COHORT", str(cohort))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path("config.yaml").write_text(text)
    return load_study(Path("config.yaml"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("estimate") / "cohort"
    write_cohort(place, seed=3, n_slides=3, size_px=400)
    return place


@pytest.fixture
def study(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return load(cohort)


@pytest.fixture(scope="module")
def reports(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SlideReport]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examined"))
        return list(examine(load(cohort), workers=1))


def cut(study: Study) -> None:
    """The stages facts, tissue, patches and targets; and stores of tokens of the shapes that encoders give."""
    paths = study.paths
    for row in study.rows:
        for name in (
            "slides/" + row.slide_id,
            *(f"{kind}/{grid}" for kind in ("patches", "targets") for grid in GRIDS),
        ):
            (paths.root / name).mkdir(parents=True, exist_ok=True)
        facts = write_facts(row, study.data_root, study.markers, paths.slide_facts(row.slide_id))
        outline = paths.tissue(row.slide_id)
        write_tissue(facts, row, study.data_root, study.config.tissue, outline, paths.thumbnail(row.slide_id))
        for name in GRIDS:
            place = paths.patches(name, row.slide_id)
            cut_patches(row, study.data_root, facts, outline, study.config.grids[name], place)
            target = paths.targets(name, row.slide_id)
            cut_targets(row, study.data_root, facts, PatchStore(place), study.classes, target)
        for encoder, grid, width, blocks, token_px in (("mm", "sp96", 16, (1,), 8), ("vit", "he128", 192, (6, 12), 16)):
            store = PatchStore(paths.patches(grid, row.slide_id))
            shape = (store.n, store.tile_px // token_px, store.tile_px // token_px, width)
            arrays = token_arrays(blocks, False)
            place = paths.embeddings(encoder, row.slide_id)
            place.parent.mkdir(parents=True, exist_ok=True)
            writer = SlideWriter(place, shape, arrays)
            writer.add({one: np.ones(shape, np.float16) for one in arrays})
            writer.finish({"blocks": list(blocks), "symmetries": False})


GRIDS = ("sp96", "he128")


def test_what_is_written_is_within_a_factor_of_two_of_the_estimate(study: Study, reports: list[SlideReport]) -> None:
    found = by_stage(estimate(study, reports))
    before = {key: share.left for key, share in found.items()}
    assert all(share.left == share.size for share in found.values()), "nothing is written yet"
    cut(study)
    for key in [("slides", ""), *(("patches", grid) for grid in GRIDS), *(("targets", grid) for grid in GRIDS)]:
        real = allocated(study.paths.root / key[0] / key[1])
        assert real / FACTOR < found[key].size < real * FACTOR, (key, found[key].size, real)
    for name in ("mm", "vit"):
        real = allocated(study.paths.root / "embeddings" / name)
        assert real / FACTOR < found["embeddings", name].size < real * FACTOR, (
            name,
            found["embeddings", name].size,
            real,
        )
    again = by_stage(estimate(study, reports))
    for key, share in again.items():
        done = key[0] in ("slides", "patches", "targets", "embeddings")
        assert share.left == (0 if done else before[key]), "what lies there is not written again"


def test_tokens_of_a_large_slide_are_what_their_shape_says(study: Study) -> None:
    images = (
        ImageReport("he", "x.svs", None, 60_000, 90_000, 3, "uint8", 0.25, "file"),
        ImageReport("sp", "x.ome.tif", None, 60_000, 90_000, 40, "uint16", 0.5, "file"),
    )
    row = replace(study.rows[0], slide_id="large")
    report = SlideReport("large", "P", "p", images, tiles={"sp96": 625 * 938, "he128": 10_000})
    found = by_stage(estimate(replace(study, rows=(row,)), [report]))
    # Blocks 6 and 12 of 192 values, float16, for 8 × 8 tokens of 10 000 tiles.
    assert math.isclose(found["embeddings", "vit"].size, 2 * 10_000 * 64 * 192 * 2, rel_tol=0.01)
    assert math.isclose(found["embeddings", "mm"].size, 625 * 938 * 144 * 40 * 2, rel_tol=0.01)
    assert math.isclose(found["patches", "he128"].size, 10_000 * 3 * 128**2, rel_tol=0.01)
    assert found["patches", "sp96"].size == pytest.approx(625 * 938 * 40 * 96**2 * 2 / 2, rel=0.01)


def test_symmetries_multiply_the_tokens(study: Study, cohort: Path, reports: list[SlideReport]) -> None:
    once = by_stage(estimate(study, reports))["embeddings", "vit"].size
    turned = load(cohort, ("blocks: [6, 12]", "blocks: [6, 12], symmetries: true"))
    assert by_stage(estimate(turned, reports))["embeddings", "vit"].size == pytest.approx(8 * once, rel=0.05)


def test_a_slide_that_cannot_be_opened_counts_nothing(study: Study, reports: list[SlideReport]) -> None:
    less = [replace(reports[0], images=(ImageReport("he", "x"), ImageReport("sp", "x")), tiles={}), *reports[1:]]
    whole, rest = (by_stage(estimate(study, some)) for some in (reports, less))
    for key in (("patches", "sp96"), ("embeddings", "vit"), ("targets", "he128")):
        assert 0 < rest[key].size < whole[key].size


@pytest.mark.parametrize("branches", ["shared", "separate"])
@pytest.mark.parametrize(("encoder", "width"), [("vit_tiny_patch16_224", 192), ("vit_large_patch16_224", 1024)])
def test_decoders_are_as_large_as_estimated(
    study: Study, cohort: Path, reports: list[SlideReport], encoder: str, width: int, branches: str
) -> None:
    loaded = load(cohort, ("vit_tiny_patch16_224", encoder), ("branches: shared", f"branches: {branches}"))
    config = loaded.config.experiments["he"].decoder
    with torch.device("meta"):
        decoder = build_decoder(config, ["classes", "boundary"], 6, width, 16, 3)
    real = 4 * sum(value.numel() for value in decoder.parameters())
    size = by_stage(estimate(loaded, reports))["models", "he"].size
    # One fold, and four times as much of a training to go on from.
    assert 5 * real / FACTOR < size < 5 * real * FACTOR


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_base_patch16_224", "vit_large_patch14_dinov2"])
def test_widths_of_timms_models_are_those_of_their_names(study: Study, arch: str) -> None:
    encoder = study.config.encoders["vit"].model_copy(update={"model": f"timm/{arch}", "blocks": []})
    entry = find_entry(encoder.model)
    assert entry is not None
    spec = bare_encoder(entry).spec
    sizes = _sizes(encoder)
    assert (sizes.width, sizes.token_px, sizes.blocks) == (spec.width, spec.patch_px, len(spec.blocks))


def test_every_encoder_of_the_catalogue_has_sizes(study: Study) -> None:
    for name, entry in CATALOGUE.items():
        sizes = _sizes(study.config.encoders["vit"].model_copy(update={"model": name, "blocks": []}))
        assert sizes.token_px in (8, 14, 16)
        assert sizes.blocks in (1, 4)
        assert sizes.width == 0 if entry.family == "mean_marker" else sizes.width >= 64

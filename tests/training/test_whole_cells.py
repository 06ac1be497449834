"""The head instanseg_cells: its targets, what is masked, and a slide from its sheet's row to its table of cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from tests.training.conftest import CLASSES, ENCODER, MARKERS, PANEL

from slideloom.artefacts.zarrio import read_array, read_attributes
from slideloom.config.model import DecoderConfig, GridConfig, InstancesConfig, LossConfig, TissueConfig, TrainingConfig
from slideloom.decoders.instanseg_head import PixelClassifier
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideloomError
from slideloom.inference.predict import predict_slide
from slideloom.inference.tiles import StoredTiles
from slideloom.instances.labels import open_labels
from slideloom.instances.segment import segment_slide
from slideloom.patches.cell_targets import cut_cell_targets
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.facts import load_facts
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tissue import write_tissue
from slideloom.training.annotated import Needs, SlideData
from slideloom.training.checkpoint import load_decoder
from slideloom.training.data import PatchData
from slideloom.training.distance_targets import instance_distance
from slideloom.training.instanseg_loss import instanseg_loss
from slideloom.training.job import TrainJob
from slideloom.training.loop import train
from slideloom.training.stored import StoredSlide
from slideloom.training.symmetry import transform
from slideloom.training.terms import Drawn, terms_of, total_loss

HEADS = ("instanseg", "instanseg_cells")
GRID = GridConfig(image="sp", tile_px=48)
NETWORK = DecoderConfig(kind="instanseg", widths=(8, 16, 16))


def picture(seed: int, shape: tuple[int, int]) -> tuple[NDArray[np.uint16], NDArray[np.int32], NDArray[np.int32]]:
    """Nuclei in cells twice as wide, which CD3 shows: intensities (3, h, w), ids of nuclei, and of cells, from 101."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    nuclei, cells = np.zeros((2, *shape), np.int32)
    for number, (row, column) in enumerate(np.ndindex(shape[0] // 24, shape[1] // 24), 1):
        away = np.hypot(y - 24 * row - 12 - rng.uniform(-1, 1), x - 24 * column - 12 - rng.uniform(-1, 1))
        nuclei[away < rng.uniform(4.5, 5.5)] = number
        cells[away < rng.uniform(9, 10.5)] = 100 + number
    light = np.stack([900 * (nuclei > 0), 600 * (cells > 0), 0 * cells]) + 60
    return rng.poisson(light).astype(np.uint16), nuclei, cells


def made(folder: Path, slide_id: str, seed: int, annotated: bool, shape: tuple[int, int] = (96, 96)) -> SlideData:
    """A slide and its stores, by the stages of a study; some have annotated cells."""
    pixels, nuclei, cells = picture(seed, shape)
    np.savez(folder / f"{slide_id}.npz", image=pixels, nuclei=nuclei, cells=cells)
    file, home = f"{slide_id}.npz", folder / slide_id
    row = SlideRow(
        slide_id,
        sp=f"{file}::image",
        instances=f"{file}::nuclei",
        cells=f"{file}::cells" if annotated else None,
        sp_mpp_um=0.5,
        sp_channels=PANEL,
    )
    facts = write_facts(row, folder, MARKERS, home / "slide.json")
    write_tissue(facts, row, folder, TissueConfig(method="all"), home / "tissue.geojson", home / "thumbnail.png")
    data = SlideData(slide_id, home / "patches.zarr", home / "targets.zarr", home / "embeddings.zarr")
    cut_patches(row, folder, facts, home / "tissue.geojson", GRID, data.patches)
    patches = PatchStore(data.patches)
    assert cut_targets(row, folder, facts, patches, CLASSES, data.targets)
    embed_slide(build_encoder(ENCODER, patches.channels), ENCODER, patches, None, data.embeddings or home)
    place = home / "cells.zarr"
    return replace(data, cells=place) if cut_cell_targets(row, folder, facts, patches, place) else data


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SlideData]:
    folder = tmp_path_factory.mktemp("cells")
    return {name: made(folder, name, seed, annotated=name != "bare") for seed, name in enumerate(("a", "bare", "test"))}


def needs(*heads: Any) -> Needs:
    return Needs(heads, skips=True, image=True, n_classes=1)


def test_targets_of_cells_and_their_mask(cohort: dict[str, SlideData]) -> None:
    slides = [StoredSlide(cohort[name], needs(*HEADS)) for name in ("a", "bare")]
    assert [slide.has_cells for slide in slides] == [True, False]
    targets = PatchData(slides).batch(np.array([1, 5, 2])).targets
    cells = targets["cells"].numpy()
    assert cells.dtype == np.int32
    assert targets["cell_distance"].dtype == torch.float32
    whole = picture(0, (96, 96))[2]
    np.testing.assert_array_equal(cells[0], whole[:48, 48:])
    np.testing.assert_array_equal(cells[2], whole[48:, :48])
    assert (cells[1] == -1).all()
    assert (targets["cell_distance"][1] == 0).all()
    np.testing.assert_array_equal(targets["cell_distance"].numpy(), instance_distance(cells))
    assert bool(targets["valid"].all()), "nuclei count on both"


def test_held_turned_and_read_targets_are_the_same(cohort: dict[str, SlideData]) -> None:
    """What is kept in memory is what is read, and cells turn as pixels do."""
    indices = np.array([3, 0, 6])
    read, held = (PatchData([StoredSlide(cohort[name], needs(*HEADS)) for name in ("a", "bare")]) for _ in range(2))
    assert held.hold(10**9) > 0
    one, other = (data.batch(indices).targets for data in (read, held))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    turned = transform(one["cells"], 5)
    assert np.array_equal(instance_distance(turned.numpy()), transform(one["cell_distance"], 5).numpy())


def test_others_neither_read_nor_hold_cells(cohort: dict[str, SlideData]) -> None:
    with_cells, without = cohort["a"], replace(cohort["a"], cells=None)
    for data in (with_cells, without):
        slide = StoredSlide(data, needs("instanseg"))
        assert not slide.has_cells
        assert "cells" not in slide.targets(np.array([0]))
    assert replace(with_cells, cells=Path("gone")).missing() == ["targets of cells"]


def drawn(seed: int) -> Drawn:
    torch.manual_seed(0)
    return Drawn(PixelClassifier(), np.random.default_rng(seed))


def outputs_of(n: int) -> dict[Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {head: torch.randn((n, 5, 48, 48), generator=generator).requires_grad_() for head in HEADS}


def test_what_nobody_annotated_teaches_nothing(cohort: dict[str, SlideData]) -> None:
    data = PatchData([StoredSlide(cohort[name], needs(*HEADS)) for name in ("a", "bare")])
    targets, outputs = data.batch(np.array([0, 4, 1, 7])).targets, outputs_of(4)
    config = LossConfig(instanseg_window_px=16)
    loss, terms = total_loss(outputs, targets, config, drawn=drawn(0))
    loss.backward()
    slope = outputs["instanseg_cells"].grad
    assert slope is not None
    assert (slope[[1, 3]] == 0).all(), "of the slide without cells"
    assert (slope[[0, 2]] != 0).any(dim=-1).any(dim=-1).any(dim=-1).all()
    nuclei = outputs["instanseg"].grad
    assert nuclei is not None
    assert (nuclei != 0).flatten(1).any(dim=1).all(), "its nuclei count"
    classifier, rng = (one := drawn(0)).classifier, one.rng
    both = []
    for head, ids in zip(HEADS, ("instances", "cells"), strict=True):
        valid = targets["valid"] & (targets[ids] >= 0)
        both += instanseg_loss(
            outputs[head].detach(), targets[ids], valid, classifier, config, False, rng, window_px=16
        )
    names = [f"{head}_{name}" for head in HEADS for name in ("instance", "seed")]
    for name, value in zip(names, both, strict=True):
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-6)
    mean = 0.5 * (1.5 * both[0] + both[1] + 1.5 * both[2] + both[3])
    assert loss.item() == pytest.approx(mean.item(), rel=1e-6)


def test_a_batch_without_any_cells_has_a_loss_of_nought_and_slopes_of_nought(cohort: dict[str, SlideData]) -> None:
    targets, outputs = PatchData([StoredSlide(cohort["bare"], needs(*HEADS))]).batch(np.array([0, 2])).targets, {}
    outputs["instanseg_cells"] = outputs_of(2)["instanseg_cells"]
    one = drawn(0)
    loss, _ = total_loss(outputs, targets, LossConfig(), drawn=one)
    assert loss.item() == 0
    loss.backward()
    slopes = [outputs["instanseg_cells"].grad, *(weight.grad for weight in one.classifier.parameters())]
    assert all(slope is not None and (slope == 0).all() for slope in slopes)


def test_both_heads_share_the_weights_of_one() -> None:
    config = LossConfig(instanseg_instance=3.0, instanseg_seed=1.0)
    assert terms_of(HEADS[:1], config) == {"instanseg_instance": 3.0, "instanseg_seed": 1.0}
    assert terms_of((*HEADS, "distance"), config) == {
        "distance_l1": 1.0,
        "instanseg_instance": 1.5,
        "instanseg_seed": 0.5,
        "instanseg_cells_instance": 1.5,
        "instanseg_cells_seed": 0.5,
    }


def a_job(place: Path, *slides: SlideData, **training: Any) -> TrainJob:
    return TrainJob(
        study="demo",
        experiment="cells",
        fold="0",
        grid=GRID,
        classes=replace(CLASSES, ids=(), names=(), colours=(), aliases=()),
        decoder=NETWORK,
        heads=HEADS,
        loss=LossConfig(instanseg_hot_start=4, instanseg_window_px=32),
        training=TrainingConfig(**{"batch_size": 4, "lr": 1e-2, "patience": None, "keep": "last"} | training),
        train=slides,
        val=(),
        place=place,
        threads=1,
        save_every_s=1e9,
    )


def test_a_training_without_a_slide_with_cells_is_refused(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    with pytest.raises(SlideloomError, match="instanseg_cells") as caught:
        train(a_job(tmp_path, cohort["bare"], epochs=1))
    assert caught.value.code == "no_training_slides"


def overlap(truth: NDArray[Any], found: NDArray[Any]) -> float:
    """Mean IoU of true objects with the object found in most of their pixels."""
    values = []
    for name in np.unique(truth[truth > 0]):
        own = truth == name
        best = np.bincount(found[own]).argmax()
        values.append((own & (found == best)).sum() / (own | (found == best)).sum() if best else 0.0)
    return float(np.mean(values))


def test_from_the_sheet_to_the_table(
    cohort: dict[str, SlideData], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Two slides train, one of them with cells; nuclei and cells of a third are found, each in its cell."""
    place = train(a_job(tmp_path / "model", cohort["a"], cohort["bare"], epochs=45, schedule="cosine", t_0=45))
    history = pq.read_table(place.with_name("history.parquet")).to_pylist()
    seeds = [row["train_instanseg_cells_seed"] for row in history]
    assert seeds[-1] < 0.6 * seeds[4], "epoch 4 is the first after the hot start"
    decoder, _ = load_decoder(place)
    data = cohort["test"]
    facts, patches = load_facts(data.patches.parent / "slide.json"), PatchStore(data.patches)
    assert data.embeddings is not None
    embeddings = EmbeddingStore(data.embeddings)
    about = {"slide_id": "test", "image": "sp", "mpp_um": 0.5, "encoder_weights": "none"}
    predict_slide(decoder, StoredTiles(patches, embeddings, embeddings.blocks, True), tmp_path / "maps.zarr", about)
    maps = {head: read_array(tmp_path / "maps.zarr" / head) for head in HEADS}
    assert {(values.shape, values.dtype) for values in maps.values()} == {((5, 96, 96), np.dtype(np.int16))}
    assert not np.array_equal(*maps.values())
    assert "instanseg_cells" in read_attributes(tmp_path / "maps.zarr")["units"]
    labels, table = tmp_path / "labels.ome.zarr", tmp_path / "cells.parquet"
    segment_slide(tmp_path / "maps.zarr", InstancesConfig(), CLASSES, facts, patches, labels, table)
    nuclei, cells = (np.asarray(open_labels(at)).astype(np.int64) for at in (labels, labels / "labels" / "cells"))
    _, true_nuclei, true_cells = picture(2, (96, 96))
    record_property("iou", (overlap(true_nuclei, nuclei), overlap(true_cells, cells)))
    assert overlap(true_nuclei, nuclei) > 0.6
    assert overlap(true_cells, cells) > 0.6
    frame = geopandas.read_parquet(table)
    assert frame["has_cell"].mean() > 0.8
    found = frame[frame["has_cell"]]
    assert (found["cell_area_um2"] > 1.5 * found["area_um2"]).mean() > 0.8
    assert (cells[nuclei > 0] == nuclei[nuclei > 0]).all()

"""Adapters and whole networks in training: slides of different panels in one batch, weights that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from slideloom.config.model import AdapterConfig, DecoderConfig, EncoderConfig, LossConfig
from slideloom.errors import SlideError
from slideloom.training.checkpoint import load_adapter, load_decoder, read_meta
from slideloom.training.loop import train
from slideloom.training.stored import Needs, SlideData, open_slides

from .conftest import MARKERS, draw_slide
from .live_cohort import CLASSES, CPU, GRID, VIT, live_job, raw, rgb_slide

MEAN = EncoderConfig(model="mean_rgb", grid="g")
SMALL = AdapterConfig(widths=(2, 3, 4))
WHOLE = DecoderConfig(kind="instanseg", widths=(4, 6))
NEEDS = Needs(("nucleus", "hv", "classes"), skips=True, image=True, n_classes=3)


@pytest.fixture(scope="module")
def panels(tmp_path_factory: pytest.TempPathFactory) -> list[SlideData]:
    """Slides of three channels (12 patches) and of two, in another type (12)."""
    from slideloom.config.model import TissueConfig
    from slideloom.patches.cut import cut_patches
    from slideloom.patches.store import PatchStore
    from slideloom.patches.targets import cut_targets
    from slideloom.slides.headers import write_facts
    from slideloom.slides.sheet import SlideRow
    from slideloom.slides.tissue import write_tissue

    folder = tmp_path_factory.mktemp("panels")
    found = []
    for slide_id, seed, names in (("three", 1, ("DNA", "CD3", "CD20")), ("two", 2, ("CD20", "DNA"))):
        pixels, ids, kinds = draw_slide(seed, 80, 112)
        shown = pixels[[("DNA", "CD3", "CD20").index(name) for name in names]]
        if slide_id == "two":
            shown = (shown // 8).clip(0, 255).astype(np.uint8)
        np.savez(folder / f"{slide_id}.npz", image=shown, ids=ids)
        lines = ["label,class", *(f"{n},{CLASSES.names[k - 1]}" for n, k in kinds.items())]
        (folder / f"{slide_id}.csv").write_text("\n".join(lines) + "\n")
        row = SlideRow(
            slide_id,
            sp=f"{slide_id}.npz::image",
            instances=f"{slide_id}.npz::ids",
            classes=f"{slide_id}.csv",
            sp_mpp_um=0.5,
            sp_channels=names,
        )
        home = folder / slide_id
        data = SlideData(slide_id, home / "patches.zarr", home / "targets.zarr")
        facts = write_facts(row, folder, MARKERS, home / "slide.json")
        write_tissue(facts, row, folder, TissueConfig(method="all"), home / "tissue.geojson", home / "thumbnail.png")
        cut_patches(row, folder, facts, home / "tissue.geojson", GRID, data.patches)
        assert cut_targets(row, folder, facts, PatchStore(data.patches), CLASSES, data.targets)
        found.append(data)
    return found


def _adapted(slides: list[SlideData], place: Path, encoder: EncoderConfig = MEAN, **changes: Any) -> Any:
    adapter = changes.pop("adapter", SMALL)
    job = live_job(slides, encoder, place, decoder=changes.pop("decoder", WHOLE), **changes)
    live = job.live
    assert live is not None
    import dataclasses

    return dataclasses.replace(job, live=dataclasses.replace(live, adapter=adapter))


def test_panels_of_a_batch_are_filled_up_and_each_is_normalised_by_itself(panels: list[SlideData]) -> None:
    slides = open_slides(panels, NEEDS, "training")
    from slideloom.training.data import PatchData
    from slideloom.training.live import make_front

    job = _adapted(panels, Path("nowhere"))
    front = make_front(job, slides, CPU)
    assert front is not None
    assert front.adapter is not None
    front.fit(slides)
    data = PatchData(slides)
    batch = data.batch(np.array([0, 12, 1, 13]))
    assert batch.pixels is not None
    assert batch.pixels.shape[1] == 3
    assert batch.pixels.dtype == torch.float32, "types differ, too"
    assert not batch.pixels[[1, 3], 2].any()
    together = front.prepare(batch, slides)
    for place, index in enumerate((0, 12, 1, 13)):
        alone = front.prepare(data.batch(np.array([index])), slides)
        assert alone.image is not None
        assert together.image is not None
        torch.testing.assert_close(together.image[place], alone.image[0], atol=1e-5, rtol=1e-5)
    assert together.image is not None
    assert together.image.shape == (4, 3, 32, 32)


def test_quantiles_become_0_and_1(panels: list[SlideData]) -> None:
    slides = open_slides(panels, NEEDS, "training")
    from slideloom.training.live import make_front

    front = make_front(_adapted(panels, Path("nowhere")), slides, CPU)
    assert front is not None
    front.fit(slides)
    for slide in slides:
        statistics = slide.statistics  # type: ignore[attr-defined]
        inside = np.concatenate([slide.patches.pixels(np.array([n]))[:, :, valid] for n in range(slide.n)
                                 for valid in [slide.patches.valid(np.array([n]))[0]]], axis=2)[0]  # fmt: skip
        low, high = np.quantile(inside, [0.001, 0.999], axis=1)
        np.testing.assert_allclose(statistics.mean, low, rtol=1e-6)
        np.testing.assert_allclose(np.add(statistics.mean, statistics.std), high, rtol=1e-6)


@pytest.mark.parametrize(
    "adapter",
    [AdapterConfig(kind="channel_adapter", in_channels=2), AdapterConfig(kind="pass_through", out_channels=2)],
    ids=lambda one: one.kind,
)
def test_a_panel_longer_than_an_adapter_reads_ends_its_own_slide_alone(
    panels: list[SlideData], adapter: AdapterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    slides = open_slides(panels, NEEDS, "training")
    from slideloom.training.live import make_front

    front = make_front(_adapted(panels, Path("nowhere"), adapter=adapter), slides, CPU)
    assert front is not None
    with caplog.at_level("WARNING"):
        assert [slide.slide_id for slide in front.fitting(slides, "training")] == ["two"]
    assert "1 of 2 training slides are left out: three (an image of 3 channels)" in caplog.text
    with pytest.raises(SlideError) as caught:
        front.fit([slides[0]])
    assert (caught.value.code, caught.value.where, caught.value.expected) == ("adapter_channels", "three", "at most 2")


@pytest.mark.parametrize("encoder", [MEAN, VIT], ids=["whole network", "frozen ViT"])
def test_an_adapter_learns_and_comes_back(panels: list[SlideData], tmp_path: Path, encoder: EncoderConfig) -> None:
    decoder = WHOLE if encoder is MEAN else DecoderConfig(width=0.1, branches="shared")
    job = _adapted(panels, tmp_path / "one", encoder, decoder=decoder, training={"epochs": 2, "ema": 0.5})
    place = train(job)
    meta = read_meta(place)
    assert meta.adapter == {"config": SMALL.model_dump(mode="json")}
    assert not meta.encoder_trained, "the encoder stayed as it was"
    adapter = load_adapter(place)
    assert adapter is not None
    decoder_again, _ = load_decoder(place)
    from slideloom.adapters.build import build_adapter

    fresh = build_adapter(SMALL, seed=job.training.seed).state_dict()
    moved = [name for name, value in adapter.state_dict().items() if not torch.equal(value, fresh[name])]
    assert any(name.endswith("0.weight") for name in moved), "gradients came through the encoder"
    assert decoder_again.image_channels == 3
    again = train(_adapted(panels, tmp_path / "two", encoder, decoder=decoder, training={"epochs": 2, "ema": 0.5}))
    assert again.read_bytes() == place.read_bytes(), "two runs give equal bytes"
    history = pq.read_table(place.with_name("history.parquet")).to_pylist()
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize(
    ("heads", "kind"),
    [
        (("instanseg",), "instanseg"),
        (("nucleus", "distance"), "instanseg"),
        (("three_class",), "instanseg"),
        (("nucleus", "instanseg"), "instanseg"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_heads_of_other_segmenters_learn(
    tmp_path: Path, heads: tuple[str, ...], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    slide = rgb_slide(tmp_path_factory.mktemp("rgb"), "a", 1)
    job = live_job(
        [raw(slide)],
        EncoderConfig(model="mean_rgb", grid="he"),
        tmp_path,
        decoder=WHOLE.model_copy(update={"kind": kind}),
        heads=heads,
        loss=LossConfig(instanseg_hot_start=0),
        training={"epochs": 6, "lr": 1e-2, "patience": None},
    )
    history = pq.read_table(train(job).with_name("history.parquet")).to_pylist()
    assert history[-1]["train_loss"] < 0.95 * history[0]["train_loss"]

"""What planning tells of experiments that take published whole networks over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .test_study import Edit, load, study_folder, told

__all__ = ["study_folder"]

INSTANSEG: dict[str, Any] = {"encoder": "plain", "split": "holdout", "pretrained": "c.csv"}
INSTANSEG |= {"decoder": {"kind": "instanseg"}, "heads": ["instanseg"]}
PROGRAM: dict[str, Any] = {key: value for key, value in INSTANSEG.items() if key != "pretrained"}
PROGRAM |= {"torchscript": "c.csv"}
HOVERNET: dict[str, Any] = INSTANSEG | {"decoder": {"kind": "hovernet"}, "heads": ["nucleus", "hv", "classes"]}


def only(experiment: dict[str, Any], grid: str = "he256", mpp_um: float | None = 0.25, **encoder: Any) -> Edit:
    """A study of one published model behind ``mean_rgb``."""
    plain = {"model": "mean_rgb", "grid": grid} | encoder

    def edit(config: dict[str, Any]) -> None:
        config["grids"]["he256"]["mpp_um"] = mpp_um
        config["experiments"] = {"x": experiment}
        config["encoders"] = {"plain": plain, "vit": config["encoders"]["vit"]}

    return edit


@pytest.mark.parametrize(
    ("experiment", "grid"),
    [
        (INSTANSEG, "he256"),
        (INSTANSEG | {"heads": ["instanseg", "instanseg_cells"]}, "sp120"),
        (INSTANSEG | {"decoder": {"kind": "instanseg", "widths": [4, 8], "multihead": True}}, "sp120"),
        (PROGRAM, "sp120"),
        (HOVERNET, "he256"),
        (HOVERNET | {"heads": ["nucleus", "hv"], "decoder": {"kind": "hovernet", "mode": "fast"}}, "he256"),
    ],
)
def test_what_can_be_taken_over(experiment: dict[str, Any], grid: str) -> None:
    config = load(only(experiment, grid)).config.experiments["x"]
    assert config.published == Path("c.csv")
    assert not config.trains
    assert not config.learns_cells, "no annotation of cells is needed"
    assert config.adapted == (config.decoder.kind == "instanseg"), "channels are normalised as InstanSeg reads them"


def test_markers_choose_the_channels_that_an_instanseg_reads() -> None:
    assert load(only(PROGRAM, "sp120", markers=["DNA"])).config.encoders["plain"].markers == ["DNA"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            only(PROGRAM | {"torchscript": "no.pt"}),
            ("experiments.x.torchscript: 'no.pt' does not exist", "ever fetched"),
        ),
        (only(INSTANSEG | {"pretrained": "no.pth"}), ("experiments.x.pretrained: 'no.pth' does not exist",)),
        (only(PROGRAM | {"pretrained": "c.csv"}), ("'pretrained' and 'torchscript' name a published model each",)),
        (only(PROGRAM | {"adapter": {"kind": "channelnet"}}), ("'adapter' is trained", "used as it is")),
        (only(INSTANSEG | {"adapter": {"kind": "channelnet"}}), ("'adapter' is trained", "used as it is")),
        (
            only(PROGRAM | {"labels": "{slide}.tif", "grid": "he256"}),
            ("neither 'encoder' nor 'pretrained' nor 'torch",),
        ),
        (
            only(PROGRAM | {"decoder": {"kind": "hovernet"}, "heads": ["nucleus"]}),
            ("decoder.kind: torchscript is for programs of InstanSeg, not for a decoder of kind 'hovernet'",),
        ),
        (
            only(PROGRAM | {"decoder": {"kind": "instanseg", "widths": [4]}}),
            ("experiments.x.decoder.widths: plays no part",),
        ),
        (
            only(HOVERNET | {"decoder": {"kind": "hovernet", "dropout": 0.1}}),
            ("experiments.x.decoder.dropout: plays no part",),
        ),
        (
            only(INSTANSEG | {"decoder": {"kind": "unet"}, "heads": ["nucleus"]}),
            ("decoder.kind: there is no published model of kind 'unet'", "cellvit, instanseg, hovernet"),
        ),
        (
            only(INSTANSEG | {"heads": ["nucleus", "instanseg"]}),
            ("experiments.x.heads: a published InstanSeg has no head 'nucleus'", "[instanseg, instanseg_cells]"),
        ),
        (
            only(INSTANSEG | {"heads": ["instanseg_cells"]}),
            ("experiments.x.heads: whole cells belong to nuclei", "[instanseg, instanseg_cells]"),
        ),
        (
            only(HOVERNET | {"heads": ["nucleus", "boundary"]}),
            ("a published HoVer-Net has no head 'boundary'", "It has: nucleus, hv, classes"),
        ),
        (only(INSTANSEG | {"training": {"epochs": 2}}), ("training: plays no part", "remove 'pretrained' to train")),
        (only(PROGRAM | {"loss": {"dice": 1.0}}), ("loss: plays no part", "remove 'torchscript' to train")),
        (
            only(INSTANSEG | {"encoder": "vit"}),
            ("experiments.x.encoder: a published InstanSeg reads the image and no tokens", "model mean_rgb"),
        ),
        (only(INSTANSEG | {"encoder": ["plain", "vit"]}), ("a whole network reads the image alone, and one grid",)),
        (
            only(PROGRAM, "sp120", normalisation={"scope": "slide"}),
            ("encoders.plain.normalisation", "quantiles 0.001 and 0.999"),
        ),
        (only(HOVERNET, "sp120"), ("reads RGB, but grid 'sp120' cuts sp images",)),
        (
            only(HOVERNET, mpp_um=0.5),
            ("encoders.plain.grid: published HoVer-Nets were made for 0.2 to 0.3 um/px, and grid 'he256' has 0.5",),
        ),
        (only(HOVERNET, mpp_um=None), ("grid 'he256' takes every image's own", "grids.he256.mpp_um: 0.25")),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(edit: Edit, words: tuple[str, ...]) -> None:
    messages = told(edit)
    assert len(messages) == 1, messages
    assert all(word in messages[0] for word in words), messages


def test_a_place_that_stands_for_no_home() -> None:
    messages = told(only(PROGRAM | {"torchscript": "~/is.pt"}))
    assert any("experiments.x.torchscript: '~/is.pt' begins with '~'" in message for message in messages)


def test_a_hovernet_at_another_pixel_size_on_purpose() -> None:
    assert load(only(HOVERNET, mpp_um=0.5, off_resolution=True)).config.experiments["x"].published

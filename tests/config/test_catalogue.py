"""The catalogue: names, what they stand for, and what it settles in a config."""

from __future__ import annotations

import re

import pytest

from slideloom.config.catalogue import CATALOGUE, complete, find_entry, nearest_entries
from slideloom.config.model import EncoderConfig, NormalisationConfig

FOUNDATION = [
    "uni", "uni2_h", "virchow", "virchow2", "h_optimus_0", "h_optimus_1", "prov_gigapath", "h0_mini", "phikon",
    "phikon_v2", "timm/<name>",
]  # fmt: skip


def test_the_encoders_of_the_issue_are_there() -> None:
    families = {family: [e.name for e in CATALOGUE.values() if e.family == family] for family in ("cellvit", "timm")}
    assert families["timm"] == FOUNDATION
    sizes = ("vit256", "sam_b", "sam_l", "sam_h", "uni", "virchow", "virchow2", "vit")
    assert families["cellvit"] == [f"cellvit/{size}" for size in sizes]
    assert {"mean_marker", "virtues", "virtues/sp31", "virtues/sp32", "virtues/imc14", "virtues/tiny"} < set(CATALOGUE)


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_every_entry_says_what_it_takes_and_gives(name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.name == name
    assert all((entry.summary, entry.source, entry.licence))
    measured = name == "mean_marker" or entry.family == "virtues"
    assert (entry.kind == "markers") == (entry.normalisation is not None) == measured
    assert entry.embedding == (entry.family == "virtues")
    if entry.mpp_um is not None:
        assert 0 < entry.mpp_um[0] < entry.mpp_um[1]
    if entry.width is not None and entry.heads is not None:
        assert entry.width % entry.heads == 0
    if entry.family == "timm" and name != "timm/<name>":
        assert all((entry.arch, entry.files, entry.params))
        assert entry.source.startswith("https://huggingface.co/")


@pytest.mark.parametrize(
    ("model", "token_px"),
    [
        ("mean_marker", 8),
        ("virtues", 8),
        ("cellvit/virchow", 14),
        ("uni2_h", 14),
        ("prov_gigapath", 16),
        ("timm/vit_small_patch14_dinov2.lvd142m", 14),
        ("timm/vit_tiny_patch16_224", 16),
        ("timm/vit_small_patch8_224.dino", 8),
        ("timm/other", None),
    ],
)
def test_token_side_by_name(model: str, token_px: int | None) -> None:
    entry = find_entry(model)
    assert entry is not None
    assert (entry.name, entry.token_px) == (model, token_px)


def test_a_model_of_timm_keeps_its_own_name_as_its_architecture() -> None:
    entry = find_entry("timm/vit_tiny_patch16_224.augreg")
    assert entry is not None
    assert entry.arch == "vit_tiny_patch16_224.augreg"
    assert CATALOGUE["timm/<name>"].arch == ""


@pytest.mark.parametrize("model", ["timm/", "timm", "timm/<name>", "cellvit", "virtues/", "UNI", "", "mean_marker2"])
def test_unknown_names(model: str) -> None:
    assert find_entry(model) is None


def test_nearest_entries() -> None:
    assert set(nearest_entries("virchow3")) >= {"virchow2", "virchow"}
    assert "cellvit/sam_h" in nearest_entries("cellvit/samh")
    assert nearest_entries("zzz") == tuple(CATALOGUE)


def test_completing_settles_what_was_left_open_and_nothing_else() -> None:
    own = CATALOGUE["virtues"].normalisation
    assert own == NormalisationConfig(scope="training", clip="slide", clip_quantile=0.99, log1p=True)
    assert complete(EncoderConfig(model="virtues", grid="g")).normalisation == own
    given = EncoderConfig(model="virtues", grid="g", normalisation=NormalisationConfig(clip_quantile=0.9, log1p=False))
    settled = complete(given).normalisation
    assert (settled.clip_quantile, settled.log1p, settled.clip) == (0.9, False, "slide")
    slide = EncoderConfig(model="mean_marker", grid="g", normalisation=NormalisationConfig(scope="slide"))
    assert complete(slide).normalisation.clip == "slide"
    for model in ("uni", "nobody"):
        plain = EncoderConfig(model=model, grid="g")
        assert complete(plain) is plain


def test_names_stand_in_a_config_without_quotes() -> None:
    assert all(re.fullmatch(r"[a-z0-9_]+(/[a-z0-9_]+)?", name) for name in CATALOGUE if name != "timm/<name>")

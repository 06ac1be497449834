"""Nuclei found and mended in one go, and what a slide's labels then tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest

from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.zarrio import read_attributes
from slideloom.config.model import InstancesConfig
from slideloom.instances.finding import Refiners, feature_maps, find_nuclei
from slideloom.instances.labels import open_labels
from slideloom.instances.refine.features import instance_features
from slideloom.instances.refine.fit import FitSettings, fit_verifier
from slideloom.instances.refine.splitter import SplitSettings
from slideloom.instances.refine.verifier import Verifier
from slideloom.instances.segment import segment_slide
from slideloom.slides.tables import ClassTable

THRESHOLD = InstancesConfig(method="threshold")


@pytest.fixture
def slide(make_crowd: Any, make_maps: Any, slide_of: Callable[..., Any]) -> Any:
    return slide_of(make_maps(make_crowd(1, (230, 260), 110, 8.0), blur=0.7))


def _found(slide: Any, scratch: Path, refiners: Refiners | None = None, **more: Any) -> Any:
    config = THRESHOLD.model_copy(update={"window_px": more.pop("window_px", 2048)})
    about = read_attributes(slide.maps)
    return find_nuclei(slide.maps, about, config, scratch, refiners, n_classes=4, **more)


@pytest.fixture
def verifier(slide: Any, tmp_path: Path) -> Verifier:
    """One that keeps what is large."""
    found = _found(slide, tmp_path / "fit", Refiners(split=SplitSettings())).found
    features = instance_features(found, feature_maps(slide.maps), mpp_um=0.5, n_classes=4)
    area = features["area_um2"]
    true, image = area > np.quantile(area, 0.3), np.arange(len(area)) % 5
    fitted, _ = fit_verifier(features, true, image, np.full(5, 8), FitSettings(hidden=0, least=3, resamples=10))
    return replace(fitted, threshold=0.5)


def test_nothing_asked_for_is_nothing_done(slide: Any, tmp_path: Path) -> None:
    plain = _found(slide, tmp_path / "plain")
    assert plain.counts["found"] == plain.counts["left"] == plain.found.n
    assert plain.features is None


def test_a_slide_is_split_and_then_verified_the_same_in_any_windows(
    slide: Any, verifier: Verifier, classes: ClassTable, tmp_path: Path, make_crowd: Any, pq: Callable[..., float]
) -> None:
    refiners = Refiners(SplitSettings(), verifier, {"split": {"most": 4}})
    digests = set()
    for window_px, workers in ((2048, 1), (64, 2), (100, 1)):
        place = tmp_path / str(window_px)
        labels, cells = place / "s1.ome.zarr", place / "cells.parquet"
        config = THRESHOLD.model_copy(update={"window_px": window_px})
        made = (config, classes, slide.facts, slide.patches, labels, cells)
        n = segment_slide(slide.maps, *made, refiners=refiners, workers=workers)
        digests.add((digest_tree(labels), digest_tree(cells)))
    assert len(digests) == 1
    told = read_attributes(labels)["slideloom"]
    counts = told["refined"]
    assert told["made_from"]["refine"] == {"split": {"most": 4}}
    assert counts["split"] > 5
    assert counts["dropped"] > 5
    assert counts["left"] == counts["after_split"] - counts["dropped"] == n
    image, table = np.asarray(open_labels(labels)), geopandas.read_parquet(cells)
    assert n == image.max() == len(table)
    np.testing.assert_array_equal(table["area_px"], np.bincount(image.ravel())[1:])
    truth = make_crowd(1, (230, 260), 110, 8.0)  # what the fixture's maps were made of
    plain = _found(slide, tmp_path / "plain").found
    split = _found(slide, tmp_path / "split", Refiners(split=SplitSettings())).found
    assert pq(truth, split.read(split.grid.frame)) > pq(truth, plain.read(plain.grid.frame)) + 0.1


def test_labels_of_nuclei_that_nobody_mends_tell_of_no_refinement(
    slide: Any, classes: ClassTable, tmp_path: Path
) -> None:
    labels = tmp_path / "s1.ome.zarr"
    segment_slide(slide.maps, THRESHOLD, classes, slide.facts, slide.patches, labels, tmp_path / "cells.parquet")
    told = read_attributes(labels)["slideloom"]
    assert "refined" not in told
    assert "refine" not in told["made_from"]

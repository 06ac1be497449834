"""InstanSeg's nuclei against figures of the program that was published."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import ndimage
from tests.forest_oracle import in_raster_order
from tests.instances.instanseg_maps import EIGHT

from slideloom.instances.instanseg import InstanSegParams, local_maxima
from slideloom.instances.instanseg_claims import holes
from slideloom.instances.instanseg_classifier import SeedClassifier
from slideloom.instances.instanseg_stitch import segment_arrays
from slideloom.instances.reconcile import reconcile

TARGETS = ("nuclei", "cells")
PYTHON = ("defaults", "test_like", "low_seed", "cleanup", "high_overlap")
SCRIPT = ("no_resolve", "no_resolve_no_cleanup")
RESOLVED = ("defaults", "seed05", "seed03_overlap01")
KEYS = {
    "mask_threshold": "mask_threshold",
    "peak_distance": "peak_distance_px",
    "seed_threshold": "seed_threshold",
    "overlap_threshold": "overlap_threshold",
    "mean_threshold": "min_mean",
    "window_size": "window_px",
    "min_size": "min_claim_px",
    "cleanup_fragments": "cleanup",
}


@cache
def recorded(folder: Path) -> tuple[dict[str, Any], dict[str, Any], SeedClassifier]:
    with np.load(folder / "instanseg_tiny_io.npz") as arrays:
        found = dict(arrays)
    about = json.loads((folder / "instanseg_tiny_meta.json").read_text())
    state = load_file(folder / "instanseg_tiny_nc.safetensors")
    part = ".pixel_classifier."
    return found, about, SeedClassifier.of_state({k.split(part)[1]: v for k, v in state.items() if part in k})


@pytest.fixture
def original(shared: Path) -> tuple[dict[str, Any], dict[str, Any], SeedClassifier]:
    folder = shared / "fixtures" / "instanseg"
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {folder}")
    return recorded(folder)


def coordinates(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions as the original has them: a quarter a pixel and a little more."""
    height, width = shape
    return np.linspace(0, width / 4, width, dtype=np.float32), np.linspace(0, height / 4, height, dtype=np.float32)


def labels_of(original: Any, target: int, params: InstanSegParams, own_coordinates: bool = True) -> np.ndarray:
    arrays, _, network = original
    raw = arrays["network_out"][5 * target : 5 * target + 5]
    offset = (1 / (1 + np.exp(-raw[:2])) - np.float32(0.5)) * np.float32(8)
    seed = raw[4] / np.float32(15) + np.float32(0.5)
    places = coordinates(seed.shape) if own_coordinates else None
    return segment_arrays(offset, raw[2:4], seed, network, params, coordinates=places)


def options(given: dict[str, Any]) -> dict[str, Any]:
    left_out = ("resolve_cell_and_nucleus", "target_segmentation")
    return {KEYS[name]: value for name, value in given.items() if name not in left_out}


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_the_originals(original: Any, target: str) -> None:
    arrays, _, _ = original
    np.testing.assert_array_equal(local_maxima(arrays[f"{target}_seed_map"], 0.7, 5), arrays[f"{target}_seeds_yx"])


@pytest.mark.parametrize("distance", [1, 3, 5])
def test_peaks_are_the_originals_first_pixel_of_a_plateau(shared: Path, distance: int) -> None:
    with np.load(shared / "fixtures" / "instanseg" / "misc_io.npz") as arrays:
        image = arrays["peak_in"]
        expected = arrays[f"peak_d{distance}_yx"]
    assert len(np.unique(image)) < image.size  # there are plateaus
    threshold = min(image[tuple(expected.T)].min() - 1e-3, 0.5)
    found = local_maxima(image, threshold, distance)
    # The threshold of the record is not told: every peak above the lowest recorded one is recorded.
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", TARGETS)
def test_logits_of_windows_are_the_originals(original: Any, target: str) -> None:
    arrays, _, network = original
    fields = arrays[f"{target}_fields"]
    sigma = arrays["network_out"][5 * TARGETS.index(target) + 2 :][:2]
    _, y, x = arrays[f"{target}_crop_coords_first6"]
    for index, (seed_y, seed_x) in enumerate(arrays[f"{target}_seeds_yx"][:6]):
        at = (slice(None), y[index], x[index])
        near = fields[at] - fields[:, seed_y, seed_x][:, None, None]
        features = np.concatenate([near, sigma[at]]).reshape(4, -1).T
        expected = arrays[f"{target}_crop_logits_first6"][index].ravel()
        np.testing.assert_allclose(network.logits(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("name", PYTHON)
def test_labels_are_the_training_programs(original: Any, name: str, target: int) -> None:
    arrays, about, _ = original
    given = options(about["python_postprocessing_params"][name])
    params = InstanSegParams.preset("python", shifted_filters=True, **given)
    expected = in_raster_order(arrays[f"py_labels_{name}"][target])
    np.testing.assert_array_equal(labels_of(original, target, params), expected)


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("name", SCRIPT)
def test_labels_are_the_published_models(original: Any, name: str, target: int) -> None:
    arrays, about, _ = original
    params = InstanSegParams.preset("torchscript", **options(about["torchscript_params"][name]))
    expected = in_raster_order(arrays[f"ts_labels_{name}"][target])
    np.testing.assert_array_equal(labels_of(original, target, params), expected)


@pytest.mark.parametrize(("name", "target"), [("nuclei_only", 0), ("cells_only", 1)])
def test_one_target_is_the_published_models(original: Any, name: str, target: int) -> None:
    arrays, about, _ = original
    params = InstanSegParams.preset("torchscript", **options(about["torchscript_params"][name]))
    expected = in_raster_order(arrays[f"ts_labels_{name}"][0])
    np.testing.assert_array_equal(labels_of(original, target, params), expected)


@pytest.mark.parametrize("name", RESOLVED)
def test_nuclei_and_cells_are_the_published_models(original: Any, name: str) -> None:
    arrays, about, _ = original
    params = InstanSegParams.preset("torchscript", **options(about["torchscript_params"][name]))
    nuclei, cells = (labels_of(original, target, params) for target in (0, 1))
    found = np.stack([nuclei, reconcile(nuclei, cells)])
    np.testing.assert_array_equal(in_raster_order(found), in_raster_order(arrays[f"ts_labels_{name}"]))


@pytest.mark.parametrize("target", [0, 1])
def test_a_quarter_a_pixel_changes_next_to_nothing(original: Any, target: int) -> None:
    arrays, _, _ = original
    found = labels_of(original, target, InstanSegParams.preset("torchscript"), own_coordinates=False)
    expected = in_raster_order(arrays["ts_labels_no_resolve"][target])
    assert (found != expected).mean() <= 0.001


def test_holes_are_the_originals(shared: Path) -> None:
    with np.load(shared / "fixtures" / "instanseg" / "misc_io.npz") as arrays:
        given, expected = arrays["fill_holes_in"][:, 0], arrays["fill_holes_out"][:, 0]
    assert (expected & ~given).any()
    for mask, filled in zip(given, expected, strict=True):
        np.testing.assert_array_equal(holes(mask), filled & ~mask)


def test_a_seed_walks_as_the_originals_flood(shared: Path) -> None:
    with np.load(shared / "fixtures" / "instanseg" / "misc_io.npz") as arrays:
        masks, seeds, filled = (arrays[f"flood_{name}"][:, 0] for name in ("mask", "seed", "out"))
    # A logit that is the first sigma, so that the mask is the sigma's.
    state = {
        "fc1.weight": np.array([[0, 0, 1, 0], [0, 0, -1, 0]]),
        "fc1.bias": np.zeros(2),
        "fc2.weight": np.eye(2),
        "fc2.bias": np.zeros(2),
        "fc3.weight": np.array([[1, -1]]),
        "fc3.bias": np.zeros(1),
    }
    network = SeedClassifier.of_state(state)
    params = InstanSegParams.preset("torchscript", window_px=24)
    complete = []
    for mask, seed, reached in zip(masks, seeds, filled, strict=True):
        assert (seed > 0).sum() == 1
        pieces, _ = ndimage.label(mask, EIGHT)
        piece = pieces == pieces[seed > 0][0]
        # The original stops after as many steps as the window is wide; here a walk ends where the piece does.
        assert not (reached & ~piece).any()
        complete.append(np.array_equal(reached, piece))
        sigma = np.stack([np.where(mask, 3, -3), np.zeros(mask.shape)]).astype(np.float32)
        found = segment_arrays(np.zeros_like(sigma), sigma, seed.astype(np.float32), network, params)
        np.testing.assert_array_equal(found > 0, piece | holes(piece))
    assert complete == [True, False]


@pytest.mark.parametrize(
    ("name", "unnucleated"), [("resolve_out_allow_unnucleated", True), ("resolve_out_no_unnucleated", False)]
)
def test_reconciled_as_the_original(original: Any, name: str, unnucleated: bool) -> None:
    arrays, _, _ = original
    nuclei, cells = arrays["resolve_in"]
    found = np.stack([nuclei, reconcile(nuclei, cells, unnucleated=unnucleated)])
    np.testing.assert_array_equal(in_raster_order(found), in_raster_order(arrays[name]))

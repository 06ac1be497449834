"""InstanSeg's nuclei: the rules, and that no window shows."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.forest_oracle import in_raster_order
from tests.instances.instanseg_maps import a_classifier, a_map, decoded, holes_plainly, segmented_plainly

from slideloom.config.model import InstancesConfig
from slideloom.decoders.instanseg_head import UNITS_PER_PX
from slideloom.errors import SlideloomError
from slideloom.inference.layout import INSTANSEG_SCALES
from slideloom.instances.instanseg import OFFSET_CODES, SEED_CODES, SIGMA_CODES, InstanSegParams, as_published, reach
from slideloom.instances.instanseg_claims import holes
from slideloom.instances.instanseg_classifier import SeedClassifier, logits_of_row, lowest_logit, probability
from slideloom.instances.instanseg_stitch import segment_arrays, stitch_instanseg
from slideloom.instances.stitch import SlideMaps
from slideloom.instances.windows import Box, label_table

shapes = st.tuples(st.integers(2, 45), st.integers(2, 45))


def params_of(clean: bool, **changes: Any) -> InstanSegParams:
    given = {"window_px": 24, "peak_distance_px": 3, "seed_threshold": 0.45, "cleanup": clean, **changes}
    return InstanSegParams.preset("torchscript", **given)


def segmented(codes: np.ndarray, params: InstanSegParams, network: SeedClassifier) -> np.ndarray:
    return segment_arrays(codes[:2], codes[2:4], codes[4], network, params)


def stitched(codes: np.ndarray, params: InstanSegParams, network: SeedClassifier, folder: Path, **how: Any) -> Any:
    return stitch_instanseg(SlideMaps({"instanseg": codes}), params, network, folder, **how)


@settings(max_examples=40)
@given(st.integers(0, 10_000), shapes, st.booleans(), st.sampled_from([0.1, 0.3, 0.6]), st.sampled_from([0, 6]))
def test_is_what_a_plain_formulation_gives(
    seed: int, shape: tuple[int, int], clean: bool, overlap: float, least: int
) -> None:
    codes, network = a_map(seed, shape), a_classifier(seed)
    params = params_of(clean, overlap_threshold=overlap, min_claim_px=least, min_area_px=least // 2)
    expected = segmented_plainly(codes, network, params)
    assume(expected is not None)
    np.testing.assert_array_equal(segmented(codes, params, network), in_raster_order(expected))


@settings(max_examples=30)
@given(
    st.integers(0, 10_000),
    shapes,
    st.booleans(),
    st.sampled_from([5, 8, 13, 16, 31, 64]),
    st.sampled_from([1, 2]),
    st.sampled_from([-math.inf, 0.3]),
)
def test_no_window_worker_or_order_shows(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    shape: tuple[int, int],
    clean: bool,
    window_px: int,
    workers: int,
    least_mean: float,
) -> None:
    codes, network = a_map(seed, shape), a_classifier(seed)
    params = params_of(clean, min_claim_px=5, min_area_px=4, min_mean=least_mean)
    whole = segmented(codes, params, network)
    window_px = max(window_px, max(shape) // 6)
    count = math.prod(-(-size // window_px) for size in shape)
    order = random.Random(seed).sample(range(count), count)
    found = stitched(
        codes, params, network, tmp_path_factory.mktemp("w"), window_px=window_px, workers=workers, order=order
    )
    frame = Box(0, 0, *shape)
    np.testing.assert_array_equal(found.read(frame), whole)
    expected = label_table(whole, int(whole.max()), frame, shape[1])
    for name in ("first", "area", "box"):
        np.testing.assert_array_equal(getattr(found.table, name)[1:], getattr(expected, name)[1:])


def test_seeds_across_windows_are_joined_over_others(tmp_path: Path) -> None:
    # Three seeds in a row that all claim the same band: neighbours overlap enough, the outer two hardly.
    shape = (12, 60)
    codes = np.zeros((5, *shape), np.int16)
    codes[2] = 3 * 4095
    codes[2, :4] = codes[2, 8:] = -2 * 4095
    codes[4, 6, [15, 27, 39]] = SEED_CODES
    state = {
        "fc1.weight": np.array([[0, 0, 1, 0]]),
        "fc1.bias": np.zeros(1),
        "fc2.weight": np.eye(1),
        "fc2.bias": np.zeros(1),
        "fc3.weight": np.ones((1, 1)),
        "fc3.bias": -np.ones(1),
    }
    network = SeedClassifier.of_state(state)
    wide = InstanSegParams.preset("torchscript", window_px=24, overlap_threshold=0.2)
    # Windows are as wide as the map is high, 12 px: neighbours touch and share nothing.
    assert segmented(codes, wide, network).max() == 3
    tall = np.zeros((5, 24, 60), np.int16)
    tall[2] = -2 * 4095
    tall[:, 6:18] = codes
    for folder, window_px in (("a", 7), ("b", 16), ("c", 100)):
        found = stitched(tall, wide, network, tmp_path / folder, window_px=window_px)
        assert found.n == 1
        assert found.table.area[1] == 4 * 48
    apart = InstanSegParams.preset("torchscript", window_px=24, overlap_threshold=1 / 3)
    # 12 of 36 columns are shared: no greater than a third.
    assert segmented(tall, apart, network).max() == 3


def test_slides_without_seeds_or_too_thin_are_empty(tmp_path: Path) -> None:
    network, params = a_classifier(), InstanSegParams.preset("torchscript")
    for number, shape in enumerate([(1, 40), (40, 1), (1, 1), (30, 30)]):
        codes = a_map(1, shape)
        if shape == (30, 30):
            codes[4] = 0
        assert not segmented(codes, params, network).any()
        found = stitched(codes, params, network, tmp_path / str(number), window_px=16)
        assert found.n == 0
        assert not found.read(Box(0, 0, *shape)).any()


def test_floats_and_codes_agree() -> None:
    codes, network, params = a_map(3, (80, 70), noise=0.05), a_classifier(), params_of(True)
    maps = decoded(codes).astype(np.float32)
    found = segment_arrays(maps[:2], maps[2:4], maps[4], network, params)
    assert found.max() > 20
    assert (found != segmented(codes, params, network)).mean() < 0.001


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.3, 0.6, 0.9]))
def test_holes_are_those_of_a_plain_formulation(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask[height // 4 : height // 2, width // 4 : width // 2] = False
    np.testing.assert_array_equal(holes(mask), holes_plainly(mask))


@settings(max_examples=60)
@given(shapes, st.integers(0, 59), st.integers(0, 59), st.integers(1, 30), st.integers(1, 30), st.integers(2, 40))
def test_reach_holds_every_seed_that_matters_and_all_that_it_looks_at(
    shape: tuple[int, int], y: int, x: int, height: int, width: int, window_px: int
) -> None:
    y, x = y % shape[0], x % shape[1]
    box = Box(y, x, min(y + height, shape[0]), min(x + width, shape[1]))
    params = InstanSegParams(window_px=window_px, peak_distance_px=3)
    seeds, read = reach(box, shape, params)
    side = params.side_px(shape)
    for axis, (low, high, first, last, begin, end) in enumerate(
        [
            (box.top, box.bottom, seeds.top, seeds.bottom, read.top, read.bottom),
            (box.left, box.right, seeds.left, seeds.right, read.left, read.right),
        ]
    ):
        starts = np.clip(np.arange(shape[axis]) - side // 2, 0, shape[axis] - side)
        matter = np.flatnonzero((starts < high) & (starts + side > low))
        assert (first, last) == (matter[0], matter[-1] + 1)
        assert begin <= starts[matter].min()
        assert end >= (starts[matter] + side).max()
        assert begin <= max(first - 3, 0)
        assert end >= min(last + 3, shape[axis])
        assert begin >= 0
        assert end <= shape[axis]


def test_rows_of_logits_are_single_ones_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    network = a_classifier(1)
    features = rng.normal(0, 2, (4, 1001)).astype(np.float32)
    one = network.logits(features.T)
    for start in (0, 3, 500):
        row = np.zeros(1001 - start, np.float32)
        hidden = np.empty((6, row.size), np.float32)
        count = row.size - start // 2
        logits_of_row(np.ascontiguousarray(features[:, start:]), count, *network.arrays, hidden, row)
        np.testing.assert_array_equal(row[:count], one[start : start + count])
        assert not row[count:].any()
    layers = zip(network.weights, network.biases, strict=True)
    expected: Any = features.T.astype(np.float64)
    for index, (weight, bias) in enumerate(layers):
        expected = expected @ weight.T + bias
        expected = np.maximum(expected, 0) if index < 2 else expected[:, 0]
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


def test_probability_is_the_sigmoid() -> None:
    values = np.linspace(-87, 87, 3001).astype(np.float32)
    found = np.array([probability(value) for value in values])
    expected = 1 / (1 + np.exp(-values.astype(np.float64)))
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=0)
    np.testing.assert_array_equal(found, found.astype(np.float32))
    assert (np.diff(found) >= 0).all()
    assert probability(np.float32(18)) == 1


@pytest.mark.parametrize("threshold", [0.001, 0.3, 0.5, 0.53, 0.7, 0.9999])
def test_lowest_logit_is_where_the_probability_reaches_the_threshold(threshold: float) -> None:
    least = np.float32(lowest_logit(threshold))
    assert least == lowest_logit(threshold)
    assert probability(least) >= np.float32(threshold)
    assert probability(np.nextafter(least, np.float32(-np.inf))) < np.float32(threshold)


def test_the_classifier_survives_json() -> None:
    network = a_classifier(5)
    back = SeedClassifier.of_state(json.loads(json.dumps(network.as_json())))
    for one, other in zip((*network.weights, *network.biases), (*back.weights, *back.biases), strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("change", ["absent", "shape", "nan"])
def test_no_classifier_is_refused(change: str) -> None:
    state = a_classifier().as_json()
    if change == "absent":
        del state["fc2.bias"]
    elif change == "shape":
        state["fc1.weight"] = [row[:3] for row in state["fc1.weight"]]
    else:
        state["fc3.bias"] = [math.nan]
    with pytest.raises(SlideloomError) as caught:
        SeedClassifier.of_state(state)
    assert caught.value.code == "checkpoint_arch"


def test_presets_are_the_originals() -> None:
    config = InstancesConfig(min_area_um2=4.0)
    script = InstanSegParams.from_config(config, 0.5)
    assert (script.seed_threshold, script.peak_distance_px, script.overlap_threshold) == (0.7, 5, 0.3)
    assert (script.window_px, script.cleanup, script.min_claim_px, script.min_area_px) == (64, True, 0, 16)
    python = InstanSegParams.from_config(InstancesConfig(instanseg={"preset": "python"}), 0.5)
    assert (python.seed_threshold, python.peak_distance_px, python.overlap_threshold) == (0.5, 4, 0.5)
    assert (python.window_px, python.cleanup, python.min_claim_px) == (128, False, 10)
    assert script.mask_threshold == python.mask_threshold == 0.53


def test_the_config_changes_a_preset() -> None:
    given = {
        "preset": "python", "mask_threshold": 0.6, "seed_threshold": 0.0, "peak_distance_px": 7,
        "overlap_threshold": 0.9, "window_px": 33, "cleanup": True, "min_area_px": 0,
    }  # fmt: skip
    found = InstanSegParams.from_config(InstancesConfig(instanseg=given, min_area_um2=0.0), 0.25)
    assert found == InstanSegParams(
        mask_threshold=0.6,
        seed_threshold=0.0,
        peak_distance_px=7,
        overlap_threshold=0.9,
        window_px=33,
        cleanup=True,
        hole_probability="logit",
        min_claim_px=0,
        min_area_px=1,
    )
    assert found.side_px((100, 200)) == 32
    assert found.side_px((100, 21)) == 20


def test_codes_and_units_are_those_of_the_maps() -> None:
    codes = (OFFSET_CODES, OFFSET_CODES, SIGMA_CODES, SIGMA_CODES, SEED_CODES)
    assert codes == INSTANSEG_SCALES
    assert InstanSegParams().unit == UNITS_PER_PX


def test_thresholds_of_a_published_model_stand_where_the_config_gives_none() -> None:
    published = {"mask_threshold": 0.4, "seed_threshold": 0.9, "peak_distance_px": 7, "window_px": 32, "cleanup": False}

    def params(**own: Any) -> InstanSegParams:
        config = InstancesConfig.model_validate({"min_area_um2": 0.0, "instanseg": own})
        return InstanSegParams.from_config(as_published(config, published), 0.5)

    theirs = InstanSegParams.preset("torchscript", min_area_px=params().min_area_px, **published)
    assert params() == params(preset="torchscript") == theirs
    assert params(cleanup=True, window_px=64) == replace(theirs, cleanup=True, window_px=64)
    assert params(preset="python").seed_threshold == InstanSegParams.preset("python").seed_threshold, (
        "that is a choice, too"
    )
    config = InstancesConfig()
    assert as_published(config, {}) is config

"""The reference post-processing against numbers computed by the original programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slideloom.instances.parity import describe_parity, parity_watershed
from slideloom.instances.whole import hv_watershed
from slideloom.patches.hv import hv_map

CASES = {
    "clean_128": 40,
    "dense_noisy_256": 40,
    "dense_noisy_192_20x": 20,
    "border_and_tiny_96x160": 40,
    "structured_noise_160": 40,
    "empty_64": 40,
    "full_foreground_64": 40,
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_original(case: str, shared: Path) -> None:
    folder = shared / "fixtures" / "cellvit"
    expected = json.loads((folder / "postproc.json").read_text())["cases"][case]
    assert expected["magnification"] == CASES[case]
    with np.load(folder / "postproc_maps.npz") as arrays:
        binary = arrays[f"{case}/binary_prob"].astype(np.float32).argmax(axis=0)
        types = arrays[f"{case}/type_prob"].astype(np.float32).argmax(axis=0)
        hv = arrays[f"{case}/hv"].astype(np.float32)
        result = parity_watershed(binary, hv, magnification=CASES[case])
        np.testing.assert_array_equal(result.instances, arrays[f"{case}/instance_map"])
        np.testing.assert_array_equal(result.markers, arrays[f"{case}/markers"])
        np.testing.assert_array_equal(result.foreground, arrays[f"{case}/blb"])
        if f"{case}/dist" in arrays:
            np.testing.assert_allclose(result.relief.astype(np.float32), arrays[f"{case}/dist"], rtol=0, atol=1e-7)
    found = describe_parity(result.instances, types)
    assert {str(number) for number in found} == set(expected["instances"])
    for number, nucleus in found.items():
        wanted = expected["instances"][str(number)]
        assert [list(corner) for corner in nucleus.bbox] == wanted["bbox"]
        assert nucleus.contour.tolist() == wanted["contour"]
        assert nucleus.centroid == pytest.approx(wanted["centroid"], abs=1e-9)
        assert nucleus.type == wanted["type"]
        assert nucleus.type_share == pytest.approx(wanted["type_prob"], abs=1e-9)


@pytest.mark.parametrize("count", [500, 2000])
def test_equals_the_original_on_whole_tiles(count: int, shared: Path) -> None:
    with np.load(shared / "fixtures" / "cellvit" / "bench_tiles.npz") as tiles:
        truth, expected = tiles[f"tile{count}/inst"], tiles[f"tile{count}/expected_instance_map"]
    found = hv_watershed((truth > 0).astype(np.float32), hv_map(truth), parity=True)
    np.testing.assert_array_equal(found, expected)

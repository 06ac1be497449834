"""Features against figures worked out pixel by pixel with other programs' functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import perimeter_crofton, regionprops

from slideloom.errors import SlideloomError
from slideloom.instances.refine.features import FEATURES, Features, instance_features
from slideloom.instances.refine.found import LabelArray
from slideloom.instances.refine.tokens import Projection, TokenPlane
from slideloom.patches.hv import hv_map_int8

MPP = 0.5


def scene(labels: np.ndarray, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    maps = {name: rng.integers(0, 256, labels.shape).astype(np.uint8) for name in ("nucleus", "boundary", "distance")}
    maps |= {"class_id": rng.integers(0, 3, labels.shape).astype(np.uint8)}
    maps |= {"class_probability": rng.integers(0, 256, labels.shape).astype(np.uint8)}
    return maps | {"hv": hv_map_int8(labels)}


@pytest.fixture(scope="module")
def crowd(make_crowd: Any) -> LabelArray:
    return LabelArray.of(make_crowd(4, (150, 170), 60, 7.0))


@pytest.fixture(scope="module")
def plane() -> TokenPlane:
    rng = np.random.default_rng(2)
    covered = (rng.random((10, 11)) < 0.8).astype(np.uint8)
    return TokenPlane(rng.integers(-9000, 9000, (10, 11, 3)).astype(np.int32), covered, 16)


@pytest.mark.parametrize("window_px", [37, 64, 150])
@pytest.mark.parametrize("workers", [1, 3])
def test_windows_and_workers_change_no_bit(crowd: LabelArray, plane: TokenPlane, window_px: int, workers: int) -> None:
    maps = scene(crowd.labels)
    options: dict[str, Any] = {"mpp_um": MPP, "n_classes": 3, "tokens": plane}
    whole = instance_features(crowd, maps, **options)
    cut = instance_features(crowd, maps, **options, window_px=window_px, workers=workers)
    assert whole.names == (*FEATURES, "token_0", "token_1", "token_2")
    assert len(whole) == crowd.n > 40
    assert whole.values.tobytes() == cut.values.tobytes()


def test_shapes_are_those_of_other_programs(crowd: LabelArray) -> None:
    found = instance_features(crowd, {}, mpp_um=MPP)
    for row, region in enumerate(regionprops(crowd.labels)):
        bordered = np.pad(region.image, 2)
        filled = ndimage.binary_fill_holes(region.image)
        moments = np.cov(region.coords, rowvar=False, bias=True) + np.eye(2) / 12
        short, long = np.linalg.eigvalsh(moments)
        assert found["area_um2"][row] == region.area * MPP**2
        assert found["perimeter_um"][row] == pytest.approx(perimeter_crofton(bordered, 4) * MPP, rel=1e-6)
        assert found["eccentricity"][row] == pytest.approx(np.sqrt(1 - short / long), abs=1e-6)
        assert found["major_um"][row] == pytest.approx(4 * np.sqrt(long) * MPP)
        assert found["minor_um"][row] == pytest.approx(4 * np.sqrt(short) * MPP)
        assert filled.sum() * MPP**2 <= found["area_um2"][row] + found["hull_deficit_um2"][row] + 1e-9
        assert found["solidity"][row] == pytest.approx(region.area / in_hull(region.image))


def in_hull(image: np.ndarray) -> int:
    """Pixel centres in the hull of pixel centres: no half-plane between two of them has all pixels and not these."""
    from scipy.spatial import ConvexHull

    points = np.argwhere(image)
    every = np.argwhere(np.ones_like(image))
    sides = ConvexHull(points).equations
    return int((every @ sides[:, :2].T + sides[:, 2] <= 1e-9).all(1).sum())


def test_levels_rings_contact_and_classes_pixel_by_pixel(crowd: LabelArray, plane: TokenPlane) -> None:
    maps = scene(crowd.labels)
    found = instance_features(crowd, maps, mpp_um=MPP, n_classes=3, tokens=plane)
    cross = ndimage.generate_binary_structure(2, 1)
    y, x = np.mgrid[: crowd.labels.shape[0], : crowd.labels.shape[1]]
    touched = 0
    for label in range(1, crowd.n + 1):
        mask, row = crowd.labels == label, label - 1
        ring = ndimage.binary_dilation(mask, cross) & ~mask
        values = maps["nucleus"] / 255
        assert found["nucleus_mean"][row] == pytest.approx(values[mask].mean())
        assert found["nucleus_std"][row] == pytest.approx(values[mask].std())
        assert (found["nucleus_min"][row], found["nucleus_max"][row]) == (values[mask].min(), values[mask].max())
        assert found["ring_nucleus_mean"][row] == pytest.approx(values[ring].mean())
        assert found["ring_nucleus_std"][row] == pytest.approx(values[ring].std())
        assert found["boundary_mean"][row] == pytest.approx(maps["boundary"][mask].mean() / 255)
        assert found["distance_max"][row] == maps["distance"][mask].max() / 255
        padded = np.pad(crowd.labels, 1)
        beside = np.stack([np.roll(padded, move, axis)[1:-1, 1:-1][mask] for axis in (0, 1) for move in (-1, 1)])
        contact = ((beside != label) & (beside != 0)).sum() / (beside != label).sum()
        touched += contact > 0
        assert found["contact"][row] == contact
        votes = np.bincount(maps["class_id"][mask], minlength=3) / mask.sum()
        assert found["class_share"][row] == votes[1:].max()
        assert found["class_background"][row] == votes[0]
        assert found["class_probability"][row] == pytest.approx(maps["class_probability"][mask].mean() / 255)
        h, v = maps["hv"].astype(float) / 127
        high, wide = np.ptp(np.argwhere(mask), axis=0) + 1
        points = np.stack([x - h * wide / 2, y - v * high / 2])[:, mask]
        radius = np.sqrt(mask.sum() / np.pi)
        centroid = np.array([x[mask].mean(), y[mask].mean()])
        assert found["hv_offset"][row] == pytest.approx(np.hypot(*(points.mean(1) - centroid)) / radius, abs=1e-9)
        assert found["hv_spread"][row] == pytest.approx(np.sqrt(points.var(1).sum()) / radius)
        if min(np.ptp(x[mask]), np.ptp(y[mask])) > 0:
            fit = min(np.corrcoef(x[mask], h[mask])[0, 1], np.corrcoef(y[mask], v[mask])[0, 1])
            assert found["hv_fit"][row] == pytest.approx(fit)
        known = plane.covered[y[mask] // 16, x[mask] // 16] > 0
        tokens = plane.codes[y[mask] // 16, x[mask] // 16][known] / 4096
        means = [found[f"token_{part}"][row] for part in range(3)]
        np.testing.assert_allclose(means, tokens.mean(0) if known.any() else np.nan)
    assert touched > 10


def test_absent_maps_give_no_features_and_say_so(crowd: LabelArray) -> None:
    found = instance_features(crowd, {"nucleus": scene(crowd.labels)["nucleus"]}, mpp_um=MPP)
    assert set(found.names) == {name for name, about in FEATURES.items() if set(about.reads) <= {"nucleus"}}
    assert np.isfinite(found.values).all()
    with pytest.raises(SlideloomError, match="hv_fit") as caught:
        found.columns(["area_um2", "hv_fit"])
    assert caught.value.code == "missing_feature"


def test_a_finer_grid_gives_the_same_physical_features(make_discs: Any) -> None:
    centres = [(20.0, 20.0), (20.0, 41.0), (60.0, 50.0)]
    coarse, fine = (
        instance_features(
            LabelArray.of(make_discs((90 * by, 90 * by), [(by * y, by * x) for y, x in centres], 12.0 * by)),
            {},
            mpp_um=MPP / by,
        )
        for by in (1, 4)
    )
    for name in ("area_um2", "perimeter_um", "major_um", "contact", "solidity"):
        np.testing.assert_allclose(coarse[name], fine[name], rtol=0.06, atol=0.02)


def test_merged_nuclei_show_in_shape_and_hv(make_discs: Any) -> None:
    truth = make_discs((60, 90), [(30.0, 20.0), (30.0, 41.0), (30.0, 75.0)], 11.0)
    merged = LabelArray.of(np.where(truth == 2, 1, truth))
    found = instance_features(merged, {"hv": hv_map_int8(truth)}, mpp_um=MPP)
    assert found["solidity"][0] < 0.93 < 0.98 < found["solidity"][1]
    assert found["hv_fit"][0] < 0.7 < 0.98 < found["hv_fit"][1]
    assert found["hv_spread"][0] > 2 * found["hv_spread"][1]


def test_nothing_single_pixels_and_an_unknown_class() -> None:
    empty = instance_features(LabelArray.of(np.zeros((8, 9), int)), {}, mpp_um=MPP)
    assert empty.values.shape == (0, len(empty.names))
    lonely = np.zeros((8, 9), int)
    lonely[0, 0], lonely[7, 3:8] = 7, 3
    found = LabelArray.of(lonely)
    maps = {"hv": hv_map_int8(lonely), "nucleus": np.full((8, 9), 255, np.uint8)}
    values = instance_features(found, maps, mpp_um=1.0)
    assert values["area_um2"].tolist() == [1, 5]
    assert values["solidity"].tolist() == [1, 1]
    assert np.isnan(values["hv_fit"][0])
    assert values["hv_fit"][1] > 0.9
    classes = {name: np.full((8, 9), 5, np.uint8) for name in ("class_id", "class_probability")}
    with pytest.raises(SlideloomError, match="class 5"):
        instance_features(found, classes, mpp_um=1.0, n_classes=3)


def test_projection_is_the_principal_components() -> None:
    rng = np.random.default_rng(5)
    tokens = rng.normal(size=(400, 6)) * [9, 5, 3, 1, 0.5, 0.1] @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 3
    projection = Projection.fit(tokens, 3)
    codes = projection.apply(tokens)
    assert codes.dtype == np.int32
    values = codes / 4096
    np.testing.assert_allclose(np.cov(values, rowvar=False), np.eye(3), atol=0.01)
    scores = np.linalg.svd(tokens - tokens.mean(0), full_matrices=False)[0][:, :3]
    assert abs(np.corrcoef(scores.T, values.T)[:3, 3:]).round(3).tolist() == np.eye(3).tolist()


def test_stack_wants_equal_columns(crowd: LabelArray) -> None:
    found = instance_features(crowd, {}, mpp_um=MPP)
    assert len(Features.stack([found, found])) == 2 * crowd.n
    with pytest.raises(ValueError, match="columns"):
        Features.stack([found, Features(("area_um2",), found.values[:, :1])])

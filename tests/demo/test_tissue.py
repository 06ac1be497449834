from __future__ import annotations

import numpy as np
import pytest

from slideloom.demo.cohort import DemoSlide
from slideloom.demo.noise import blur, draw_points, smooth_noise, streaks
from slideloom.demo.tissue import grow_tissue


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("sigma_px", [0.8, 3.4, 17, 60])
def test_smooth_noise_has_unit_spread_and_the_asked_scale(sigma_px: float) -> None:
    field = smooth_noise(_rng(), (1500, 1400), sigma_px)
    assert field.shape == (1500, 1400)
    assert field.dtype == np.float32
    assert np.std(field) == pytest.approx(1, abs=0.15)
    # Blurred white noise is correlated by exp(-d²/4σ²): at d = 2σ, 1/e.
    step = round(2 * sigma_px)
    assert np.mean(field[:, step:] * field[:, :-step]) / np.var(field) == pytest.approx(
        np.exp(-((step / (2 * sigma_px)) ** 2)), abs=0.12
    )


def test_streaks_run_along_the_field() -> None:
    noise = _rng().standard_normal((200, 200), dtype=np.float32)
    across = np.zeros_like(noise)
    smeared = streaks(noise, np.ones_like(noise), across, 4)
    assert np.std(np.diff(smeared, axis=1)) < 0.4 * np.std(np.diff(smeared, axis=0))


def test_draw_points_follows_the_density() -> None:
    density = np.zeros((10, 20), np.float32)
    density[3, 5], density[7, 19] = 1, 3
    points = draw_points(_rng(), density, 4000, 4)
    cells, counts = np.unique(points // 4, axis=0, return_counts=True)
    assert cells.tolist() == [[3, 5], [7, 19]]
    assert counts[1] / counts[0] == pytest.approx(3, rel=0.15)


def test_maps_agree(slides: list[DemoSlide]) -> None:
    for slide in slides:
        tissue = slide.tissue
        assert not np.any(tissue.nest & tissue.lumen)
        assert not np.any(tissue.nest & (tissue.nest_depth_px <= 0))
        assert 0.05 < np.mean(tissue.glass) < 0.15
        np.testing.assert_allclose(np.hypot(tissue.cos, tissue.sin), 1, atol=1e-3)
        assert tissue.cluster.min() >= 0
        assert tissue.cluster.max() <= 1


def test_nests_get_the_area_asked_for() -> None:
    for tumour_px in (20_000, 60_000):
        tissue = grow_tissue(
            _rng(1), (640, 640), tumour_px=tumour_px, endothelial_nuclei=20, lymphocyte_px=4000, glandular=0.5
        )
        assert tissue.nest.sum() == pytest.approx(tumour_px / 0.41, rel=0.08)


def test_glands_have_lumens_and_solid_nests_none() -> None:
    share = []
    for glandular in (0.0, 1.0):
        tissue = grow_tissue(
            _rng(2), (640, 640), tumour_px=60_000, endothelial_nuclei=20, lymphocyte_px=4000, glandular=glandular
        )
        share.append(np.mean(tissue.lumen))
    assert share[1] > share[0] + 0.01


def test_vessels_keep_clear_of_one_another() -> None:
    tissue = grow_tissue(
        _rng(3), (900, 900), tumour_px=60_000, endothelial_nuclei=70, lymphocyte_px=9000, glandular=0.5
    )
    assert len(tissue.vessels) >= 4
    for place, one in enumerate(tissue.vessels):
        for other in tissue.vessels[:place]:
            assert np.hypot(one.y_px - other.y_px, one.x_px - other.x_px) > one.major_px + other.major_px
    assert not np.any(tissue.nest & (tissue.vessel_rim_px < 0))


def test_blur_keeps_the_mean_away_from_the_border() -> None:
    image = _rng().random((64, 64), dtype=np.float32)
    image[:16] = image[-16:] = 0
    image[:, :16] = image[:, -16:] = 0
    assert blur(image, 2).sum() == pytest.approx(image.sum(), rel=1e-4)

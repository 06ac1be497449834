"""A small cohort, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from slideloom.demo.cohort import DemoSlide, SlidePlan, make_slide, plan_cohort, write_cohort

SEED, N_SLIDES, SIZE_PX = 5, 4, 320


@pytest.fixture(scope="session")
def plans() -> list[SlidePlan]:
    return plan_cohort(SEED, N_SLIDES, SIZE_PX)


@pytest.fixture(scope="session")
def slides(plans: list[SlidePlan]) -> list[DemoSlide]:
    return [make_slide(plan) for plan in plans]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    assert write_cohort(folder, seed=SEED, n_slides=N_SLIDES, size_px=SIZE_PX) == folder / "slides.tsv"
    return folder

"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
# What a busy machine takes for an example says nothing about the code.
settings.register_profile("slideloom", deadline=None)
settings.load_profile("slideloom")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of fixtures and real data; tests that need it skip, saying so, where it is absent."""
    place = Path(os.environ.get("SLIDELOOM_SHARED", REPOSITORY.parent / "shared"))
    if not place.is_dir():
        pytest.skip(f"no shared fixtures at {place}; set SLIDELOOM_SHARED")
    return place

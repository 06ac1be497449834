"""Sheets and configs that are wrong: whole little studies, whose images are empty files, since none is opened."""

from __future__ import annotations

from tests.bad_inputs import configs, sheets
from tests.bad_inputs.kinds import Kind

__all__ = ["KINDS"]

KINDS: tuple[Kind, ...] = (*sheets.KINDS, *configs.KINDS)

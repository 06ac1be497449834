"""Kinds of bad input: forms of images, their metadata, their channels and the markers table."""

from __future__ import annotations

from tests.bad_inputs.forms import FORMS
from tests.bad_inputs.kinds import Kind
from tests.bad_inputs.multiplex import MULTIPLEX, TABLES
from tests.bad_inputs.ome import OME

__all__ = ["KINDS"]

KINDS: tuple[Kind, ...] = (*FORMS, *OME, *MULTIPLEX, *TABLES)

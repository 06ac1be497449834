"""Every kind of bad input, from all groups."""

from __future__ import annotations

from tests.bad_inputs import annotated, damaged, documents, formats, stores
from tests.bad_inputs.kinds import Kind

__all__ = ["KINDS", "SLIDES"]

KINDS: tuple[Kind, ...] = (*damaged.KINDS, *formats.KINDS, *annotated.KINDS, *documents.KINDS, *stores.KINDS)
#: Those that are a slide of a study, and do not stop the study.
SLIDES: tuple[Kind, ...] = tuple(
    kind for kind in KINDS if kind.group in ("slide", "multiplex", "annotation") and kind.answer != "refused"
)

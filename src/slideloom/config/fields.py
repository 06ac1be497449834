"""Kinds of values that the config is made of."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

__all__ = ["AutoCount", "Count", "Fraction", "Mpp", "Name", "Positive", "Strict", "Weight", "unfit_for_paths"]

#: Names that Windows, and so many a network drive, keeps for devices, whatever comes after a point.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(10))})
_FIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
#: Pixel sizes outside are slips of the unit: 250 for nanometres, 0.00025 for millimetres.
Mpp = Annotated[float, Field(ge=0.01, le=100)]
Count = Annotated[int, Field(ge=1)]


def unfit_for_paths(text: str, longest: int) -> str:
    """Why a name cannot be a part of every path that is made of it; empty when it can.

    Examples
    --------
    >>> unfit_for_paths("case_7", 64)
    ''
    >>> unfit_for_paths("a/b", 64)
    "holds '/'"
    """
    if len(text) > longest:
        return f"has {len(text)} characters, more than {longest}"
    if not text:
        return "is empty"
    if not _FIT.fullmatch(text):
        wrong = next((one for one in text if not (one.isascii() and (one.isalnum() or one in "_.-"))), "")
        if not wrong:
            return f"begins with {text[0]!r}"
        return f"holds {wrong!r}" if wrong.isascii() else f"holds {wrong!a} (U+{ord(wrong):04X})"
    if ".." in text:
        return "holds '..'"
    if text.endswith("."):
        return "ends with '.'"
    if text.split(".")[0].lower() in _DEVICES:
        return "is the name of a device to Windows and many network drives"
    return ""


def _none_for_auto(value: Any) -> Any:
    return None if value == "auto" else value


#: A whole number, or ``auto``, which is None once read.
AutoCount = Annotated[
    Count | None,
    BeforeValidator(_none_for_auto, json_schema_input_type=Count | Literal["auto"]),
    PlainSerializer(lambda value: "auto" if value is None else value, return_type=int | Literal["auto"]),
]


class Strict(BaseModel):
    """A part of the config: unknown keys are refused, nothing changes once read, every number is finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

"""Kinds of values that the config is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

__all__ = ["AutoCount", "Count", "Fraction", "Name", "Positive", "Strict", "Weight"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


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

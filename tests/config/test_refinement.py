"""The keys of ``refine``: off unless given, with the defaults of what they set."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from slideloom.config.model import ExperimentConfig, RefineNetworkConfig, RefineSplitConfig, RefineVerifyConfig
from slideloom.decoders.refinement import Refinement
from slideloom.instances.refine.fit import FitSettings
from slideloom.instances.refine.splitter import SplitSettings


def experiment(**more: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"encoder": "e", "split": "s", **more})


def test_every_part_is_off_until_it_is_given() -> None:
    assert experiment().refine is None
    assert not experiment().verified
    refine = experiment(refine={"split": {}}).refine
    assert refine is not None
    assert (refine.network, refine.verify) == (None, None)
    assert refine.after
    network = experiment(refine={"network": {}}).refine
    assert network is not None
    assert not network.after
    assert experiment(refine={"verify": {}}).verified
    assert not experiment(refine={"verify": None}).verified


@pytest.mark.parametrize(
    ("keys", "settings"),
    [(RefineNetworkConfig, Refinement), (RefineSplitConfig, SplitSettings), (RefineVerifyConfig, FitSettings)],
)
def test_keys_have_the_defaults_of_what_they_set(keys: type[BaseModel], settings: Any) -> None:
    own = keys().model_dump()
    known = {field.name: field.default for field in fields(settings)}
    assert own == {name: known[name] for name in own}
    settings(**own)


@pytest.mark.parametrize(
    "refine",
    [
        {"splits": {}},
        {"network": {"frozen": True}},
        {"network": {"depth": 0}},
        {"split": {"most": 1}},
        {"verify": {"threshold": 1.5}},
    ],
)
def test_unknown_keys_and_values_out_of_bounds_are_refused(refine: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        experiment(refine=refine)

"""The recipe draws the very weights that the original models were run with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.cellvit_recipe import key_list, weight


@pytest.mark.parametrize("model", ["tiny_vit", "cellvit256_real"])
def test_recipe_gives_the_weights_of_the_fixtures(shared: Path, model: str) -> None:
    checks = json.loads((shared / "fixtures" / "cellvit" / "weight_checks.json").read_text())[model]
    keys = key_list(shared, {"cellvit256_real": "CellViT256"}.get(model, model))
    shapes = dict(keys)
    assert set(checks) == set(list(shapes)[:: 1 if model == "tiny_vit" else 10])
    for key, (total, absolute, first) in checks.items():
        drawn = weight(key, shapes[key]).numpy().astype(np.float64)
        np.testing.assert_allclose([drawn.sum(), np.abs(drawn).sum()], [total, absolute], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(drawn.ravel()[:3], first, rtol=1e-12)

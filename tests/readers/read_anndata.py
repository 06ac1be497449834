"""Open an .h5ad file with anndata; print what was seen as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import anndata
import numpy as np

warnings.simplefilter("error")


def see(path: str) -> dict[str, Any]:
    data = anndata.read_h5ad(path)
    seen = {
        "shape": list(data.shape),
        "dtype": str(data.X.dtype),
        "X": np.where(np.isnan(data.X), None, data.X).tolist(),
        "var_names": list(data.var_names),
        "var_column": list(data.var["column"]),
        "obs_names": list(data.obs_names),
        "obs": {name: column.astype(object).where(column.notna(), None).tolist() for name, column in data.obs.items()},
        "obs_dtypes": {name: str(dtype) for name, dtype in data.obs.dtypes.items()},
        "categories": data.obs["class"].cat.categories.tolist() if "class" in data.obs else None,
        "obsm": {name: values.tolist() for name, values in data.obsm.items()},
        "uns": {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in data.uns.items()},
    }
    # Written again by the package itself, the nuclei of two slides side by side: nothing in them is foreign to it.
    anndata.concat([data, data[:0]]).write_h5ad(f"{path}.again")
    return seen


print(json.dumps([see(path) for path in sys.argv[1:]]))

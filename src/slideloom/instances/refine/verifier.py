"""Which instances are nuclei: a small model of their features, written to a file that runs no code.

Logits are computed in compiled code in one fixed order, so an instance's probability has the same bits whatever others
are asked for with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slideloom.artefacts.files import publish
from slideloom.artefacts.keys import canonical
from slideloom.errors import SlideloomError
from slideloom.instances.instanseg_classifier import probability as _sigmoid
from slideloom.instances.refine.features import FEATURES, Features
from slideloom.instances.refine.tokens import Projection

__all__ = ["SCHEMA_VERSION", "Verifier"]

SCHEMA_VERSION = 1
_KEY = "slideloom_verifier"
_PROJECTION = "projection_"
_ARRAYS = ("mean", "deviation", "weight", "bias", "last")


@dataclass(frozen=True, eq=False)
class Verifier:
    """Standardised features to the probability that an instance is a nucleus.

    Attributes
    ----------
    names : tuple of str
        The features that it reads, in its own order.
    mean, deviation : (f,) float64 arrays
        Taken off, and divided by; of sizes, of their logarithm. A feature that is undefined counts as the mean.
    weight : (u, f) float64 array
        Hidden units, with ReLU; u = 0 of a logistic regression.
    bias : (u,) float64 array
        Theirs.
    last : (u + 1,) or, of a logistic regression, (f + 1,) float64 array
        Weights of the logit, its bias at the end.
    scale, shift : float
        What makes a logit's sigmoid a share of nuclei: ``scale`` · logit + ``shift``. ``1 / scale`` is the temperature.
    threshold : float
        Probability from which an instance is kept; 0 keeps every one, as it is where a model gains nothing.
    about : dict
        JSON values: what it was fitted on, and what it gained.
    projection : Projection, optional
        What the tokens were reduced with, where it reads features of tokens.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    last: NDArray[np.float64]
    scale: float = 1.0
    shift: float = 0.0
    threshold: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    projection: Projection | None = None

    def __post_init__(self) -> None:
        inner, width = self.weight.shape[0], len(self.names)
        wanted = ((width,), (width,), (inner, width), (inner,), ((inner or width) + 1,))
        found = tuple(getattr(self, name).shape for name in _ARRAYS)
        finite = all(np.isfinite(getattr(self, name)).all() for name in _ARRAYS)
        if found != wanted or not finite or not width:
            raise ValueError(f"arrays of the shapes {found} for {width} features, or values that are not finite")

    def standardised(self, features: Features) -> NDArray[np.float64]:
        """What the model reads, (n, f).

        Raises
        ------
        SlideloomError
            ``missing_feature``.
        """
        return standardise(transformed(features.columns(self.names), self.names), self.mean, self.deviation)

    def logit(self, features: Features) -> NDArray[np.float64]:
        """Logits (n,), not calibrated."""
        read = self.standardised(features)
        found: NDArray[np.float64] = _logits(read, self.weight, self.bias, self.last)
        return found

    def probability(self, features: Features) -> NDArray[np.float64]:
        """Calibrated probability that each instance is a nucleus.

        Parameters
        ----------
        features : Features
            Of n instances; may have more columns than are read.

        Returns
        -------
        (n,) float64 array
            float32 precision, 0 to 1.

        Raises
        ------
        SlideloomError
            ``missing_feature``: one that it reads is not there.
        """
        found: NDArray[np.float64] = _probabilities(self.logit(features), self.scale, self.shift)
        return found

    def keep(self, features: Features, threshold: float | None = None) -> NDArray[np.bool_]:
        """Whether each instance is kept, (n,) bool.

        Parameters
        ----------
        features : Features
            Of n instances.
        threshold : float, optional
            Least probability; the model's own when left out.

        Raises
        ------
        SlideloomError
            ``missing_feature``.
        """
        return self.probability(features) >= (self.threshold if threshold is None else threshold)

    def save(self, place: Path) -> None:
        """Write it as a safetensors file with a JSON header, whole or not at all; equal models give equal bytes."""
        header = {
            "schema": SCHEMA_VERSION,
            "names": list(self.names),
            "scale": self.scale,
            "shift": self.shift,
            "threshold": self.threshold,
            "about": self.about,
        }
        with publish(place) as draft:
            arrays: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
            if self.projection is not None:
                arrays |= {
                    f"{_PROJECTION}{name}": np.ascontiguousarray(values)
                    for name, values in vars(self.projection).items()
                }
            save_file(arrays, draft, metadata={_KEY: canonical(header)})

    @classmethod
    def load(cls, place: Path) -> Verifier:
        """Read a file of :meth:`save`.

        Raises
        ------
        SlideloomError
            ``verifier_file``: no such file, one of another kind or version, or one whose arrays do not fit together.
        """
        try:
            with safe_open(place, framework="numpy") as handle:
                header = (handle.metadata() or {}).get(_KEY)
                if header is None:
                    raise _refused(place, "holds no description of a verifier")
                body = json.loads(header)
                if body.get("schema") != SCHEMA_VERSION:
                    raise _refused(place, f"has schema {body.get('schema')!r}")
                arrays = {name: handle.get_tensor(name) for name in _ARRAYS}
                parts = [name for name in handle.keys() if name.startswith(_PROJECTION)]  # noqa: SIM118 - no mapping
                projection = {name.removeprefix(_PROJECTION): handle.get_tensor(name) for name in parts}
            return cls(
                tuple(body["names"]),
                **arrays,
                scale=float(body["scale"]),
                shift=float(body["shift"]),
                threshold=float(body["threshold"]),
                about=body["about"],
                projection=Projection(**projection) if projection else None,
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise _refused(place, f"cannot be read: {error}") from error


def _refused(place: Path, what: str) -> SlideloomError:
    return SlideloomError(
        what,
        where=str(place),
        expected=f"a verifier of schema {SCHEMA_VERSION}",
        hint="Fit the verifier again",
        code="verifier_file",
    )


def transformed(values: NDArray[np.float64], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Sizes as logarithms; (n, f)."""
    sizes = [index for index, name in enumerate(names) if name in FEATURES and FEATURES[name].logarithmic]
    changed = values.copy()
    changed[:, sizes] = np.log(np.maximum(values[:, sizes], 1e-6))
    return changed


def standardise(
    values: NDArray[np.float64], mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Deviations from the mean, bounded to ±8; 0 where undefined."""
    return np.clip(np.nan_to_num((values - mean) / deviation, nan=0.0), -8, 8)


@numba.njit(nogil=True, cache=True)
def _logits(read: Any, weight: Any, bias: Any, last: Any) -> Any:
    count, width = read.shape
    units = len(bias)
    found = np.empty(count, np.float64)
    for row in range(count):
        total = last[-1]
        if units == 0:
            for column in range(width):
                total += last[column] * read[row, column]
        for unit in range(units):
            value = bias[unit]
            for column in range(width):
                value += weight[unit, column] * read[row, column]
            total += last[unit] * max(value, 0.0)
        found[row] = total
    return found


@numba.njit(nogil=True, cache=True)
def _probabilities(logits: Any, scale: float, shift: float) -> Any:
    found = np.empty(len(logits), np.float64)
    for row in range(len(logits)):
        found[row] = _sigmoid(np.float32(scale * logits[row] + shift))
    return found

"""What computed an artefact: versions, host, device and seeds.

All of it stands in the item's completion record and in the job's account, beside the artefact and never inside it:
equal inputs give equal bytes on every host (``docs/decisions/0013-provenance.md``).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from slideloom._version import __version__

__all__ = ["device_in_use", "installed_versions", "made_here", "note_gpus", "seeds_of"]

#: Packages that figures depend on.
_PACKAGES = (
    "numpy", "scipy", "torch", "timm", "opencv-python-headless", "zarr", "tensorstore", "pyarrow", "snakemake",
)  # fmt: skip
#: Keys of the config that hold a seed.
_SEEDS = ("random", "seed")
_gpus_of_children = 0


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("slideloom", __version__), ("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def installed_versions() -> dict[str, str]:
    """Versions of Slideloom, Python and the packages that figures depend on.

    Returns
    -------
    dict of str to str
        By package; one that is not installed is left out. Builds are told apart, as in ``2.13.0+cpu``.
    """
    return dict(_versions())


def note_gpus(count: int) -> None:
    """Say that processes which this one started compute on that many GPUs, one each."""
    global _gpus_of_children
    _gpus_of_children = max(_gpus_of_children, count)


def device_in_use() -> str:
    """What this process and those it started have computed on.

    Returns
    -------
    str
        ``cpu``, or the GPU's name, such as ``NVIDIA H100 80GB HBM3``; several: ``4 x NVIDIA H100 80GB HBM3``.

    Notes
    -----
    A GPU that is there and unused does not count: on a GPU node, a stage without a network still says ``cpu``. Torch is
    not imported for it, since a process that has not imported it has used no GPU.
    """
    torch = sys.modules.get("torch")
    if torch is None or not (torch.cuda.is_initialized() or _gpus_of_children):
        return "cpu"
    name = str(torch.cuda.get_device_name())
    return f"{_gpus_of_children} x {name}" if _gpus_of_children > 1 else name


def seeds_of(config: Any) -> dict[str, int]:
    """Seeds in a slice of the config.

    Parameters
    ----------
    config : object
        JSON values.

    Returns
    -------
    dict of str to int
        By the place of the key, its parts joined with dots, in the slice's order. Null is no seed.

    Examples
    --------
    >>> seeds_of({"encoders": [{"name": "vit", "encoder": {"random": 3}}], "experiment": {"training": {"seed": 0}}})
    {'encoders.0.encoder.random': 3, 'experiment.training.seed': 0}
    """
    found: dict[str, int] = {}
    inner = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for name, value in inner:
        if name in _SEEDS and isinstance(value, int) and not isinstance(value, bool):
            found[str(name)] = value
        else:
            found |= {f"{name}.{rest}": seed for rest, seed in seeds_of(value).items()}
    return found


def made_here(seeds: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What an artefact that this process has just made was computed by.

    Parameters
    ----------
    seeds : mapping of str to int, optional
        As :func:`seeds_of` finds them.

    Returns
    -------
    dict
        JSON values: ``host`` (name of the machine), ``device``, ``versions`` by package, and ``seeds`` where there are
        any. No date: the file has one.
    """
    made: dict[str, Any] = {"host": platform.node(), "device": device_in_use(), "versions": installed_versions()}
    return made | ({"seeds": dict(seeds)} if seeds else {})

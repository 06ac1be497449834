"""Stand-ins for the few harmless things besides tensors that published checkpoints hold.

A training program pickles its best score as a NumPy scalar and its settings as an ``argparse.Namespace``. NumPy's own
functions would take a hostile state at its word (a type of another size than it says), so they are not let in: what
the file calls NumPy's or argparse's is met by the functions here, which check every word and give plain Python values.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

__all__ = ["STAND_INS", "Settings"]

#: Kinds of number, as NumPy writes them, that a checkpoint may hold.
_NUMBERS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
#: Texts and bytes of a fixed length.
_LETTERS = {"U", "S"}
_ORDERS = {"<", ">", "|", "="}


class NumberType:
    """Stands for ``numpy.dtype``: numbers, truth values and texts, nothing that could point anywhere."""

    def __init__(self, code: str = "", align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not (code in _NUMBERS or (code[:1] in _LETTERS and code[1:].isdecimal())):
            raise pickle.UnpicklingError(f"Unsupported numpy value of type {code!r}")
        self.code = code
        self.order = "="

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in _ORDERS:
            raise pickle.UnpicklingError(f"Unsupported numpy type {self.code!r} with the state {state!r:.80}")
        self.order = str(order)


def scalar(kind: object, raw: object = b"") -> Any:
    """Stands for NumPy's function that makes a scalar from bytes; gives a Python number or text."""
    if not isinstance(kind, NumberType) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("Unsupported numpy scalar that is not made of bytes")
    order = "" if kind.order == "=" else kind.order
    dtype = np.dtype(order + kind.code)
    if dtype.itemsize != len(raw):
        raise pickle.UnpicklingError(f"Unsupported numpy scalar: {len(raw)} bytes of type {kind.code!r}")
    return np.frombuffer(raw, dtype)[0].item() if raw else ""


class Settings:
    """Stands for ``argparse.Namespace``: named values, none of them called."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("Unsupported state of argparse.Namespace")
        self.values: dict[str, Any] = state


#: By the name that a pickle uses.
STAND_INS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "numpy.dtype": NumberType,
        "numpy.core.multiarray.scalar": scalar,
        "numpy._core.multiarray.scalar": scalar,
        "argparse.Namespace": Settings,
    }
)

"""Tensors that a module derives from its weights for each size of image, made once and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Derived"]

#: A study has a few sizes of tile; whoever goes through many gets them made anew.
_KEPT = 8


class Derived(nn.Module):
    """A module that keeps what it derives from frozen weights.

    Nothing is kept of weights that can be trained, and what was kept is forgotten when weights are loaded, moved to
    another device or changed in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[Hashable, tuple[int, Tensor]] = {}

    def derive(self, source: Tensor, key: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``make`` gives for ``source``; for a frozen source it runs once for each key.

        Parameters
        ----------
        source : Tensor
            A weight of this module.
        key : hashable
            Tells apart what is made, such as a name and a size.
        make : callable
            From the source to the result. It runs at the source's precision, whatever the autocast around it says.

        Returns
        -------
        Tensor
            Not to be written to.
        """
        with torch.autocast(source.device.type, enabled=False):
            if source.requires_grad or source.is_inference():
                # Fused optimisers change weights without a trace that could be looked for.
                self._derived.clear()
                return make(source)
            version, kept = self._derived.get(key, (-1, source))
            if version != source._version:
                if len(self._derived) >= _KEPT:
                    self._derived.clear()
                # A tensor born in inference mode could never take part in training.
                with torch.inference_mode(False), torch.no_grad():
                    kept = make(source)
                self._derived[key] = (source._version, kept)
            return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Derived:
        self._derived.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **settings: Any) -> None:
        self._derived.clear()
        super()._load_from_state_dict(*args, **settings)

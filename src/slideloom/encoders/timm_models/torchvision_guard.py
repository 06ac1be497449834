"""Let torchvision import beside a CPU build of torch, so that timm does.

Every Linux x86-64 torchvision wheel of the public index carries CUDA extensions, which do not load without torch's CUDA
libraries; the import then fails because two operators that the extension would have declared are unknown. Declaring
their signatures is enough: the transforms and layers that timm needs are pure Python. Operators of the extension stay
unusable.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

__all__ = ["ensure_torchvision"]

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_KEPT: list[torch.library.Library] = []


def ensure_torchvision() -> bool:
    """Make ``import torchvision`` safe; call it before the first import of torchvision or timm.

    Returns
    -------
    bool
        Whether signatures had to be declared. False where the extension loads, torchvision is imported already, is
        absent, or an earlier call has done the work.
    """
    if "torchvision" in sys.modules or _KEPT:
        return False
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _extension_loads(Path(found.origin).parent):
        return False
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}{_SIGNATURE}")  # type: ignore[no-untyped-call]
    # The declarations live as long as the object does.
    _KEPT.append(library)
    return True


def _extension_loads(folder: Path) -> bool:
    for extension in sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
        except (OSError, ImportError):
            continue
    return hasattr(torch.ops.torchvision, "nms")

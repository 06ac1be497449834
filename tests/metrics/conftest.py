"""torchmetrics, the oracle, imports torchvision."""

from __future__ import annotations

from slideloom.encoders.timm_models.torchvision_guard import ensure_torchvision

ensure_torchvision()

"""torchmetrics, the oracle, imports torchvision."""

from __future__ import annotations

from slideloom.encoders.torchvision_guard import ensure_torchvision

ensure_torchvision()

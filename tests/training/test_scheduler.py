from __future__ import annotations

import pytest
import torch

from slideloom.training.scheduler import cosine_warm_restarts


@pytest.mark.parametrize("t_0", [1, 3, 20])
def test_the_rate_is_pytorchs_schedulers(t_0: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([weight], lr=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, T_0=t_0, eta_min=1e-6)
    for epoch in range(3 * t_0 + 2):
        rate = optimiser.param_groups[0]["lr"]
        assert cosine_warm_restarts(epoch, 5e-4, t_0, 1e-6) == pytest.approx(rate, rel=1e-9)
        optimiser.step()
        scheduler.step()

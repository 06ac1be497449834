from __future__ import annotations

import pytest
import torch

from slideloom.config.model import Head
from slideloom.training.scores import PooledScores

CPU = torch.device("cpu")


def logits(labels: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, size).permute(0, 3, 1, 2).float()


def test_scores_are_pooled_over_batches_and_do_not_see_masked_or_unknown_pixels() -> None:
    drawn = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (6, 9, 9), generator=drawn)
    truth[truth == 2] = 0  # class 2 is absent, though predicted
    guess = torch.randint(0, 4, (6, 9, 9), generator=drawn)
    stored = truth.to(torch.uint8)
    stored[0, 0] = 255
    valid = torch.ones((6, 9, 9), dtype=torch.bool)
    valid[2:, 5:] = False
    hv, true_hv = (torch.rand((6, 2, 9, 9), generator=drawn) for _ in range(2))
    scores = PooledScores(("nucleus", "classes", "hv"), 4, CPU)
    for part in (slice(0, 1), slice(1, 6)):
        outputs: dict[Head, torch.Tensor] = {
            "nucleus": logits((guess[part] > 0).long(), 2),
            "classes": logits(guess[part], 4),
            "hv": hv[part],
        }
        targets = {
            "nucleus": (stored[part] > 0).to(torch.uint8),
            "classes": stored[part],
            "hv": true_hv[part],
            "valid": valid[part],
        }
        scores.add(outputs, targets)
    usable = valid & (stored != 255)
    dices = []
    for k in (1, 3):
        a, b = (guess == k) & usable, (truth == k) & usable
        dices.append((2 * (a & b).sum() / (a.sum() + b.sum())).item())
    a, b = (guess > 0) & valid, (stored > 0) & valid
    got = scores.figures()
    assert got["dice_macro"] == pytest.approx(sum(dices) / 2)
    assert got["dice_binary"] == pytest.approx((2 * (a & b).sum() / (a.sum() + b.sum())).item())
    assert got["hv_mse"] == pytest.approx(((hv - true_hv) ** 2)[valid[:, None].expand_as(hv)].mean().item(), rel=1e-5)


def test_what_is_not_defined_is_none() -> None:
    scores = PooledScores(("nucleus",), 1, CPU)
    assert scores.figures() == {"dice_binary": None, "dice_macro": None, "hv_mse": None}
    empty = torch.zeros((1, 4, 4), dtype=torch.long)
    scores.add({"nucleus": logits(empty + 1, 2)}, {"nucleus": empty, "valid": empty == 0})
    assert scores.figures()["dice_binary"] is None

"""The fixtures' weight recipe, and the ViT of the published CellViT-256, written from its description."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


def _recipe_tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """One tensor of the recipe in the fixtures' README: a rule by the last part of the name."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.array(7, dtype=np.int64)
    if last == "running_var":
        value = 0.5 + np.abs(draw)
    elif last == "running_mean":
        value = 0.1 * draw
    elif last == "bias":
        value = 0.05 * draw
    elif last == "gamma":
        value = 0.5 + 0.2 * draw
    elif len(shape) == 1:
        value = 1 + 0.1 * draw
    elif last == "weight":
        value = draw * math.sqrt((2 if len(shape) == 4 else 1) / math.prod(shape[1:]))
    else:
        value = 0.2 * draw
    return np.asarray(value, dtype=np.float32)


class PlainViT(nn.Module):
    """CellViT-256's encoder: class token, quirky bicubic positions, pre-norm blocks; gives z1 … z4, un-normed."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, eps=1e-6),
                    "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}),
                    "norm2": nn.LayerNorm(width, eps=1e-6),
                    "mlp": nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}),
                }
            )
            for _ in range(depth)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        n, _, high, wide = image.shape
        rows, cols = high // 16, wide // 16
        x = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        positions = self.pos_embed
        if not (rows * cols == 196 and high == wide):
            grid = positions[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
            factors = ((rows + 0.1) / 14, (cols + 0.1) / 14)
            grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic")
            positions = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
        x = torch.cat([self.cls_token.expand(n, -1, -1), x], 1) + positions
        levels = []
        for block in self.blocks:
            q, k, v = (
                part.reshape(n, x.shape[1], self.heads, -1).transpose(1, 2)
                for part in block["attn"]["qkv"](block["norm1"](x)).chunk(3, -1)
            )
            mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
            x = x + block["attn"]["proj"](mixed.transpose(1, 2).flatten(2))
            x = x + block["mlp"]["fc2"](functional.gelu(block["mlp"]["fc1"](block["norm2"](x))))
            levels.append(x[:, 1:].transpose(1, 2).reshape(n, -1, rows, cols))
        return levels


@pytest.fixture(scope="session")
def recipe_weights() -> Callable[[nn.Module, str], None]:
    """Fill a module with the recipe's weights; the second argument goes before every name."""

    def fill(module: nn.Module, prefix: str = "") -> None:
        state = module.state_dict()
        made = {name: torch.from_numpy(_recipe_tensor(prefix + name, tuple(old.shape))) for name, old in state.items()}
        module.load_state_dict(made, strict=True)
        module.eval()

    return fill


@pytest.fixture(scope="session")
def recipe_image() -> Callable[[str, tuple[int, ...]], Tensor]:
    """Input image of a case named ``model/case``."""

    def image(name: str, shape: tuple[int, ...]) -> Tensor:
        values = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
        return torch.from_numpy(values.astype(np.float32))

    return image


@pytest.fixture(scope="session")
def plain_vit() -> type[PlainViT]:
    """The class of the published encoder."""
    return PlainViT

"""Self-attention inside the CellViT decoder: over all positions of the bottleneck, and among the pixels of nuclei.

Source: the SP/H&E report of 2025, sections 6.2 and 6.3, which names both and gives no sizes; the mask's idea is that of
Mask2Former (Cheng et al. 2022). Both are residual blocks: normalisation, attention, projection, sum. The projection
starts at zero, so a decoder that has them starts as the decoder that has not. Why windows, and what they cost:
docs/decisions/0010-attention-in-decoders.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GlobalContext", "MaskedAttention", "attention_heads", "predicted_foreground"]

#: Width of an attention head that is aimed at; the fused kernels want a multiple of 8.
_HEAD_WIDTH = 32
#: Windows a call of the kernel: CUDA's count windows along an axis of the grid that ends at 65535.
_MOST_WINDOWS = 32768


def attention_heads(channels: int) -> int:
    """Number of attention heads: as wide as can be near 32, a multiple of 8 (or else of 4) that divides the channels.

    Examples
    --------
    >>> [channels // attention_heads(channels) for channels in (512, 312, 64, 40, 20, 8, 4)]
    [32, 24, 32, 40, 20, 8, 4]
    """
    widths = [width for width in range(1, channels + 1) if channels % width == 0]
    return channels // min(widths, key=lambda width: (width % 8 > 0, width % 4 > 0, abs(width - _HEAD_WIDTH), width))


class _Attention(nn.Module):
    """Normalisation, self-attention among the members of a group, projection, dropout.

    Parameters
    ----------
    channels : int
        Of the maps.
    dropout : float
        Rate, on what is added to the maps.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = attention_heads(channels)
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def update(self, groups: Tensor, seen: Tensor | None = None) -> Tensor:
        """What attention adds.

        Parameters
        ----------
        groups : Tensor
            (g, p, c): positions that may attend to those of their own group.
        seen : Tensor, optional
            (g, p) bool: positions that can be attended to; at least one a group.

        Returns
        -------
        Tensor
            (g, p, c).
        """
        count, positions, channels = groups.shape
        split = (count, positions, 3, self.heads, channels // self.heads)
        query, key, value = self.qkv(self.norm(groups)).view(split).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if seen is None else seen[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        added: Tensor = self.dropout(self.out(mixed.transpose(1, 2).reshape(count, positions, channels)))
        return added


class GlobalContext(_Attention):
    """Self-attention over all positions of a map.

    Tokens carry the place they came from, so no positions are added and any size of map will do. The work grows with
    the square of the positions; the memory does not where torch has a fused kernel (CPU and recent GPUs).
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        count, channels, high, wide = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(count, high * wide, channels)
        return maps + self.update(rows).view(count, high, wide, channels).permute(0, 3, 1, 2)


class MaskedAttention(_Attention):
    """Self-attention among the foreground pixels of each window of a map; all other pixels pass through unchanged.

    Windows start at the map's first pixel and do not overlap. Where its sides are no multiples of theirs, the last ones
    are filled up with positions that nothing attends to.

    Parameters
    ----------
    channels : int
        Of the maps.
    window_px : int
        Side of the windows, pixels of the map.
    dropout : float
        Rate, on what is added to the maps.
    """

    def __init__(self, channels: int, window_px: int, dropout: float = 0.0) -> None:
        super().__init__(channels, dropout)
        self.window_px = window_px

    def forward(self, maps: Tensor, foreground: Tensor) -> Tensor:
        """Let foreground pixels attend to those of their window.

        Parameters
        ----------
        maps : Tensor
            (n, c, h, w).
        foreground : Tensor
            (n, h, w) bool.

        Returns
        -------
        Tensor
            (n, c, h, w); background pixels as they came, bit for bit.
        """
        high, wide = maps.shape[-2:]
        window = (min(self.window_px, high), min(self.window_px, wide))
        groups = _to_windows(maps.permute(0, 2, 3, 1), window)
        inside = _to_windows(foreground[..., None], window)[..., 0]
        # A softmax over nothing is not a number: a window without foreground sees itself whole, and none of it is used.
        seen = inside | ~inside.any(1, keepdim=True)
        parts = zip(torch.split(groups, _MOST_WINDOWS), torch.split(seen, _MOST_WINDOWS), strict=True)
        updates = [self.update(part, part_seen) for part, part_seen in parts]
        added = _from_windows(updates[0] if len(updates) == 1 else torch.cat(updates), window, (high, wide))
        return torch.where(foreground[:, None], maps + added.permute(0, 3, 1, 2), maps)


def predicted_foreground(logits: Tensor) -> Tensor:
    """Pixels that are more likely a nucleus than not: 1 - p(background) above one half.

    Parameters
    ----------
    logits : Tensor
        (n, k, h, w), background first.

    Returns
    -------
    Tensor
        (n, h, w) bool; a pixel that is not a number is background.
    """
    values = logits.float()
    return values[:, 1:].logsumexp(1) > values[:, 0]


def _to_windows(maps: Tensor, window: tuple[int, int]) -> Tensor:
    """(n, h, w, c) → (windows, pixels of a window, c), zeros behind the last row and column."""
    (count, high, wide, channels), (rows, columns) = maps.shape, window
    filled = functional.pad(maps, (0, 0, 0, -wide % columns, 0, -high % rows))
    cut = filled.view(count, filled.shape[1] // rows, rows, filled.shape[2] // columns, columns, channels)
    return cut.transpose(2, 3).reshape(-1, rows * columns, channels)


def _from_windows(groups: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(windows, pixels of a window, c) → (n, h, w, c), what was filled up taken off."""
    (rows, columns), (high, wide) = window, size
    down, across = -(-high // rows), -(-wide // columns)
    cut = groups.view(-1, down, across, rows, columns, groups.shape[-1]).transpose(2, 3)
    return cut.reshape(-1, down * rows, across * columns, groups.shape[-1])[:, :high, :wide]

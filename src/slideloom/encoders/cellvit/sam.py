"""The image encoder of Segment Anything (SAM), as the CellViT-SAM models and MedSAM use it.

Tokens lie on a lattice throughout; there is no class token. Most blocks attend within windows of 14 × 14 tokens, a few
to the whole image; both add a learned term for the rows and one for the columns between two tokens.

The numbers are those of the original, the work is less in two places:

- Tokens are padded to whole windows with zeros after the normalisation, so each padding token's query, key and value
  are the bias of that layer. They are filled in behind the layer instead of being computed.
- The terms for rows and columns become extra dimensions of queries and keys (the query's terms for every row and
  column; the key's own row and column, one-hot). The product of the two is then the original's sum, and torch's fused
  attention runs without a table of all pairs of tokens.

Images may be oblong: the positional embedding is cropped to the rows and columns of the image. The original crops both
to the rows, and so takes square images only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from slideloom.encoders.cellvit.derived import Derived
from slideloom.encoders.cellvit.vit import PatchEmbedding
from slideloom.errors import SlideloomError

__all__ = ["SAMEncoder"]

_EPS = 1e-6


class _Attention(Derived):
    """Attention between all tokens of a lattice, with terms for the rows and columns between two tokens."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def mix(self, qkv: Tensor) -> Tensor:
        """(n, rows, columns, 3 * width) queries, keys and values → (n, rows, columns, width)."""
        count, rows, columns, triple = qkv.shape
        size = triple // 3 // self.heads
        query, key, value = qkv.reshape(count, rows, columns, 3, self.heads, size).permute(3, 0, 4, 1, 2, 5).unbind(0)
        by_row = self.derive(self.rel_pos_h, ("rows", rows), lambda learned: _relative(learned, rows))
        by_column = self.derive(self.rel_pos_w, ("columns", columns), lambda learned: _relative(learned, columns))
        terms = [
            torch.einsum("bnhwc,hkc->bnhwk", query, by_row.to(query.dtype)),
            torch.einsum("bnhwc,wkc->bnhwk", query, by_column.to(query.dtype)),
        ]
        places = _one_hot(rows, columns, key).expand(count, self.heads, -1, -1)
        mixed = functional.scaled_dot_product_attention(
            torch.cat([query * size**-0.5, *terms], dim=-1).flatten(2, 3),
            torch.cat([key.flatten(2, 3), places], dim=-1),
            # Fused attention wants values as long as queries.
            functional.pad(value.flatten(2, 3), (0, rows + columns)),
            scale=1.0,
        )[..., :size]
        return mixed.transpose(1, 2).reshape(count, rows, columns, triple // 3)


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.lin2(functional.gelu(self.lin1(tokens)))
        return out


class _Block(nn.Module):
    """One block; ``window`` 0: each token attends to the whole image."""

    def __init__(self, width: int, heads: int, window: int, side: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, _EPS)
        self.attn = _Attention(width, heads, window or side)
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = _MLP(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._attend(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out

    def _attend(self, tokens: Tensor) -> Tensor:
        qkv: Tensor = self.attn.qkv(tokens)
        if self.window:
            count, rows, columns, _ = tokens.shape
            windows = _windows(qkv, self.attn.qkv.bias, self.window)
            mixed = _joined(self.attn.mix(windows), count, rows, columns)
        else:
            mixed = self.attn.mix(qkv)
        out: Tensor = self.attn.proj(mixed)
        return out


class _ChannelNorm(nn.Module):
    """Normalisation over the channels of each pixel, (n, c, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        last = maps.permute(0, 2, 3, 1)
        return functional.layer_norm(last, last.shape[-1:], self.weight, self.bias, _EPS).permute(0, 3, 1, 2)


class SAMEncoder(nn.Module):
    """SAM's image encoder, which hands out the tokens of any of its blocks.

    Parameters
    ----------
    width, depth, heads : int
        Length of a token, blocks, attention heads.
    global_blocks : sequence of int
        Blocks (1-based) that attend to the whole image.
    window : int
        Side of the windows of the others, tokens.
    patch_px : int
        Side of the square of pixels that one token stands for.
    grid : int
        Rows and columns of the learned positional embedding, the largest that an image may have.
    neck : int
        Channels of the neck, which only the tissue head of a CellViT-SAM and SAM's own mask decoder read; 0: without
        it.
    """

    prefix_tokens = 0

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        global_blocks: Sequence[int],
        window: int = 14,
        patch_px: int = 16,
        grid: int = 64,
        neck: int = 256,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.patch_px, self.grid = width, depth, patch_px, grid
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, width))
        self.patch_embed = PatchEmbedding(width, patch_px)
        self.blocks = nn.ModuleList(
            _Block(width, heads, 0 if number in global_blocks else window, grid) for number in range(1, depth + 1)
        )
        self.neck = (
            nn.Sequential(
                nn.Conv2d(width, neck, 1, bias=False),
                _ChannelNorm(neck),
                nn.Conv2d(neck, neck, 3, padding=1, bias=False),
                _ChannelNorm(neck),
            )
            if neck
            else None
        )

    def run(self, images: Tensor, blocks: Sequence[int]) -> dict[int, Tensor]:
        """Token maps after some blocks; neither the blocks behind the deepest of them nor the neck run.

        Parameters
        ----------
        images : Tensor
            (n, 3, h, w), normalised; sides multiples of ``patch_px``, at most ``grid`` tokens.
        blocks : sequence of int
            1-based.

        Returns
        -------
        dict of int to Tensor
            By block, (n, rows, columns, width).

        Raises
        ------
        SlideloomError
            ``encoder_tile_px``: another size.
        """
        return self._run(images, blocks, max(blocks))[0]

    def run_all(self, images: Tensor, blocks: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Token maps after some blocks, and the mean of the neck's output over the image, (n, neck channels)."""
        if self.neck is None:
            raise ValueError("this encoder was made without a neck")
        maps, tokens = self._run(images, blocks, self.depth)
        necked: Tensor = self.neck(tokens.permute(0, 3, 1, 2))
        return maps, necked.mean(dim=(2, 3))

    def _run(self, images: Tensor, blocks: Sequence[int], last: int) -> tuple[dict[int, Tensor], Tensor]:
        height, width = images.shape[-2:]
        rows, columns = height // self.patch_px, width // self.patch_px
        if height % self.patch_px or width % self.patch_px or not (0 < rows <= self.grid and 0 < columns <= self.grid):
            raise SlideloomError(
                f"images of {height} x {width} px",
                expected=f"sides that are multiples of {self.patch_px} px, at most {self.grid * self.patch_px} px",
                code="encoder_tile_px",
            )
        tokens: Tensor = self.patch_embed(images) + self.pos_embed[:, :rows, :columns]
        maps = {}
        for number, block in enumerate(self.blocks[:last], 1):
            tokens = block(tokens)
            if number in blocks:
                maps[number] = tokens
        return maps, tokens


def _relative(learned: Tensor, side: int) -> Tensor:
    """Vectors by position of query and key along one axis, (side, side, c), from those by their distance."""
    wanted = 2 * side - 1
    if len(learned) != wanted:
        learned = functional.interpolate(learned.T[None], size=wanted, mode="linear")[0].T
    places = torch.arange(side, device=learned.device)
    return learned[places[:, None] - places[None, :] + side - 1]


def _one_hot(rows: int, columns: int, like: Tensor) -> Tensor:
    """Each token's row, then its column, one-hot: (rows * columns, rows + columns)."""
    row = torch.eye(rows, dtype=like.dtype, device=like.device).repeat_interleave(columns, dim=0)
    column = torch.eye(columns, dtype=like.dtype, device=like.device).repeat(rows, 1)
    return torch.cat([row, column], dim=1)


def _windows(tokens: Tensor, filling: Tensor, side: int) -> Tensor:
    """(n, rows, columns, c) → (n * windows, side, side, c), padded below and to the right with ``filling``."""
    count, rows, columns, channels = tokens.shape
    down, across = -(-rows // side), -(-columns // side)
    padded = tokens
    if (down * side, across * side) != (rows, columns):
        padded = filling.to(tokens.dtype).repeat(count, down * side, across * side, 1)
        padded[:, :rows, :columns] = tokens
    split = padded.reshape(count, down, side, across, side, channels).transpose(2, 3)
    return split.reshape(count * down * across, side, side, channels)


def _joined(windows: Tensor, count: int, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`_windows`, the padding cut off."""
    side, channels = windows.shape[1], windows.shape[-1]
    down, across = -(-rows // side), -(-columns // side)
    whole = windows.reshape(count, down, across, side, side, channels).transpose(2, 3)
    return whole.reshape(count, down * side, across * side, channels)[:, :rows, :columns]

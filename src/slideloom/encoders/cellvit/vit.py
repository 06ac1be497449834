"""The plain vision transformer behind the CellViT models: ViT-256, sizes of one's own, UNI, Virchow and Virchow2.

One module, state-dict keys as in the published files. The models differ in four points: how the positional embedding
meets another size of image, registers, the scaling of each residual, and the MLP's gate. Two habits of the originals
are kept because published weights were trained with them: the resampling step of the positions of ViT-256, and the GELU
gate of Virchow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from slideloom.encoders.cellvit.derived import Derived
from slideloom.errors import SlideloomError

__all__ = ["PatchEmbedding", "ViT", "whole_tokens"]

_EPS = 1e-6
#: Added by the original to the wanted grid before it divides by the learned one, against rounding down.
_NUDGE = 0.1


class PatchEmbedding(nn.Module):
    """Squares of pixels to tokens.

    Parameters
    ----------
    width : int
        Length of a token.
    patch_px : int
        Side of a square.
    """

    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_px, patch_px)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) → (n, rows, columns, width)."""
        tokens: Tensor = self.proj(images)
        return tokens.permute(0, 2, 3, 1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        count, length, width = tokens.shape
        qkv = self.qkv(tokens).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(count, length, width))
        return out


class _MLP(nn.Module):
    """Two layers; gated: the first one's output in two halves, the GELU of one times the other."""

    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden // 2 if gated else hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.fc1(tokens)
        if self.gated:
            gate, values = hidden.chunk(2, dim=-1)
            hidden = functional.gelu(gate) * values
        else:
            hidden = functional.gelu(hidden)
        out: Tensor = self.fc2(hidden)
        return out


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, gated: bool, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPS)
        self.attn = _Attention(width, heads)
        self.ls1 = _LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = _MLP(width, hidden, gated)
        self.ls2 = _LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class ViT(Derived):
    """A plain vision transformer that hands out the tokens of any of its blocks.

    Parameters
    ----------
    width, depth, heads : int
        Length of a token, blocks, attention heads.
    patch_px : int
        Side of the square of pixels that one token stands for.
    grid : int
        Rows and columns of the learned positional embedding.
    registers : int
        Register tokens, which follow the class token.
    layer_scale : bool
        Whether each residual is scaled by a learned vector.
    mlp_ratio : float
        Width of the MLP's first layer over that of a token.
    gated : bool
        Whether the MLP is gated.
    positions : {"dino", "timm"}
        How the positional embedding meets another grid. ``dino``: the class token has a position; bicubic, with a
        sampling step that is a little too small, as the original takes it. ``timm``: every prefix token has a
        position; bicubic, antialiased.
    resize : bool
        Whether images whose side is no multiple of ``patch_px`` are brought to the next smaller one by area.
    tissue_classes : int
        Outputs of the tissue head; 0: without it.
    tissue_norm : bool
        Whether the tissue head reads the class token after the final normalisation.

    Attributes
    ----------
    prefix_tokens : int
        Class and register tokens.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        patch_px: int = 16,
        grid: int = 14,
        registers: int = 0,
        layer_scale: bool = False,
        mlp_ratio: float = 4.0,
        gated: bool = False,
        positions: Literal["dino", "timm"] = "dino",
        resize: bool = False,
        tissue_classes: int = 0,
        tissue_norm: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.patch_px, self.grid = width, depth, patch_px, grid
        self.positions, self.resize, self.tissue_norm = positions, resize, tissue_norm
        self.prefix_tokens = 1 + registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix_tokens + grid * grid, width))
        self.patch_embed = PatchEmbedding(width, patch_px)
        self.blocks = nn.ModuleList(
            _Block(width, heads, int(width * mlp_ratio), gated, layer_scale) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, _EPS)
        self.head = nn.Linear(width, tissue_classes) if tissue_classes else None

    def run(self, images: Tensor, blocks: Sequence[int], final_norm: bool = False) -> dict[int, Tensor]:
        """Token maps after some blocks; the blocks behind the deepest of them do not run.

        Parameters
        ----------
        images : Tensor
            (n, 3, h, w), normalised.
        blocks : sequence of int
            1-based.
        final_norm : bool
            Whether the last block's tokens are given after the final normalisation.

        Returns
        -------
        dict of int to Tensor
            By block, (n, rows, columns, width), before any normalisation, class and register tokens left out.

        Raises
        ------
        SlideloomError
            ``encoder_tile_px``: a side that holds no whole number of tokens, or not one.
        """
        maps, _ = self._run(images, blocks, max(blocks), final_norm)
        return maps

    def run_all(self, images: Tensor, blocks: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Token maps after some blocks, and what the tissue head says of the class token, (n, tissue_classes)."""
        maps, tokens = self._run(images, blocks, self.depth, False)
        if self.head is None:
            raise ValueError("this encoder was made without a tissue head")
        summary = tokens[:, 0]
        logits: Tensor = self.head(self.norm(summary) if self.tissue_norm else summary)
        return maps, logits

    def _run(
        self, images: Tensor, blocks: Sequence[int], last: int, final_norm: bool
    ) -> tuple[dict[int, Tensor], Tensor]:
        if self.resize:
            images = whole_tokens(images, self.patch_px)
        elif images.shape[-2] % self.patch_px or images.shape[-1] % self.patch_px:
            raise SlideloomError(
                f"images of {images.shape[-2]} x {images.shape[-1]} px",
                expected=f"sides that are multiples of {self.patch_px} px",
                code="encoder_tile_px",
            )
        patches = self.patch_embed(images)
        count, rows, columns, width = patches.shape
        tokens = self._with_prefix(patches.reshape(count, rows * columns, width), rows, columns)
        maps = {}
        for number, block in enumerate(self.blocks[:last], 1):
            tokens = block(tokens)
            if number in blocks:
                shown = self.norm(tokens) if final_norm and number == self.depth else tokens
                maps[number] = shown[:, self.prefix_tokens :].reshape(count, rows, columns, width)
        return maps, tokens

    def _with_prefix(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Class and register tokens before those of the patches, positions added."""
        prefix: list[Tensor] = [self.cls_token] if self.reg_token is None else [self.cls_token, self.reg_token]
        leading = torch.cat(prefix, dim=1).expand(len(patches), -1, -1)
        positions = self.derive(self.pos_embed, (rows, columns), lambda learned: self._resample(learned, rows, columns))
        return torch.cat([leading, patches], dim=1) + positions

    def _resample(self, learned: Tensor, rows: int, columns: int) -> Tensor:
        """Positions of a grid, (1, prefix_tokens + rows * columns, width)."""
        # The originals also leave a square grid of the learned size alone only, not any grid with as many tokens.
        if rows == columns == self.grid:
            return learned
        prefix, patches = learned[:, : self.prefix_tokens], learned[:, self.prefix_tokens :]
        lattice = patches.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        if self.positions == "timm":
            lattice = functional.interpolate(lattice.float(), size=(rows, columns), mode="bicubic", antialias=True).to(
                learned.dtype
            )
        else:
            factors = tuple((side + _NUDGE) / self.grid for side in (rows, columns))
            lattice = functional.interpolate(lattice, scale_factor=factors, mode="bicubic")
        return torch.cat([prefix, lattice.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)], dim=1)


def whole_tokens(images: Tensor, patch_px: int) -> Tensor:
    """Images reduced to the next smaller size that holds a whole number of tokens, each pixel a mean over its area.

    Parameters
    ----------
    images : Tensor
        (n, c, h, w).
    patch_px : int
        Side of a token, pixels.

    Returns
    -------
    Tensor
        (n, c, h // patch_px * patch_px, w // patch_px * patch_px); ``images`` themselves where that is their size.

    Raises
    ------
    SlideloomError
        ``encoder_tile_px``: a side shorter than a token.
    """
    height, width = images.shape[-2:]
    size = (height // patch_px * patch_px, width // patch_px * patch_px)
    if min(size) == 0:
        raise SlideloomError(
            f"images of {height} x {width} px", expected=f"at least {patch_px} px a side", code="encoder_tile_px"
        )
    return images if size == (height, width) else functional.interpolate(images, size=size, mode="area")

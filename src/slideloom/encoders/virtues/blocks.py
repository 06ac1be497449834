"""Blocks of VirTues: attention over space or over markers, for a whole packed batch at once.

A token has a *row* (the patch summary of a sample, one of its registers, one of its channels) and a *position* on the
grid of patches. Tokens are kept flat, ``(tokens, width)``: rows lead, positions follow. Samples of equal channel
count form a group whose rows interleave (row 0 of each sample, then row 1 of each), so that both kinds of attention
are one call on a view: over space each row is a segment, over markers each position of each sample. Masked tokens are
not there at all; only inside an attention do their places stand empty, closed by an attention mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Block", "Layout", "rope_turns"]

#: Base of the wavelengths of the rotary positions.
_ROPE_BASE = 10_000.0
#: CUDA's attention kernels number the segments of a call in 16 bits.
_MAX_SEGMENTS = 65_535


def rope_turns(rows: Tensor, cols: Tensor, head_dim: int) -> Tensor:
    """Rotations of 2-D rotary positions, as complex numbers of length one.

    The first half of a head's pairs turns with the row index, the second half with the column index; pair ``i`` of a
    half by ``index * 10000 ** (-4 i / head_dim)``. Only differences of positions matter to attention.

    Parameters
    ----------
    rows, cols : (p,) Tensor
        Grid position of each token.
    head_dim : int
        Length of a head's vector, a multiple of 4.

    Returns
    -------
    (p, head_dim / 2) complex64 Tensor
        On the device of ``rows``.
    """
    quarter = head_dim // 4
    power = torch.arange(quarter, dtype=torch.float64) * (-4.0 / head_dim)
    rate = (_ROPE_BASE**power).to(torch.float32)
    # Angles as the authors take them: products in float32.
    angle = torch.cat([rows.cpu().float()[:, None] * rate, cols.cpu().float()[:, None] * rate], dim=1)
    return torch.polar(torch.ones_like(angle), angle).to(rows.device)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed batch stand.

    Attributes
    ----------
    groups : tuple of (int, int)
        Rows a sample and samples, of each group.
    positions : int
        Positions a row.
    turns : (positions, head_dim / 2) complex64 Tensor or None
        Rotations of the positions. None: a position sees itself only when attention goes over space, which needs no
        rotation and no softmax.
    seen : (rows, positions) bool Tensor or None
        False where a token is masked. None: all are there.
    places : (tokens,) int64 Tensor or None
        Flat place of each token that is there, rising; goes with ``seen``.
    starts : tuple of int
        Index of each group's first token; its patch summaries come first.
    """

    groups: tuple[tuple[int, int], ...]
    positions: int
    turns: Tensor | None
    seen: Tensor | None = None
    places: Tensor | None = None
    starts: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, groups: tuple[tuple[int, int], ...], positions: int, turns: Tensor | None, seen: Tensor | None
    ) -> Layout:
        """The layout of groups; ``seen`` may be None or must have a False somewhere."""
        counts = [rows * samples for rows, samples in groups]
        if seen is None:
            starts = tuple(sum(counts[:k]) * positions for k in range(len(counts)))
            return cls(groups, positions, turns, starts=starts)
        held = [int(part.sum()) for part in torch.split(seen, counts)]
        starts = tuple(sum(held[:k]) for k in range(len(held)))
        return cls(groups, positions, turns, seen, seen.flatten().nonzero()[:, 0], starts)

    def dense(self, values: Tensor) -> Tensor:
        """(tokens, ...) → (rows, positions, ...); zero where a token is masked."""
        if self.seen is None or self.places is None:
            return torch.unflatten(values, 0, (-1, self.positions))
        full = values.new_zeros((self.seen.numel(), *values.shape[1:]))
        return torch.unflatten(full.index_copy_(0, self.places, values), 0, self.seen.shape)

    def pack(self, values: Tensor) -> Tensor:
        """Inverse of :meth:`dense`."""
        flat = values.flatten(0, 1)
        return flat if self.places is None else flat[self.places]

    def by_group(self, values: Tensor) -> list[Tensor]:
        """(rows, positions, ...) → for each group (rows a sample, samples * positions, ...), without copying."""
        parts = torch.split(values, [rows * samples for rows, samples in self.groups])
        return [
            part.reshape(rows, samples * self.positions, *values.shape[2:])
            for part, (rows, samples) in zip(parts, self.groups, strict=True)
        ]

    def summary(self, tokens: Tensor) -> Tensor:
        """Patch summaries: (tokens, width) → (samples, positions, width), samples group by group."""
        parts = [
            torch.unflatten(tokens[start : start + samples * self.positions], 0, (samples, self.positions))
            for start, (_, samples) in zip(self.starts, self.groups, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def of_summary(self) -> Layout:
        """The layout of the patch summaries alone, which are never masked."""
        samples = sum(count for _, count in self.groups)
        return replace(self, groups=((1, samples),), seen=None, places=None, starts=(0,))


class Block(nn.Module):
    """Attention and feed-forward, each after a layer norm and added to its input.

    Rows of the query and key projections are kept so that the two numbers that a rotary position turns lie side by
    side: a rotation is then one complex product. Both are reordered alike, which leaves their inner products as
    they were. :mod:`slideloom.encoders.virtues.weights` does the reordering.

    Parameters
    ----------
    width, heads, feedforward : int
        Token length; attention heads; length inside the feed-forward.
    over : {"space", "markers"}
        What attention goes over.
    """

    def __init__(self, width: int, heads: int, feedforward: int, over: Literal["space", "markers"]) -> None:
        super().__init__()
        self.over = over
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.inner = nn.Linear(width, feedforward)
        self.outer = nn.Linear(feedforward, width)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(tokens, width) → the same; residuals stay in the type of ``tokens``."""
        normed = self.norm1(tokens)
        seen = self._over_space(normed, layout) if self.over == "space" else self._over_markers(normed, layout)
        return self._feed_forward(tokens + self.out(seen))

    def summarise(self, tokens: Tensor, layout: Layout) -> Tensor:
        """As :meth:`forward`, but only the patch summaries are worked out: (tokens, width) → (summaries, width).

        Over space a summary sees summaries only. Over markers it is the one query of its segment; keys and values need
        then not be worked out: with ``W_k`` moved to the query and ``W_v`` behind the weighted mean, the inputs
        themselves take their part. The key's bias adds the same to every score of a segment and drops out; that of the
        value passes the mean, whose weights sum to one. Equal to :meth:`forward` but for rounding.
        """
        before = layout.summary(tokens).flatten(0, 1)
        if self.over == "space":
            return self(before, layout.of_summary())  # type: ignore[no-any-return]
        w_q, w_k, w_v = self.qkv.weight.chunk(3)
        b_q, _, b_v = self.qkv.bias.chunk(3)
        values = layout.by_group(layout.dense(self.norm1(tokens)))
        masks = [None] * len(values) if layout.seen is None else layout.by_group(layout.seen)
        read = []
        for value, mask in zip(values, masks, strict=True):
            query = self._by_head(functional.linear(value[0], w_q, b_q))
            lifted = torch.matmul(query.transpose(0, 1), w_k.view(self.heads, -1, w_k.shape[1]))
            segments = value.transpose(0, 1)
            scores = torch.matmul(lifted.transpose(0, 1) * query.shape[-1] ** -0.5, segments.mT)
            if mask is not None:
                scores = scores.masked_fill(~mask.T[:, None], -torch.inf)
            mean = torch.matmul(scores.softmax(-1, dtype=torch.float32).to(segments.dtype), segments)
            seen = torch.matmul(mean.transpose(0, 1), w_v.view(self.heads, -1, w_v.shape[1]).mT)
            read.append(seen.transpose(0, 1).flatten(1) + b_v)
        return self._feed_forward(before + self.out(torch.cat(read)))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        added: Tensor = self.outer(functional.gelu(self.inner(self.norm2(tokens))))
        return tokens + added

    def _by_head(self, values: Tensor, parts: int = 1) -> Tensor:
        """(..., parts * width) → (..., parts, heads, head_dim), or (..., heads, head_dim) for one part."""
        return torch.unflatten(values, -1, (self.heads, -1) if parts == 1 else (parts, self.heads, -1))

    def _over_space(self, normed: Tensor, layout: Layout) -> Tensor:
        """Each row a segment, rotary positions: (tokens, width) → what each token reads, heads side by side."""
        if layout.turns is None:
            width = normed.shape[1]
            return functional.linear(normed, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :])
        qkv = self._by_head(layout.dense(self.qkv(normed)), 3)
        pairs = torch.view_as_complex(torch.unflatten(qkv[:, :, :2].float(), -1, (-1, 2)))
        turned = torch.view_as_real(pairs * layout.turns[:, None, None]).flatten(-2).to(qkv.dtype)
        query, key = turned.permute(2, 0, 3, 1, 4)
        mask = None if layout.seen is None else layout.seen[:, None, None]
        read = _attend(query, key, qkv[:, :, 2].transpose(1, 2), mask)
        return layout.pack(read.transpose(1, 2).flatten(2))

    def _over_markers(self, normed: Tensor, layout: Layout) -> Tensor:
        """Each position of each sample a segment: (tokens, width) → what each token reads, heads side by side."""
        qkv = self._by_head(layout.dense(self.qkv(normed)), 3)
        masks = None if layout.seen is None else layout.by_group(layout.seen)
        read = []
        for index, part in enumerate(layout.by_group(qkv)):
            query, key, value = part.permute(2, 1, 3, 0, 4)
            mask = None if masks is None else masks[index].T[:, None, None]
            seen = _attend(query, key, value, mask).permute(2, 0, 1, 3).flatten(2)
            read.append(seen.reshape(-1, layout.positions, seen.shape[-1]))
        return layout.pack(read[0] if len(read) == 1 else torch.cat(read))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention of (segments, heads, length, head_dim), in as few calls as the device allows."""
    if len(query) <= _MAX_SEGMENTS:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    cuts = [slice(first, first + _MAX_SEGMENTS) for first in range(0, len(query), _MAX_SEGMENTS)]
    return torch.cat([_attend(query[cut], key[cut], value[cut], None if mask is None else mask[cut]) for cut in cuts])

"""The VirTues encoder: any number of channels, each token a patch of one channel, a summary token for each patch.

After Wenckstern et al., *The Virtual Tissues foundation model* (arXiv:2501.06039; Nature 2026,
doi 10.1038/s41586-026-10884-y), written anew. Numbers agree with the published code to 1e-5; see
:mod:`slideloom.encoders.virtues.blocks` for how the batch is packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from slideloom.encoders.virtues.blocks import Block, Layout, rope_turns

__all__ = ["Architecture", "GridTurns", "VirTuesNet", "VirTuesTokens", "drawn_net", "initialise"]


@dataclass(frozen=True)
class Architecture:
    """Sizes of a VirTues encoder; the defaults are those of every published one.

    Attributes
    ----------
    width, heads, feedforward : int
        Token length; attention heads; length inside the feed-forward.
    pattern : str
        A letter a block: ``h`` attends over space, ``v`` over markers.
    patch_px : int
        Side of a patch, pixels.
    registers : int
        Extra rows beside the patch summary.
    marker_width : int
        Length of a marker's protein embedding.
    final_norm : bool
        Whether a layer norm follows the last block.
    """

    width: int = 512
    heads: int = 8
    feedforward: int = 1024
    pattern: str = "hv" * 8
    patch_px: int = 8
    registers: int = 0
    marker_width: int = 640
    final_norm: bool = True

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.pattern)


@dataclass(frozen=True)
class VirTuesTokens:
    """What a forward pass gives.

    Attributes
    ----------
    after : dict of int to (n, h, w, width) Tensor
        Patch summaries after a block, 1-based, before the final norm.
    final : (n, h, w, width) Tensor or None
        Patch summaries after the last block and the final norm.
    channels : list of (c, h, w, width) Tensor or None
        For each sample, its channels' tokens after the last block and the final norm; masked ones as they went in.
    """

    after: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    channels: list[Tensor] | None = None


class GridTurns:
    """Rotations of whole grids, each worked out once.

    Parameters
    ----------
    head_dim : int
        Length of a head's vector.
    """

    def __init__(self, head_dim: int) -> None:
        self._head_dim = head_dim
        self._known: dict[tuple[int, int, torch.device], Tensor] = {}

    def __call__(self, height: int, width: int, device: torch.device) -> Tensor:
        """Of a grid of patches, row by row: (height * width, head_dim / 2) complex64."""
        key = (height, width, device)
        if key not in self._known:
            # An inference tensor could never serve a pass that is to be differentiated.
            with torch.inference_mode(False):
                rows = torch.arange(height, device=device).repeat_interleave(width)
                cols = torch.arange(width, device=device).repeat(height)
                self._known[key] = rope_turns(rows, cols, self._head_dim)
        return self._known[key]


class VirTuesNet(nn.Module):
    """The encoder's layers.

    Parameters
    ----------
    architecture : Architecture
        Its sizes.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        width = architecture.width
        self.patch_summary_token = nn.Parameter(torch.zeros(width))
        self.masked_token = nn.Parameter(torch.zeros(width))
        self.register_tokens = nn.Parameter(torch.zeros(architecture.registers, width))
        self.patch_encoder = nn.Linear(architecture.patch_px**2, width)
        self.marker_encoder = nn.Linear(architecture.marker_width, width)
        self.norm = nn.LayerNorm(width) if architecture.final_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, architecture.heads, architecture.feedforward, "space" if letter == "h" else "markers")
            for letter in architecture.pattern
        )
        self._turns = GridTurns(width // architecture.heads)

    def encode_markers(self, embeddings: Tensor) -> Tensor:
        """Protein embeddings (c, marker_width) → what is added to a channel's tokens (c, width). Once for a panel."""
        encoded: Tensor = self.marker_encoder(embeddings)
        return encoded

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        markers: Tensor | Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
        *,
        blocks: Sequence[int] = (),
        final: bool = True,
        channels: bool = False,
        isolated: bool = False,
    ) -> VirTuesTokens:
        """Encode images of one height and width.

        Only what is asked for is worked out: the pass ends with the deepest block that is wanted, and unless channel
        tokens are, that block works on the patch summaries alone.

        Parameters
        ----------
        images : (n, c, h, w) Tensor, or sequence of (c_i, h, w) Tensor
            Preprocessed; h and w multiples of ``patch_px``. Numbers of channels may differ.
        markers : (c, width) Tensor, or sequence of (c_i, width) Tensor
            Of :meth:`encode_markers`: for all images, or for each. The order of channels does not matter.
        masks : sequence of (c_i, h / patch_px, w / patch_px) bool Tensor, optional
            True: hidden from the encoder.
        blocks : sequence of int
            Blocks after which patch summaries are wanted, 1-based.
        final : bool
            Give the final patch summaries.
        channels : bool
            Give the final channel tokens.
        isolated : bool
            Each patch alone, as if it had been cut out and encoded by itself.

        Returns
        -------
        VirTuesTokens
            Float32 under autocast, too.

        Raises
        ------
        ValueError
            Shapes that do not go together.
        """
        packs, order, (height, width) = self._packs(images, markers, masks)
        turns = None if isolated or height * width == 1 else self._turns(height, width, packs[0].images.device)
        tokens, layout = self._tokenise(packs, height * width, turns)
        deepest = len(self.blocks) if final or channels else max(blocks)
        after = {}
        for number, block in enumerate(cast("list[Block]", list(self.blocks)[:deepest]), 1):
            if number == deepest and not channels:
                tokens = block.summarise(tokens, layout)
                layout = layout.of_summary()
            else:
                tokens = block(tokens, layout)
            if number in blocks:
                # A view would keep the tokens of all channels alive.
                after[number] = self._map(layout.summary(tokens).clone(), order, height, width)
        last = self._map(self.norm(layout.summary(tokens)), order, height, width) if final else None
        every = self._channels(tokens, layout, packs, order, (height, width)) if channels else None
        return VirTuesTokens(after, last, every)

    def _packs(
        self, images: Tensor | Sequence[Tensor], markers: Tensor | Sequence[Tensor], masks: Sequence[Tensor] | None
    ) -> tuple[list[_Pack], list[int], tuple[int, int]]:
        """Groups of equal channel count, where each sample went, and the grid."""
        side = self.architecture.patch_px
        sizes = {tuple(image.shape[-2:]) for image in images}
        if len(sizes) != 1 or any(pixels % side or not pixels for pixels in next(iter(sizes))):
            raise ValueError(f"images of {sorted(sizes)} px; one size is expected, its sides multiples of {side}")
        height, width = next(iter(sizes))
        if masks is not None and not any(bool(mask.any()) for mask in masks):
            masks = None
        members: dict[int, list[int]] = {}
        for index, image in enumerate(images):
            members.setdefault(len(image), []).append(index)
        packs = []
        for count, chosen in members.items():
            whole = isinstance(images, Tensor) and len(members) == 1
            part = images if whole else torch.stack([images[index] for index in chosen])
            assert isinstance(part, Tensor)
            if isinstance(markers, Tensor):
                names = markers[:, None]
            else:
                names = torch.stack([markers[index] for index in chosen], dim=1)
            hidden = None if masks is None else torch.stack([masks[index].bool().flatten(1) for index in chosen], dim=1)
            area = (height // side) * (width // side)
            if len(names) != count or (hidden is not None and hidden.shape != (count, len(chosen), area)):
                raise ValueError(f"{len(names)} markers, or masks of another shape, for {count} channels")
            packs.append(_Pack(part, names, hidden))
        placed = [index for chosen in members.values() for index in chosen]
        return packs, placed, (height // side, width // side)

    def _tokenise(self, packs: Sequence[_Pack], positions: int, turns: Tensor | None) -> tuple[Tensor, Layout]:
        """Rows of every group, masked tokens left out."""
        lead = torch.cat([self.patch_summary_token[None], self.register_tokens])[:, None, None]
        side = self.architecture.patch_px
        rows, seen = [], []
        for pack in packs:
            cut = pack.images.unfold(2, side, side).unfold(3, side, side)
            tokens = self.patch_encoder(cut.flatten(4).flatten(2, 3).transpose(0, 1)).to(lead.dtype)
            if pack.hidden is not None:
                tokens = torch.where(pack.hidden[..., None], self.masked_token, tokens)
            tokens = tokens + pack.markers[:, :, None]
            samples = len(pack.images)
            rows.append(torch.cat([lead.expand(-1, samples, positions, -1), tokens]).flatten(0, 1))
            if pack.hidden is not None:
                leading = pack.hidden.new_ones((len(lead), samples, positions))
                seen.append(torch.cat([leading, ~pack.hidden]).flatten(0, 1))
        groups = tuple((len(lead) + pack.images.shape[1], len(pack.images)) for pack in packs)
        layout = Layout.of(groups, positions, turns, torch.cat(seen) if seen else None)
        return layout.pack(rows[0] if len(rows) == 1 else torch.cat(rows)), layout

    @staticmethod
    def _map(summary: Tensor, order: Sequence[int], height: int, width: int) -> Tensor:
        """(n, positions, width) group by group → (n, h, w, width) in the order given."""
        if list(order) != list(range(len(order))):
            back = torch.empty(len(order), dtype=torch.int64)
            back[list(order)] = torch.arange(len(order))
            summary = summary[back.to(summary.device)]
        return torch.unflatten(summary, 1, (height, width))

    def _channels(
        self,
        tokens: Tensor,
        layout: Layout,
        packs: Sequence[_Pack],
        order: Sequence[int],
        grid: tuple[int, int],
    ) -> list[Tensor]:
        """Channel tokens of each sample, masked ones put back as the masked token and the marker make them."""
        found: dict[int, Tensor] = {}
        lead = 1 + self.architecture.registers
        places = iter(order)
        for group, pack in zip(layout.by_group(layout.dense(tokens)), packs, strict=True):
            values = torch.unflatten(group[lead:], 1, (len(pack.images), -1))
            if pack.hidden is not None:
                values = torch.where(pack.hidden[..., None], (self.masked_token + pack.markers)[:, :, None], values)
            values = self.norm(values).unflatten(2, grid)
            found |= {next(places): sample for sample in values.unbind(1)}
        return [found[index] for index in range(len(found))]


@dataclass(frozen=True)
class _Pack:
    """Samples of equal channel count: images (n, c, h, w), markers (c, n or 1, width), hidden (c, n, positions)."""

    images: Tensor
    markers: Tensor
    hidden: Tensor | None


def drawn_net(architecture: Architecture, seed: int) -> VirTuesNet:
    """An encoder with weights drawn as the authors drew theirs before training.

    Parameters
    ----------
    architecture : Architecture
        Its sizes.
    seed : int
        Of a generator of its own; the global one is left as it was.
    """
    with torch.device("meta"):
        net = VirTuesNet(architecture)
    net.to_empty(device="cpu")
    initialise(net, seed)
    return net


def initialise(module: nn.Module, seed: int) -> None:
    """Xavier-normal projections, biases 0, layer norms the identity, token vectors N(0, 1) / sqrt(width).

    Parameters
    ----------
    module : Module
        A :class:`VirTuesNet` or its decoder; changed in place.
    seed : int
        Of a generator of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    # The three projections of an attention are separate matrices to the authors.
    fused = {id(part.qkv) for part in module.modules() if isinstance(part, Block)}
    for part in module.modules():
        if isinstance(part, nn.Linear):
            for matrix in part.weight.data.chunk(3 if id(part) in fused else 1):
                nn.init.xavier_normal_(matrix, generator=generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    if isinstance(module, VirTuesNet):
        for token in (module.patch_summary_token, module.masked_token, module.register_tokens):
            token.data.normal_(generator=generator).mul_(module.architecture.width**-0.5)

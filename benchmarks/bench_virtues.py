"""VirTues as Slideloom runs it against the same weights run as the paper describes it.

Plain: attention over space row by row, attention over markers position by position, each a call of a multi-head
attention with projections of query, key and value of their own, rotary positions worked out in every call. Slideloom:
one projection, one attention call a block, rotary positions kept, the last block on the patch summaries alone. Both
are checked to give the same tokens; times are the least of several rounds, the two taking turns, so that a busy machine
troubles both alike. Wall time and CPU time stand side by side: where they differ much from each other per thread,
something else was running.

Run: ``python benchmarks/bench_virtues.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from bench_decoder import clock
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.encoders.virtues.net import Architecture, VirTuesNet, drawn_net
from slideloom.encoders.virtues.weights import VirTuesFile, published_state

Tokens = dict[int, Tensor]


class PlainAttention(nn.Module):
    """Multi-head attention over one segment, (length, width), with 2-D rotary positions where asked for."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.W_q, self.W_k, self.W_v, self.W_o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(0, 1) for layer in (self.W_q, self.W_k, self.W_v)
        )
        if rows is not None and cols is not None:
            query, key = self.rotate(query, rows, cols), self.rotate(key, rows, cols)
        read = functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        done: Tensor = self.W_o(read.transpose(0, 1).flatten(1))
        return done

    @staticmethod
    def rotate(vectors: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """First half of each head by row, second by column; numbers a quarter of the head apart turn together."""
        quarter = vectors.shape[-1] // 4
        rate = 10000 ** (-torch.arange(quarter, device=vectors.device) / quarter)
        turned = []
        for half, index in zip(vectors.chunk(2, dim=-1), (rows, cols), strict=True):
            angle = (index[:, None] * rate).repeat(1, 2)
            first, second = half.chunk(2, dim=-1)
            turned.append(half * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin())
        return torch.cat(turned, dim=-1)


class PlainBlock(nn.Module):
    """One block over tokens (rows, positions, width)."""

    def __init__(self, width: int, heads: int, feedforward: int, letter: str) -> None:
        super().__init__()
        self.letter = letter
        self.multi_head_attention = PlainAttention(width, heads)
        layers = (nn.Linear(width, feedforward), nn.GELU(), nn.Dropout(0.0), nn.Linear(feedforward, width))
        self.feedforward = nn.Sequential(*layers)
        self.layernorm1, self.layernorm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        normed = self.layernorm1(tokens)
        attend = self.multi_head_attention
        if self.letter == "h":
            tokens = tokens + torch.stack([attend(row, rows, cols) for row in normed.unbind(0)])
        else:
            tokens = tokens + torch.stack([attend(column, None, None) for column in normed.unbind(1)], dim=1)
        done: Tensor = tokens + self.feedforward(self.layernorm2(tokens))
        return done


class PlainVirTues(nn.Module):
    """The encoder for one image, with the weights of a :class:`VirTuesNet`."""

    def __init__(self, net: VirTuesNet) -> None:
        super().__init__()
        sizes = net.architecture
        self.net = net
        self.blocks = nn.ModuleList(
            PlainBlock(sizes.width, sizes.heads, sizes.feedforward, letter) for letter in sizes.pattern
        )
        state = published_state(VirTuesFile.of(sizes, None), net)
        for index, block in enumerate(self.blocks):
            stem = f"encoder.encoder.{index}.encoder_layer."
            block.load_state_dict(
                {k.removeprefix(stem): v for k, v in state.items() if k.startswith(stem)}, strict=False
            )

    def forward(self, image: Tensor, markers: Tensor, wanted: tuple[int, ...]) -> Tokens:
        """(c, h, w) → patch summaries after blocks, and under 0 the final ones: (positions, width) each."""
        channels, height, width = image.shape
        high, wide = height // 8, width // 8
        patches = image.view(channels, high, 8, wide, 8).transpose(2, 3).reshape(channels, high * wide, 64)
        tokens = self.net.patch_encoder(patches) + self.net.marker_encoder(markers)[:, None]
        summary = self.net.patch_summary_token.expand(1, high * wide, -1)
        tokens = torch.cat([summary, tokens])
        rows = torch.arange(high, device=image.device).repeat_interleave(wide)
        cols = torch.arange(wide, device=image.device).repeat(high)
        found = {}
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens, rows, cols)
            if number in wanted:
                found[number] = tokens[0].clone()
        return {**found, 0: self.net.norm(tokens)[0]}


def main() -> None:
    """Parse the options, check equality, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=120, help="tile side, pixels")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most", type=float, default=0.8, help="largest ratio of CPU (on a GPU: wall) time to allow")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = drawn_net(Architecture(), 0).to(options.device).eval().requires_grad_(False)
    plain = PlainVirTues(net).to(options.device).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(options.channels, options.tile, options.tile, generator=generator).to(options.device)
    embeddings = (0.25 * torch.randn(options.channels, 640, generator=generator)).to(options.device)
    blocks = (4, 8, 12, 16)
    with torch.inference_mode():
        markers = net.encode_markers(embeddings)

        def ours() -> Tokens:
            got = net(image[None], markers, blocks=blocks)
            return {**{k: v.flatten(0, 2) for k, v in got.after.items()}, 0: got.final.flatten(0, 2)}

        ways = {"plain": lambda: plain(image, embeddings, blocks), "slideloom": ours}
        print(
            f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} thread(s); one tile of"
            f" {options.tile} px, {options.channels} channels, 16 blocks of width 512"
        )
        reference, tokens = (way() for way in ways.values())
        worst = max(float((tokens[key] - value).abs().max()) for key, value in reference.items())
        print(f"largest difference of the summaries after blocks {blocks} and the final ones: {worst:.1e}")
        if not worst <= 1e-4:
            raise SystemExit(f"slideloom differs from the plain encoder by {worst}")
        best = dict.fromkeys(ways, (float("inf"), float("inf")))
        for _ in range(options.rounds):
            for name, work in ways.items():
                wall, cpu = clock(work, options.device)
                best[name] = (min(best[name][0], wall), min(best[name][1], cpu))
    for name, (wall, cpu) in best.items():
        print(f"{name:<10} {wall:8.3f} s wall {cpu:8.3f} s CPU")
    (plain_wall, plain_cpu), (our_wall, our_cpu) = best["plain"], best["slideloom"]
    print(f"{'ratio':<10} {our_wall / plain_wall:8.3f} wall   {our_cpu / plain_cpu:8.3f} CPU")
    ratio = our_cpu / plain_cpu if options.device == "cpu" else our_wall / plain_wall
    if ratio > options.most:
        raise SystemExit(
            f"slideloom takes {ratio:.2f} of the plain encoder's time; at most {options.most} was asked for"
        )


if __name__ == "__main__":
    main()

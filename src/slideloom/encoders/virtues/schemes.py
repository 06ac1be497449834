"""What a published VirTues file holds: which of the key schemes it uses, and the sizes of its model.

A file holds no config. Sizes are read off the tensors:

====================================  ====================================  ==============================
VirTues                               FlexDual                              VirTues v1
====================================  ====================================  ==============================
``encoder.prior_embedding_encoder``   ``encoder.protein_encoder``           ``encoder.protein_encoder``
``encoder.patch_encoder``             ``encoder.multiplex_patch_encoder``   ``encoder.patch_encoder``
none                                  ``encoder.he_…``, for an H&E row      none
``decoder.multiplex_decoder_mlp``     ``mae_decoder.multiplex_decoder_mlp`` ``mae_decoder.decoder_mlp``
``decoder.decoder``                   ``mae_decoder.decoder``               ``mae_decoder.decoder``
final layer norms                     with or without                       none
rotary tables in ``h`` blocks         in ``h`` blocks, or none              in all blocks
====================================  ====================================  ==============================

Blocks may be grouped (``….encoder_layer.layers.<j>.…``) and everything may lie under a prefix such as ``model.``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from slideloom.encoders.virtues.decoder import DecoderArchitecture
from slideloom.encoders.virtues.net import Architecture
from slideloom.errors import SlideloomError

__all__ = ["CURRENT", "FLEXDUAL", "SCHEMES", "TABLE", "V1", "Scheme", "VirTuesFile", "alternating", "describe"]

#: Table of rotary positions of a block; ``sin`` or ``cos`` goes into it.
TABLE = "multi_head_attention.pos_emb.rope1d.{}"
_T = TypeVar("_T")
_ROOT = re.compile(r"((?:[^.]+\.)*?)(?:encoder|decoder|mae_decoder)\.")


@dataclass(frozen=True)
class Scheme:
    """What one version of the published code calls its layers.

    Attributes
    ----------
    name : str
        For people.
    markers, patches : str
        Projection of marker embeddings; of patches.
    decoder, head : str
        The training decoder; its last layer.
    final_norm : bool or None
        Whether layer norms follow the last blocks; None: the file tells.
    """

    name: str
    markers: str
    patches: str
    decoder: str
    head: str
    final_norm: bool | None


CURRENT = Scheme(
    "VirTues",
    "encoder.prior_embedding_encoder",
    "encoder.patch_encoder",
    "decoder",
    "decoder.multiplex_decoder_mlp.0",
    True,
)
FLEXDUAL = Scheme(
    "FlexDual",
    "encoder.protein_encoder",
    "encoder.multiplex_patch_encoder",
    "mae_decoder",
    "mae_decoder.multiplex_decoder_mlp.0",
    None,
)
V1 = Scheme(
    "VirTues v1", "encoder.protein_encoder", "encoder.patch_encoder", "mae_decoder", "mae_decoder.decoder_mlp.0", False
)
SCHEMES = (CURRENT, FLEXDUAL, V1)


@dataclass(frozen=True)
class VirTuesFile:
    """What a file holds and how it names it.

    Attributes
    ----------
    scheme : Scheme
        Its names.
    architecture : Architecture
        Of the encoder.
    decoder : DecoderArchitecture or None
        Of the training decoder; None: the file has none.
    prefix : str
        Before every key, such as ``model.``.
    blocks, decoder_blocks : tuple of str
        Name of each block.
    turning, decoder_turning : frozenset of int
        Blocks, from 0, that bring their tables of rotary positions.
    rope_rows : int
        Rows of such a table.
    he : bool
        Whether there are layers for an H&E row.
    """

    scheme: Scheme
    architecture: Architecture
    decoder: DecoderArchitecture | None
    prefix: str
    blocks: tuple[str, ...]
    decoder_blocks: tuple[str, ...]
    turning: frozenset[int]
    decoder_turning: frozenset[int]
    rope_rows: int = 1200
    he: bool = False

    @classmethod
    def of(
        cls, architecture: Architecture, decoder: DecoderArchitecture | None, scheme: Scheme = CURRENT
    ) -> VirTuesFile:
        """As the authors of a scheme write such a model."""
        turning = [k for k, letter in enumerate(architecture.pattern) if letter == "h" or scheme is V1]
        depth = decoder.depth if decoder else 0
        return cls(
            scheme,
            architecture,
            decoder,
            "",
            tuple(f"encoder.encoder.{k}.encoder_layer" for k in range(architecture.depth)),
            tuple(f"{scheme.decoder}.decoder.{k}.encoder_layer" for k in range(depth)),
            frozenset(turning),
            frozenset(range(depth)),
        )


def alternating(depth: int) -> str:
    """The pattern of every published model: space and markers in turns."""
    return ("hv" * depth)[:depth]


def _most(values: Iterable[_T], default: _T) -> _T:
    """The value found most often, so that one misshapen tensor does not decide a size."""
    counts = Counter(values)
    return counts.most_common(1)[0][0] if counts else default


def describe(tensors: Mapping[str, Tensor], where: str, pattern: str | None) -> VirTuesFile:
    """Read scheme and sizes off a file. What it gets wrong in a broken file shows when the keys are checked."""
    prefix = _most((found[1] for key in tensors if (found := _ROOT.match(key))), "")
    held = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    names = [(scheme.markers, scheme.patches, f"{scheme.decoder}.decoder", scheme.head) for scheme in SCHEMES]
    score = [sum(any(key.startswith(f"{name}.") for key in held) for name in each) for each in names]
    scheme = SCHEMES[score.index(max(score))]
    blocks = _block_names(held, "encoder.encoder")
    tails = _block_names(held, f"{scheme.decoder}.decoder")
    turning = _with_tables(held, blocks)
    if pattern is None or len(pattern) != len(blocks):
        pattern = "".join("h" if index in turning else "v" for index in range(len(blocks)))
        if scheme is V1 or not turning or len(turning) == len(blocks):
            pattern = alternating(len(blocks))
    if turning:
        # All of those that turn have tables, or the file is broken.
        spaces = frozenset(index for index, letter in enumerate(pattern) if letter == "h")
        turning = frozenset(range(len(blocks))) if turning - spaces else spaces
    width = _size(held, blocks, "multi_head_attention.W_o.weight", 0, 512)
    architecture = Architecture(
        width=width,
        heads=_heads(held, blocks, width, where),
        feedforward=_size(held, blocks, "feedforward.0.weight", 0, 2 * width),
        pattern=pattern,
        patch_px=math.isqrt(_size(held, [scheme.patches], "weight", 1, 64)),
        registers=_size(held, ["encoder"], "register_tokens", 0, 0),
        marker_width=_size(held, [scheme.markers], "weight", 1, 640),
        final_norm=_has_norm(held, "encoder", scheme),
    )
    decoder = None
    if any(key.startswith(f"{scheme.decoder}.") for key in held):
        decoder = DecoderArchitecture(
            width=width,
            heads=_heads(held, tails, width, where),
            feedforward=_size(held, tails, "feedforward.0.weight", 0, 2 * width),
            depth=len(tails),
            patch_px=architecture.patch_px,
            final_norm=_has_norm(held, scheme.decoder, scheme),
        )
    return VirTuesFile(
        scheme,
        architecture,
        decoder,
        prefix,
        blocks,
        tails,
        turning,
        frozenset(range(len(tails))) if _with_tables(held, tails) else frozenset(),
        _size(held, blocks + tails, TABLE.format("sin"), 0, 1200),
        any(key.startswith("encoder.he_") for key in held),
    )


def _block_names(held: Mapping[str, Tensor], root: str) -> tuple[str, ...]:
    """Names of the blocks under ``root`` in order; one that is missing between others is named, too."""
    match = re.compile(rf"{re.escape(root)}\.(\d{{1,3}})\.encoder_layer\.(?:layers\.(\d{{1,3}})\.)?")
    grouped: dict[int, int] = {}
    for key in held:
        if found := match.match(key):
            group = int(found[1])
            grouped[group] = max(grouped.get(group, 0), 0 if found[2] is None else int(found[2]) + 1)
    names: list[str] = []
    for group in range(max(grouped, default=-1) + 1):
        name = f"{root}.{group}.encoder_layer"
        inner = grouped.get(group, 0)
        names += [f"{name}.layers.{index}" for index in range(inner)] if inner else [name]
    return tuple(names)


def _with_tables(held: Mapping[str, Tensor], blocks: Sequence[str]) -> frozenset[int]:
    ends = [TABLE.format(end) for end in ("sin", "cos")]
    return frozenset(index for index, name in enumerate(blocks) if any(f"{name}.{end}" in held for end in ends))


def _size(held: Mapping[str, Tensor], places: Sequence[str], name: str, axis: int, default: int) -> int:
    """Length along an axis of the matrices of one name."""
    found = (held.get(f"{place}.{name}") for place in places)
    return _most((int(value.shape[axis]) for value in found if value is not None and value.ndim == 2), default)


def _heads(held: Mapping[str, Tensor], blocks: Sequence[str], width: int, where: str) -> int:
    """Of the tables of rotary positions, which are half a head wide; without them heads are 64 wide."""
    head_dim = 2 * _size(held, blocks, TABLE.format("sin"), 1, 32)
    if not head_dim or head_dim % 4 or width % head_dim:
        raise SlideloomError(
            f"its rotary positions are for heads of {head_dim}, its tokens are {width} wide",
            where=where,
            expected="a whole number of heads, their width a multiple of 4",
            hint="The checkpoint is damaged, or not of VirTues",
            code="checkpoint_keys",
        )
    return width // head_dim


def _has_norm(held: Mapping[str, Tensor], root: str, scheme: Scheme) -> bool:
    found = any(key.startswith(f"{root}.layer_norm.") for key in held)
    return found if scheme.final_norm is None else scheme.final_norm

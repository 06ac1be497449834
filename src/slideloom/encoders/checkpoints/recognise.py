"""What network a checkpoint seems to hold, from the names and shapes of its tensors. Nothing here loads torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from slideloom.config.catalogue import EncoderEntry

__all__ = ["Seen", "misfits", "recognise"]

Kind = Literal["virtues", "sam", "vit", ""]
Shapes = Mapping[str, tuple[int, ...]]

#: Where networks keep the first convolution, and their blocks beside it: timm's, DINO's, SAM's names, and those of the
#: transformers library.
_ROOTS = (
    ("patch_embed.proj.weight", r"blocks\.(\d+)\."),
    ("embeddings.patch_embeddings.projection.weight", r"encoder\.layer\.(\d+)\."),
)
_SUMMARY = "encoder.patch_summary_token"
#: VirTues may group blocks: then two numbers name one.
_VIRTUES_BLOCK = r"encoder\.encoder\.(\d+\.encoder_layer\.(?:layers\.\d+)?)"
_VIRTUES_FIRST = ("encoder.patch_encoder.weight", "encoder.multiplex_patch_encoder.weight")
_NAMES = {"virtues": "VirTues", "sam": "SAM image encoder", "vit": "vision transformer"}


@dataclass(frozen=True)
class Seen:
    """What could be told.

    Attributes
    ----------
    kind : {"virtues", "sam", "vit", ""}
        Empty: none that is known.
    arch : str
        What the checkpoint itself says; may be empty.
    width, depth, token_px : int or None
        Length of a token, number of blocks, pixels that a token stands for along a side.
    decoder : bool
        A CellViT decoder is there, too.
    """

    kind: Kind
    arch: str = ""
    width: int | None = None
    depth: int | None = None
    token_px: int | None = None
    decoder: bool = False

    def __str__(self) -> str:
        """In words."""
        said = f"{self.arch}: " if self.arch else ""
        if not self.kind:
            return f"{said}a network that is not recognised"
        sizes = f"{self.width} wide, {self.depth} blocks, tokens of {self.token_px} px"
        return f"{said}{_NAMES[self.kind]}, {sizes}" + (", with a CellViT decoder" if self.decoder else "")


def recognise(shapes: Shapes, arch: str = "") -> Seen:
    """Tell what network tensors belong to.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Of every tensor, by its name in the file.
    arch : str, optional
        What the file says of itself.

    Returns
    -------
    Seen
        Of kind ``""`` where names or shapes are of no network that is known.

    Examples
    --------
    >>> str(recognise({"patch_embed.proj.weight": (384, 3, 16, 16), "blocks.0.norm1.weight": (384,)}))
    'vision transformer, 384 wide, 1 blocks, tokens of 16 px'
    """
    summary = next((name for name in shapes if name.endswith(_SUMMARY) and len(shapes[name]) == 1), None)
    if summary is not None:
        root = summary.removesuffix(_SUMMARY)
        pixels = next((shapes[root + name][-1] for name in _VIRTUES_FIRST if root + name in shapes), 0)
        depth = _depth(shapes, root, _VIRTUES_BLOCK)
        return Seen("virtues", arch, shapes[summary][0], depth, math.isqrt(pixels) or None)
    for ending, block in _ROOTS:
        first = next((name for name in shapes if name.endswith(ending) and len(shapes[name]) == 4), None)
        if first is None:
            continue
        root = first.removesuffix(ending)
        sam = any(name.startswith(root) and name.endswith("attn.rel_pos_h") for name in shapes)
        depth = _depth(shapes, root, block)
        width, token_px = shapes[first][0], shapes[first][-1]
        decoder = any("decoder0_header." in name for name in shapes)
        return Seen("sam" if sam else "vit", arch, width, depth, token_px, decoder)
    return Seen("", arch)


def _depth(shapes: Shapes, root: str, block: str) -> int:
    """Number of different blocks below a root."""
    pattern = re.compile(re.escape(root) + block)
    return len({match[1] for name in shapes if (match := pattern.match(name))})


def misfits(seen: Seen, entry: EncoderEntry) -> tuple[str, ...]:
    """Why a network cannot be the one that an entry of the catalogue names; empty when it may be.

    Examples
    --------
    >>> from slideloom.config.catalogue import CATALOGUE
    >>> misfits(Seen("vit", "", 1024, 24, 16), CATALOGUE["cellvit/vit256"])
    ('1024 wide, not 384', '24 blocks, not 12')
    """
    wanted = _kind_of(entry)
    if seen.kind != wanted and seen.kind:
        return (f"a {_NAMES[seen.kind]}, not a {_NAMES[wanted]}",)
    pairs = (
        (seen.width, entry.width, "{} wide, not {}"),
        (seen.depth, entry.depth, "{} blocks, not {}"),
        (seen.token_px, entry.token_px, "tokens of {} px, not {}"),
    )
    return tuple(text.format(a, b) for a, b, text in pairs if seen.kind and b is not None and a != b)


def _kind_of(entry: EncoderEntry) -> Literal["virtues", "sam", "vit"]:
    if entry.family == "virtues":
        return "virtues"
    return "sam" if entry.arch.startswith("sam_") else "vit"

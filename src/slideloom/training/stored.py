"""One slide's patches, targets and embeddings as a decoder is fed them, from disk or held in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.encoders.fused import TokenReader, open_tokens, token_record
from slideloom.encoders.lattice import TileCache
from slideloom.training.annotated import AnnotatedSlide, Arrays, Geometry, Needs, SlideData
from slideloom.training.raw import RawSlide
from slideloom.training.symmetry import N_SYMMETRIES

__all__ = [
    "AnnotatedSlide",
    "Arrays",
    "Needs",
    "PixelTable",
    "SlideData",
    "StoredSlide",
    "open_slides",
    "pixel_table",
]

_LOG = logging.getLogger(__name__)
Normalise = Callable[[NDArray[Any]], NDArray[np.float32]]


class PixelTable:
    """Pixels to normalised values, channels last, by looking them up.

    Normalisation works pixel by pixel, so for 8 and 16 bit images all of its results fit in a small table, and looking
    them up is several times faster than working them out. Other types are worked out. The values are the same.

    Parameters
    ----------
    normalise : callable
        (k, c, h, w) pixels to (k, c, h, w) float32; no pixel may matter to another.
    n_channels : int
        c.
    dtype : dtype
        Of the pixels.
    """

    def __init__(self, normalise: Normalise, n_channels: int, dtype: np.dtype[Any]) -> None:
        self._normalise = normalise
        self._table: NDArray[np.float32] | None = None
        if dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
            every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
            probe = np.ascontiguousarray(np.broadcast_to(every, (1, n_channels, 1, every.size)))
            self._table = np.ascontiguousarray(normalise(probe)[0, :, 0])

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(k, c, h, w) pixels to (k, h, w, c) float32."""
        if self._table is None:
            return np.ascontiguousarray(self._normalise(pixels).transpose(0, 2, 3, 1))
        count, channels, height, width = pixels.shape
        out = np.empty((count, height, width, channels), np.float32)
        one = np.empty((channels, height * width), np.float32)  # a patch at a time stays in the processor's cache
        for patch, place in zip(pixels, out, strict=True):
            for row, channel, values in zip(self._table, patch, one, strict=True):
                np.take(row, channel.reshape(-1), out=values, mode="clip")
            place[...] = one.T.reshape(height, width, channels)
        return out


def pixel_table(embeddings: TokenReader, dtype: np.dtype[Any]) -> PixelTable:
    """The normalisation that an encoder's input went through, without the encoder.

    Parameters
    ----------
    embeddings : EmbeddingStore or FusedEmbeddings
        It records the channel statistics that were used or, of RGB encoders, mean and standard deviation; of several
        encoders, the first one's.
    dtype : dtype
        Of the pixels.

    Returns
    -------
    PixelTable
        Takes the channels ``embeddings.attributes["channel_indices"]`` of the patches.
    """
    if embeddings.statistics is not None:
        return PixelTable(embeddings.statistics.apply, len(embeddings.markers), dtype)
    spec = embeddings.attributes["spec"]
    mean, std = (np.asarray(spec[name], np.float32)[:, None, None] for name in ("mean", "std"))

    def normalise(pixels: NDArray[Any]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return scaled

    return PixelTable(normalise, len(embeddings.markers), dtype)


class StoredSlide(AnnotatedSlide):
    """A slide whose tokens are stored.

    Parameters
    ----------
    data : SlideData
        Its stores.
    needs : Needs
        What is to be read.
    cache : TileCache, optional
        Where further encoders' tokens are kept between reads; shared by the slides of a training.

    Raises
    ------
    SlideloomError
        ``store_mismatch``: the stores do not hold the same number of patches.
    """

    input = "tokens"

    def __init__(self, data: SlideData, needs: Needs, cache: TileCache | None = None) -> None:
        super().__init__(data, needs)
        if data.embeddings is None:
            raise ValueError(f"{data.slide_id} has no embeddings")
        self.embeddings: TokenReader = open_tokens(data.embeddings, self.patches, data.fused, cache)
        self._check_sizes(embeddings=int(self.embeddings.n))
        self.blocks: tuple[int, ...] = tuple(self.embeddings.blocks if needs.skips else self.embeddings.blocks[-1:])
        self.token_side = self.tile_px // int(self.embeddings.patch_px)
        self.channels = list(self.embeddings.attributes["channel_indices"])
        self._table: PixelTable | None = None

    @property
    def geometry(self) -> Geometry:
        """What the decoder is fed, as the embeddings record it; see :func:`token_record`."""
        return Geometry(
            token_width=int(self.embeddings.width),
            patch_px=int(self.embeddings.patch_px),
            image_channels=len(self.channels),
            blocks=self.blocks,
            encoder_record=token_record(self.embeddings.attributes),
            statistics=self.embeddings.attributes["statistics"],
        )

    @property
    def has_symmetries(self) -> bool:
        """Whether tokens of flipped and turned patches are stored."""
        return self.embeddings.has_symmetries

    def bytes_each(self, symmetries: bool = False) -> int:
        """Memory that one patch takes when held; with ``symmetries``, with the tokens of all its flips and turns."""
        size = len(self.blocks) * self.token_side**2 * int(self.embeddings.width) * 2
        size *= N_SYMMETRIES if symmetries else 1
        return size + self._target_bytes + (self._pixel_bytes if self.needs.image else 0)

    def inputs(self, indices: NDArray[np.intp], symmetries: NDArray[np.uint8] | None = None) -> Arrays:
        """What the decoder reads, of some patches.

        Parameters
        ----------
        indices : (k,) int array
            Patches.
        symmetries : (k,) uint8 array, optional
            Tokens are those of patches flipped and turned so; all else is left as it lies.

        Returns
        -------
        dict of str to array
            ``tokens_<block>`` (k, h, w, d) float16, ``image`` (k, p, p, c) float32 when it is needed, and ``valid``
            (k, p, p) bool: what lies on the slide.
        """
        if symmetries is None:
            parts = self._tokens(indices, 0)
        else:
            parts = {}
            for symmetry in np.unique(symmetries).tolist():
                here = np.flatnonzero(symmetries == symmetry)
                for name, values in self._tokens(indices[here], symmetry).items():
                    if name not in parts:
                        parts[name] = np.empty((len(indices), *values.shape[1:]), values.dtype)
                    parts[name][here] = values
        if self.needs.image:
            pixels = self._held["pixels"][indices] if self._held else self._read_pixels(indices)
            parts["image"] = self._normalised(pixels)
        return parts | {"valid": self.patches.valid(indices)}

    def _tokens(self, indices: NDArray[np.intp], symmetry: int) -> Arrays:
        """Tokens of some patches, all flipped and turned alike, from memory where they are held."""
        found: Arrays = {}
        for block in self.blocks:
            held = self._held.get(_held_name(block, symmetry)) if self._held else None
            found[f"tokens_{block}"] = (
                held[indices] if held is not None else self.embeddings.tokens(block, indices, symmetry)
            )
        return found

    def _to_hold(self, indices: NDArray[np.intp], symmetries: bool) -> Arrays:
        parts: Arrays = {
            _held_name(block, symmetry): self.embeddings.tokens(block, indices, symmetry)
            for block in self.blocks
            for symmetry in range(N_SYMMETRIES if symmetries else 1)
        }
        return parts | ({"pixels": self._read_pixels(indices)} if self.needs.image else {})

    def _normalised(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        if self._table is None:
            self._table = pixel_table(self.embeddings, pixels.dtype)
        return self._table(pixels)


def _held_name(block: int, symmetry: int) -> str:
    return f"tokens_{block}_s{symmetry}"


def open_slides(slides: Sequence[SlideData], needs: Needs, role: str) -> list[AnnotatedSlide]:
    """Open the slides that have all their stores and at least one patch; tell which have not.

    Parameters
    ----------
    slides : sequence of SlideData
        Wanted.
    needs : Needs
        What is to be read.
    role : str
        For the log.

    Returns
    -------
    list of AnnotatedSlide
        :class:`StoredSlide`, or :class:`~slideloom.training.raw.RawSlide` where no embeddings are named.
    """
    opened: list[AnnotatedSlide] = []
    cache = TileCache()
    left_out: list[str] = []
    for data in slides:
        if missing := data.missing():
            left_out.append(f"{data.slide_id} (no {', '.join(missing)})")
            continue
        slide = RawSlide(data, needs) if data.embeddings is None else StoredSlide(data, needs, cache)
        if slide.n:
            opened.append(slide)
        else:
            left_out.append(f"{data.slide_id} (no patches)")
    if left_out:
        _LOG.warning("%d of %d %s slides are left out: %s", len(left_out), len(slides), role, "; ".join(left_out))
    return opened

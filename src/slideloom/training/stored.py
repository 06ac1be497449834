"""One slide's patches, targets and embeddings as a decoder is fed them, from disk or held in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import Head
from slideloom.encoders.fused import TokenReader, open_tokens, token_record
from slideloom.encoders.lattice import TileCache
from slideloom.errors import SlideloomError
from slideloom.patches.store import PatchStore
from slideloom.patches.target_store import TargetStore
from slideloom.training.terms import UNKNOWN_CLASS

__all__ = ["Arrays", "Needs", "PixelTable", "SlideData", "StoredSlide", "open_slides", "pixel_table"]

_LOG = logging.getLogger(__name__)
_READ_PATCHES = 32
Arrays = dict[str, NDArray[Any]]
Normalise = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class SlideData:
    """Where one slide's artefacts lie.

    Attributes
    ----------
    slide_id : str
        The slide.
    patches, targets, embeddings : Path
        Its Zarr stores.
    fused : tuple of (Path, Path)
        Patches and embeddings of every further encoder, whose tokens of the same place are joined to the first one's.
    """

    slide_id: str
    patches: Path
    targets: Path
    embeddings: Path
    fused: tuple[tuple[Path, Path], ...] = ()

    def missing(self) -> list[str]:
        """Kinds of stores that are not there."""
        places = {"patches": [self.patches], "targets": [self.targets], "embeddings": [self.embeddings]}
        if self.fused:
            places["patches of a further encoder"] = [patches for patches, _ in self.fused]
            places["embeddings of a further encoder"] = [embeddings for _, embeddings in self.fused]
        return [name for name, paths in places.items() if not all((path / "zarr.json").is_file() for path in paths)]


@dataclass(frozen=True)
class Needs:
    """What a decoder reads.

    Attributes
    ----------
    heads : tuple of str
        Heads that need a target.
    skips : bool
        Whether it reads the tokens of every stored block, or of the deepest only.
    image : bool
        Whether it reads the image.
    n_classes : int
        Classes including background; a target above is refused.
    """

    heads: tuple[Head, ...]
    skips: bool
    image: bool
    n_classes: int


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


class StoredSlide:
    """A slide that can be trained on.

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

    def __init__(self, data: SlideData, needs: Needs, cache: TileCache | None = None) -> None:
        self.slide_id = data.slide_id
        self.needs = needs
        self.patches = PatchStore(data.patches)
        self.embeddings = open_tokens(data.embeddings, self.patches, data.fused, cache)
        self._targets = TargetStore(data.targets)
        self.n = int(self.patches.n)
        self.tile_px = int(self.patches.tile_px)
        sizes = {"patches": self.n, "targets": int(self._targets.n), "embeddings": int(self.embeddings.n)}
        if len(set(sizes.values())) > 1:
            raise SlideloomError(
                f"its stores hold {sizes} patches",
                where=data.slide_id,
                expected="the same number in each",
                hint="Remove the slide's patches and run again",
                code="store_mismatch",
            )
        self.blocks: tuple[int, ...] = tuple(self.embeddings.blocks if needs.skips else self.embeddings.blocks[-1:])
        self.token_side = self.tile_px // int(self.embeddings.patch_px)
        self.channels: list[int] = list(self.embeddings.attributes["channel_indices"])
        self._table: PixelTable | None = None
        self._held: Arrays | None = None

    @property
    def encoder(self) -> dict[str, Any]:
        """Which encoder the tokens come from, as the embeddings record it; see :func:`token_record`."""
        return token_record(self.embeddings.attributes)

    @property
    def patch_bytes(self) -> int:
        """Memory that one patch takes when held."""
        area = self.tile_px**2
        size = len(self.blocks) * self.token_side**2 * int(self.embeddings.width) * 2
        size += area * len(self.channels) * self.patches.dtype.itemsize if self.needs.image else 0
        return size + area * sum({"nucleus": 1, "classes": 1, "hv": 2, "boundary": 1}[head] for head in self._wanted)

    @property
    def _wanted(self) -> tuple[Head, ...]:
        """Targets to read; the HV loss looks at the nuclei, too."""
        return tuple(dict.fromkeys(("nucleus", *self.needs.heads)))

    def hold(self) -> int:
        """Read everything once and keep it in memory; the bytes that it takes."""
        held: Arrays = {}
        for indices in _runs(self.n):
            part = self._read_inputs(indices) | self._read_targets(indices)
            for name, values in part.items():
                if name not in held:
                    held[name] = np.empty((self.n, *values.shape[1:]), values.dtype)
                held[name][indices] = values
        self._held = held
        return sum(values.nbytes for values in held.values())

    def inputs(self, indices: NDArray[np.intp]) -> Arrays:
        """What the decoder reads, of some patches.

        Parameters
        ----------
        indices : (k,) int array
            Patches.

        Returns
        -------
        dict of str to array
            ``tokens_<block>`` (k, h, w, d) float16, ``image`` (k, p, p, c) float32 when it is needed, and ``valid``
            (k, p, p) bool: what lies on the slide.
        """
        parts = self._pick(indices, ("tokens_", "pixels")) if self._held else self._read_inputs(indices)
        if "pixels" in parts:
            parts["image"] = self._normalised(parts.pop("pixels"))
        return parts | {"valid": self.patches.valid(indices)}

    def targets(self, indices: NDArray[np.intp]) -> Arrays:
        """What the decoder should say, of some patches.

        Parameters
        ----------
        indices : (k,) int array
            Patches.

        Returns
        -------
        dict of str to array
            ``nucleus`` (k, p, p) uint8, 1 inside nuclei; for the heads there are, ``classes`` (k, p, p) uint8, ``hv``
            (k, 2, p, p) int8, ``boundary`` (k, p, p) uint8; and ``valid`` (k, p, p) bool.
        """
        parts = self._pick(indices, self._wanted) if self._held else self._read_targets(indices)
        return parts | {"valid": self.patches.valid(indices)}

    def class_pixels(self) -> NDArray[np.int64]:
        """Pixels of each class on the slide, background first, unknown ones left out; (n_classes,)."""
        counts = np.zeros(256, np.int64)
        for indices in _runs(self.n):
            parts = self.targets(indices)
            counts += np.bincount(parts["classes"][parts["valid"]], minlength=256)
        return counts[: self.needs.n_classes]

    def _pick(self, indices: NDArray[np.intp], names: Sequence[str]) -> Arrays:
        assert self._held is not None
        return {name: values[indices] for name, values in self._held.items() if name.startswith(tuple(names))}

    def _normalised(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        if self._table is None:
            self._table = pixel_table(self.embeddings, pixels.dtype)
        return self._table(pixels)

    def _read_inputs(self, indices: NDArray[np.intp]) -> Arrays:
        parts: Arrays = {f"tokens_{block}": self.embeddings.tokens(block, indices) for block in self.blocks}
        if self.needs.image:
            pixels = self.patches.pixels(indices)
            every = self.channels == list(range(pixels.shape[1]))
            parts["pixels"] = pixels if every else pixels[:, self.channels]
        return parts

    def _read_targets(self, indices: NDArray[np.intp]) -> Arrays:
        names = tuple("instances" if head == "nucleus" else head for head in self._wanted)
        stored = self._targets.read(indices, names)
        stored["nucleus"] = (stored["instances"] > 0).astype(np.uint8)
        if "classes" in self._wanted:
            classes = stored["classes"]
            beyond = (classes >= self.needs.n_classes) & (classes != UNKNOWN_CLASS)
            if beyond.any():
                raise SlideloomError(
                    f"class {int(classes[beyond].max())} in the targets",
                    where=self.slide_id,
                    expected=f"0 to {self.needs.n_classes - 1}, or {UNKNOWN_CLASS} for unknown",
                    hint="Remove the slide's targets and run again",
                    code="unknown_class",
                )
        return {name: stored[name] for name in self._wanted}


def _runs(count: int) -> Iterator[NDArray[np.intp]]:
    for start in range(0, count, _READ_PATCHES):
        yield np.arange(start, min(count, start + _READ_PATCHES))


def open_slides(slides: Sequence[SlideData], needs: Needs, role: str) -> list[StoredSlide]:
    """Open the slides that have all their stores and at least one patch; tell which have not.

    Parameters
    ----------
    slides : sequence of SlideData
        Wanted.
    needs : Needs
        What is to be read.
    role : str
        For the log.
    """
    opened: list[StoredSlide] = []
    cache = TileCache()
    left_out: list[str] = []
    for data in slides:
        if missing := data.missing():
            left_out.append(f"{data.slide_id} (no {', '.join(missing)})")
            continue
        slide = StoredSlide(data, needs, cache)
        if slide.n:
            opened.append(slide)
        else:
            left_out.append(f"{data.slide_id} (no patches)")
    if left_out:
        _LOG.warning("%d of %d %s slides are left out: %s", len(left_out), len(slides), role, "; ".join(left_out))
    return opened

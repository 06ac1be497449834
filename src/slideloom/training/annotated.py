"""One slide's annotated patches, from disk or held in memory, whatever the decoder is fed of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.config.model import Head
from slideloom.errors import SlideloomError
from slideloom.patches.store import PatchStore
from slideloom.patches.target_store import CellTargetStore, TargetStore
from slideloom.training.distance_targets import instance_distance
from slideloom.training.terms import UNKNOWN_CLASS

__all__ = ["AnnotatedSlide", "Arrays", "Geometry", "Needs", "SlideData"]

#: Of a pixel of a slide whose whole cells nobody annotated, in the place of a cell's id.
_UNANNOTATED = -1

_READ_PATCHES = 32
#: What a head's loss looks at, besides the nuclei; and the bytes a pixel that each takes when held.
_TARGETS: dict[Head, tuple[str, ...]] = {
    "nucleus": (),
    "classes": ("classes",),
    "hv": ("hv",),
    "boundary": ("boundary",),
    "three_class": ("boundary",),
    "distance": ("instances",),
    "instanseg": ("instances",),
    "instanseg_cells": ("cells",),
}
_TARGET_BYTES = {"nucleus": 1, "classes": 1, "hv": 2, "boundary": 1, "instances": 4, "cells": 4}
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SlideData:
    """Where one slide's artefacts lie.

    Attributes
    ----------
    slide_id : str
        The slide.
    patches, targets : Path
        Its Zarr stores.
    embeddings : Path, optional
        The store of its tokens; None: patches are encoded as they are needed.
    fused : tuple of (Path, Path)
        Patches and embeddings of every further encoder, whose tokens of the same place are joined to the first one's.
    cells : Path, optional
        The store of its annotated whole cells, for the head that learns them; None: nobody annotated them.
    """

    slide_id: str
    patches: Path
    targets: Path
    embeddings: Path | None = None
    fused: tuple[tuple[Path, Path], ...] = ()
    cells: Path | None = None

    def missing(self) -> list[str]:
        """Kinds of stores that are not there."""
        places = {"patches": [self.patches], "targets": [self.targets]}
        if self.embeddings is not None:
            places["embeddings"] = [self.embeddings]
        if self.cells is not None:
            places["targets of cells"] = [self.cells]
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


class Geometry(NamedTuple):
    """What a decoder is built for, and its file tells, of what it is fed.

    Attributes
    ----------
    token_width, patch_px, image_channels : int
        Length of a token, its side in pixels, channels of the image.
    blocks : tuple of int
        Encoder blocks whose tokens are given, shallow to deep.
    encoder_record : dict
        The encoder, as :func:`slideloom.encoders.base.encoder_record` and embeddings tell it.
    statistics : dict or None
        What channels are normalised with; None for RGB, and of several slides that have their own.
    """

    token_width: int
    patch_px: int
    image_channels: int
    blocks: tuple[int, ...]
    encoder_record: dict[str, Any]
    statistics: dict[str, Any] | None


class AnnotatedSlide(ABC):
    """Patches and targets of a slide that can be trained on; what the decoder is fed is a matter of the kinds.

    Parameters
    ----------
    data : SlideData
        Its stores.
    needs : Needs
        What is to be read.

    Attributes
    ----------
    slide_id : str
        The slide.
    n, tile_px : int
        Number of patches, and their side.
    input : {"tokens", "pixels"}
        What it gives.
    channels : list of int
        Which channels of the patches are read, in order.
    """

    input: Literal["tokens", "pixels"]

    def __init__(self, data: SlideData, needs: Needs) -> None:
        self.slide_id = data.slide_id
        self.needs = needs
        self._data = data
        self.patches = PatchStore(data.patches)
        self._targets = TargetStore(data.targets)
        self._cells = CellTargetStore(data.cells) if data.cells is not None and "cells" in self._wanted else None
        self.n = int(self.patches.n)
        self.tile_px = int(self.patches.tile_px)
        self.channels: list[int] = list(range(len(self.patches.channels)))
        self._held: Arrays | None = None

    def _check_sizes(self, **sizes: int) -> None:
        sizes = {"patches": self.n, "targets": int(self._targets.n)} | sizes
        if self._cells is not None:
            sizes["cells"] = int(self._cells.n)
        if len(set(sizes.values())) > 1:
            odd = next(name for name, size in sizes.items() if size != self.n)
            places = {"targets": self._data.targets, "cells": self._data.cells}
            raise BrokenArtefactError(
                f"its stores hold {sizes} patches",
                place=places.get(odd) or self._data.embeddings or self.patches.path,
                where=self.slide_id,
                expected="the same number in each",
                code="store_mismatch",
            )

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """What the decoder is fed."""

    @property
    def has_symmetries(self) -> bool:
        """Whether tokens of flipped and turned patches are stored."""
        return False

    @property
    def has_cells(self) -> bool:
        """Whether its whole cells are annotated and wanted."""
        return self._cells is not None

    @abstractmethod
    def bytes_each(self, symmetries: bool = False) -> int:
        """Memory that one patch takes when held; with ``symmetries``, with the tokens of all its flips and turns."""

    @property
    def _target_bytes(self) -> int:
        return self.tile_px**2 * sum(_TARGET_BYTES[name] for name in self._wanted)

    @property
    def _pixel_bytes(self) -> int:
        return self.tile_px**2 * len(self.channels) * self.patches.dtype.itemsize

    @property
    def _wanted(self) -> tuple[str, ...]:
        """Targets to read; the HV loss looks at the nuclei, too."""
        return tuple(dict.fromkeys(("nucleus", *(name for head in self.needs.heads for name in _TARGETS[head]))))

    def hold(self, symmetries: bool = False) -> int:
        """Read everything once and keep it in memory; the bytes that it takes.

        Parameters
        ----------
        symmetries : bool
            Also the tokens of flipped and turned patches.
        """
        held: Arrays = {}
        for indices in _runs(self.n):
            part = self._to_hold(indices, symmetries) | self._read_targets(indices)
            for name, values in part.items():
                if name not in held:
                    held[name] = np.empty((self.n, *values.shape[1:]), values.dtype)
                held[name][indices] = values
        self._held = held
        return sum(values.nbytes for values in held.values())

    @abstractmethod
    def _to_hold(self, indices: NDArray[np.intp], symmetries: bool) -> Arrays:
        """What is kept of some patches, besides targets."""

    @abstractmethod
    def inputs(self, indices: NDArray[np.intp], symmetries: NDArray[np.uint8] | None = None) -> Arrays:
        """What the decoder reads, of some patches, and ``valid`` (k, p, p) bool: what lies on the slide.

        Parameters
        ----------
        indices : (k,) int array
            Patches.
        symmetries : (k,) uint8 array, optional
            Tokens are those of patches flipped and turned so; all else is left as it lies.
        """

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
            (k, 2, p, p) int8, ``boundary`` (k, p, p) uint8, ``instances`` (k, p, p) int32, ``distance`` (k, p, p)
            float32; ``cells`` (k, p, p) int32, -1 where nobody annotated whole cells, ``cell_distance`` (k, p, p)
            float32; and ``valid`` (k, p, p) bool.
        """
        parts = self._pick(indices, self._wanted) if self._held else self._read_targets(indices)
        if "instances" in parts:
            parts["distance"] = instance_distance(parts["instances"])
        if "cells" in parts:
            parts["cell_distance"] = instance_distance(parts["cells"])
        return parts | {"valid": self.patches.valid(indices)}

    def class_pixels(self) -> NDArray[np.int64]:
        """Pixels of each class on the slide, background first, unknown ones left out; (n_classes,)."""
        counts = np.zeros(256, np.int64)
        for indices in _runs(self.n):
            parts = self.targets(indices)
            counts += np.bincount(parts["classes"][parts["valid"]], minlength=256)
        return counts[: self.needs.n_classes]

    def census(self) -> tuple[NDArray[np.bool_], int]:
        """Whose pixels each patch shows, and how many nuclei the patches show together.

        Returns
        -------
        presence : (n, n_classes - 1) bool array
            Whether a pixel of a nucleus of class 1, 2, … lies in the patch, on the slide.
        n_nuclei : int
            Nuclei of which some pixel does; one in several patches counts once.
        """
        n_classes = self.needs.n_classes
        presence = np.zeros((self.n, 256), np.bool_)
        seen: list[NDArray[np.int32]] = []
        for indices in _runs(self.n):
            stored = self._targets.read(indices, ("instances", "classes") if n_classes > 1 else ("instances",))
            ids = stored["instances"]
            # Where a nucleus or its class begins along a row: all that there is, in a small part of the pixels.
            news = np.ones(ids.shape, np.bool_)
            np.not_equal(ids[..., 1:], ids[..., :-1], out=news[..., 1:])
            if n_classes > 1:
                classes = stored["classes"]
                news[..., 1:] |= classes[..., 1:] != classes[..., :-1]
            news &= ids != 0
            places = np.flatnonzero(news & self.patches.valid(indices))
            seen.append(np.unique(ids.reshape(-1)[places]))
            if n_classes > 1:
                presence[indices[places // self.tile_px**2], classes.reshape(-1)[places]] = True
        nuclei = np.unique(np.concatenate(seen)) if seen else np.empty(0, np.int32)
        return presence[:, 1:n_classes], int(nuclei.size)

    def _pick(self, indices: NDArray[np.intp], names: Sequence[str]) -> Arrays:
        assert self._held is not None
        return {name: self._held[name][indices] for name in names}

    def _read_pixels(self, indices: NDArray[np.intp]) -> NDArray[Any]:
        pixels = self.patches.pixels(indices)
        every = self.channels == list(range(pixels.shape[1]))
        return pixels if every else pixels[:, self.channels]

    def _read_targets(self, indices: NDArray[np.intp]) -> Arrays:
        names = tuple(
            dict.fromkeys("instances" if name == "nucleus" else name for name in self._wanted if name != "cells")
        )
        stored = self._targets.read(indices, names)
        if self._cells is not None:
            stored["cells"] = self._cells.read(indices, ("instances",))["instances"]
        elif "cells" in self._wanted:
            stored["cells"] = np.full((len(indices), self.tile_px, self.tile_px), _UNANNOTATED, np.int32)
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

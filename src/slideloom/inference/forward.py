"""Tiles through the networks: encoded where they must be, decoded, in every pose, in batches that fit the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from slideloom.decoders.base import Decoder
from slideloom.decoders.cellvit import expand_blocks
from slideloom.encoders.dihedral import transform
from slideloom.inference.account import is_gpu
from slideloom.inference.layout import MapLayout
from slideloom.inference.tiles import Inputs, TileSource

__all__ = ["POSES", "BatchSize", "Networks", "Symmetries", "is_out_of_memory"]

_LOG = logging.getLogger(__name__)
Symmetries = Literal["none", "flips", "turns", "all"]
#: Poses by the config's name, as :mod:`slideloom.encoders.dihedral` numbers them; mirrored both ways is half turned.
POSES: dict[Symmetries, tuple[int, ...]] = {
    "none": (0,),
    "flips": (0, 2, 4, 6),
    "turns": (0, 1, 2, 3),
    "all": tuple(range(8)),
}
#: Batches of ``auto``: on a CPU; the first and the largest on a GPU, and by how much one may outgrow the last.
_CPU_TILES, _FIRST_TILES, _MOST_TILES, _GROWTH = 16, 8, 256, 4
#: Share of the free memory that a batch may take.
_SHARE = 0.8
#: How a CPU's allocator, and a GPU's libraries, say that there is no memory left.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a batch did not fit into memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


class BatchSize:
    """How many tiles go through the networks together.

    Parameters
    ----------
    wanted : int or "auto"
        ``auto``: 16 on a CPU; on a GPU it grows, in powers of two up to 256, as far as 80 % of the memory that is free
        would hold it, going by what the batches before took.
    device : device
        Where they are computed.

    Attributes
    ----------
    now : int
        Tiles of the next batch.
    """

    def __init__(self, wanted: int | Literal["auto"], device: torch.device) -> None:
        self._grows = wanted == "auto" and is_gpu(device)
        self._device = device
        self._base = 0
        self._each = 0.0
        self.now = wanted if wanted != "auto" else _FIRST_TILES if self._grows else _CPU_TILES

    def halve(self) -> bool:
        """Take fewer from now on; False where one tile is too many."""
        self._grows = False
        if self.now == 1:
            return False
        self.now //= 2
        _LOG.warning("memory ran out; %d tiles a batch from here on", self.now)
        return True

    def begin(self) -> None:
        """A batch of the present size begins."""
        if self._grows:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base = torch.cuda.memory_allocated(self._device)

    def end(self) -> None:
        """It went through."""
        if self._grows:
            self._each = (torch.cuda.max_memory_allocated(self._device) - self._base) / self.now

    def grow(self) -> None:
        """Settle the next batch's size; what else needs memory has it by now."""
        if not self._grows or not self._each:
            return
        free, _ = torch.cuda.mem_get_info(self._device)
        free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        self.now = self.fitting(free)
        self._each = 0.0
        if self.now == _MOST_TILES:
            self._grows = False

    def fitting(self, free_bytes: int) -> int:
        """The largest power of two that fits, no less than now and no more than four times that."""
        most = min(_MOST_TILES, _GROWTH * self.now, max(self.now, int(_SHARE * free_bytes / max(1.0, self._each))))
        return int(1 << (most.bit_length() - 1))


class Networks:
    """A decoder, and before it the encoder of tiles that are not stored.

    Parameters
    ----------
    decoder : Decoder
        In evaluation mode; moved to ``device`` and to channels-last here.
    device : device
        Where it runs.
    precision : {"fp32", "bf16"}
        Arithmetic.
    compile : bool
        Compile the decoder; where that cannot be done, a warning says so and it runs as it is.
    symmetries : {"none", "flips", "turns", "all"}
        Poses whose predictions are averaged.
    """

    def __init__(
        self,
        decoder: Decoder,
        device: torch.device,
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
        symmetries: Symmetries = "none",
    ) -> None:
        self.decoder: Decoder = decoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layout = MapLayout(decoder.heads, decoder.n_classes)
        self.poses = POSES[symmetries]
        self._device, self._half = device, precision == "bf16"
        self._compiled: Callable[..., dict[str, Tensor]] | None = None
        if compile:
            self._compiled = torch.compile(self.decoder, dynamic=False)

    def __call__(self, source: TileSource, inputs: Inputs) -> Tensor:
        """Predict a batch.

        Parameters
        ----------
        source : TileSource
            Of the kind of its tiles.
        inputs : Inputs
            As :func:`~slideloom.inference.tiles.joined` makes them.

        Returns
        -------
        Tensor
            (n, channels, p, p) float32, see :meth:`~slideloom.inference.layout.MapLayout.join`: the mean of all poses.
        """
        first, *others = self.poses
        total = self._in_pose(source, inputs, first)
        for pose in others:
            total.add_(self._in_pose(source, inputs, pose))
        return total.div_(len(self.poses)) if others else total

    def _in_pose(self, source: TileSource, inputs: Inputs, pose: int) -> Tensor:
        size = (source.tile_px, source.tile_px)
        with torch.autocast(self._device.type, torch.bfloat16, self._half):
            tokens = [level.float() for level in source.levels(inputs, pose)]
            image = inputs.images
            if image is not None:
                image = transform(image, pose).contiguous(memory_format=torch.channels_last)
            values = self.layout.join(self._decode(expand_blocks(tokens), image, size))
        return self.layout.turn_back(values, pose)

    def _decode(self, tokens: list[Tensor], image: Tensor | None, size: tuple[int, int]) -> dict[str, Tensor]:
        if self._compiled is not None:
            try:
                return self._compiled(tokens, image, size)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = str(error).strip().split("\n", 1)[0]
                _LOG.warning("the decoder cannot be compiled here and runs as it is: %s", reason)
                self._compiled = None
        outputs: dict[str, Tensor] = self.decoder(tokens, image, size)
        return outputs

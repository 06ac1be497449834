"""The patch store as its readers see it: the pixels of every tile of a slide, read when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import check_array, check_attributes, open_array, read_attributes
from slideloom.config.model import Modality
from slideloom.slides.tables import Channel

if TYPE_CHECKING:
    import shapely

__all__ = ["PATCH_SCHEMA", "Indices", "PatchStore", "read_rows", "rows_per_shard"]

#: Version of the store.
PATCH_SCHEMA = 1
_KEYS = (
    "slide_id", "image", "is_rgb", "channels", "scale", "mpp_um", "height_px", "width_px", "tile_px", "stride_px"
)  # fmt: skip

Indices = NDArray[np.integer[Any]] | Sequence[int] | slice


class PatchStore:
    """Patches of a slide on disk; pixels are read when asked for.

    Parameters
    ----------
    path : Path
        Zarr group that :func:`cut_patches` wrote.

    Attributes
    ----------
    attributes : dict
        Everything recorded of the store.

    Raises
    ------
    BrokenArtefactError
        ``missing_artefact``, ``store_damaged``; ``artefact_schema``: no patch store, or one of another version.
        ``store_mismatch``, when pixels are read: they are not as the attributes say.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes = read_attributes(path)
        attributes = self.attributes
        check_attributes(path, attributes, "patches", PATCH_SCHEMA, _KEYS)
        self.slide_id: str = attributes["slide_id"]
        self.image: Modality = attributes["image"]
        self.is_rgb: bool = attributes["is_rgb"]
        self.channels = [Channel.from_dict(channel) for channel in attributes["channels"]]
        self.scale: float = attributes["scale"]
        self.mpp_um: float = attributes["mpp_um"]
        self.height_px: int = attributes["height_px"]
        self.width_px: int = attributes["width_px"]
        self.tile_px: int = attributes["tile_px"]
        self.stride_px: int = attributes["stride_px"]

    def __repr__(self) -> str:
        return f"<PatchStore {self.slide_id} {self.image} {self.n} x {len(self.channels)} x {self.tile_px} px>"

    @cached_property
    def _pixels(self) -> ts.TensorStore:
        place, side = self.path / "pixels", self.tile_px
        return check_array(open_array(place), place, (None, len(self.channels), side, side))

    def _column(self, name: str) -> NDArray[Any]:
        place = self.path / name
        column: NDArray[Any] = check_array(open_array(place), place, (None,)).read().result()
        return column

    @property
    def n(self) -> int:
        """Number of patches."""
        return int(self._pixels.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type, that of the source."""
        return np.dtype(self._pixels.dtype.numpy_dtype)

    @cached_property
    def row(self) -> NDArray[np.int32]:
        """Row of each tile in the grid, (n,)."""
        return self._column("row")

    @cached_property
    def col(self) -> NDArray[np.int32]:
        """Column of each tile in the grid, (n,)."""
        return self._column("col")

    @cached_property
    def y_px(self) -> NDArray[np.int32]:
        """First pixel row of each tile, grid pixels, (n,)."""
        return self._column("y_px")

    @cached_property
    def x_px(self) -> NDArray[np.int32]:
        """First pixel column of each tile, grid pixels, (n,)."""
        return self._column("x_px")

    @cached_property
    def y_lv0_px(self) -> NDArray[np.float64]:
        """Upper edge of each tile, level-0 pixels, (n,)."""
        return self._column("y_lv0_px")

    @cached_property
    def x_lv0_px(self) -> NDArray[np.float64]:
        """Left edge of each tile, level-0 pixels, (n,)."""
        return self._column("x_lv0_px")

    @cached_property
    def tissue(self) -> NDArray[np.float32]:
        """Share of tissue of each tile, (n,)."""
        return self._column("tissue")

    @cached_property
    def height_valid(self) -> NDArray[np.int32]:
        """Pixel rows of each tile that lie on the slide, (n,)."""
        return self._column("height_valid")

    @cached_property
    def width_valid(self) -> NDArray[np.int32]:
        """Pixel columns of each tile that lie on the slide, (n,)."""
        return self._column("width_valid")

    @cached_property
    def outline(self) -> shapely.Geometry:
        """The slide's tissue, (x, y) in grid pixels."""
        import shapely

        return shapely.from_wkb(self._column("outline").tobytes())

    def pixels(self, indices: Indices) -> NDArray[Any]:
        """Pixels of some patches.

        Parameters
        ----------
        indices : sequence of int, integer array or slice
            Which; in any order, also more than once.

        Returns
        -------
        (k, c, p, p) array
            In the source's dtype; padding is 255 for H&E, 0 otherwise.
        """
        return read_rows(self._pixels, indices)

    def valid(self, indices: Indices) -> NDArray[np.bool_]:
        """Where patches lie on the slide: (k, p, p), False in the padding."""
        side = np.arange(self.tile_px)
        picked = indices if isinstance(indices, slice) else np.asarray(indices, np.int64).reshape(-1)
        rows = side < self.height_valid[picked][:, None]
        columns = side < self.width_valid[picked][:, None]
        mask: NDArray[np.bool_] = rows[:, :, None] & columns[:, None, :]
        return mask


def rows_per_shard(array: ts.TensorStore) -> int:
    """Entries along the first axis that one shard holds."""
    shape = array.chunk_layout.write_chunk.shape
    if shape is None or shape[0] is None:
        raise ValueError("the array is not chunked")
    return int(shape[0])


def read_rows(array: ts.TensorStore, indices: Indices) -> NDArray[Any]:
    """Entries of an array along its first axis, as a contiguous NumPy array, each stored chunk read once."""
    count = int(array.shape[0])
    if isinstance(indices, slice):
        start, stop, step = indices.indices(count)
        if step == 1:
            data: NDArray[Any] = array[start : max(start, stop)].read().result()
            return data
        indices = np.arange(start, stop, step)
    wanted = np.asarray(indices, np.int64).reshape(-1)
    if not wanted.size:
        return np.empty((0, *array.shape[1:]), array.dtype.numpy_dtype)
    if wanted.min() < -count or wanted.max() >= count:
        raise IndexError(f"index {wanted.min()} to {wanted.max()} of {count} entries")
    wanted = np.where(wanted < 0, wanted + count, wanted)
    if wanted.size == 1 or (np.diff(wanted) == 1).all():
        data = array[int(wanted[0]) : int(wanted[-1]) + 1].read().result()
        return data
    data = array[wanted].read().result()
    return np.ascontiguousarray(data)

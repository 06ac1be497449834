"""What a slide's channels show while they are cut: values that are no numbers, channels that say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slideloom.config.texts import quoted
from slideloom.errors import SlideError
from slideloom.slides.grid import TileGrid
from slideloom.slides.outlines import pixels_inside
from slideloom.slides.tables import Channel

if TYPE_CHECKING:
    import shapely

__all__ = ["ChannelWatch"]

#: Share of a channel's pixels at the type's largest value from which on it is called saturated.
_SATURATED = 0.01
_SHOWN = 8


class ChannelWatch:
    """Looks at every pixel of the tiles that are cut, each once.

    Parameters
    ----------
    channels : sequence of Channel
        Of the image.
    dtype : dtype
        Of its pixels.
    where : str
        Slide and image; for messages.
    tiles : TileGrid
        Where the tiles lie.
    share : (n,) float32 array
        Share of tissue of each.
    outline : shapely.Geometry
        The tissue, (x, y) in grid pixels.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        dtype: np.dtype[Any],
        where: str,
        tiles: TileGrid,
        share: NDArray[np.float32],
        outline: shapely.Geometry,
    ) -> None:
        self._names = [channel.name for channel in channels]
        self._where = where
        self._tiles, self._share, self._outline = tiles, share, outline
        self._least: list[float] = [np.inf] * len(self._names)
        self._most: list[float] = [-np.inf] * len(self._names)
        self._top = np.iinfo(dtype).max if dtype in (np.uint8, np.uint16) else None
        self._at_top = np.zeros(len(self._names), np.int64)
        self._seen = self._not_finite = 0

    def add(self, patches: NDArray[Any], numbers: NDArray[np.integer[Any]]) -> None:
        """Look at some tiles.

        Parameters
        ----------
        patches : (k, c, p, p) array
            Tiles.
        numbers : (k,) integer array
            Which tiles of the grid they are.

        Raises
        ------
        SlideError
            ``non_finite_pixels``: NaN or infinity in tissue, as statistics count it; anywhere, where no tile shows
            tissue.
        """
        for tile, number in zip(patches, numbers.tolist(), strict=True):
            # What lies on the slide, one row a channel: a view where the tile is whole.
            inside = tile[:, : self._tiles.height_valid[number], : self._tiles.width_valid[number]]
            pixels = inside.reshape(len(tile), -1)
            least, most = pixels.min(axis=1), pixels.max(axis=1)
            if self._top is not None:
                for index in np.flatnonzero(most == self._top):
                    self._at_top[index] += np.count_nonzero(pixels[index] == self._top)
            elif not (np.isfinite(least).all() and np.isfinite(most).all()):
                self._refuse_in_tissue(inside, number)
                finite = np.where(np.isfinite(pixels), pixels, np.nan)
                least, most = np.fmin.reduce(finite, axis=1), np.fmax.reduce(finite, axis=1)
                self._not_finite += 1
            # Of a NaN neither is taken.
            self._least = [min(a, float(b)) for a, b in zip(self._least, least, strict=True)]
            self._most = [max(a, float(b)) for a, b in zip(self._most, most, strict=True)]
            self._seen += pixels.shape[1]

    def warnings(self) -> tuple[str, ...]:
        """What a person should know of the channels seen so far."""
        found = []
        flat = [
            f"{quoted(name)} ({least:g})"
            for name, least, most in zip(self._names, self._least, self._most, strict=True)
            if least == most
        ]
        if flat:
            found.append(f"one value everywhere in channel {_listed(flat)}")
        if self._not_finite:
            found.append(f"NaN or infinite pixels outside the tissue in {self._not_finite} tiles")
        share = self._at_top / max(self._seen, 1)
        full = [
            f"{quoted(name)} ({part:.0%})"
            for name, part, least, most in zip(self._names, share, self._least, self._most, strict=True)
            if part >= _SATURATED and least < most
        ]
        if full:
            found.append(f"pixels at the largest value that their type holds, {self._top}, in channel {_listed(full)}")
        return tuple(found)

    def _refuse_in_tissue(self, pixels: NDArray[Any], number: int) -> None:
        _, height, width = pixels.shape
        bad = ~np.isfinite(pixels)
        share = float(self._share[number])
        if share < 1 and bool((self._share > 0).any()):
            y, x = int(self._tiles.y_px[number]), int(self._tiles.x_px[number])
            bad &= pixels_inside(self._outline, y, x, self._tiles.tile_px)[:height, :width]
        channels = np.flatnonzero(bad.any(axis=(1, 2)))
        if channels.size:
            raise SlideError(
                f"NaN or infinite pixels in channel {_listed([quoted(self._names[index]) for index in channels])}",
                where=self._where,
                expected="finite numbers wherever there is tissue",
                hint="Replace them in the image, or save it without the channel",
                code="non_finite_pixels",
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", … ({len(names)} in all)" if len(names) > _SHOWN else "")

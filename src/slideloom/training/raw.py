"""One slide's patches as an encoder is fed them in a live training: raw pixels of its channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.training.annotated import AnnotatedSlide, Arrays, Geometry, Needs, SlideData

__all__ = ["RawSlide"]


class RawSlide(AnnotatedSlide):
    """A slide whose patches are encoded as they are needed.

    Which channels it gives, and what they are normalised with, is the encoder's to say: see :meth:`fit_to`.

    Parameters
    ----------
    data : SlideData
        Its stores, without embeddings.
    needs : Needs
        What is to be read.

    Attributes
    ----------
    statistics : ChannelStatistics or None
        What its channels are normalised with; None for RGB.

    Raises
    ------
    SlideloomError
        ``store_mismatch``: the stores do not hold the same number of patches. ``live_fused``: there are further
        encoders.
    """

    input = "pixels"

    def __init__(self, data: SlideData, needs: Needs) -> None:
        super().__init__(data, needs)
        self._check_sizes()
        if data.fused:
            raise SlideloomError(
                "the tokens of several encoders cannot be made in every step",
                where=data.slide_id,
                expected="one encoder with training.input: live",
                hint="Name one encoder, or train on stored tokens",
                code="live_fused",
            )
        self.statistics: ChannelStatistics | None = None
        self._geometry: Geometry | None = None

    def fit_to(self, channels: list[int], statistics: ChannelStatistics | None, geometry: Geometry) -> None:
        """Give the pixels that an encoder reads from now on.

        Parameters
        ----------
        channels : list of int
            Which of the patches' channels, in the encoder's order.
        statistics : ChannelStatistics or None
            What the channels are normalised with.
        geometry : Geometry
            What the encoder makes of them.
        """
        if self._held is not None and channels != self.channels:
            places = [self.channels.index(channel) for channel in channels]
            self._held["pixels"] = np.ascontiguousarray(self._held["pixels"][:, places])
        self.channels, self.statistics, self._geometry = list(channels), statistics, geometry

    @property
    def fitted(self) -> bool:
        """Whether an encoder has had its say."""
        return self._geometry is not None

    @property
    def geometry(self) -> Geometry:
        """What the decoder is fed."""
        if self._geometry is None:
            raise ValueError(f"{self.slide_id} is fitted to no encoder")
        return self._geometry

    def bytes_each(self, symmetries: bool = False) -> int:
        """Memory that one patch takes when held; it is flipped and turned when it is given."""
        return self._pixel_bytes + self._target_bytes

    def inputs(self, indices: NDArray[np.intp], symmetries: NDArray[np.uint8] | None = None) -> Arrays:
        """``pixels`` (k, c, p, p), raw and as they lie, and ``valid`` (k, p, p) bool."""
        parts = self._pick(indices, ("pixels",)) if self._held else self._to_hold(indices, False)
        return parts | {"valid": self.patches.valid(indices)}

    def _to_hold(self, indices: NDArray[np.intp], symmetries: bool) -> Arrays:
        return {"pixels": self._read_pixels(indices)}

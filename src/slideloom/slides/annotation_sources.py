"""What an annotation is read from, window by window: label images of nuclei and their classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.annotation_file import listed
from slideloom.slides.annotation_frame import Taps, pick
from slideloom.slides.labels import LabelImage, source_name
from slideloom.slides.tables import ClassTable

__all__ = ["UNKNOWN_CLASS", "LabelSource", "NucleusSource", "Seen", "unknown_classes"]

#: Class id of pixels inside a nucleus whose class is not known.
UNKNOWN_CLASS = 255


@dataclass
class Seen:
    """What was met while an annotation was read; for warnings.

    Attributes
    ----------
    ids : set of int
        Instance ids: of a label image at its own resolution, of outlines those that have a pixel of the grid.
    outlines : int
        How many there should be of these; 0 for label images.
    stray_px : int
        Annotation pixels that carry a class outside of every instance.
    where : str
        The class image.
    """

    ids: set[int] = field(default_factory=set)
    outlines: int = 0
    stray_px: int = 0
    where: str = ""


class NucleusSource(Protocol):
    """Where the nuclei of an annotation come from."""

    def sample(
        self, down: Taps, across: Taps, *, with_classes: bool = True, seen: Seen | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None]:
        """Nuclei and class map of a window of grid pixels, (h, w) each; None where the source knows no classes."""
        ...

    def close(self) -> None:
        """Release the files."""
        ...


class LabelSource:
    """Nuclei as a label image, their classes as another of the same size or not at all; a :class:`NucleusSource`.

    Parameters
    ----------
    instances : LabelImage
        0 background, any positive number an instance.
    drawn : LabelImage or None
        Class ids.
    classes : ClassTable
        The study's classes.

    Raises
    ------
    SlideError
        ``annotation_shape``: the two differ in size.
    """

    def __init__(self, instances: LabelImage, drawn: LabelImage | None, classes: ClassTable) -> None:
        if drawn is not None and drawn.shape != instances.shape:
            raise SlideError(
                f"the class image is {drawn.shape[0]} x {drawn.shape[1]} px",
                where=source_name(drawn.source),
                expected=f"{instances.shape[0]} x {instances.shape[1]}, as the instance map",
                hint="Give both as they were drawn, on one image",
                code="annotation_shape",
            )
        self._instances = instances
        self._drawn = drawn
        self._classes = classes

    def sample(
        self, down: Taps, across: Taps, *, with_classes: bool = True, seen: Seen | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None]:
        """Nuclei and class map of a window.

        Raises
        ------
        SlideError
            As :meth:`LabelImage.read`, and ``unknown_class``: a class image holds what is no class.
        """
        labels = self._instances.read(down.native, across.native).astype(np.int32, copy=False)
        if seen is not None:
            seen.ids.update(np.unique(labels[labels > 0]).tolist())
        if self._drawn is None or not with_classes:
            return pick(labels, down, across), None
        drawn = self._drawn.read(down.native, across.native)
        self._check(drawn)
        if seen is not None:
            seen.where = source_name(self._drawn.source)
            seen.stray_px += int(np.count_nonzero((drawn != 0) & (labels == 0)))
        instances, class_map = pick(labels, down, across), pick(drawn.astype(np.uint8), down, across)
        class_map[(class_map == 0) & (instances > 0)] = UNKNOWN_CLASS
        class_map[instances == 0] = 0
        return instances, class_map

    def close(self) -> None:
        """Release the files."""
        self._instances.close()
        if self._drawn is not None:
            self._drawn.close()

    def _check(self, drawn: NDArray[Any]) -> None:
        assert self._drawn is not None
        unknown = set(np.unique(drawn).tolist()) - {0, UNKNOWN_CLASS, *self._classes.ids}
        if unknown:
            shown = ", ".join(map(str, sorted(unknown)[:10])) + (", …" if len(unknown) > 10 else "")
            raise SlideError(
                f"the class image holds {shown}",
                where=source_name(self._drawn.source),
                expected=f"0, 255 (unknown) or a class id: {listed(self._classes.ids)}",
                hint="Give classes as a table, whose words the classes table's aliases can name, or renumber the image",
                code="unknown_class",
            )


def unknown_classes(instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Class map of instances whose class is not known."""
    return np.where(instances > 0, np.uint8(UNKNOWN_CLASS), np.uint8(0))

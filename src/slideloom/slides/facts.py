"""Facts of a slide: size, pixel size and where it came from, channels and what they show, what could go wrong.

The first stage: everything that a header tells is checked here, before anything costs time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slideloom._version import __version__
from slideloom.artefacts.files import read_json
from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.slides.image import Level
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source, parse_source
from slideloom.slides.tables import Channel

__all__ = ["ImageFacts", "SlideFacts", "image_source", "load_facts"]

_SCHEMA = 1


@dataclass(frozen=True)
class ImageFacts:
    """One image of a slide.

    Attributes
    ----------
    source : str
        As the sheet names it; without its folders where the sheet names it by an absolute path.
    reader : str
        Library and format that read it.
    height_px, width_px : int
        Level-0 size.
    n_channels : int
        Number of channels.
    dtype : str
        NumPy name of the pixel type.
    mpp_um : float
        Level-0 pixel size, µm; the geometric mean where y and x differ a little.
    mpp_source : {"file", "sheet"}
        Where it came from.
    levels : tuple of Level
        Stored resolutions, largest first.
    channels : tuple of Channel
        Name and marker of each channel; for RGB red, green and blue, with empty markers.
    is_rgb : bool
        Whether it is an H&E image.
    digest : str
        Of the file's content; empty when it was not asked for.
    """

    source: str
    reader: str
    height_px: int
    width_px: int
    n_channels: int
    dtype: str
    mpp_um: float
    mpp_source: str
    levels: tuple[Level, ...]
    channels: tuple[Channel, ...]
    is_rgb: bool
    digest: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Level-0 height and width."""
        return self.height_px, self.width_px

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        nested = {
            "levels": [dict(vars(level)) for level in self.levels],
            "channels": [channel.as_dict() for channel in self.channels],
        }
        return {**vars(self), **nested}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ImageFacts:
        """Inverse of :meth:`as_dict`."""
        nested = {
            "levels": tuple(Level(**level) for level in value["levels"]),
            "channels": tuple(Channel.from_dict(channel) for channel in value["channels"]),
        }
        return cls(**{**value, **nested})


@dataclass(frozen=True)
class SlideFacts:
    """Everything known of a slide from its headers.

    Attributes
    ----------
    slide_id : str
        The slide.
    images : dict of str to ImageFacts
        ``he``, ``sp`` or both.
    annotations : dict of str to str
        ``instances`` and ``classes``, where there are any: digest of the content.
    warnings : tuple of str
        What a person should know.
    """

    slide_id: str
    images: dict[str, ImageFacts]
    annotations: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def reference(self) -> Modality:
        """The image whose level-0 frame the tissue is drawn in: H&E where there is one."""
        return "he" if "he" in self.images else "sp"

    def image(self, modality: Modality) -> ImageFacts:
        """Facts of one image.

        Raises
        ------
        SlideError
            ``no_image``: the slide has no such image.
        """
        if modality not in self.images:
            raise _no_image(self.slide_id, modality)
        return self.images[modality]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "schema": _SCHEMA,
            "slideloom_version": __version__,
            "units": {"mpp_um": "µm per level-0 pixel", "height_px": "level-0 px", "width_px": "level-0 px"},
            "slide_id": self.slide_id,
            "reference": self.reference,
            "images": {modality: facts.as_dict() for modality, facts in self.images.items()},
            "annotations": dict(self.annotations),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SlideFacts:
        """Inverse of :meth:`as_dict`."""
        images = {modality: ImageFacts.from_dict(facts) for modality, facts in value["images"].items()}
        return cls(value["slide_id"], images, dict(value["annotations"]), tuple(value["warnings"]))


def image_source(row: SlideRow, modality: Modality, root: Path) -> Source:
    """Where one of a slide's images lies; messages call it by the slide and as the sheet names it.

    Raises
    ------
    SlideError
        ``no_image``: the sheet names none.
    """
    text = row.he if modality == "he" else row.sp
    if not text:
        raise _no_image(row.slide_id, modality)
    return replace(parse_source(text, root), label=f"{row.slide_id}, {modality} image {text}")


def _no_image(slide_id: str, modality: Modality) -> SlideError:
    hint = f"Name it in the sheet's column '{modality}', or use a grid of the other image"
    return SlideError(f"the slide has no {modality} image", where=slide_id, hint=hint, code="no_image")


def load_facts(path: Path) -> SlideFacts:
    """Read ``slide.json``."""
    return SlideFacts.from_dict(read_json(path))

"""InstanSeg models published as TorchScript (``instanseg.pt``), run as they are.

Such a file is a program: the traced network ``fcn``, the pixel classifier, and scripted post-processing that works on
one image as a whole. The network alone is run here. Its maps are stitched as any other network's, and
nuclei are found in them by :mod:`slideloom.instances`, so that a slide has no seams.

What trust it needs: loading runs no Python and unpickles no Python object, but TorchScript is a language of its own,
whose operations can fill memory or read and write files by name. Archives that name such operations, that run code
while they are loaded, or that use operations of other libraries are refused before they are loaded. Take a file from
its publisher all the same, and compare its sha256. Whoever trusts no program can take its weights instead
(:meth:`TorchScriptInstanSeg.weights`), for :func:`~slideloom.decoders.instanseg_published.from_published`.
"""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.instanseg_head import INSTANSEG_HEADS, PARTS, PixelClassifier
from slideloom.decoders.whole import WholeNetwork
from slideloom.encoders.checkpoints.files import check_checksums, check_file, file_sha256, read_archive, unreadable
from slideloom.encoders.checkpoints.weights import Weights, load_strict
from slideloom.errors import SlideloomError

__all__ = ["TorchScriptInstanSeg", "load_torchscript"]

_BACKBONE, _CLASSIFIER = "fcn", "pixel_classifier"
#: The published forward pass bounds the normalised image, and pads it to multiples of 16 right and below.
_LOWEST, _HIGHEST = -2.0, 3.0
_MULTIPLE_PX = 16
#: What a network and its post-processing have no use for: files by name, code that runs on loading, foreign libraries.
_FORBIDDEN = re.compile(
    rb"\b(from_file|(?:torch|aten)\.save|__setstate__|__torch__\.torch\.classes)\b|\bops\.(?!prim\b|aten\b)(\w+)"
)
_FIRST_LAYER = "encoder.0.conv0.0.weight"
#: Thresholds that a model may have been published with, by their names in the config.
_DEFAULTS = {
    "mask_threshold": "default_mask_threshold",
    "seed_threshold": "default_seed_threshold",
    "peak_distance_px": "default_peak_distance",
    "overlap_threshold": "default_overlap_threshold",
    "cleanup": "default_cleanup_fragments",
}


class TorchScriptInstanSeg(WholeNetwork):
    """The traced network of a published model; made by :func:`load_torchscript`.

    Attributes
    ----------
    fcn : ScriptModule
        The traced network. It was traced in evaluation, and stays so.
    pixel_classifier : PixelClassifier
        With the file's weights.
    image_channels : int
        Channels that it reads; 0: any number.
    pixel_size_um : float or None
        Micrometres a pixel that it was trained at, where the file says so.
    defaults : dict
        Thresholds that the file was published with, by their names in ``instances.instanseg``; only those it has.
    sha256 : str
        Of the file.
    """

    kind = "instanseg"
    multiple_px = _MULTIPLE_PX
    pixel_classifier: PixelClassifier

    def __init__(self, script: Any, path: Path, heads: Sequence[Head], image_channels: int) -> None:
        super().__init__(DecoderConfig(kind="instanseg"), heads, 2, 1, 16, image_channels)
        self.path: Final = path
        self.sha256 = file_sha256(path)
        self.fcn = getattr(script, _BACKBONE)
        self.pixel_classifier = _classifier(script, path)
        size = getattr(script, "pixel_size", None)
        known = isinstance(size, int | float) and math.isfinite(size) and size > 0
        self.pixel_size_um = float(size) if known and size is not None else None
        self.defaults = _defaults(script)

    def last_layer(self, head: Head) -> str:
        """None that can be changed.

        Raises
        ------
        SlideloomError
            ``decoder_kind``.
        """
        raise SlideloomError(f"the {head} head of {self.path} is part of a program", code="decoder_kind")

    def recipe(self) -> dict[str, Any]:
        """What :func:`load_torchscript` builds the same network from, and the file's digest."""
        return {"torchscript": str(self.path), "sha256": self.sha256}

    def weights(self) -> dict[str, Tensor]:
        """Its weights by their published names, for :func:`~slideloom.decoders.instanseg_published.from_published`."""
        own = {str(key): value for key, value in self.fcn.state_dict().items()}
        prefix = "model." if any(key.startswith("model.") for key in own) else ""
        classifier = self.pixel_classifier.state_dict()
        return own | {f"{prefix}{_CLASSIFIER}.{key}": value for key, value in classifier.items()}

    def train(self, mode: bool = True) -> TorchScriptInstanSeg:
        """Stay as it is: a traced network knows one mode."""
        super().train(False)
        return self

    def maps(self, image: Tensor) -> dict[Head, Tensor]:
        """Maps of an image whose sides are multiples of 16."""
        try:
            raw = self.fcn(image.float().clamp(_LOWEST, _HIGHEST))
        except RuntimeError as error:
            lines = str(error).strip().splitlines()
            said = lines[-1] if lines else "nothing"
            raise _odd(self.path, f"could not be run on an image of shape {tuple(image.shape)}: {said}") from error
        expected = (len(image), len(self.heads) * sum(PARTS), *image.shape[-2:])
        if not isinstance(raw, Tensor) or tuple(raw.shape) != expected:
            got = f"a tensor of shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else type(raw).__name__
            raise _odd(self.path, f"gave {got} for an image of shape {tuple(image.shape)}, not {expected}")
        return dict(zip(self.heads, raw.float().tensor_split(len(self.heads), dim=1), strict=True))

    def _checked(self, image: Tensor | None, size: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int]]:
        if not self.image_channels and image is not None and image.ndim == 4 and 0 not in image.shape:
            height, width = int(image.shape[-2]), int(image.shape[-1])
            if size in (None, (height, width)):
                return image, (height, width)
        return super()._checked(image, size)


def load_torchscript(path: Path) -> TorchScriptInstanSeg:
    """Load the network of a published InstanSeg model; the module says what trust that needs.

    Parameters
    ----------
    path : Path
        ``instanseg.pt``.

    Returns
    -------
    TorchScriptInstanSeg
        On the CPU, in evaluation mode; heads ``instanseg``, and ``instanseg_cells`` where the file says that it has
        cells, too.

    Raises
    ------
    SlideloomError
        ``missing_checkpoint``, ``unreadable_checkpoint``: no whole file, or no TorchScript; ``unsafe_checkpoint``: its
        code names what no network needs; ``torchscript_model``: it is a program, but not InstanSeg's.
    """
    if check_file(path) != "zip" or not read_archive(path).script:
        raise unreadable(
            path, "is no TorchScript program", "Weights alone are read as a pretrained checkpoint, not as torchscript"
        )
    check_checksums(path)
    _check_code(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # published models are what they are
            script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise unreadable(path, f"is no TorchScript that can be loaded: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(getattr(script, _BACKBONE, None), nn.Module):
        raise _odd(path, f"has no network {_BACKBONE!r}")
    cells = getattr(script, "cells_and_nuclei", None)
    if not isinstance(cells, bool):
        raise _odd(path, f"says cells_and_nuclei = {cells!r}, not true or false")
    for name, expected in (("n_sigma", 2), ("dim_coords", 2), ("dim_seeds", 1)):
        found = getattr(script, name, expected)
        if found != expected:
            raise _odd(path, f"has {name} = {found!r}, where {expected} is understood")
    heads = INSTANSEG_HEADS if cells else INSTANSEG_HEADS[:1]
    return TorchScriptInstanSeg(script.eval(), path, heads, _image_channels(script)).eval()


def _check_code(path: Path) -> None:
    """Refuse an archive whose code does what no network does; it is text, and nothing of it is run."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            parts = name.split("/")
            if "code" in parts[:-1] and name.endswith(".py") and (found := _FORBIDDEN.search(archive.read(name))):
                raise SlideloomError(
                    f"the program in {path} uses {found[0].decode()!r} ({name})",
                    expected="the operations of a network",
                    hint="Nothing of it was run. Fetch it again from its publisher, or take its weights alone",
                    code="unsafe_checkpoint",
                )


def _image_channels(script: Any) -> int:
    """Channels that the network reads, from its first weights; 0 where a ChannelNet takes any or names say nothing."""
    state = getattr(script, _BACKBONE).state_dict()
    firsts = [value for key, value in state.items() if key.removeprefix("model.") == _FIRST_LAYER]
    any_number = any(".AdaptorNet." in f".{key}" for key in state)
    return 0 if any_number or not firsts else int(firsts[0].shape[1])


def _classifier(script: Any, path: Path) -> PixelClassifier:
    """The pixel classifier, built anew from the file's weights."""
    prefix = f"{_CLASSIFIER}."
    own = {str(key): value for key, value in script.state_dict().items()}
    found = {key.removeprefix(prefix): value for key, value in own.items() if key.startswith(prefix)}
    if not found:
        raise _odd(path, f"has no weights {prefix}*")
    classifier = PixelClassifier()
    load_strict(classifier, Weights(found, "", path), _CLASSIFIER)
    return classifier


def _defaults(script: Any) -> dict[str, Any]:
    found = {name: getattr(script, own, None) for name, own in _DEFAULTS.items()}
    half = getattr(script, "default_window_size", None)
    if isinstance(half, int):
        found["window_px"] = 2 * half  # it is kept as half of the side
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float)}


def _odd(path: Path, what: str) -> SlideloomError:
    return SlideloomError(
        f"{path} {what}",
        where="TorchScript model",
        expected=f"a published InstanSeg: {_BACKBONE}, {_CLASSIFIER}, cells_and_nuclei",
        hint="Name the instanseg.pt of a published model",
        code="torchscript_model",
    )

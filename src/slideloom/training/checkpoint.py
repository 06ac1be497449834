"""A trained decoder on disk: weights, and in the same file's header all that is needed to use it.

The file is a safetensors file, so reading it runs no code, and equal decoders give equal bytes. Where the encoder was
trained with the decoder, its weights lie in the same file under ``encoder.``: one is nothing without the other. So
does an adapter, under ``adapter.``. A published program lies beside the file, whose header holds its sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from slideloom.adapters.base import Adapter
from slideloom.adapters.build import adapter_from_recipe
from slideloom.artefacts.files import publish
from slideloom.artefacts.keys import canonical
from slideloom.config.model import Head
from slideloom.decoders.base import Decoder
from slideloom.decoders.build import decoder_from_recipe
from slideloom.encoders.base import Encoder
from slideloom.encoders.checkpoints.files import file_sha256
from slideloom.errors import SlideloomError
from slideloom.slides.tables import ClassTable

__all__ = [
    "ADAPTER",
    "PROGRAM",
    "SCHEMA_VERSION",
    "DecoderMeta",
    "load_adapter",
    "load_decoder",
    "load_tuned_encoder",
    "read_meta",
    "save_decoder",
]

SCHEMA_VERSION = 1
_KEY = "slideloom"
_ENCODER = "encoder."
#: Before the names of an adapter's weights.
ADAPTER = "adapter."
#: A published program that stands as the decoder, beside the decoder's file.
PROGRAM = "instanseg.pt"
_TUNED = " tuned:"


@dataclass(frozen=True)
class DecoderMeta:
    """What the header of ``decoder.safetensors`` says.

    Attributes
    ----------
    recipe : dict
        Of :meth:`slideloom.decoders.cellvit.CellViTDecoder.recipe`: config, heads, n_classes, token_width, upsampling,
        image_channels; patch_px and regression since tokens may have 14 pixels.
    classes : ClassTable
        What the channels of the class head mean; channel k is class id k, 0 background.
    blocks : tuple of int
        Encoder blocks whose tokens it reads, shallow to deep.
    encoder : dict
        The encoder, as its embeddings record it: ``encoder`` (its config entry), ``spec`` (what it declares),
        ``weights`` (``sha256:<digits>``, ``random:<seed>`` or ``none``; `` tuned:<digits>`` behind it where it was
        trained, too: sha256 of the weights in the file), ``notes``, ``markers``, ``dropped``, ``precision``.
    statistics : dict or None
        Channel statistics of the image skip and the encoder; None for RGB, and where every slide has its own.
    grid : dict
        The grid's config.
    training : dict
        Study, experiment, fold, seed, epochs, best epoch, numbers of slides and patches, Slideloom version;
        ``encoder_trained`` (true) where the file holds the encoder's weights, too. Of a published model instead: no
        epoch and no slide, ``pretrained`` (``file``, ``sha256``, ``arch``; of a program ``published``, its
        thresholds), ``class_order`` (the file's class by the study's), ``notes``.
    adapter : dict or None
        Of :meth:`slideloom.adapters.base.Adapter.recipe`, where one stands before the encoder.
    """

    recipe: dict[str, Any]
    classes: ClassTable
    blocks: tuple[int, ...]
    encoder: dict[str, Any]
    statistics: dict[str, Any] | None
    grid: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None

    @property
    def heads(self) -> tuple[Head, ...]:
        """Heads of the decoder."""
        return tuple(self.recipe["heads"])

    @property
    def n_classes(self) -> int:
        """Classes including background."""
        return int(self.recipe["n_classes"])

    @property
    def upsampling(self) -> int:
        """What the decoder brings the tokens' height and width up by: 8 or 16."""
        return int(self.recipe["upsampling"])

    @property
    def patch_px(self) -> int:
        """Image pixels a token: 8, 14 or 16."""
        return int(self.recipe.get("patch_px") or self.upsampling)

    @property
    def token_width(self) -> int:
        """Channels of the token maps."""
        return int(self.recipe["token_width"])

    @property
    def image_channels(self) -> int:
        """Channels of the image that the image skip reads."""
        return int(self.recipe["image_channels"])

    @property
    def encoder_trained(self) -> bool:
        """Whether the file holds the encoder's weights, too."""
        return bool(self.training.get("encoder_trained", False))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "schema": SCHEMA_VERSION,
            **vars(self),
            "classes": self.classes.as_dict(),
            "blocks": list(self.blocks),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DecoderMeta:
        """Inverse of :meth:`as_dict`."""
        parts = {name: content for name, content in value.items() if name != "schema"}
        parts |= {"classes": ClassTable.from_dict(parts["classes"]), "blocks": tuple(parts["blocks"])}
        return cls(**parts)


def save_decoder(
    weights: Mapping[str, torch.Tensor],
    meta: DecoderMeta,
    place: Path,
    encoder_weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a decoder, whole or not at all.

    Parameters
    ----------
    weights : mapping of str to Tensor
        State dict of the decoder, and of the adapter under ``adapter.``, where ``meta`` has one.
    meta : DecoderMeta
        Goes into the header.
    place : Path
        The ``.safetensors`` file.
    encoder_weights : mapping of str to Tensor, optional
        State dict of the encoder's module, where it was trained, too. The header then says so (``encoder_trained``),
        and ``weights`` of its encoder get `` tuned:<sha256 of these>`` behind them, by which every table tells such an
        encoder from the one that it started as.
    """
    plain = _plain(weights)
    if encoder_weights is not None:
        tuned = _plain(encoder_weights)
        meta = replace(
            meta,
            encoder=meta.encoder | {"weights": f"{meta.encoder['weights']}{_TUNED}{_digest(tuned)}"},
            training=meta.training | {"encoder_trained": True},
        )
        plain |= {f"{_ENCODER}{name}": value for name, value in tuned.items()}
    with publish(place) as draft:
        # One metadata key: with several, the writer's order would differ from run to run.
        save_file(plain, draft, metadata={_KEY: canonical(meta.as_dict())})


def read_meta(path: Path) -> DecoderMeta:
    """Read the header of a decoder file.

    Raises
    ------
    SlideloomError
        Code ``decoder_file``: no safetensors file, or not one of this version of Slideloom's.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _refused(path, f"cannot be read: {error}") from error
    if _KEY not in header:
        raise _refused(path, "holds no description of a decoder")
    body = json.loads(header[_KEY])
    if body.get("schema") != SCHEMA_VERSION:
        raise _refused(path, f"has schema {body.get('schema')!r}", f"schema {SCHEMA_VERSION}")
    return DecoderMeta.from_dict(body)


def load_decoder(path: Path, device: str | torch.device = "cpu") -> tuple[Decoder, DecoderMeta]:
    """Build the decoder that a file describes and give it its weights.

    Parameters
    ----------
    path : Path
        The ``.safetensors`` file.
    device : str or torch.device
        Where the decoder goes.

    Returns
    -------
    decoder : Decoder
        In evaluation mode.
    meta : DecoderMeta
        From the header.

    Raises
    ------
    SlideloomError
        Code ``decoder_file``: as in :func:`read_meta`, keys or shapes are not those of the decoder described, or the
        program beside the file is not the one that it was made for.
    """
    meta = read_meta(path)
    if "torchscript" in meta.recipe:
        return _program(path, meta).to(device).eval(), meta
    decoder = decoder_from_recipe(meta.recipe)
    weights = _part(path, meta, "")
    _check_weights(weights, decoder.state_dict(), path, "the weights of the decoder that its header describes")
    decoder.load_state_dict(weights)
    return decoder.to(device).eval(), meta


def _program(path: Path, meta: DecoderMeta) -> Decoder:
    """The published program beside a decoder's file: the very bytes that were taken over, or nothing is loaded."""
    from slideloom.decoders.instanseg_torchscript import load_torchscript  # for those who run one

    place = path.with_name(PROGRAM)
    found = file_sha256(place) if place.is_file() else "no file"
    if found != meta.recipe["sha256"]:
        raise SlideloomError(
            f"{place} is not the program that was taken over: {found}",
            where=str(path),
            expected=f"sha256 {meta.recipe['sha256']}",
            hint="Delete both files and run the workflow again",
            code="decoder_file",
        )
    network = load_torchscript(place)
    network.defaults = dict(meta.training["pretrained"]["published"])
    return network


def load_adapter(path: Path, device: str | torch.device = "cpu") -> Adapter | None:
    """The adapter that was trained with a decoder; None where there was none.

    Parameters
    ----------
    path : Path
        The decoder's file.
    device : str or torch.device
        Where it goes; in evaluation mode.

    Raises
    ------
    SlideloomError
        Code ``decoder_file``: as in :func:`load_decoder`.
    """
    meta = read_meta(path)
    if meta.adapter is None:
        return None
    adapter = adapter_from_recipe(meta.adapter)
    weights = _part(path, meta, ADAPTER)
    _check_weights(weights, adapter.state_dict(), path, "the weights of the adapter that its header describes")
    adapter.load_state_dict(weights)
    return adapter.to(device).eval()


def load_tuned_encoder(path: Path, encoder: Encoder) -> None:
    """Give an encoder the weights that were trained with a decoder.

    Parameters
    ----------
    path : Path
        The decoder's file.
    encoder : Encoder
        Built as for the training; its weights become those of the file, and its ``weights`` say so.

    Raises
    ------
    SlideloomError
        ``encoder_weights``: the encoder did not start as the trained one did. ``decoder_file``: as in
        :func:`read_meta`, the file holds no encoder, or one of other keys or shapes.
    """
    meta = read_meta(path)
    if not meta.encoder_trained:
        raise _refused(path, "holds no encoder's weights", "those of an encoder that was trained with the decoder")
    origin, _, digest = meta.encoder["weights"].rpartition(_TUNED)
    if encoder.weights != origin:
        raise SlideloomError(
            f"encoder {encoder.spec.name} has the weights {encoder.weights}",
            where=str(path),
            expected=f"{origin}, which its training started from",
            hint="Run the workflow, not this job alone: the decoder is made again for the new weights",
            code="encoder_weights",
        )
    weights = _part(path, meta, _ENCODER)
    _check_weights(weights, encoder.module.state_dict(), path, f"the weights of {encoder.spec.name}")
    if _digest(weights) != digest:
        raise _refused(path, "holds other encoder weights than its header says", digest)
    encoder.module.load_state_dict(weights)
    encoder.weights = meta.encoder["weights"]


def _plain(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Sha256 of names, types, shapes and values, in the order of the names."""
    state = hashlib.sha256()
    for name, value in sorted(weights.items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _part(path: Path, meta: DecoderMeta, part: str) -> dict[str, torch.Tensor]:
    """Weights of the decoder (an empty part), or of what was trained with it, by their own names."""
    others = ([_ENCODER] if meta.encoder_trained else []) + ([ADAPTER] if meta.adapter is not None else [])
    with safe_open(path, framework="pt") as handle:
        return {
            name.removeprefix(part): handle.get_tensor(name)
            for name in handle.keys()  # noqa: SIM118 - it is no mapping
            if part == next((one for one in others if name.startswith(one)), "")
        }


def _check_weights(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path, expected: str
) -> None:
    """Refuse keys or shapes that are not those wanted."""
    shapes = {name: tuple(value.shape) for name, value in wanted.items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    faults = [f"{name} is missing" for name in sorted(shapes.keys() - found.keys())]
    faults += [f"{name} is unexpected" for name in sorted(found.keys() - shapes.keys())]
    faults += [
        f"{name} has shape {found[name]}, not {shapes[name]}"
        for name in sorted(shapes.keys() & found.keys())
        if found[name] != shapes[name]
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise _refused(path, "; ".join(faults[:5]) + more, expected)


def _refused(path: Path, what: str, expected: str = "") -> SlideloomError:
    return SlideloomError(
        what, where=str(path), expected=expected, hint="Train the experiment again", code="decoder_file"
    )

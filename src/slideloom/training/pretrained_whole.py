"""A published InstanSeg or HoVer-Net, checkpoint or program, put where a trained whole network would stand.

===================  ==========================  ==========================================================
published as         behind                      reads
===================  ==========================  ==========================================================
InstanSeg's weights  their ChannelNet, or        channels between each slide's own quantiles 0.001 and 0.999
                     channels as they are
InstanSeg's program  channels as they are        likewise
HoVer-Net's weights  –                           RGB from 0 to 1
===================  ==========================  ==========================================================

A program is copied beside ``decoder.safetensors``, whose header holds its sha256; nothing else runs later.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from slideloom.adapters.base import Adapter
from slideloom.adapters.pass_through import PassThrough
from slideloom.artefacts.files import publish
from slideloom.config.model import AdapterConfig, DecoderConfig
from slideloom.config.prediction import InstanSegConfig
from slideloom.decoders.base import Decoder
from slideloom.decoders.build import build_decoder
from slideloom.decoders.hovernet import HoVerNet
from slideloom.decoders.hovernet_published import from_published as hovernet_from
from slideloom.decoders.instanseg_published import from_published as instanseg_from
from slideloom.decoders.instanseg_torchscript import TorchScriptInstanSeg, load_torchscript
from slideloom.encoders.checkpoints.files import file_sha256, unreadable
from slideloom.encoders.checkpoints.weights import Weights, read_weights
from slideloom.errors import SlideloomError
from slideloom.slides.tables import ClassTable
from slideloom.training.checkpoint import ADAPTER, PROGRAM
from slideloom.training.pretrained import match_classes
from slideloom.training.published import PANNUKE, Asked, Taken, write_published

__all__ = ["use_program", "use_whole"]

_PLAIN = "mean_rgb"
#: Pixel sizes that are near enough to the one that a network was trained at.
_NEAR = (0.8, 1.2)
_UNSEEN = "scores on the images that it was trained on are not scores on unseen images"


def use_whole(path: Path, decoder: Mapping[str, Any], asked: Asked) -> Path:
    """Take a whole network over from a published checkpoint; nothing is trained.

    Parameters
    ----------
    path : Path
        The checkpoint, ``.pth``, ``.tar`` or ``.safetensors``.
    decoder : mapping
        Keys of ``experiments.<name>.decoder`` that the config gives: ``kind``, and what the file must then agree with.
    asked : Asked
        By whom. Heads of an InstanSeg are all that the file has; of a HoVer-Net, some.

    Returns
    -------
    Path
        ``decoder.safetensors``.

    Raises
    ------
    SlideloomError
        What the loaders refuse (:func:`slideloom.decoders.instanseg_published.from_published`,
        :func:`slideloom.decoders.hovernet_published.from_published`); ``pretrained_encoder``: the encoder is not
        mean_rgb; ``pretrained_heads``: the file has not these heads; ``pretrained_decoder``: a key of the decoder is
        not as the file has it; ``pretrained_classes``: it has another number of classes, or
        as many as PanNuke, of which the study lacks some and numbers others otherwise.
    """
    _check_encoder(asked)
    weights = read_weights(path)
    taken = (_hovernet if decoder["kind"] == "hovernet" else _instanseg)(weights, decoder, asked)
    return write_published(asked, taken)


def use_program(path: Path, asked: Asked) -> list[Path]:
    """Take an InstanSeg over that is published as a TorchScript program; nothing is trained.

    Parameters
    ----------
    path : Path
        ``instanseg.pt``.
    asked : Asked
        By whom; heads are all that the file has.

    Returns
    -------
    list of Path
        ``decoder.safetensors`` and the program's copy beside it.

    Raises
    ------
    SlideloomError
        What :func:`~slideloom.decoders.instanseg_torchscript.load_torchscript` refuses; ``pretrained_encoder``,
        ``pretrained_heads`` as of :func:`use_whole`; ``pretrained_resolution``: the grid is of another pixel size than
        the file names; ``torchscript_model``: its thresholds are none.
    """
    _check_encoder(asked)
    network = load_torchscript(path)
    _check_heads(asked, network.heads, path)
    _check_resolution(asked, network.pixel_size_um, path)
    published, copy = _thresholds(network, path), asked.place / PROGRAM
    with publish(copy) as draft:
        shutil.copyfile(path, draft)
        if file_sha256(draft) != network.sha256:
            raise unreadable(path, "changed while it was read", "Run the workflow again")
    adapter = _passing(network.image_channels)
    taken = Taken(
        {},
        Decoder.recipe(network) | {"torchscript": PROGRAM, "sha256": network.sha256},
        path,
        network.sha256,
        "InstanSeg (TorchScript)",
        _instanseg_notes(path, asked, network.pixel_size_um),
        adapter=adapter.recipe(),
        published=published,
    )
    return [write_published(asked, taken), copy]


# ---- InstanSeg -------------------------------------------------------------------------------------------------------


def _instanseg(weights: Weights, decoder: Mapping[str, Any], asked: Asked) -> Taken:
    found, network = instanseg_from(weights.tensors, path=weights.path)
    _check_heads(asked, network.heads, weights.path)
    _check_decoder(asked, decoder, network.config, weights.path)
    adapter = found or _passing(network.image_channels)
    tensors = dict(network.state_dict())
    tensors |= {f"{ADAPTER}{name}": value for name, value in adapter.state_dict().items()}
    return Taken(
        tensors,
        network.recipe(),
        weights.path,
        weights.sha256,
        weights.arch or f"InstanSeg{' behind ChannelNet' if found else ''}",
        _instanseg_notes(weights.path, asked, None),
        adapter=adapter.recipe(),
    )


def _passing(channels: int) -> Adapter:
    """What hands channels on to a network that reads so many of them; 0: any number."""
    if channels == 0:
        return PassThrough(AdapterConfig(kind="pass_through"), any_number=True)
    return PassThrough(AdapterConfig(kind="pass_through", out_channels=channels))


def _thresholds(network: TorchScriptInstanSeg, path: Path) -> dict[str, Any]:
    """Those that a program was published with, as the config would have them."""
    try:
        found = InstanSegConfig.model_validate(network.defaults)
    except ValidationError as error:
        first = error.errors()[0]
        raise SlideloomError(
            f"{path} was published with {'.'.join(map(str, first['loc']))} = {first['input']!r}",
            where="TorchScript model",
            expected=f"{first['msg'].lower()}",
            hint="Name the instanseg.pt of a published model",
            code="torchscript_model",
        ) from error
    return found.model_dump(mode="json", include=set(network.defaults))


def _instanseg_notes(path: Path, asked: Asked, pixel_size_um: float | None) -> list[str]:
    notes = [f"{path.name} does not say what it was trained on; {_UNSEEN}"]
    if pixel_size_um is None:
        has = asked.grid.get("mpp_um")
        at = "every image's own pixel size" if has is None else f"{has:g} um/px"
        notes.append(
            f"{path.name} does not say at what pixel size it was trained; published models were at 0.5 um/px, and the "
            f"grid has {at}"
        )
    return notes


# ---- HoVer-Net -------------------------------------------------------------------------------------------------------


def _hovernet(weights: Weights, decoder: Mapping[str, Any], asked: Asked) -> Taken:
    whole = hovernet_from(weights.tensors, path=weights.path)
    absent = [head for head in asked.heads if head not in whole.heads]
    if absent:
        raise _misfit(
            asked, f"{weights.path} has no head {', '.join(absent)}", f"some of {', '.join(whole.heads)}", "heads"
        )
    _check_decoder(asked, decoder, whole.config, weights.path)
    order, notes = _classes(whole, asked.classes, weights.path) if "classes" in asked.heads else ((), [])
    with torch.device("meta"):
        network = build_decoder(
            whole.config, asked.heads, whole.n_classes if order else len(asked.classes) + 1, 0, 16, whole.image_channels
        )
    assert isinstance(network, HoVerNet)
    network.rescale = _rescale(asked)
    state = whole.state_dict()
    tensors = {name: state[name] for name in network.state_dict()}
    for part in ("weight", "bias") if order else ():
        name = f"{network.last_layer('classes')}.{part}"
        tensors[name] = tensors[name][list(order)]
    trained = f"{weights.path.name} does not say what it was trained on; {_UNSEEN}"
    return Taken(
        tensors,
        network.recipe(),
        weights.path,
        weights.sha256,
        weights.arch or f"HoVer-Net ({whole.config.mode})",
        [trained, *notes],
        order,
    )


def _classes(whole: HoVerNet, classes: ClassTable, path: Path) -> tuple[tuple[int, ...], list[str]]:
    """The file's class by the study's, and what is taken for granted: the file has numbers only."""
    own = whole.n_classes
    if len(classes) + 1 != own:
        raise SlideloomError(
            f"the study has {len(classes)} classes",
            where=str(path),
            expected=f"{own - 1}, as many as the file tells apart",
            hint="Give the study the model's classes, in the order of its numbers, or leave out the head classes",
            code="pretrained_classes",
        )
    if own == len(PANNUKE):
        try:
            order = match_classes(PANNUKE, classes, str(path))
        except SlideloomError:
            # Of another set, with as many classes; unless some of PanNuke's stand under other numbers than there.
            if any(classes.id_of(name) not in (None, number) for number, name in enumerate(PANNUKE) if number > 0):
                raise
        else:
            return order, [f"{path.name} does not name its classes; taken for PanNuke's: {', '.join(PANNUKE[1:])}"]
    named = ", ".join(f"{number} {name}" for number, name in zip(classes.ids, classes.names, strict=True))
    return tuple(range(own)), [f"{path.name} does not name its classes; its numbers are taken for the study's: {named}"]


def _rescale(asked: Asked) -> tuple[float, float]:
    """What brings the encoder's image back to values from 0 to 1."""
    (std,), (mean,) = (set(asked.encoder["spec"][key]) for key in ("std", "mean"))
    return float(std), float(mean)


# ---- what must fit ---------------------------------------------------------------------------------------------------


def _check_encoder(asked: Asked) -> None:
    name = asked.encoder["spec"]["name"]
    if name != _PLAIN:
        raise _misfit(asked, f"the encoder is {name}", f"{_PLAIN}: the network reads the image alone", "encoder")


def _check_heads(asked: Asked, heads: Sequence[str], path: Path) -> None:
    if set(asked.heads) != set(heads):
        raise _misfit(asked, f"the heads {', '.join(asked.heads)}", f"{', '.join(heads)}, which {path} has", "heads")


def _check_decoder(asked: Asked, given: Mapping[str, Any], own: DecoderConfig, path: Path) -> None:
    """Refuse what the config says of the network where the file says otherwise."""
    wanted = DecoderConfig.model_validate(given)
    for key in given:
        if getattr(wanted, key) != getattr(own, key):
            what = f"decoder.{key} is {_shown(getattr(wanted, key))}"
            raise _misfit(asked, what, f"{_shown(getattr(own, key))}, as {path} has it", "decoder")


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_resolution(asked: Asked, pixel_size_um: float | None, path: Path) -> None:
    mpp_um = asked.grid.get("mpp_um")
    if pixel_size_um is None or asked.encoder["encoder"].get("off_resolution"):
        return
    low, high = (factor * pixel_size_um for factor in _NEAR)
    if mpp_um is None or not low <= mpp_um <= high:
        raise SlideloomError(
            "the grid takes every image's own pixel size" if mpp_um is None else f"the grid has {mpp_um:g} um/px",
            where=asked.where,
            expected=f"{low:g} to {high:g} um/px: {path} was trained at {pixel_size_um:g}",
            hint=f"Set the grid's mpp_um to {pixel_size_um:g}, or the encoder's 'off_resolution: true' to use it so",
            code="pretrained_resolution",
        )


def _misfit(asked: Asked, what: str, expected: str, of: str) -> SlideloomError:
    hints = {
        "heads": "Set the experiment's heads to those of the file",
        "decoder": "Remove the key: the file says it",
        "encoder": "Name an encoder of model mean_rgb",
    }
    return SlideloomError(what, where=asked.where, expected=expected, hint=hints[of], code=f"pretrained_{of}")

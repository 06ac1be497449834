"""A published CellViT's decoder put where a trained one would stand, so that everything downstream uses it as its own.

The published models were trained on 90 % of all three folds of PanNuke. Scores that they reach on images of PanNuke are
therefore no scores on unseen images. The decoder's file says so under ``training``, ``notes``.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slideloom.config.model import Head
from slideloom.decoders.base import Decoder
from slideloom.decoders.build import build_decoder
from slideloom.decoders.cellvit_model import PUBLISHED_HEADS, cellvit_from_weights
from slideloom.encoders.cellvit.file import CellViTFile
from slideloom.encoders.checkpoints.weights import Weights, read_weights
from slideloom.errors import SlideloomError
from slideloom.slides.tables import ClassTable
from slideloom.training.published import PANNUKE, Asked, Taken, write_published

__all__ = ["match_classes", "use_pretrained"]

#: Colours of the published models' own pictures, by class id.
_COLOURS = {1: "#ff0000", 2: "#22dd4d", 3: "#235cec", 4: "#feff00", 5: "#ff9f44"}
_GOLDEN = 0.618033988749895


def use_pretrained(
    path: Path,
    *,
    experiment: str,
    fold: str,
    classes: ClassTable,
    heads: Sequence[Head],
    encoder: Mapping[str, Any],
    grid: Mapping[str, Any],
    blocks: Sequence[int],
    place: Path,
) -> Path:
    """Take decoder and heads of a published CellViT over; nothing is trained.

    Parameters
    ----------
    path : Path
        The checkpoint.
    experiment, fold : str
        For provenance and errors.
    classes : ClassTable
        The study's classes. With the class head, they must be the file's, in any order and by name or alias; the head's
        channels are put into their order.
    heads : sequence of {"nucleus", "hv", "classes"}
        Which heads are taken.
    encoder : mapping
        The encoder that gives the tokens, as :func:`slideloom.encoders.base.encoder_record` and the embeddings tell.
    grid : mapping
        The grid's config.
    blocks : sequence of int
        Encoder blocks whose tokens there are.
    place : Path
        Folder of ``decoder.safetensors`` and ``history.parquet``, a history of no epoch.

    Returns
    -------
    Path
        ``decoder.safetensors``.

    Raises
    ------
    SlideloomError
        What :func:`slideloom.decoders.cellvit_model.load_cellvit` refuses; ``pretrained_heads``: a head that the file
        has not; ``pretrained_encoder``: the tokens are not those of the file's encoder; ``pretrained_blocks``: they are
        of other blocks; ``pretrained_resolution``: the grid is not of the magnification that it was trained for;
        ``pretrained_classes``: its classes are not the study's.
    """
    weights = read_weights(path)
    model, about = cellvit_from_weights(weights)
    where = f"{experiment}/{fold}"
    _check_heads(heads, where)
    _check_encoder(encoder, blocks, weights, about, where)
    _check_resolution(grid, encoder, about, where)
    order = match_classes(_class_names(about), classes, where=str(path)) if "classes" in heads else ()
    decoder = _taken(model.decoding, heads, len(classes) + 1)
    taken = Taken(
        _tensors(model.decoding, decoder, order),
        decoder.recipe(),
        path,
        weights.sha256,
        weights.arch,
        _notes(weights, about, heads),
        order,
    )
    return write_published(Asked(experiment, fold, classes, heads, encoder, grid, blocks, place), taken)


def match_classes(names: Sequence[str], classes: ClassTable, where: str) -> tuple[int, ...]:
    """Which of a file's classes is each of the study's.

    Parameters
    ----------
    names : sequence of str
        The file's classes by its own id, background first.
    classes : ClassTable
        The study's.
    where : str
        The file, for the error.

    Returns
    -------
    tuple of int
        By the study's id, the file's: ``order[0]`` is 0, background.

    Raises
    ------
    SlideloomError
        ``pretrained_classes``: they do not match one to one; the hint is a classes table that would.

    Examples
    --------
    >>> table = ClassTable((1, 2), ("stroma", "tumour"), ((0, 255, 0), (255, 0, 0)), ((), ("neoplastic",)))
    >>> match_classes(("Background", "Neoplastic", "Stroma"), table, "file")
    (0, 2, 1)
    """
    if not names:
        raise SlideloomError(
            "the file does not name its classes",
            where=where,
            expected="dataset_config.nuclei_types in its settings",
            hint="Use the checkpoint as the training wrote it, or leave out the head classes",
            code="pretrained_classes",
        )
    found = {number: classes.id_of(name) for number, name in enumerate(names) if number > 0}
    order = {theirs: ours for ours, theirs in found.items() if theirs is not None}
    if len(order) != len(found) or set(order) != set(classes.ids):
        raise SlideloomError(
            _mismatch(names, found, classes),
            where=where,
            expected="the same classes, in any order",
            hint="Give the study these classes (names may differ, with the file's names as aliases):\n"
            + _classes_table(names),
            code="pretrained_classes",
        )
    return (0, *(order[number] for number in classes.ids))


def _mismatch(names: Sequence[str], found: Mapping[int, int | None], classes: ClassTable) -> str:
    unknown = [names[number] for number, theirs in found.items() if theirs is None]
    twice = [
        f"{' and '.join(names[ours] for ours, theirs in found.items() if theirs == number)} all mean {name}"
        for number, name in zip(classes.ids, classes.names, strict=True)
        if list(found.values()).count(number) > 1
    ]
    spare = [name for number, name in zip(classes.ids, classes.names, strict=True) if number not in found.values()]
    told = [f"it names no class {', '.join(unknown)}"] if unknown else []
    told += twice
    told += [f"the model has no class {', '.join(spare)}"] if spare else []
    return "the study's classes are not the model's: " + "; ".join(told)


def _classes_table(names: Sequence[str]) -> str:
    rows = [f"{number}\t{name}\t{_colour(number)}\t" for number, name in enumerate(names) if number > 0]
    return "\n".join(["id\tname\tcolour\taliases", *rows])


def _colour(number: int) -> str:
    if number in _COLOURS:
        return _COLOURS[number]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.75, 0.9))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _class_names(about: CellViTFile) -> tuple[str, ...]:
    """The file's own, or PanNuke's where it names none but has as many."""
    return about.class_names or (PANNUKE if about.num_nuclei_classes == len(PANNUKE) else ())


def _check_heads(heads: Sequence[Head], where: str) -> None:
    absent = [head for head in heads if head not in PUBLISHED_HEADS]
    if absent:
        raise SlideloomError(
            f"a published CellViT has no head {', '.join(absent)}",
            where=where,
            expected=f"some of {', '.join(PUBLISHED_HEADS)}",
            code="pretrained_heads",
        )


def _check_encoder(
    encoder: Mapping[str, Any], blocks: Sequence[int], weights: Weights, about: CellViTFile, where: str
) -> None:
    wanted = f"sha256:{weights.sha256}"
    if encoder["weights"] != wanted:
        raise SlideloomError(
            f"the encoder has the weights {encoder['weights']}",
            where=where,
            expected=f"{wanted}, those of {weights.path.name}",
            hint=f"Give the encoder the model cellvit/{about.arch} and pretrained's own file as its checkpoint",
            code="pretrained_encoder",
        )
    final_norm = encoder["spec"].get("final_norm", False)
    if tuple(blocks) != about.extract_layers or final_norm:
        normed = ", the last one normalised" if final_norm else ""
        raise SlideloomError(
            f"the encoder gives the blocks {', '.join(map(str, blocks))}{normed}",
            where=where,
            expected=f"{', '.join(map(str, about.extract_layers))}, as they come: the model's decoder reads these",
            hint="Leave blocks and final_norm out of the encoder's entry",
            code="pretrained_blocks",
        )


def _check_resolution(grid: Mapping[str, Any], encoder: Mapping[str, Any], about: CellViTFile, where: str) -> None:
    """Refuse a grid of another resolution; one that takes each image's own is the embeddings' to judge."""
    mpp_um = grid.get("mpp_um")
    if mpp_um is None or about.mpp_um is None or encoder["encoder"].get("off_resolution"):
        return
    low, high = about.mpp_um
    if not low <= mpp_um <= high:
        raise SlideloomError(
            f"the grid has {mpp_um:g} um/px",
            where=where,
            expected=f"{low:g} to {high:g} um/px: the model was trained at {about.magnification} times",
            hint="Change the grid's mpp_um, or set the encoder's 'off_resolution: true' to use it so on purpose",
            code="pretrained_resolution",
        )


def _taken(whole: Decoder, heads: Sequence[Head], n_classes: int) -> Decoder:
    """The decoder without what is not asked for; its weights are nowhere yet."""
    with torch.device("meta"):
        return build_decoder(
            whole.config,
            heads,
            n_classes,
            whole.token_width,
            whole.upsampling,
            whole.image_channels,
            patch_px=whole.patch_px,
        )


def _tensors(whole: Decoder, taken: Decoder, order: Sequence[int]) -> dict[str, Tensor]:
    """Weights of the decoder that was taken: a regression's channels left aside, classes in the study's order."""
    state = whole.state_dict()
    tensors = {name: state[name] for name in taken.state_dict()}
    channels: dict[Head, Sequence[int]] = {"nucleus": (0, 1), "classes": order}
    for head in taken.heads:
        for part in ("weight", "bias") if head in channels else ():
            name = f"{taken.last_layer(head)}.{part}"
            tensors[name] = tensors[name][list(channels[head])]
    return tensors


def _notes(weights: Weights, about: CellViTFile, heads: Sequence[Head]) -> list[str]:
    name, set_name, folds = (
        weights.path.name,
        weights.config.get("data.dataset"),
        weights.config.get("data.train_folds"),
    )
    if set_name in (None, "PanNuke"):
        told = f" (its file names the training folds {', '.join(map(str, folds))})" if folds else ""
        notes = [
            f"{name}: published CellViT models were trained on 90 % of all three folds of PanNuke{told}; scores on "
            "images of PanNuke are not scores on unseen images"
        ]
    else:
        notes = [f"{name} was trained on {set_name}; scores on its images are not scores on unseen images"]
    if not about.class_names and "classes" in heads:
        notes.append(f"{name} does not name its classes; taken for PanNuke's: {', '.join(PANNUKE[1:])}")
    if about.regression and "nucleus" in heads:
        notes.append(f"{name}: the regression map of its nucleus branch is left aside")
    return notes

"""A published model in the place of a trained one: the files that a training would have left.

The decoder's file says under ``training`` what it was taken from, and that nothing was trained here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from slideloom._version import __version__
from slideloom.artefacts.tables import write_table
from slideloom.config.model import Head
from slideloom.slides.tables import ClassTable
from slideloom.training.checkpoint import DecoderMeta, save_decoder
from slideloom.training.history import HISTORY

__all__ = ["PANNUKE", "Asked", "Taken", "write_published"]

_LOG = logging.getLogger(__name__)
#: Classes of PanNuke by the id that published models give them, background first.
PANNUKE = ("Background", "Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")


@dataclass(frozen=True)
class Asked:
    """What a study asks of a published model.

    Attributes
    ----------
    experiment, fold : str
        For provenance and errors.
    classes : ClassTable
        The study's classes.
    heads : sequence of str
        Which heads are taken.
    encoder : mapping
        The encoder before it, as :func:`slideloom.encoders.base.encoder_record` and the embeddings tell.
    grid : mapping
        The grid's config.
    blocks : sequence of int
        Encoder blocks whose tokens there are.
    place : Path
        Folder of ``decoder.safetensors`` and ``history.parquet``, a history of no epoch.
    """

    experiment: str
    fold: str
    classes: ClassTable
    heads: Sequence[Head]
    encoder: Mapping[str, Any]
    grid: Mapping[str, Any]
    blocks: Sequence[int]
    place: Path

    @property
    def where(self) -> str:
        """Experiment and fold, for errors."""
        return f"{self.experiment}/{self.fold}"


@dataclass(frozen=True)
class Taken:
    """What was taken from a file.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        State dict of the decoder, and of an adapter under ``adapter.``.
    recipe : mapping
        Of the decoder.
    path : Path
        The file.
    sha256 : str
        Of its bytes.
    arch : str
        What it holds, by its own words or by its kind.
    notes : sequence of str
        What whoever reads the figures should know.
    order : sequence of int
        The file's class by the study's; empty without classes.
    adapter : mapping, optional
        Recipe of what stands before the network.
    published : mapping, optional
        Thresholds that it was published with.
    """

    tensors: Mapping[str, Tensor]
    recipe: Mapping[str, Any]
    path: Path
    sha256: str
    arch: str
    notes: Sequence[str]
    order: Sequence[int] = ()
    adapter: Mapping[str, Any] | None = None
    published: Mapping[str, Any] | None = None


def write_published(asked: Asked, taken: Taken) -> Path:
    """Write what was taken over as a decoder that stands where it was wanted.

    Parameters
    ----------
    asked : Asked
        By whom.
    taken : Taken
        From where, and what.

    Returns
    -------
    Path
        ``decoder.safetensors``; ``history.parquet`` lies beside it.
    """
    pretrained: dict[str, Any] = {"file": taken.path.name, "sha256": taken.sha256, "arch": taken.arch}
    if taken.published is not None:
        pretrained["published"] = dict(taken.published)
    meta = DecoderMeta(
        recipe=dict(taken.recipe),
        classes=asked.classes,
        blocks=tuple(asked.blocks),
        encoder=dict(asked.encoder),
        statistics=None,
        grid=dict(asked.grid),
        training={
            "experiment": asked.experiment,
            "fold": asked.fold,
            "epochs": 0,
            "pretrained": pretrained,
            "class_order": list(taken.order),
            "notes": list(taken.notes),
            "n_train_slides": 0,
            "n_train_patches": 0,
            "n_val_slides": 0,
            "n_val_patches": 0,
            "slideloom_version": __version__,
        },
        adapter=None if taken.adapter is None else dict(taken.adapter),
    )
    written = asked.place / "decoder.safetensors"
    save_decoder(taken.tensors, meta, written)
    made_from = {"experiment": asked.experiment, "fold": asked.fold, "pretrained": f"sha256:{taken.sha256}"}
    write_table(HISTORY, [], asked.place / "history.parquet", made_from=made_from)
    _LOG.info("%s: takes %s over from %s, untrained", asked.where, ", ".join(meta.heads), taken.path.name)
    for note in taken.notes:
        _LOG.warning("%s: %s", asked.where, note)
    return written

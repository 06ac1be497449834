"""The content of the files that an encoder is made from, as keys have it: a file that moves changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from slideloom.config.model import EncoderConfig
from slideloom.encoders.checkpoints.files import file_sha256
from slideloom.encoders.virtues.marker_embeddings import digest_vectors

__all__ = ["file_digests"]


def file_digests(config: EncoderConfig, uniprot: Mapping[str, str]) -> dict[str, str]:
    """Digest what an encoder is made from, by what it is.

    Parameters
    ----------
    config : EncoderConfig
        The entry, with its files.
    uniprot : mapping of str to str
        Accessions by marker, those of the whole study.

    Returns
    -------
    dict of str to str
        ``weights``: sha256 of the checkpoint. ``marker_embeddings``: of the vectors of the study's markers, whatever
        files hold them. Each only where the entry names such files.
    """
    found = {}
    if config.checkpoint is not None:
        found["weights"] = file_sha256(config.checkpoint)
    if config.marker_embeddings is not None:
        ids = sorted({*uniprot.values(), *config.marker_ids.values()} - {""})
        found["marker_embeddings"] = digest_vectors(config.marker_embeddings, ids)
    return found

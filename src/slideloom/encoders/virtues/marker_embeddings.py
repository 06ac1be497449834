"""Protein embeddings of markers: what tells VirTues which protein a channel shows.

One vector of float32 for each UniProt accession (ESM-2 150M, mean over the residues of the last hidden state), either
in a folder of ``<accession>.pt`` as the authors give them, or all in one safetensors file with an accession for a key.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slideloom.errors import SlideloomError

__all__ = ["WIDTH", "MarkerEmbeddings", "digest_vectors", "read_marker_embeddings"]

#: Length of an embedding of ESM-2 150M.
WIDTH = 640
#: What may stand in a file's name; accessions look like P08575 or P08575-4.
_ACCESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class MarkerEmbeddings:
    """Vectors of some accessions.

    Attributes
    ----------
    ids : tuple of str
        Accessions that have a vector, in the order asked for.
    vectors : (m, width) float32 Tensor
        One for each.
    missing : tuple of str
        Accessions asked for that have none.
    """

    ids: tuple[str, ...]
    vectors: Tensor
    missing: tuple[str, ...]


def read_marker_embeddings(path: Path, ids: Sequence[str], width: int = WIDTH) -> MarkerEmbeddings:
    """Read the vectors of some accessions.

    Parameters
    ----------
    path : Path
        A folder of ``<accession>.pt``, or a ``.safetensors`` file.
    ids : sequence of str
        Accessions, isoform included: ``P08575-4`` is another protein than ``P08575``. Given twice, one is read once.
    width : int
        Length that a vector must have.

    Raises
    ------
    SlideloomError
        ``marker_embeddings``: nothing at ``path``, or not of these two kinds; a vector of another shape or type, or
        with values that are not finite. ``unsafe_checkpoint``: a ``.pt`` that would run code; nothing of it was run.
    """
    wanted = list(dict.fromkeys(ids))
    if path.is_dir():
        found = {name: _read_pt(path / f"{name}.pt") for name in wanted if _has_pt(path, name)}
        places = {name: str(path / f"{name}.pt") for name in found}
    elif path.is_file() and path.suffix == ".safetensors":
        found = _read_safetensors(path, wanted)
        places = {name: f"{path}: {name}" for name in found}
    else:
        raise SlideloomError(
            f"{path} {'is no safetensors file' if path.exists() else 'does not exist'}",
            where="marker_embeddings",
            expected="a folder of <UniProt accession>.pt, or one .safetensors file",
            hint="The authors of VirTues give such a folder with their code; nothing is ever downloaded",
            code="marker_embeddings",
        )
    for name, vector in found.items():
        _check(vector, places[name], width)
    vectors = torch.stack(list(found.values())) if found else torch.zeros(0, width)
    return MarkerEmbeddings(tuple(found), vectors, tuple(name for name in wanted if name not in found))


def digest_vectors(path: Path, ids: Sequence[str], width: int = WIDTH) -> str:
    """Digest of the vectors of those accessions that have one: the same for a folder and a file of the same content.

    Parameters
    ----------
    path, ids, width
        As :func:`read_marker_embeddings` takes them; the order of accessions does not matter.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    read = read_marker_embeddings(path, sorted(set(ids)), width)
    digest = hashlib.sha256()
    for name, vector in zip(read.ids, read.vectors, strict=True):
        digest.update(name.encode() + b"\0" + vector.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _has_pt(folder: Path, name: str) -> bool:
    # A name from a table must not lead out of the folder.
    return bool(_ACCESSION.fullmatch(name)) and (folder / f"{name}.pt").is_file()


def _read_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SlideloomError(
            f"{path} cannot be read as data alone",
            where="marker_embeddings",
            expected="one tensor, saved with torch.save",
            hint="Nothing of it was run. Fetch the file again from its authors",
            code="unsafe_checkpoint",
        ) from error
    except Exception as error:
        # A damaged archive fails in any way there is.
        raise _unreadable(path, error) from error


def _read_safetensors(path: Path, wanted: Sequence[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as handle:
            held = set(handle.keys())
            return {name: handle.get_tensor(name) for name in wanted if name in held}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> SlideloomError:
    return SlideloomError(
        f"{path} is not a whole file: {error}".splitlines()[0],
        where="marker_embeddings",
        hint="Copy it again",
        code="marker_embeddings",
    )


def _check(vector: Any, place: str, width: int) -> None:
    fault = ""
    if not isinstance(vector, Tensor):
        fault = f"holds {type(vector).__name__}"
    elif vector.shape != (width,) or vector.dtype != torch.float32:
        fault = f"holds {tuple(vector.shape)} of {vector.dtype}"
    elif not bool(torch.isfinite(vector).all()):
        fault = "holds numbers that are not finite"
    if fault:
        raise SlideloomError(
            f"{place} {fault}",
            where="marker_embeddings",
            expected=f"one tensor ({width},) of finite torch.float32",
            hint="Make it with ESM-2 150M as VirTues' authors did: their markers differ by little, so half precision "
            "will not do",
            code="marker_embeddings",
        )

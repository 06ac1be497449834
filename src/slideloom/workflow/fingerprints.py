"""Fingerprints of the stages' code, remembered between the processes of a run.

Taking them means parsing the whole package, seconds of work that the driver and every job would each do again. They
are remembered beside the results for as long as no byte of the package or of the scripts has changed.
"""

from __future__ import annotations

import logging
from pathlib import Path

import slideloom
from slideloom.artefacts.files import read_json, write_json
from slideloom.artefacts.keys import code_fingerprint, digest_file, digest_text

__all__ = ["stage_fingerprints"]

_LOG = logging.getLogger(__name__)


def stage_fingerprints(scripts: Path, results: Path) -> dict[str, str]:
    """Fingerprint of each stage's script and of the modules it imports.

    Parameters
    ----------
    scripts : Path
        Folder of the scripts, one a stage, named after it.
    results : Path
        The results folder. Where it does not exist yet, as in the dry run of a new study, nothing is remembered.

    Returns
    -------
    dict of str to str
        By stage, as :func:`slideloom.artefacts.keys.code_fingerprint` gives it.
    """
    place = results / "state" / "fingerprints.json"
    package = Path(slideloom.__file__).parent
    bytes_of = digest_text(
        *(
            text
            for folder in (package, scripts)
            for path in sorted(folder.rglob("*.py"))
            for text in (path.relative_to(folder).as_posix(), digest_file(path))
        )
    )
    known = _remembered(place, bytes_of)
    if known is not None:
        return known
    found = {path.stem: code_fingerprint([path]) for path in sorted(scripts.glob("*.py"))}
    if results.is_dir():
        try:
            write_json(place, {"bytes": bytes_of, "fingerprints": found})
        except OSError as error:  # a study that may only be read is still planned, only slower
            _LOG.debug("fingerprints are not remembered: %s", error)
    return found


def _remembered(place: Path, bytes_of: str) -> dict[str, str] | None:
    try:
        body = read_json(place)
        return dict(body["fingerprints"]) if body["bytes"] == bytes_of else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

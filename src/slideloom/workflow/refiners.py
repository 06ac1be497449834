"""What is done to nuclei once they are found, as a job's slice of the config and the verifier's record have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slideloom.artefacts.files import read_json
from slideloom.errors import SlideError
from slideloom.instances.finding import Refiners
from slideloom.instances.refine.splitter import SplitSettings
from slideloom.instances.refine.verifier import Verifier
from slideloom.workflow.job import Job

__all__ = ["refiners_of", "splitter", "verifier_digest"]


def splitter(config: Mapping[str, Any]) -> SplitSettings | None:
    """How a job splits nuclei; None where it does not."""
    asked = config.get("refine", {}).get("split")
    return None if asked is None else SplitSettings(**asked)


def verifier_digest(job: Job) -> str:
    """Digest of what a job's verifier is made of; empty where there is none."""
    return job.states("verifier")[job.wildcards["fold"]].digest if job.inputs.get("verifier") else ""


def refiners_of(job: Job) -> Refiners | None:
    """What a job of the rule ``instances`` does to nuclei; None where nothing follows.

    Parameters
    ----------
    job : Job
        With the input ``verifier`` where nuclei are verified. A verifier that is off drops nothing.

    Raises
    ------
    SlideError
        The verifier could not be made: nuclei that nobody verified are not what was asked for.
    BrokenArtefactError
        It is not what its record says.
    """
    refine = job.config.get("refine")
    if refine is None:
        return None
    about: dict[str, Any] = {"split": refine["split"], "verifier": None}
    verifier = None
    if refine["verify"]:
        experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
        made = job.states("verifier")[fold]
        if made.status != "ok":
            what = f"its verifier was not made: {made.message}"
            raise SlideError(what, where=job.context, hint=made.hint, code=made.code or "no_verifier")
        job.check("verifier", [fold])
        place = job.paths.verifier(experiment, fold)
        body = read_json(place)
        about["verifier"] = {name: body[name] for name in ("used", "threshold", "why")}
        verifier = Verifier.load(place.with_suffix(".safetensors")) if body["used"] else None
    return Refiners(splitter(job.config), verifier, about)

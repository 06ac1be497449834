"""The job of the rule ``verifier``: what drops false nuclei, fitted on the validation slides of a fold."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.artefacts.files import scratch_beside, write_json
from slideloom.artefacts.keys import canonical
from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.config.model import InstancesConfig, RefineVerifyConfig
from slideloom.errors import SlideError, SlideloomError
from slideloom.instances.finding import Refiners, feature_maps, find_nuclei, one_thread_a_worker
from slideloom.instances.refine.features import Features, instance_features
from slideloom.instances.refine.fit import FitSettings, Gain, fit_verifier
from slideloom.instances.refine.verifier import Verifier
from slideloom.metrics.judgement import Judged, judge_nuclei
from slideloom.slides.annotations import open_annotations
from slideloom.slides.facts import load_facts
from slideloom.slides.tables import ClassTable
from slideloom.workflow.job import Job
from slideloom.workflow.refiners import splitter

__all__ = ["run_verifier"]

_LOG = logging.getLogger(__name__)
_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class _Slide:
    """Nuclei of a validation slide: their features, and what the annotation says of them."""

    slide_id: str
    patient_id: str
    features: Features
    judged: Judged


def run_verifier(job: Job) -> None:
    """Fit the verifier of one fold of one experiment, and write down what it gains; it is off where it gains nothing.

    Where there are too few nuclei or patients to fit it, or a validation slide cannot be read, this is told as a
    warning and in the record, and nothing fails.

    Parameters
    ----------
    job : Job
        Its rows are the annotated slides of the fold's validation.
    """
    experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
    place = job.paths.verifier(experiment, fold)
    maps, facts = job.states("maps"), job.states("facts")
    left_out = {
        slide: (maps[slide].message or facts[slide].message)
        for slide in sorted(job.rows)
        if maps[slide].status != "ok" or facts[slide].status != "ok"
    }
    usable = [slide for slide in sorted(job.rows) if slide not in left_out]
    annotations = job.source_digests({slide: replace(job.rows[slide], he=None, sp=None) for slide in usable})
    read = {
        slide: [maps[slide].digest, facts[slide].digest, annotations[slide], job.rows[slide].as_dict()]
        for slide in usable
    }

    def work(_: str) -> Iterable[Path]:
        slides = []
        with one_thread_a_worker():
            for slide in usable:
                job.check("maps", [slide])
                try:
                    slides.append(_slide(job, slide, place))
                except BrokenArtefactError:
                    raise
                except SlideError as error:
                    left_out[slide] = error.message
        for slide, why in left_out.items():
            _LOG.warning("%s/%s: verifier: validation slide %s left out: %s", experiment, fold, slide, why)
        try:
            return _written(job, slides, left_out, place)
        except SlideloomError as error:  # one experiment fails, the others go on
            raise SlideError.of(error) from error

    job.run(work, items=[fold], shared=canonical([read, left_out]))


def _slide(job: Job, slide: str, place: Path) -> _Slide:
    maps = job.paths.maps(job.wildcards["experiment"], job.wildcards["fold"], slide)
    about, facts, row = read_attributes(maps), load_facts(job.paths.slide_facts(slide)), job.rows[slide]
    classes, mpp_um = ClassTable.from_dict(job.config["classes"]), float(about["mpp_um"])
    config = InstancesConfig(**job.config["instances"])
    n_classes = len(classes) + 1 if "classes" in about["heads"] else 0
    annotation = open_annotations(row, job.root, facts, job.config["image"], float(about["scale"]), classes)
    if annotation is None:
        raise SlideError("it has no annotation of nuclei", where=slide, code="no_annotation")
    with annotation, scratch_beside(place) as scratch:
        # It judges what is there after the split.
        refiners = Refiners(split=splitter(job.config))
        found = find_nuclei(maps, about, config, scratch / "own", refiners, workers=job.threads).found
        features = instance_features(found, feature_maps(maps), mpp_um=mpp_um, n_classes=n_classes, workers=job.threads)
        return _Slide(
            slide, row.patient_id, features, judge_nuclei(found, open_array(maps / "covered"), annotation, mpp_um)
        )


def _written(job: Job, slides: list[_Slide], left_out: dict[str, str], place: Path) -> list[Path]:
    """Fit, and write the record and, where there is one, the model."""
    verify = RefineVerifyConfig(**job.config["refine"]["verify"])
    model = place.with_suffix(".safetensors")
    patients = sorted({one.patient_id for one in slides})
    body: dict[str, Any] = {"schema": _SCHEMA, "used": False, "threshold": 0.0, "forced": verify.threshold is not None}
    body |= {"slides": [one.slide_id for one in slides], "n_patients": len(patients), "left_out": left_out}
    try:
        verifier, gain = _fitted(slides, patients, verify)
    except SlideloomError as error:
        if error.code != "verifier_examples":
            raise
        _tell(job, why := error.message)
        model.unlink(missing_ok=True)
        write_json(place, body | {"why": why, "gain": None})
        return [place]
    used = verifier.threshold > 0
    told = f"F1 {gain.f1_before:.4f}, after {gain.f1_after:.4f} on patients it had not seen"
    told += f" (95 % interval of the difference {gain.gain_low:+.4f} to {gain.gain_high:+.4f})"
    if used:
        _LOG.info("%s: verifier on, threshold %.3f: %s", job.context, verifier.threshold, told)
    else:
        told = "the config's threshold is 0" if verify.threshold is not None else f"it gains nothing: {told}"
        _tell(job, told)
    verifier = replace(verifier, about={**verifier.about, "slides": body["slides"]})
    verifier.save(model)
    body |= {"used": used, "threshold": verifier.threshold, "why": told, "features": list(verifier.names)}
    write_json(place, body | {"gain": {**gain.as_dict(), "above_zero": gain.gains}})
    return [place, model]


def _tell(job: Job, why: str) -> None:
    _LOG.warning("%s: the verifier is OFF and drops nothing: %s", job.context, why)


def _fitted(slides: list[_Slide], patients: list[str], verify: RefineVerifyConfig) -> tuple[Verifier, Gain]:
    """Nuclei of one patient are never parted: a patient is what :func:`fit_verifier` calls an image."""
    settings = FitSettings(**verify.model_dump(), called="patients")
    if not slides:
        raise SlideloomError("no validation slide could be read", expected="three patients", code="verifier_examples")
    number = {patient: index for index, patient in enumerate(patients)}
    n_true = np.zeros(len(patients), np.int64)
    for one in slides:
        n_true[number[one.patient_id]] += one.judged.n_true
    seen = [one.judged.seen for one in slides]
    features = Features.stack(
        [Features(one.features.names, one.features.values[kept]) for one, kept in zip(slides, seen, strict=True)]
    )
    matched = np.concatenate([one.judged.matched[kept] for one, kept in zip(slides, seen, strict=True)])
    counts = [int(kept.sum()) for kept in seen]
    image = np.repeat([number[one.patient_id] for one in slides], counts)
    return fit_verifier(features, matched, image, n_true, settings)

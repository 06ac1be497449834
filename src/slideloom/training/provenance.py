"""What a decoder's file tells of its training, and by what two trainings are known to be the same."""

from __future__ import annotations

from torch import nn

from slideloom._version import __version__
from slideloom.artefacts.keys import canonical, digest_text
from slideloom.training.checkpoint import DecoderMeta
from slideloom.training.data import PatchData
from slideloom.training.feed import Geometry
from slideloom.training.job import TrainJob
from slideloom.training.survey import Survey

__all__ = ["describe", "training_key"]


def describe(
    job: TrainJob,
    geometry: Geometry,
    recipe: dict[str, object],
    monitor: str,
    found: Survey,
    data: PatchData,
    val: PatchData,
) -> DecoderMeta:
    """The header of a decoder's file, as far as it is known before the first step.

    Parameters
    ----------
    job : TrainJob
        The training.
    geometry : Geometry
        Of its input.
    recipe : dict
        Of the decoder.
    monitor : str
        Column of the history that is monitored.
    found : Survey
        Of the training patches.
    data, val : PatchData
        What it learns from and is validated on.
    """
    weights = found.class_weights
    return DecoderMeta(
        recipe=recipe,
        classes=job.classes,
        blocks=geometry.blocks,
        encoder=geometry.encoder_record,
        statistics=geometry.statistics,
        grid=job.grid.model_dump(mode="json"),
        training={
            "study": job.study,
            "experiment": job.experiment,
            "fold": job.fold,
            "seed": job.training.seed,
            "config": job.training.model_dump(mode="json"),
            "loss": job.loss.model_dump(mode="json"),
            "sampling": job.sampling.model_dump(mode="json"),
            "augmentation": job.augmentation.model_dump(mode="json"),
            "processes": job.processes,
            "monitor": monitor,
            "class_weights": None if weights is None else weights.tolist(),
            "absent_classes": list(found.absent),
            "n_train_slides": len(data.slides),
            "n_train_patches": data.n,
            "n_train_nuclei": found.n_nuclei,
            "n_val_slides": len(val.slides),
            "n_val_patches": val.n,
            "slideloom_version": __version__,
        },
    )


def training_key(job: TrainJob, meta: DecoderMeta, data: PatchData, val: PatchData, model: nn.Module) -> str:
    """Digest of all that a training's weights depend on, so that no state of another one is gone on from."""
    slides = [[slide.slide_id, slide.n] for part in (data, val) for slide in part.slides]
    shapes = [[name, list(value.shape)] for name, value in model.state_dict().items()]
    groups = dict(sorted(job.groups.items()))
    device = job.device.partition(":")[0]
    return digest_text(
        canonical(meta.as_dict()), canonical(slides), canonical(shapes), canonical(groups), job.inputs_key, device
    )

"""The job of the rule ``pretrained``: a published model stands where a trained decoder would."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slideloom.encoders.base import RGB, encoder_record
from slideloom.encoders.checkpoints.files import file_sha256
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.tables import Channel, ClassTable
from slideloom.training.pretrained import use_pretrained
from slideloom.workflow.job import Job

__all__ = ["run_pretrained"]


def run_pretrained(job: Job) -> None:
    """Take decoder and heads of the experiment's published checkpoint over."""
    experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
    config = job.encoder_config(job.config["encoders"][0]["name"])
    published = Path(job.files["pretrained"])

    def work(_: str) -> Iterable[Path]:
        try:
            encoder = build_encoder(config, [Channel(colour, "") for colour in RGB])
            made = use_pretrained(
                published,
                experiment=experiment,
                fold=fold,
                classes=ClassTable.from_dict(job.config["classes"]),
                heads=tuple(job.config["heads"]),
                encoder=encoder_record(encoder, config),
                grid=job.config["grid"],
                blocks=encoder.blocks,
                place=job.paths.model(experiment, fold),
            )
        except SlideloomError as error:  # one experiment fails, the others go on
            raise SlideError.of(error) from error
        return [made]

    job.run(work, items=[fold], shared=file_sha256(published))

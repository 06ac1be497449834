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
from slideloom.training.pretrained_whole import use_program, use_whole
from slideloom.training.published import Asked
from slideloom.workflow.job import Job

__all__ = ["run_pretrained"]


def run_pretrained(job: Job) -> None:
    """Take decoder and heads of the experiment's published checkpoint, or its program, over."""
    experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
    config = job.encoder_config(job.config["encoders"][0]["name"])
    published, decoder = Path(job.files["pretrained"]), job.config.get("decoder")

    def work(_: str) -> Iterable[Path]:
        try:
            # Markers that are named are those that a whole network's adapter reads.
            plain = config if decoder is None else config.model_copy(update={"markers": []})
            encoder = build_encoder(plain, [Channel(colour, "") for colour in RGB])
            asked = Asked(
                experiment=experiment,
                fold=fold,
                classes=ClassTable.from_dict(job.config["classes"]),
                heads=tuple(job.config["heads"]),
                encoder=encoder_record(encoder, config),
                grid=job.config["grid"],
                blocks=encoder.blocks,
                place=job.paths.model(experiment, fold),
            )
            if job.config.get("program"):
                return use_program(published, asked)
            if decoder is not None:
                return [use_whole(published, decoder, asked)]
            return [use_pretrained(published, **vars(asked))]
        except SlideloomError as error:  # one experiment fails, the others go on
            raise SlideError.of(error) from error

    job.run(work, items=[fold], shared=file_sha256(published))

"""The job of the rule ``embeddings``: one frozen encoder over many slides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import canonical, digest_text
from slideloom.artefacts.stage import Outcome
from slideloom.encoders.checkpoints.digests import file_digests
from slideloom.encoders.embedding.embed import Embedder, Request
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.workflow.job import Job

__all__ = ["run_embeddings"]

#: Keys of an encoder that choose among its outputs; each stored block tells by itself whether they still hold.
_CHOICE = {"blocks", "final_norm", "symmetries"}


def run_embeddings(job: Job) -> None:
    """Embed the job's slides, all in one stream: batches are full and the device is fed across slides."""
    name = job.wildcards["encoder"]
    config, uniprot = job.encoder_config(name), job.uniprot(name)
    pooled = job.states("statistics")[name] if config.statistics else None
    patches = job.states("patches")
    read = file_digests(config, uniprot) | ({"statistics": pooled.digest} if pooled else {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(job.threads)

    def stream(waiting: Iterator[str]) -> Iterable[tuple[str, Outcome]]:
        if pooled is not None and pooled.status != "ok":
            what = f"encoder {name} has no channel statistics: {pooled.message}"
            for slide in waiting:
                yield slide, SlideError(what, where=slide, code="no_statistics", hint="Mend the training slides first")
            return
        try:
            if pooled is not None:
                job.check("statistics", [name])
        except BrokenArtefactError as error:  # every slide fails, and the next run makes the statistics again
            for slide in waiting:
                yield slide, error
            return
        embedder = Embedder(
            config,
            lambda panel: build_encoder(config, panel),
            statistics=ChannelStatistics.from_dict(read_json(job.paths.statistics(name))) if pooled else None,
            uniprot=uniprot,
            device=device,
            threads=job.threads,
        )
        for slide, outcome in embedder.run(request(slide) for slide in waiting):
            yield slide, outcome if isinstance(outcome, Exception) else [job.paths.embeddings(name, slide)]
        spent = embedder.account.as_dict()
        busy = spent["preprocess_s"] + spent["forward_s"] + spent["copy_s"]
        job.account(spent | ({"gpu_seconds": busy} if device == "cuda" else {}))

    def request(slide: str) -> Request:
        return Request(
            slide,
            lambda: PatchStore(job.paths.patches(config.grid, slide)),
            job.paths.embeddings(name, slide),
            base | {"patches": patches[slide].digest},
        )

    base = {"config": _base_config(job), "code": job.code} | read
    job.run_stream(stream, requires=["patches"], shared=canonical(read))


def _base_config(job: Job) -> str:
    """Digest of the job's config without the choice of blocks."""
    encoder = {key: value for key, value in job.config["encoder"].items() if key not in _CHOICE}
    return digest_text(canonical({**job.config, "encoder": encoder}))

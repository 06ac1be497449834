"""Run a frozen encoder over a job's patches and keep its tokens."""

import torch

from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import digest_file
from slideloom.config.model import EncoderConfig
from slideloom.encoders.embed import embed_slide
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.slides.tables import Channel
from slideloom.workflow.job import Job

job = Job.start(snakemake)
torch.set_num_threads(job.threads)
name = job.wildcards["encoder"]
config = EncoderConfig(**job.config["encoder"])
pooled = job.states("statistics") if config.statistics else {}
statistics = None
if config.statistics and pooled[name].status == "ok":
    statistics = ChannelStatistics.from_dict(read_json(job.paths.statistics(name)))
device = "cuda" if torch.cuda.is_available() else "cpu"
built = {}


def encoder_for(patches):
    # The panel of the training slides is the encoder's, in every job.
    panel = [Channel(marker, marker, "", False) for marker in statistics.markers] if statistics else patches.channels
    channels = tuple(panel)
    if channels not in built:
        built[channels] = build_encoder(config, channels)
    return built[channels]


def work(slide):
    if config.statistics and statistics is None:
        what = f"encoder {name} has no channel statistics: {pooled[name].message}"
        raise SlideError(what, where=slide, code="no_statistics", hint="Mend the training slides first")
    patches = PatchStore(job.paths.patches(config.grid, slide))
    place = job.paths.embeddings(name, slide)
    job.account(embed_slide(encoder_for(patches), config, patches, statistics, place, device=device))
    return [place]


weights = digest_file(config.checkpoint) if config.checkpoint else ""
shared = weights + (pooled[name].digest if pooled else "")
job.run(work, requires=["patches"], shared=shared)

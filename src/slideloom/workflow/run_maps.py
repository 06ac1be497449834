"""The job of the rule ``maps``: one trained decoder over many slides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import digest_file
from slideloom.config.model import EncoderConfig, GridConfig, InferenceConfig
from slideloom.encoders.registry import build_encoder
from slideloom.encoders.store import EmbeddingStore
from slideloom.inference.predict import predict_slide
from slideloom.inference.tiles import LiveTiles, StoredTiles, TileSource
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import load_facts
from slideloom.slides.tables import Channel
from slideloom.training.checkpoint import load_decoder
from slideloom.training.splits import read_split
from slideloom.workflow.job import Job

__all__ = ["run_maps"]


def run_maps(job: Job) -> None:
    """Predict the slides whose role asks for it; the decoder is loaded once for all of them."""
    experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
    inference = InferenceConfig(**job.config["inference"])
    split = read_split(job.paths.split(job.config["split"])).query("fold == @fold")
    roles = dict(zip(split["slide_id"], split["role"], strict=True))
    trained = job.states("model")[fold]
    predictor = _Predictor(job, inference, experiment, fold) if trained.status == "ok" else None

    def work(slide: str) -> Iterable[Path] | str:
        if roles.get(slide) not in inference.roles:
            return f"the role {roles.get(slide)} is not predicted"
        if predictor is None:
            return "its model was not trained"
        return [predictor.predict(slide, trained.digest)]

    live = inference.source == "live"
    job.run(
        work,
        requires=["facts", "patches"] if live else ["facts", "patches", "embeddings"],
        shared=trained.digest + (predictor.encoder_digest if predictor else ""),
        per_item={slide: str(roles.get(slide)) for slide in job.rows},
    )


class _Predictor:
    def __init__(self, job: Job, inference: InferenceConfig, experiment: str, fold: str) -> None:
        self._job, self._inference = job, inference
        self._experiment, self._fold = experiment, fold
        self._config = EncoderConfig(**job.config["encoder"])
        self._name: str = job.config["encoder_name"]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(job.threads)
        model = job.paths.model(experiment, fold) / "decoder.safetensors"
        self._decoder, self._meta = load_decoder(model, self._device)
        self._live = inference.source == "live"
        self.encoder_digest = ""
        if self._live:
            self._build_encoder()

    def _build_encoder(self) -> None:
        panel = [Channel(marker, marker, "", False) for marker in self._meta.encoder["markers"]]
        self._encoder = build_encoder(self._config, panel)
        self._statistics = None
        if self._config.checkpoint:
            self.encoder_digest = digest_file(self._config.checkpoint)
        if self._config.statistics:
            place = self._job.paths.statistics(self._name)
            self._statistics = ChannelStatistics.from_dict(read_json(place))
            self.encoder_digest += digest_file(place)

    def predict(self, slide: str, model_digest: str) -> Path:
        """Write a slide's maps; returns where."""
        job = self._job
        patches = PatchStore(job.paths.patches(self._config.grid, slide))
        place = job.paths.maps(self._experiment, self._fold, slide)
        about = {
            "slide_id": slide,
            "image": patches.attributes["image"],
            "mpp_um": patches.mpp_um,
            "experiment": self._experiment,
            "fold": self._fold,
            "model_digest": model_digest,
            "encoder_weights": self._meta.encoder["weights"],
        }
        spent = predict_slide(
            self._decoder,
            self._tiles(slide, patches),
            place,
            about,
            batch_size=self._inference.batch_size,
            precision=self._inference.precision,
            device=self._device,
        )
        job.account(spent)
        return place

    def _tiles(self, slide: str, patches: PatchStore) -> TileSource:
        paths = self._job.paths
        if not self._live:
            stored = EmbeddingStore(paths.embeddings(self._name, slide))
            return StoredTiles(patches, stored, self._meta.blocks, self._decoder.config.image_skip)
        return LiveTiles(
            self._job.rows[slide],
            self._job.root,
            load_facts(paths.slide_facts(slide)),
            paths.tissue(slide),
            GridConfig(**self._job.config["grid"]),
            self._inference.overlap_px,
            self._encoder,
            self._config,
            patches,
            self._statistics,
            self._device,
            self._inference.precision,
        )

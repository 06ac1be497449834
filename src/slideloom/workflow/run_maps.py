"""The job of the rule ``maps``: one trained decoder over many slides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import canonical, digest_file
from slideloom.config.model import GridConfig, InferenceConfig
from slideloom.encoders.checkpoints.digests import file_digests
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.fit import marker_panel
from slideloom.encoders.fused import open_tokens
from slideloom.encoders.lattice import TileCache, TokenLattice
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideloomError
from slideloom.inference.predict import predict_slide
from slideloom.inference.tiles import LiveTiles, StoredTiles, TileSource
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import load_facts
from slideloom.training.checkpoint import load_decoder, load_tuned_encoder
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
        if slide not in roles:
            return "it plays no part in this fold"
        if roles[slide] not in inference.roles:
            return f"the role {roles[slide]} is not predicted"
        if predictor is None:
            return "its model was not trained"
        return [predictor.predict(slide, trained.digest)]

    job.run(
        work,
        requires=["facts", "patches", *(["embeddings"] if job.inputs.get("embeddings") else [])],
        shared=trained.digest + (predictor.encoder_digest if predictor else ""),
        per_item={slide: str(roles.get(slide)) for slide in job.rows},
    )


class _Predictor:
    def __init__(self, job: Job, inference: InferenceConfig, experiment: str, fold: str) -> None:
        self._job, self._inference = job, inference
        self._experiment, self._fold = experiment, fold
        self._names = [one["name"] for one in job.config["encoders"]]
        self._grids = [one["encoder"]["grid"] for one in job.config["encoders"]]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(job.threads)
        self._model = job.paths.model(experiment, fold) / "decoder.safetensors"
        self._decoder, self._meta = load_decoder(self._model, self._device)
        # Of an experiment that may train its encoder no tokens are stored.
        self._live = inference.source == "live" or "grid" in job.config
        self._cache = TileCache()
        self.encoder_digest = ""
        if self._live:
            self._build_encoder()

    def _build_encoder(self) -> None:
        name = self._names[0]
        config, uniprot = self._job.encoder_config(name), self._job.uniprot(name)
        self._config = config
        made_for = self._meta.encoder.get("fused", [self._meta.encoder])[0]
        self._encoder = build_encoder(config, marker_panel([*made_for["markers"], *made_for["dropped"]], uniprot))
        if self._meta.encoder_trained:
            load_tuned_encoder(self._model, self._encoder)
        if self._encoder.weights != made_for["weights"]:
            raise SlideloomError(
                f"encoder {name} has the weights {self._encoder.weights}",
                where=self._job.context,
                expected=f"{made_for['weights']}, which the decoder was made for",
                hint="Run the workflow, not this job alone: the decoder is made again for the new weights",
                code="encoder_weights",
            )
        self._statistics = None
        digests = file_digests(config, uniprot)
        if config.statistics:
            place = self._job.paths.statistics(name)
            self._statistics = ChannelStatistics.from_dict(read_json(place))
            digests["statistics"] = digest_file(place)
        self.encoder_digest = canonical(digests)

    def predict(self, slide: str, model_digest: str) -> Path:
        """Write a slide's maps; returns where."""
        job = self._job
        patches = PatchStore(job.paths.patches(self._grids[0], slide))
        place = job.paths.maps(self._experiment, self._fold, slide)
        about = {
            "slide_id": slide,
            "image": patches.attributes["image"],
            "mpp_um": patches.mpp_um,
            "experiment": self._experiment,
            "fold": self._fold,
            "model_digest": model_digest,
            "encoder_weights": self._meta.encoder["weights"],
            "encoder_notes": [*self._meta.encoder["notes"], *self._meta.training.get("notes", ())],
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
        others = [
            (paths.patches(grid, slide), paths.embeddings(name, slide))
            for name, grid in zip(self._names[1:], self._grids[1:], strict=True)
        ]
        if not self._live:
            stored = open_tokens(paths.embeddings(self._names[0], slide), patches, others, self._cache)
            return StoredTiles(patches, stored, self._meta.blocks, self._decoder.needs_image)
        grid = GridConfig(**self._job.config["grid"])
        # Tiles of a tuned encoder overlap as those of the store would.
        live = self._inference.source == "live"
        overlap_px = self._inference.overlap_px if live else grid.tile_px - grid.step_px
        return LiveTiles(
            self._job.rows[slide],
            self._job.root,
            load_facts(paths.slide_facts(slide)),
            paths.tissue(slide),
            grid,
            overlap_px,
            self._encoder,
            self._config,
            patches,
            self._statistics,
            self._device,
            self._inference.precision,
            [TokenLattice(EmbeddingStore(place), PatchStore(tiles), self._cache) for tiles, place in others],
            self._meta.blocks,
        )

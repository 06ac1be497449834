"""The job of the rule ``maps``: one trained decoder over many slides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import canonical, digest_file
from slideloom.artefacts.stage import Outcome
from slideloom.config.model import GridConfig, InferenceConfig
from slideloom.encoders.checkpoints.digests import file_digests
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.fit import marker_panel
from slideloom.encoders.fused import open_tokens
from slideloom.encoders.lattice import TileCache, TokenLattice
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideloomError
from slideloom.inference.bands import band_rows
from slideloom.inference.live import LiveTiles
from slideloom.inference.predict import Predictor, SlideTask
from slideloom.inference.tiles import StoredTiles
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import load_facts
from slideloom.training.checkpoint import load_adapter, load_decoder, load_tuned_encoder
from slideloom.training.splits import roles_of_fold
from slideloom.workflow.job import Job

__all__ = ["run_maps"]


def run_maps(job: Job) -> None:
    """Predict the slides whose role asks for it, in one stream: the device is fed across slides.

    With the wildcard ``band``, that band of every slide alone.
    """
    fold = job.wildcards["fold"]
    inference = InferenceConfig(**job.config["inference"])
    roles = roles_of_fold(job.paths.split(job.config["split"]), fold)
    trained = job.states("model")[fold]
    slides, broken = None, None
    if trained.status == "ok":
        try:
            job.check("model", [fold])
            if job.inputs.get("statistics"):
                job.check("statistics", [job.config["encoders"][0]["name"]])
            slides = _Slides(job, inference, trained.digest)
        except BrokenArtefactError as error:  # every slide fails, and the next run makes the artefact again
            broken = error

    def stream(waiting: Iterator[str]) -> Iterator[tuple[str, Outcome]]:
        tasks = []
        for slide in waiting:
            if slide not in roles:
                yield slide, "it plays no part in this fold"
            elif roles[slide] not in inference.roles:
                yield slide, f"the role {roles[slide]} is not predicted"
            elif broken is not None:
                yield slide, broken
            elif slides is None:
                yield slide, "its model was not trained"
            else:
                try:
                    task = slides.task(slide)
                except Exception as error:
                    yield slide, error
                    continue
                if task is None:
                    yield slide, []
                else:
                    tasks.append(task)
        if slides is not None and tasks:
            for slide, outcome in slides.predictor.run(tasks):
                yield slide, outcome if isinstance(outcome, Exception) else [outcome]
            account = slides.predictor.account
            job.account(account.as_dict() | ({"gpu_seconds": account.busy_s} if slides.device == "cuda" else {}))

    job.run_stream(
        stream,
        requires=["facts", "patches", *(["embeddings"] if job.inputs.get("embeddings") else [])],
        shared=trained.digest + (slides.encoder_digest if slides else ""),
        per_item={slide: str(roles.get(slide)) for slide in job.rows},
    )


class _Slides:
    """What a job's slides have in common, and each one's task."""

    def __init__(self, job: Job, inference: InferenceConfig, model_digest: str) -> None:
        self._job, self._inference, self._model_digest = job, inference, model_digest
        self._experiment, self._fold = job.wildcards["experiment"], job.wildcards["fold"]
        self._names = [one["name"] for one in job.config["encoders"]]
        self._grids = [one["encoder"]["grid"] for one in job.config["encoders"]]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(job.threads)
        self._model = job.paths.model(self._experiment, self._fold) / "decoder.safetensors"
        self._decoder, self._meta = load_decoder(self._model, self.device)
        # Of an experiment that may train its encoder no tokens are stored.
        self._live = inference.source == "live" or "grid" in job.config
        self._cache = TileCache()
        self.encoder_digest = ""
        if self._live:
            self._build_encoder()
        self.predictor = Predictor(
            self._decoder,
            batch_size=inference.batch_size or "auto",
            precision=inference.precision,
            device=self.device,
            compile=inference.compile,
            symmetries=inference.symmetries,
        )

    def _build_encoder(self) -> None:
        name = self._names[0]
        config, uniprot = self._job.encoder_config(name), self._job.uniprot(name)
        self._config = config
        made_for = self._meta.encoder.get("fused", [self._meta.encoder])[0]
        # Markers are the adapter's, where there is one.
        own = config if self._meta.adapter is None else config.model_copy(update={"markers": []})
        self._encoder = build_encoder(own, marker_panel([*made_for["markers"], *made_for["dropped"]], uniprot))
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
        self._encoder.to(self.device)
        self._adapter = load_adapter(self._model, self.device)
        self._statistics = None
        digests = file_digests(config, uniprot)
        if config.statistics:
            place = self._job.paths.statistics(name)
            self._statistics = ChannelStatistics.from_dict(read_json(place))
            digests["statistics"] = digest_file(place)
        self.encoder_digest = canonical(digests)

    def task(self, slide: str) -> SlideTask | None:
        """A slide, or the job's band of it; None where it has no such band."""
        job = self._job
        run = (self._experiment, self._fold)
        patches = PatchStore(job.paths.patches(self._grids[0], slide))
        place, rows = job.paths.maps(*run, slide), None
        if (band := job.wildcards.get("band")) is not None:
            bands = band_rows(patches.height_px, job.config["bands"])
            if int(band) >= len(bands):
                return None
            place, rows = job.paths.maps_band(*run, slide, band), bands[int(band)]
        about = {
            "slide_id": slide,
            "image": patches.attributes["image"],
            "mpp_um": patches.mpp_um,
            "experiment": self._experiment,
            "fold": self._fold,
            "model_digest": self._model_digest,
            "encoder_weights": self._meta.encoder["weights"],
            "encoder_notes": [*self._meta.encoder["notes"], *self._meta.training.get("notes", ())],
        }
        if not self._live:
            return SlideTask(slide, place, about, lambda: self._stored(slide, patches, rows))
        return SlideTask(
            slide,
            place,
            about,
            lambda: self._cut(slide, patches, rows, shifted=False),
            (lambda: self._cut(slide, patches, rows, shifted=True)) if self._inference.seam_check else None,
        )

    def _others(self, slide: str) -> list[tuple[Path, Path]]:
        """Patches and embeddings of the further encoders."""
        paths = self._job.paths
        return [
            (paths.patches(grid, slide), paths.embeddings(name, slide))
            for name, grid in zip(self._names[1:], self._grids[1:], strict=True)
        ]

    def _stored(self, slide: str, patches: PatchStore, rows: tuple[int, int] | None) -> StoredTiles:
        place = self._job.paths.embeddings(self._names[0], slide)
        tokens = open_tokens(place, patches, self._others(slide), self._cache)
        return StoredTiles(patches, tokens, self._meta.blocks, self._decoder.needs_image, rows)

    def _cut(self, slide: str, patches: PatchStore, rows: tuple[int, int] | None, *, shifted: bool) -> LiveTiles:
        paths = self._job.paths
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
            [
                TokenLattice(EmbeddingStore(place), PatchStore(tiles), self._cache)
                for tiles, place in self._others(slide)
            ],
            self._meta.blocks,
            rows,
            shifted,
            self._adapter,
        )

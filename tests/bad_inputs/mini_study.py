"""A study of two slides with all its stores, made once a process by the very functions that a run uses."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from slideloom.artefacts.files import write_json
from slideloom.artefacts.keys import digest_text
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import ItemState, Stage, load_job_states
from slideloom.config.model import EncoderConfig, GridConfig, NormalisationConfig, TissueConfig
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.registry import build_encoder
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.patches.target_store import TargetStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.facts import load_facts
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, ClassTable, MarkerTable
from slideloom.slides.tissue import write_tissue

__all__ = ["SLIDES", "MiniStudy", "whole"]

#: The first is the one that is spoiled.
SLIDES = ("a", "b")
_PANEL = ("DNA", "CD3")
_MARKERS = MarkerTable(tuple(Channel(name, name, nuclear=name == "DNA") for name in _PANEL))
_GRID = GridConfig(image="sp", tile_px=32)
_ENCODER = EncoderConfig(model="mean_marker", grid="g", normalisation=NormalisationConfig(scope="slide"))
_CONTEXTS = {"facts": "", "patches": "g", "targets": "g", "embeddings": "e", "reader": ""}


@dataclass
class MiniStudy:
    """Two slides, from headers to tokens, and a stage that reads all of it.

    Attributes
    ----------
    folder : Path
        Of the images; ``results`` lies below.
    worked : list of (str, str)
        Stage and slide of what was made, not kept.
    """

    folder: Path
    worked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def paths(self) -> Paths:
        return Paths(self.folder / "results")

    def record(self, stage: str) -> Path:
        """Job record of a stage."""
        return self.paths.job_record(stage, _CONTEXTS[stage], "1-0")

    @property
    def records(self) -> list[str]:
        """Job records of every stage, in order."""
        return [str(self.record(stage)) for stage in _CONTEXTS]

    def write_images(self) -> None:
        """Noise with six nuclei on each slide; another on each, so that their stores differ."""
        for seed, slide in enumerate(SLIDES):
            drawn = np.random.default_rng(seed)
            ids = np.zeros((64, 96), np.int32)
            for number in range(6):
                y, x = divmod(number, 3)
                ids[y * 32 + 8 : y * 32 + 20 + seed, x * 32 + 8 : x * 32 + 20] = number + 1
            np.save(self.folder / f"{slide}.npy", drawn.poisson(50 + 200 * (ids > 0), (2, 64, 96)).astype(np.uint16))
            np.save(self.folder / f"{slide}_ids.npy", ids)

    def run(self) -> dict[str, ItemState]:
        """Everything that is not kept; the states of the reading stage."""
        self.worked = []
        self._stage("facts", self._facts, [])
        self._stage("patches", self._patches, ["facts"])
        self._stage("targets", self._targets, ["facts", "patches"])
        self._stage("embeddings", self._tokens, ["patches"])
        return self.read()

    def read(self) -> dict[str, ItemState]:
        """The reading stage alone."""
        return self._stage("reader", self._digest, ["facts", "patches", "targets", "embeddings"])

    def _stage(self, name: str, work: Callable[[str], Iterable[Path]], requires: list[str]) -> dict[str, ItemState]:
        def counted(slide: str) -> Iterable[Path]:
            self.worked.append((name, slide))
            return work(slide)

        stage = Stage(
            name=name,
            context=_CONTEXTS[name],
            paths=self.paths,
            params="{}",
            upstream={one: load_job_states([self.record(one)]) for one in requires},
            requires=tuple(requires),
            sources=tuple((one, _CONTEXTS[one]) for one in requires),
        )
        return stage.run(SLIDES, counted, self.record(name))

    def row(self, slide: str) -> SlideRow:
        """Its row of a sheet."""
        image, ids = f"{slide}.npy", f"{slide}_ids.npy"
        return SlideRow(slide, sp=image, instances=ids, sp_mpp_um=0.5, sp_channels=_PANEL)

    def _facts(self, slide: str) -> list[Path]:
        places = [self.paths.slide_facts(slide), self.paths.tissue(slide), self.paths.thumbnail(slide)]
        facts = write_facts(self.row(slide), self.folder, _MARKERS, places[0])
        write_tissue(facts, self.row(slide), self.folder, TissueConfig(method="all"), places[1], places[2])
        return places

    def _patches(self, slide: str) -> list[Path]:
        place, facts = self.paths.patches("g", slide), load_facts(self.paths.slide_facts(slide))
        cut_patches(self.row(slide), self.folder, facts, self.paths.tissue(slide), _GRID, place)
        return [place]

    def _targets(self, slide: str) -> list[Path]:
        place, facts = self.paths.targets("g", slide), load_facts(self.paths.slide_facts(slide))
        patches = PatchStore(self.paths.patches("g", slide))
        assert cut_targets(self.row(slide), self.folder, facts, patches, ClassTable(), place)
        return [place]

    def _tokens(self, slide: str) -> list[Path]:
        place, patches = self.paths.embeddings("e", slide), PatchStore(self.paths.patches("g", slide))
        embed_slide(build_encoder(_ENCODER, patches.channels), _ENCODER, patches, None, place)
        return [place]

    def _digest(self, slide: str) -> list[Path]:
        """Reads every value that a training would."""
        facts = load_facts(self.paths.slide_facts(slide))
        patches = PatchStore(self.paths.patches("g", slide))
        targets = TargetStore(self.paths.targets("g", slide))
        tokens = EmbeddingStore(self.paths.embeddings("e", slide))
        every = slice(0, patches.n)
        arrays = {
            "pixels": patches.pixels(every),
            "row": patches.row,
            "tissue": patches.tissue,
            **targets.read(every),
            **{str(block): tokens.tokens(block, every) for block in tokens.blocks},
        }
        place = self.paths.root / "reader" / f"{slide}.json"
        told = {name: digest_text(values.tobytes().hex()) for name, values in arrays.items()}
        write_json(place, told | {"slide": facts.slide_id})
        return [place]


@cache
def whole() -> Path:
    """The study that nothing is wrong with, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="slideloom-stores-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    study = MiniStudy(folder)
    study.write_images()
    study.run()
    return folder

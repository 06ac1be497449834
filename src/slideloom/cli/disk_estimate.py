"""How much a run will write, worked out from the slides' headers before anything runs.

What is not compressed follows from its shape; for what is, the shares below were measured on finished studies of real
and synthetic slides (`tests/cli/test_disk_estimate.py` holds them against one). Sizes are what a file system with
blocks of 4 KB gives away: with small slides, that is mostly metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slideloom.cli.slide_report import ImageReport, SlideReport
from slideloom.config.catalogue import find_entry
from slideloom.config.model import EncoderConfig, ExperimentConfig, GridConfig
from slideloom.slides.grid import grid_scale, grid_size
from slideloom.slides.sides import take_sides
from slideloom.slides.study import Study
from slideloom.workflow.plan import Plan

__all__ = ["Share", "estimate"]

_KB = 1024
#: Bytes of an uncompressed chunk: the last one of an array is filled up to whole chunks.
_CHUNK_BYTES = 512 * _KB
_HALF = 2
_SYMMETRIES = 8
#: Blocks that an encoder hands out where the config names none, at most.
_BLOCKS = 4
#: Of compressed arrays: what is left of a byte. Counts; targets (of 8 bytes a pixel); maps, by head, a pixel; labels.
_COUNTS = 0.5
_TARGETS = 8 * 0.05
_MAPS = {
    "nucleus": 0.55,
    "hv": 1.3,
    "classes": 0.7,
    "boundary": 0.55,
    "distance": 0.55,
    "three_class": 1.1,
    "instanseg": 8.0,
    "instanseg_cells": 8.0,
}
_NO_NUCLEUS_HEAD = 0.55
_LABELS = 0.1
#: A square micrometre of nuclei: their table, and for each of its markers; files for other programs.
_CELLS, _CELLS_MARKER = 1.0, 0.03
_EXPORTS = {"geojson": 0.3, "anndata": 0.5, "spatialdata": 1.2}
_SPATIALDATA = 750 * _KB
#: Metadata and half-filled blocks of a store, and of each of its arrays.
_STORE = {"patches": 190 * _KB, "targets": 100 * _KB}
_GROUP, _ARRAY = 8 * _KB, 24 * _KB
_CELL_FILES, _TABLES, _RECORD = 24 * _KB, 80 * _KB, 5 * _KB
_RUN_STAGES = 4
#: The picture of a slide: a side at most, and bytes a pixel.
_PICTURE_PX, _PICTURE = 1024, 1.7
_REPORT, _REPORT_RUN = 2 << 20, 200 * _KB
#: Weights of a decoder of full width with tokens below, and from, 512 values: of itself, for each value of a token; of
#: each further branch, likewise.
_NARROW, _WIDE, _WIDE_TOKENS = (9.8e6, 4400, 6.3e6, 1250), (22.1e6, 8192, 12.5e6, 2048), 512
_WEIGHT = 4
#: Length of a token of timm's transformers, by a word of their names, and of what is not known: timm itself, which
#: could tell, takes seconds to load.
_TIMM_WIDTHS = {"tiny": 192, "small": 384, "medium": 512, "base": 768, "so150m": 896, "large": 1024, "so400m": 1152}
_TIMM_WIDTHS |= {"huge": 1280, "giant": 1536, "gigantic": 1664, "7b": 4096}
_WIDTH, _TOKEN_PX = 1024, 16
#: A training keeps, to go on from, its weights, the best ones, and two figures of the optimiser each.
_RESUMED = 4


@dataclass(frozen=True)
class Share:
    """What one stage will write for one grid, encoder or experiment.

    Attributes
    ----------
    stage : str
        Folder below ``results``.
    context : str
        Folder in it; empty for all of it.
    size : int
        Bytes.
    left : int
        Of these, bytes of what does not lie there yet.
    """

    stage: str
    context: str
    size: int
    left: int


def estimate(study: Study, reports: Sequence[SlideReport]) -> list[Share]:
    """Work out what a run writes.

    Parameters
    ----------
    study : Study
        The study.
    reports : sequence of SlideReport
        Of its slides. Those whose size is not known count nothing: they cannot be opened. Others count though they may
        fail for another reason, since they may be mended.

    Returns
    -------
    list of Share
        In the order of the stages. Within a factor of two of what is written, usually above it; nuclei are counted as
        if tissue were everywhere.
    """
    return [share for share in _Estimate(study, reports).shares() if share.size]


class _Estimate:
    def __init__(self, study: Study, reports: Sequence[SlideReport]) -> None:
        self.study, self.config = study, study.config
        self.plan = Plan(study, Path())
        self.reports = {report.slide_id: report for report in reports}
        self.rows = [row for row in study.rows if row.slide_id in self.reports]
        self.targets = self.plan.target_grids()
        self.encoder_sizes = {name: _sizes(self.config.encoders[name]) for name in self.plan.used_encoders()}

    def shares(self) -> Iterator[Share]:
        paths, slides = self.study.paths, [row.slide_id for row in self.rows]
        annotated = [row.slide_id for row in self.rows if row.instances]
        yield _share("slides", "", ((self._slide(slide), paths.slide_facts(slide)) for slide in slides))
        for name in self.plan.used_grids():
            yield _share("patches", name, ((self._patches(one, name), paths.patches(name, one)) for one in slides))
        for name in self.targets:
            yield _share("targets", name, ((self._targets(one, name), paths.targets(name, one)) for one in annotated))
        with_cells = [row.slide_id for row in self.rows if row.cells]
        for name in self.plan.cell_grids():
            sizes = ((self._targets(s, name) // 2, paths.cell_targets(name, s)) for s in with_cells)
            yield _share("cell_targets", name, sizes)
        for name in self.plan.embedded_encoders():
            sizes = ((self._embeddings(one, name), paths.embeddings(name, one)) for one in slides)
            yield _share("embeddings", name, sizes)
        for name, experiment in self.config.experiments.items():
            yield from self._experiment(name, experiment)
        yield _share("state", "", [(_RECORD * self._records(), paths.root / "state")])
        yield _share("reports", "", [(_REPORT + _REPORT_RUN * len(self.plan.runs()), paths.reports())])

    # ---- slides ---------------------------------------------------------------------------------------------------

    def _image(self, slide: str, image: str) -> ImageReport | None:
        """An image of known size."""
        found = next((one for one in self.reports[slide].images if one.image == image), None)
        return found if found and found.height_px and found.width_px and found.mpp_um else None

    def _frame(self, slide: str, grid: GridConfig) -> tuple[int, int]:
        """Height and width in grid pixels; (0, 0) where the image is not known."""
        one = self._image(slide, grid.image)
        if one is None or not (one.height_px and one.width_px and one.mpp_um):
            return 0, 0
        return grid_size(one.height_px, one.width_px, grid_scale(one.mpp_um, grid.mpp_um))

    def _tiles(self, slide: str, name: str) -> int:
        grid, told = self.config.grids[name], self.reports[slide].tiles
        if name in told:
            return told[name]
        height, width = self._frame(slide, grid)
        return _steps(height, grid) * _steps(width, grid)

    def _slide(self, slide: str) -> int:
        one = self._image(slide, "he") or self._image(slide, "sp")
        if one is None or not (one.height_px and one.width_px):
            return 0
        shrink = min(1.0, _PICTURE_PX / max(one.height_px, one.width_px))
        return int(one.height_px * one.width_px * shrink**2 * _PICTURE) + 3 * _RECORD

    def _patches(self, slide: str, name: str) -> int:
        grid = self.config.grids[name]
        one, tiles = self._image(slide, grid.image), self._tiles(slide, name)
        if one is None or not tiles:
            return 0
        sample = _sample_bytes(one.dtype)
        row = (one.n_channels or 0) * grid.tile_px**2 * sample
        if grid.image == "he" or "float" in (one.dtype or ""):
            return _whole_chunks(tiles, row) + _STORE["patches"]
        return int(tiles * row * _COUNTS) + _STORE["patches"]

    def _targets(self, slide: str, name: str) -> int:
        tiles = self._tiles(slide, name)
        return int(tiles * self.config.grids[name].tile_px ** 2 * _TARGETS) + _STORE["targets"] if tiles else 0

    def _embeddings(self, slide: str, name: str) -> int:
        encoder = self.config.encoders[name]
        sizes, tiles = self.encoder_sizes[name], self._tiles(slide, encoder.grid)
        if not tiles:
            return 0
        side = max(1, self.config.grids[encoder.grid].tile_px // sizes.token_px)
        width = sizes.width or self._markers(slide, encoder)
        arrays = sizes.blocks * (_SYMMETRIES if encoder.symmetries else 1)
        return arrays * (_whole_chunks(tiles, side**2 * width * _HALF) + _ARRAY) + _GROUP

    def _markers(self, slide: str, encoder: EncoderConfig) -> int:
        one = self._image(slide, "sp")
        return len(encoder.markers) or (one.n_channels or 1 if one else 1)

    # ---- experiments ----------------------------------------------------------------------------------------------

    def _experiment(self, name: str, experiment: ExperimentConfig) -> Iterator[Share]:
        paths, grid = self.study.paths, self.config.grids[self.study.grid_of(name)]
        if experiment.trains:
            size = int(self._decoder(experiment))
            models = [(size, paths.model(name, fold)) for one, fold in self.plan.runs() if one == name]
            models.append((_RESUMED * size, models[-1][1]))
            yield _share("models", name, models)
        predicted = list(self._predicted(name))
        frames = {slide: self._frame(slide, grid) for slide, _ in predicted}
        pixels = {slide: height * width for slide, (height, width) in frames.items()}
        if experiment.labels is None:
            each = sum(_MAPS[head] for head in experiment.heads)
            each += 0.0 if "nucleus" in experiment.heads else _NO_NUCLEUS_HEAD
            fixed = _GROUP + (len(experiment.heads) + 2) * _ARRAY
            twice = 2 if self.config.inference.seam_check else 1
            sizes = ((twice * int(pixels[s] * each + fixed), paths.maps(name, fold, s)) for s, fold in predicted)
            yield _share("maps", name, sizes)
        images = 2 if "instanseg_cells" in experiment.heads else 1
        each_label = {s: images * (int(pixels[s] * _LABELS) + _GROUP + _ARRAY) for s in pixels}
        labels = ((each_label[s], paths.labels(name, fold, s)) for s, fold in predicted)
        yield _share("labels", name, labels)
        yield _share("cells", name, ((self._cells(s, grid), paths.cells(name, fold, s)) for s, fold in predicted))
        exports = ((self._exports(s, grid), paths.exports(name, fold)) for s, fold in predicted)
        yield _share("exports", name, exports)
        yield _share("metrics", name, ((_TABLES, paths.biology(name, fold, s)) for s, fold in predicted))

    def _cells(self, slide: str, grid: GridConfig) -> int:
        sp = self._image(slide, "sp")
        each = _CELLS + _CELLS_MARKER * ((sp.n_channels or 0) if sp else 0)
        return int(self._area_um2(slide, grid) * each) + _CELL_FILES

    def _exports(self, slide: str, grid: GridConfig) -> int:
        on = [key for key, wanted in self.config.exports.model_dump().items() if wanted]
        fixed = _SPATIALDATA if "spatialdata" in on else 0
        return int(self._area_um2(slide, grid) * sum(_EXPORTS[key] for key in on)) + fixed

    def _area_um2(self, slide: str, grid: GridConfig) -> float:
        one = self._image(slide, grid.image)
        if one is None or not (one.height_px and one.width_px and one.mpp_um):
            return 0.0
        return one.height_px * one.width_px * one.mpp_um**2

    def _predicted(self, name: str) -> Iterator[tuple[str, str]]:
        """Slides of known size that a run predicts, each with its folds."""
        split = self.config.splits[self.config.experiments[name].split]
        grid = self.config.grids[self.study.grid_of(name)]
        concerned = {row.slide_id for row in self.study.experiment_slides(name)} & self.reports.keys()
        for fold, roles in take_sides(self.study.rows, split).folds.items():
            for slide, role in roles.items():
                if slide in concerned and role in self.config.inference.roles and self._image(slide, grid.image):
                    yield slide, fold

    def _decoder(self, experiment: ExperimentConfig) -> float:
        """Bytes of a decoder's weights, and of its encoder's where these are trained, too."""
        encoders = [self.config.encoders[one] for one in experiment.encoder]
        sizes = [self.encoder_sizes[one] for one in experiment.encoder]
        token = sum(size.width or len(one.markers) or 32 for size, one in zip(sizes, encoders, strict=True))
        tuned = sizes[0].params if experiment.training.unfreeze_epoch is not None else 0
        if experiment.decoder.kind == "linear":
            return _WEIGHT * (tuned + 64.0 * token)
        own, own_token, more, more_token = _WIDE if token >= _WIDE_TOKENS else _NARROW
        width = experiment.decoder.width
        further = len(experiment.heads) - 1 if experiment.decoder.branches == "separate" else 0
        values = (own + further * more) * width**2 + (own_token + further * more_token) * width * token
        return _WEIGHT * (tuned + values)

    def _records(self) -> int:
        """Records of slides: each stage keeps one of each."""
        count = 2 * len(self.rows)
        for name in self.plan.used_grids():
            count += sum(bool(self._tiles(row.slide_id, name)) for row in self.rows) * (1 + (name in self.targets))
        for name in self.plan.cell_grids():
            count += sum(bool(row.cells and self._tiles(row.slide_id, name)) for row in self.rows)
        for name in self.plan.embedded_encoders():
            grid = self.config.encoders[name].grid
            count += sum(bool(self._tiles(row.slide_id, grid)) for row in self.rows)
        return count + sum(_RUN_STAGES * len(self.study.experiment_slides(name)) for name, _ in self.plan.runs())


@dataclass(frozen=True)
class _Sizes:
    """Of an encoder: side of a token in pixels, its length (0: as many as there are markers), blocks, parameters."""

    token_px: int
    width: int
    blocks: int
    params: int


def _share(stage: str, context: str, parts: Iterable[tuple[int, Path]]) -> Share:
    """Sum up artefacts, each its bytes and its place."""
    total = left = 0
    for size, place in parts:
        total += size
        left += 0 if place.exists() else size
    return Share(stage, context, total, left)


def _sizes(encoder: EncoderConfig) -> _Sizes:
    entry = find_entry(encoder.model)
    if entry is None:
        return _Sizes(_TOKEN_PX, _WIDTH, _BLOCKS, 0)
    token_px, width, depth = encoder.patch_px or entry.token_px, entry.width, entry.depth
    if entry.family == "timm" and width is None:
        width = next((value for word, value in _TIMM_WIDTHS.items() if f"_{word}" in entry.arch), None)
    markers = entry.family == "mean_marker"
    blocks = len(encoder.blocks) or min(_BLOCKS, depth or _BLOCKS)
    return _Sizes(token_px or _TOKEN_PX, 0 if markers else width or _WIDTH, blocks, entry.params or 0)


def _steps(size_px: int, grid: GridConfig) -> int:
    """Tiles along a side."""
    return 0 if size_px < 1 else 1 + max(0, -(-(size_px - grid.tile_px) // grid.step_px))


def _whole_chunks(tiles: int, row_bytes: int) -> int:
    """Bytes of an uncompressed array, a row a tile."""
    rows = min(tiles, max(1, _CHUNK_BYTES // max(1, row_bytes)))
    return -(-tiles // rows) * rows * row_bytes


def _sample_bytes(dtype: str | None) -> int:
    known: Mapping[str, int] = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "float64": 8}
    return known.get(dtype or "", 4)

"""Which places of which slides the page shows: the worst and the best scored tiles, the same for every experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import read_attributes
from slideloom.config.model import Modality
from slideloom.reports.sources import OverlaySource

__all__ = ["Place", "choose_places", "densest_place", "one_run_each"]

Kind = Literal["worst", "best", "dense"]
#: Places of each kind, shared out among the tile grids of the study.
_MOST = 3
#: A tile with fewer nuclei, true or predicted, says little: one slip decides.
_FEWEST_NUCLEI = 3
_RANKS = {"test": 0, "val": 1}
_TILE_COLUMNS = ["y_px", "x_px", "height_px", "width_px", "n_gt", "n_pred", "fp", "fn", "pq"]
#: Side of a place that no tile gives, pixels of the grid.
_CROP_PX = 256
#: Places that share more of the smaller one show the same.
_SAME_PLACE = 0.25
#: So many candidates for one place: some are shown already, by another grid or as the worst.
_SPARE = 4


@dataclass(frozen=True)
class Place:
    """A rectangle on a slide.

    Attributes
    ----------
    kind : {"worst", "best", "dense"}
        Why it is shown; ``dense``: nothing was scored, nuclei stand close here.
    slide_id : str
        The slide.
    image : {"he", "sp"}
        The image whose frame it is given in.
    mpp_um : float
        Pixel size of that frame, µm.
    y_px, x_px, height_px, width_px : int
        Where it lies, pixels of that frame.
    pq : float or None
        Mean PQ over the experiments that scored it.
    errors : float
        Their mean number of missed and of made-up nuclei.
    """

    kind: Kind
    slide_id: str
    image: Modality
    mpp_um: float
    y_px: int
    x_px: int
    height_px: int
    width_px: int
    pq: float | None = None
    errors: float = 0.0


def one_run_each(
    sources: Sequence[OverlaySource], slides: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, tuple[OverlaySource, str]]]:
    """One fold of each experiment for each slide: one that tests it, else one that chose its epoch by it, else any.

    Parameters
    ----------
    sources : sequence of OverlaySource
        What could be shown.
    slides : sequence of mapping
        Rows of ``slides.parquet``: experiment, fold, slide_id, role.

    Returns
    -------
    dict of str to dict of str to (OverlaySource, str)
        By slide, then by experiment: the run and the slide's role in it, empty where it was not scored. Slides in the
        order of their first source, experiments in the order of ``sources``.
    """
    roles = {(row["experiment"], row["fold"], row["slide_id"]): str(row["role"]) for row in slides}
    order = {name: number for number, name in enumerate(dict.fromkeys(source.experiment for source in sources))}
    result: dict[str, dict[str, tuple[OverlaySource, str]]] = {}
    for source in sources:
        role = roles.get((source.experiment, source.fold, source.row.slide_id), "")
        chosen = result.setdefault(source.row.slide_id, {})
        known = chosen.get(source.experiment)
        if known is None or rank_of(role) < rank_of(known[1]):
            chosen[source.experiment] = (source, role)
    return {slide: dict(sorted(runs.items(), key=lambda run: order[run[0]])) for slide, runs in result.items()}


def rank_of(role: str) -> int:
    """0 for tested slides, 1 for those that chose the epoch, 3 for those never scored, 2 for the rest."""
    return _RANKS.get(role, 2 if role else 3)


def choose_places(runs: Mapping[str, Mapping[str, tuple[OverlaySource, str]]], most: int = _MOST) -> list[Place]:
    """Choose the worst and the best tiles by mean PQ over the experiments.

    Parameters
    ----------
    runs : mapping
        As :func:`one_run_each` gives it.
    most : int
        Places of each kind; a study of several tile grids gets so many for all of them together, at least one each.

    Returns
    -------
    list of Place
        Most important first: the worst, the best, the second worst and so on. Only slides of the best role that was
        scored (test before val) and tiles with at least three nuclei, true or predicted, in some experiment. Of each
        slide one tile of a kind, as long as there are other slides, and no place twice. Equal PQ: more errors are
        worse; then more true nuclei are shown first.

    Notes
    -----
    One slide's tiles are in memory at a time.
    """
    ranks = [rank_of(role) for of_slide in runs.values() for source, role in of_slide.values() if source.tiles]
    if not ranks:
        return []
    worst: dict[tuple[str, int], list[tuple[tuple[Any, ...], Place]]] = {}
    best: dict[tuple[str, int], list[tuple[tuple[Any, ...], Place]]] = {}
    for slide, of_slide in runs.items():
        shown = [source for source, role in of_slide.values() if source.tiles and rank_of(role) == min(ranks)]
        for (image, side, mpp_um), tables in _frames(shown).items():
            tiles = _mean_tiles(tables)
            for table, sign in ((worst, 1), (best, -1)):
                for key, place in _first(tiles, slide, image, mpp_um, sign, most):
                    table.setdefault((image, side), []).append((key, place))
    chosen: list[Place] = []
    for _ in range(max(1, most // max(1, len(worst)))):
        for grid in sorted(worst):
            for candidates in (worst[grid], best[grid]):
                if (found := _next(candidates, chosen)) is not None:
                    chosen.append(found)
    return chosen


def densest_place(source: OverlaySource, centre_y: NDArray[np.float64], centre_x: NDArray[np.float64]) -> Place:
    """Where predicted nuclei stand closest, for a slide that was not scored.

    Parameters
    ----------
    source : OverlaySource
        The prediction.
    centre_y, centre_x : ndarray of float64, (n,)
        Centroids, pixels of its maps.

    Returns
    -------
    Place
        A square of 256 pixels, or the whole slide where that is smaller; in the slide's middle without any nucleus.
    """
    about = read_attributes(source.maps)
    size = int(about["height_px"]), int(about["width_px"])
    height, width = min(_CROP_PX, size[0]), min(_CROP_PX, size[1])
    y, x = (size[0] - height) // 2, (size[1] - width) // 2
    if centre_y.size:
        step = _CROP_PX // 4
        rows, cols = -(-size[0] // step), -(-size[1] // step)
        at = (centre_y / step).astype(int).clip(0, rows - 1), (centre_x / step).astype(int).clip(0, cols - 1)
        total = np.zeros((rows + 1, cols + 1), np.int64)
        np.add.at(total, (at[0] + 1, at[1] + 1), 1)
        total = total.cumsum(axis=0).cumsum(axis=1)
        deep, wide = min(4, rows), min(4, cols)
        window = total[deep:, wide:] - total[:-deep, wide:] - total[deep:, :-wide] + total[:-deep, :-wide]
        top, left = divmod(int(window.argmax()), window.shape[1])
        y, x = min(top * step, size[0] - height), min(left * step, size[1] - width)
    return Place("dense", source.row.slide_id, source.image, float(about["mpp_um"]), y, x, height, width)


def _frames(sources: Sequence[OverlaySource]) -> dict[tuple[Modality, int, float], list[pa.Table]]:
    """Tile tables by image, side of the tiles and pixel size: tables of one key cut the slide alike."""
    found: dict[tuple[Modality, int, float], list[pa.Table]] = {}
    for source in sources:
        assert source.tiles is not None
        table = pq.read_table(source.tiles, columns=_TILE_COLUMNS, partitioning=None)
        if not table.num_rows:
            continue
        side = max(int(np.asarray(table[name]).max()) for name in ("height_px", "width_px"))
        found.setdefault((source.image, side, float(read_attributes(source.maps)["mpp_um"])), []).append(table)
    return found


def _mean_tiles(tables: Sequence[pa.Table]) -> dict[str, NDArray[Any]]:
    """Tiles of one slide that hold enough nuclei and have a PQ, each once, with means over the experiments."""
    whole = pa.concat_tables(tables)
    column = {name: whole[name].to_numpy(zero_copy_only=False) for name in whole.column_names}
    boxes = np.stack([column[name].astype(np.int64) for name in _TILE_COLUMNS[:4]], axis=1)
    unique, at = np.unique(boxes, axis=0, return_inverse=True)
    at, n = at.reshape(-1), len(unique)
    pq_values = column["pq"].astype(np.float64)
    known = ~np.isnan(pq_values)
    defined = np.bincount(at[known], minlength=n)
    nuclei = np.zeros(n, np.int64)
    np.maximum.at(nuclei, at, np.maximum(column["n_gt"], column["n_pred"]).astype(np.int64))
    n_gt = np.zeros(n, np.int64)
    np.maximum.at(n_gt, at, column["n_gt"].astype(np.int64))
    errors = np.bincount(at, weights=(column["fp"] + column["fn"]).astype(np.float64), minlength=n)
    mean = np.bincount(at[known], weights=pq_values[known], minlength=n) / np.maximum(defined, 1)
    keep = (defined > 0) & (nuclei >= _FEWEST_NUCLEI)
    count = np.bincount(at, minlength=n)
    return {"box": unique[keep], "pq": mean[keep], "errors": (errors / count)[keep], "n_gt": n_gt[keep]}


def _first(
    tiles: Mapping[str, NDArray[Any]], slide: str, image: Modality, mpp_um: float, sign: int, most: int
) -> list[tuple[tuple[Any, ...], Place]]:
    """The first tiles of a slide, worst first for sign 1 and best first for -1, each with its rank among all slides."""
    box, score, errors = tiles["box"], sign * tiles["pq"], -sign * tiles["errors"]
    order = np.lexsort((box[:, 1], box[:, 0], -tiles["n_gt"], errors, score))
    result = []
    for k in order[: _SPARE * most].tolist():
        kind: Kind = "worst" if sign > 0 else "best"
        y, x, height, width = (int(value) for value in box[k])
        place = Place(kind, slide, image, mpp_um, y, x, height, width, float(tiles["pq"][k]), float(tiles["errors"][k]))
        result.append(((float(score[k]), float(errors[k]), -int(tiles["n_gt"][k]), slide, y, x), place))
    return result


def _next(candidates: Sequence[tuple[tuple[Any, ...], Place]], chosen: Sequence[Place]) -> Place | None:
    """The first candidate that shows nothing shown before, of the slides that show the fewest of its kind."""
    free = [one for one in candidates if not any(_overlap(one[1], other) > _SAME_PLACE for other in chosen)]
    if not free:
        return None
    shown = Counter((place.slide_id, place.kind) for place in chosen)
    return min(free, key=lambda one: (shown[one[1].slide_id, one[1].kind], one[0]))[1]


def _overlap(first: Place, second: Place) -> float:
    """Shared area of two places, as a share of the smaller one."""
    if first.slide_id != second.slide_id:
        return 0.0
    shared, smaller = 1.0, [1.0, 1.0]
    for start, length in (("y_px", "height_px"), ("x_px", "width_px")):
        ends = []
        for number, place in enumerate((first, second)):
            low, extent = getattr(place, start) * place.mpp_um, getattr(place, length) * place.mpp_um
            smaller[number] *= extent
            ends.append((low, low + extent))
        shared *= max(0.0, min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0]))
    return shared / min(smaller)

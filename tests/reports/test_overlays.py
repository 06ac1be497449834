"""The page's pictures: the right places, outlines that enclose their nuclei, verdicts that agree with the figures."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import DictLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from slideloom.artefacts.files import write_json
from slideloom.artefacts.zarrio import read_array
from slideloom.config.model import EvaluationConfig, StudyConfig
from slideloom.metrics.contingency import contingency
from slideloom.metrics.panoptic import panoptic
from slideloom.reports import crops
from slideloom.reports.choices import Place, choose_places, densest_place, one_run_each
from slideloom.reports.crops import draw_overlay
from slideloom.reports.html import TEMPLATE
from slideloom.reports.overlays import Pictures, draw_overlays
from slideloom.reports.pictures import NO_CLASS, NO_NUCLEUS, class_dots, dots_uri, false_colour, outlines
from slideloom.reports.sources import OverlaySource, overlay_sources
from slideloom.reports.thumbnails import draw_slides
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel


def filled(path: str, size: tuple[int, int]) -> np.ndarray:
    """Mask of an outline, drawn at double size as the page does and sampled at pixel centres."""
    mask = np.zeros((2 * size[0], 2 * size[1]), np.uint8)
    for part in re.findall(r"M(-?\d+) (-?\d+)l([^z]*)z", path):
        start = np.array([int(part[0]), int(part[1])])
        steps = np.array([int(number) for number in part[2].split()]).reshape(-1, 2)
        points = np.concatenate((start[None], start + steps.cumsum(axis=0)))
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return mask[::2, ::2]


def pixels_of(uri: str) -> np.ndarray:
    """A data URI's picture."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def section(pictures: Pictures, classes: Any) -> str:
    """The pictures as the page shows them."""
    macros = {"macros.html.j2": "{% macro tag(name) %}{{ name }}{% endmacro %}"}
    loader = FileSystemLoader(TEMPLATE.parent)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    names = ("pictures.html.j2", "pictures.css.j2")
    environment.loader = DictLoader(macros | {name: loader.get_source(environment, name)[0] for name in names})
    told = [(i, name, "#123456") for i, name in zip(classes.ids, classes.names, strict=True)]
    scripts = {"pictures": Markup((TEMPLATE.parent / "pictures.js.j2").read_text(encoding="utf-8"))}
    return environment.get_template("pictures.html.j2").render(overlays=pictures, classes=told, scripts=scripts)


def whole(source: OverlaySource, size: tuple[int, int], **more: Any) -> Place:
    """All of a slide."""
    return Place("worst", source.row.slide_id, source.image, 0.25, 0, 0, *size, **more)


def runs_of(cohort: Any, slide: str, *experiments: str) -> dict[str, tuple[OverlaySource, str]]:
    """Runs of a cohort's slide."""
    runs = one_run_each(cohort.sources, [])[slide]
    return {name: runs[name] for name in experiments or runs}


def write_tiles(place: Path, tiles: list[dict[str, Any]]) -> Path:
    """A ``tiles.parquet`` of 32-pixel squares in a row; each line gives n_gt, n_pred, fp, fn, pq."""
    rows = [
        {"tile": k, "y_px": 0, "x_px": 32 * k, "height_px": 32, "width_px": 32, "tp": 0} | tile
        for k, tile in enumerate(tiles)
    ]
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), place)
    return place


def scored(pq_value: float | None, fp: int = 1, fn: int = 1, n_gt: int = 5, n_pred: int = 5) -> dict[str, Any]:
    """A tile."""
    return {"n_gt": n_gt, "n_pred": n_pred, "fp": fp, "fn": fn, "pq": pq_value}


class Shelf:
    """Sources with nothing behind them but maps' attributes and tile tables."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources: list[OverlaySource] = []
        self.slides: list[dict[str, Any]] = []

    def add(
        self, experiment: str, slide: str, tiles: list[dict[str, Any]] | None, role: str = "test", mpp_um: float = 0.25
    ) -> None:
        """One run of one slide."""
        maps = self.root / "maps" / experiment / role / slide
        about = {"scale": 1.0, "mpp_um": mpp_um, "height_px": 32, "width_px": 320}
        write_json(maps / "zarr.json", {"attributes": about})
        table = write_tiles(self.root / "tiles" / experiment / role / f"{slide}.parquet", tiles) if tiles else None
        row, none = SlideRow(slide, he="x.npy"), self.root / "none"
        self.sources.append(OverlaySource(experiment, role, "he", row, self.root, none, maps, none, none, table))
        if role:
            self.slides.append({"experiment": experiment, "fold": role, "slide_id": slide, "role": role})

    def chosen(self, most: int = 3) -> list[tuple[str, str, int]]:
        """Kind, slide and tile of the chosen places."""
        places = choose_places(one_run_each(self.sources, self.slides), most)
        return [(place.kind, place.slide_id, place.x_px // 32) for place in places]


def test_outlines_enclose_their_nuclei() -> None:
    labels = np.zeros((40, 50), np.int64)
    y, x = np.mgrid[:40, :50]
    labels[(y - 12) ** 2 + (x - 14) ** 2 < 90] = 7
    labels[25:35, 30:49] = 4_000_000_000
    labels[0, 0] = 2
    labels[38:, 5:7] = labels[38:, 10:12] = 9  # two pieces
    paths = outlines(labels)
    assert sorted(paths) == [2, 7, 9, 4_000_000_000]
    for label, path in paths.items():
        mask, truth = filled(path, labels.shape), labels == label
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9, label
    assert outlines(np.zeros((3, 3), np.int64)) == {}
    assert list(outlines(np.ones((5, 5), np.int64))) == [1]
    (moved,) = outlines(labels, (5, 3), np.array([7])).values()
    assert np.array_equal(filled(moved, (35, 47)), filled(paths[7], (40, 50))[5:, 3:])


def test_a_place_shows_the_slide_and_judges_as_the_figures_do(cohort: Any) -> None:
    runs = runs_of(cohort, "s1")
    source = runs["good"][0]
    drawn = draw_overlay(whole(source, (96, 96)), runs, cohort.classes)
    (frame,) = drawn.frames
    assert (frame.height_px, frame.width_px, drawn.box) == (96, 96, (0, 0, 1, 1))
    image = np.load(cohort.root / "s1_he.npy")
    assert np.abs(pixels_of(frame.picture).astype(int) - image).mean() < 12
    assert frame.true is not None
    assert {n.class_id for n in frame.true} == {1, 2, 255}
    assert [shot.experiment for shot in drawn.shots] == ["good", "poor"]
    gt = np.load(cohort.root / "s1_instances.npy")
    for shot in drawn.shots:
        labels = read_array(runs[shot.experiment][0].labels / "0")
        figures = panoptic(contingency(gt, labels))
        state = Counter(n.state for n in shot.predicted)
        assert state["hit"] + state["other_class"] == figures.tp
        assert (state["false"], len(shot.missed)) == (figures.fp, figures.fn)
        assert any("IoU" in n.title and "truly" in n.title for n in shot.predicted)
        ids = {int(n.title.split()[1].rstrip(":")): n for n in shot.predicted}
        for label, nucleus in ids.items():
            mask, own = filled(nucleus.path, (96, 96)), labels == label
            assert (mask & own).sum() / (mask | own).sum() > 0.7


def test_a_tile_is_judged_as_its_row_of_the_metrics_says(cohort: Any) -> None:
    judged = 0
    for source in cohort.sources:
        table = cohort.paths.metrics(source.experiment, "0", source.row.slide_id) / "tiles.parquet"
        if not table.is_file():
            continue
        source = replace(source, tiles=table)
        for tile in pq.read_table(table, partitioning=None).to_pylist():
            box = tuple(tile[name] for name in ("y_px", "x_px", "height_px", "width_px"))
            place = Place("best", source.row.slide_id, "he", 0.25, *box)
            drawn = draw_overlay(place, {source.experiment: (source, "test")}, cohort.classes)
            assert drawn.shots[0].pq == tile["pq"]
            if box == (0, 0, 96, 96):
                state = Counter(n.state for n in drawn.shots[0].predicted)
                counts = tile["tp"], tile["fp"], tile["fn"], tile["wrong_class"]
                assert counts == (
                    state["hit"] + state["other_class"],
                    state["false"],
                    len(drawn.shots[0].missed),
                    state["other_class"],
                )
                judged += 1
    assert judged


def test_the_convention_and_the_threshold_of_the_evaluation_count(blank: Any) -> None:
    gt, found = np.zeros((40, 40), np.int32), np.zeros((40, 40), np.int32)
    gt[4:14, 4:24], found[4:14, 4:14] = 1, 1  # IoU of exactly 0.5
    gt[20:30, 4:14], found[20:30, 4:12] = 2, 2  # 0.8
    row = blank.add_slide("s", np.full((40, 40, 3), 240, np.uint8), gt, (gt > 0).astype(np.uint8))
    blank.predict("e", row, found, (found > 0).astype(np.uint8))
    runs = runs_of(blank, "s")
    for convention, threshold, states in [("pannuke", 0.5, 1), ("stardist", 0.5, 2), ("pannuke", 0.85, 0)]:
        evaluation = EvaluationConfig(convention=convention, iou_threshold=threshold)
        (shot,) = draw_overlay(whole(runs["e"][0], (40, 40)), runs, blank.classes, evaluation).shots
        assert Counter(n.state for n in shot.predicted)["hit"] == states
        assert len(shot.missed) == 2 - states


def test_nuclei_on_the_edge_are_compared_whole(blank: Any) -> None:
    gt, found = np.zeros((64, 64), np.int32), np.zeros((64, 64), np.int32)
    gt[20:30, 26:46], found[20:30, 33:46] = 1, 1  # 0.65 whole, but nothing of it is found left of column 32
    gt[50:60, 50:60] = 2  # does not touch the place
    row = blank.add_slide("s", np.full((64, 64, 3), 240, np.uint8), gt, (gt > 0).astype(np.uint8))
    blank.predict("e", row, found, (found > 0).astype(np.uint8))
    runs = runs_of(blank, "s")
    left = draw_overlay(replace(whole(runs["e"][0], (64, 32))), runs, blank.classes)
    assert [n.title for n in left.frames[0].true or ()] == ["true 1: tumour <&>"]
    assert left.shots[0].missed == ()
    assert left.shots[0].predicted == ()
    right = draw_overlay(replace(whole(runs["e"][0], (32, 32)), x_px=32), runs, blank.classes)
    assert [n.state for n in right.shots[0].predicted] == ["hit"]
    assert right.frames[0].true
    assert filled(right.frames[0].true[0].path, (32, 32)).sum() == 10 * 14


def test_only_the_place_and_its_margin_are_read(cohort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[slice, slice]] = []
    opened = crops.open_annotations

    def watched(*arguments: Any) -> Any:
        annotation = opened(*arguments)
        assert annotation is not None
        read = annotation.read
        monkeypatch.setattr(annotation, "read", lambda window: (seen.append(window), read(window))[1])
        return annotation

    monkeypatch.setattr(crops, "open_annotations", watched)
    monkeypatch.setattr(crops, "_MARGIN_PX", 8)
    runs = runs_of(cohort, "s1")
    draw_overlay(Place("best", "s1", "he", 0.25, 40, 0, 16, 24), runs, cohort.classes)
    assert seen == [(slice(32, 64), slice(0, 32))]  # once for both experiments


def test_another_image_and_resolution_are_placed_by_physical_size(tmp_path: Path, blank: Any) -> None:
    gt = np.zeros((80, 80), np.int32)
    gt[40:60, 20:40] = 1
    row = blank.add_slide("s", np.full((80, 80, 3), 240, np.uint8), gt, (gt > 0).astype(np.uint8))
    np.save(blank.root / "s_sp.npy", np.random.default_rng(0).integers(0, 99, (2, 40, 40)).astype(np.uint16))
    row = replace(row, sp="s_sp.npy")
    facts = blank.facts(row, (80, 80)).as_dict()
    channels = (Channel("c0", "DNA", "", True), Channel("c1", "CD3"))
    sp = ImageFacts("s_sp.npy", "numpy", 40, 40, 2, "uint16", 0.5, "sheet", (Level(40, 40, 1.0),), channels, False)
    both = SlideFacts("s", {"he": ImageFacts.from_dict(facts["images"]["he"]), "sp": sp})
    blank.predict("e", row, gt, (gt > 0).astype(np.uint8))
    source = blank.sources[0]
    write_json(source.facts, {"schema": 1, **both.as_dict()})
    small = gt[::2, ::2]
    blank.predict("f", replace(row, instances=None, classes=None), small, (small > 0).astype(np.uint8))
    write_json(source.facts, {"schema": 1, **both.as_dict()})
    coarse = replace(blank.sources[1], image="sp", row=row)
    group = coarse.maps / "zarr.json"
    group.write_text(
        group.read_text().replace('"mpp_um": 0.25', '"mpp_um": 0.5').replace('"mpp_um":0.25', '"mpp_um":0.5')
    )
    drawn = draw_overlay(
        Place("best", "s", "he", 0.25, 40, 20, 20, 40), {"e": (source, ""), "f": (coarse, "")}, blank.classes
    )
    assert [(f.image, f.y_px, f.x_px, f.height_px, f.width_px) for f in drawn.frames] == [
        ("he", 40, 20, 20, 40),
        ("sp", 20, 10, 10, 20),
    ]
    assert drawn.frames[1].colours == "DNA blue, CD3 green"
    assert [(shot.experiment, shot.frame) for shot in drawn.shots] == [("e", 0), ("f", 1)]
    assert [[n.state for n in shot.predicted] for shot in drawn.shots] == [["hit"], ["hit"]]
    assert drawn.box == (0.25, 0.5, 0.5, 0.25)


def test_labels_of_another_program_are_shown(blank: Any) -> None:
    gt = np.zeros((64, 64), np.int32)
    gt[10:20, 10:20], gt[30:40, 30:40] = 1, 2
    row = blank.add_slide("s", np.full((64, 64, 3), 240, np.uint8), gt, (gt > 0).astype(np.uint8))
    blank.predict("e", row, gt, (gt > 0).astype(np.uint8))
    source = blank.sources[0]
    cells = pq.read_table(source.cells, partitioning=None)
    nothing = pa.nulls(cells.num_rows, pa.uint8())
    cells = cells.drop_columns(["class_probability"]).set_column(
        cells.schema.get_field_index("class_id"), "class_id", nothing
    )
    pq.write_table(cells, source.cells)
    for name in ("nucleus", "hv", "class_id"):
        for path in sorted((source.maps / name).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (source.maps / name).rmdir()
    drawn = draw_overlay(whole(source, (64, 64)), {"e": (source, "test")}, blank.classes)
    assert [(n.state, n.class_id) for n in drawn.shots[0].predicted] == [("hit", 0)] * 2
    assert "no class" in drawn.shots[0].predicted[0].title
    (view,) = draw_slides({"s": {"e": (source, "test")}}, [], blank.classes, 100_000)
    assert (view.layers[0].n, view.layers[0].role) == (2, "test")


def test_the_worst_and_the_best_tiles_are_chosen(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    tiles = [scored(0.5), scored(0.0, fp=2), scored(0.0, fp=4), scored(0.9), scored(0.9, fp=0), scored(None)]
    few = [scored(0.0, n_gt=2, n_pred=2), scored(0.99, n_gt=2, n_pred=1)]
    shelf.add("a", "s0", [*tiles, *few])
    shelf.add("a", "s1", [scored(0.1), scored(0.8), scored(0.95, n_gt=0, n_pred=3)])
    assert shelf.chosen(1) == [("worst", "s0", 2), ("best", "s1", 2)]
    assert shelf.chosen(2) == [("worst", "s0", 2), ("best", "s1", 2), ("worst", "s1", 0), ("best", "s0", 4)]
    assert shelf.chosen(3)[4:] == [("worst", "s0", 1), ("best", "s0", 3)]


def test_tiles_are_ranked_by_their_mean_over_the_experiments(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.add("a", "s", [scored(0.0), scored(0.2), scored(0.9), scored(1.0)])
    shelf.add("b", "s", [scored(0.8), scored(0.2), scored(None), scored(0.5)])
    assert shelf.chosen(1) == [("worst", "s", 1), ("best", "s", 2)]
    (worst, best) = choose_places(one_run_each(shelf.sources, shelf.slides), 1)
    assert (worst.pq, best.pq, best.errors) == (pytest.approx(0.2), 0.9, 2.0)


def test_tested_slides_come_before_those_that_chose_the_epoch(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.add("a", "s0", [scored(0.0)], "val")
    shelf.add("a", "s1", [scored(0.7)], "val")
    assert shelf.chosen() == [("worst", "s0", 0), ("best", "s1", 0)]
    shelf.add("a", "s2", [scored(0.5), scored(0.6)], "test")
    shelf.add("a", "s0", [scored(0.4)], "test")  # another fold tests it
    shelf.add("a", "s3", None, "")
    assert shelf.chosen() == [("worst", "s0", 0), ("best", "s2", 1), ("worst", "s2", 0)]
    assert choose_places(one_run_each([], [])) == []
    assert choose_places(one_run_each(shelf.sources[-1:], [])) == []


def test_every_tile_grid_has_its_share_and_no_place_is_shown_twice(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for slide in ("s0", "s1"):
        shelf.add("fine", slide, [scored(0.1 + k / 20) for k in range(8)])
        shelf.add("coarse", slide, [scored(0.2 + k / 10) | {"x_px": 64 * k, "width_px": 64} for k in range(4)])
    places = choose_places(one_run_each(shelf.sources, shelf.slides), 3)
    assert Counter((place.kind, place.width_px) for place in places) == {
        ("worst", 32): 1, ("best", 32): 1, ("worst", 64): 1, ("best", 64): 1
    }  # fmt: skip
    assert {place.slide_id for place in places if place.kind == "worst"} == {"s0", "s1"}
    for k, first in enumerate(places):
        for second in places[:k]:
            ends = first.x_px + first.width_px, second.x_px + second.width_px
            assert first.slide_id != second.slide_id or min(ends) <= max(first.x_px, second.x_px)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([None, 0.0, 0.3, 0.6, 1.0]), st.integers(0, 5), st.integers(0, 6)), max_size=6
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 3),
)
def test_no_tile_that_was_left_out_is_worse(
    tmp_path_factory: pytest.TempPathFactory, slides: list[list[tuple[float | None, int, int]]], most: int
) -> None:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    for k, tiles in enumerate(slides):
        shelf.add("a", f"s{k}", [scored(value, fp, 0, n_gt, 0) for value, fp, n_gt in tiles])
    fit = {
        (f"s{k}", j): (value, -fp)
        for k, tiles in enumerate(slides)
        for j, (value, fp, n_gt) in enumerate(tiles)
        if value is not None and n_gt >= 3
    }
    chosen = shelf.chosen(most)
    assert len({one[1:] for one in chosen}) == len(chosen) == min(2 * most, len(fit))
    if fit:
        (kind, *worst), *others = chosen
        assert kind == "worst"
        lowest = min(fit.values())
        assert fit.pop(tuple(worst)) == lowest
        if others:
            kind, *best = others[0]
            assert kind == "best"
            assert fit[tuple(best)] == max(fit.values())


def test_an_unscored_slide_is_shown_where_nuclei_stand(blank: Any) -> None:
    labels = np.zeros((700, 600), np.int32)
    for k in range(9):
        y, x = 500 + 30 * (k // 3), 400 + 30 * (k % 3)
        labels[y : y + 12, x : x + 12] = k + 1
    row = blank.add_slide("big", np.full((700, 600, 3), 240, np.uint8), None, None)
    blank.predict("e", row, labels, (labels > 0).astype(np.uint8))
    pictures = draw_overlays(blank.sources, blank.classes)
    (place,) = pictures.places
    assert (place.kind, place.pq, place.frames[0].true) == ("dense", None, None)
    assert {n.state for n in place.shots[0].predicted} == {"plain"}
    assert len(place.shots[0].predicted) == 9
    assert place.frames[0].x_px + 256 <= 600
    assert "predicted nuclei stand closest" in section(pictures, blank.classes)
    middle = densest_place(blank.sources[0], np.empty(0), np.empty(0))
    assert (middle.y_px, middle.x_px) == (222, 172)


def test_a_slide_without_nuclei_or_cells_is_drawn(blank: Any) -> None:
    nothing = np.zeros((70, 90), np.int32)
    row = blank.add_slide("empty", np.full((70, 90, 3), 240, np.uint8), nothing, nothing.astype(np.uint8))
    blank.predict("e", row, nothing, nothing.astype(np.uint8))
    blank.sources[0].cells.unlink()
    pictures = draw_overlays(blank.sources, blank.classes)
    assert pictures.places[0].shots[0].predicted == pictures.places[0].frames[0].true == ()
    assert pictures.slides[0].layers[0].n == 0
    assert section(pictures, blank.classes).count("<path class") == 0


def test_what_cannot_be_drawn_is_left_out(cohort: Any, caplog: pytest.LogCaptureFixture) -> None:
    good = next(source for source in cohort.sources if source.row.slide_id == "s1")
    lost = replace(good, row=replace(good.row, slide_id="gone", he="gone.npy"))
    broken = replace(good, row=replace(good.row, slide_id="cut"), facts=cohort.root / "none.json")
    pictures = draw_overlays([lost, broken, good], cohort.classes)
    assert [place.slide_id for place in pictures.places] == ["s1"]
    assert [view.slide_id for view in pictures.slides] == ["gone", "s1"]  # its nuclei are there, its pixels are not
    assert "no picture of a place on gone" in caplog.text
    assert "no picture of cut" in caplog.text
    assert not draw_overlays([], cohort.classes)


def crowd_of(cohort: Any, experiments: int, slides: int) -> tuple[list[OverlaySource], list[dict[str, Any]]]:
    """The cohort's first slides again and again, under other names, each with a tile table; the last experiment has
    its slides alone."""
    sources, rows = [], []
    for e in range(experiments):
        for k in range(slides):
            source = next(one for one in cohort.sources if one.row.slide_id == f"s{k % 4}")
            slide = f"slide_{k}" if e < experiments - 1 else f"own_{k}"
            place = cohort.root / "crowd" / f"{e}_{k}.parquet"
            tile = scored((e + k) / 99) | {"width_px": 96, "height_px": 96}
            table = place if place.exists() else write_tiles(place, [tile])
            row = replace(source.row, slide_id=slide)
            sources.append(replace(source, experiment=f"e{e}", row=row, tiles=table))
            rows.append({"experiment": f"e{e}", "fold": "0", "slide_id": slide, "role": "test"})
    return sources, rows


def test_pictures_keep_within_their_bytes_and_share_them_out(cohort: Any) -> None:
    sources, rows = crowd_of(cohort, 4, 6)
    everything = draw_overlays(sources, cohort.classes, slides=rows)
    assert (len(everything.slides), everything.n_slides) == (12, 12)
    shown_bytes = []
    for budget in (90_000, 60_000):
        pictures = draw_overlays(sources, cohort.classes, slides=rows, budget_bytes=budget)
        shown_bytes.append(len(section(pictures, cohort.classes).encode()))
        assert budget / 2 < shown_bytes[-1] <= budget
        # The three that share slides and the one on its own have as many.
        shown = Counter(layer.experiment for view in pictures.slides for layer in view.layers)
        assert max(shown.values()) - min(shown.values()) <= 1
        assert set(shown) == {f"e{e}" for e in range(4)} or len(pictures.slides) == 1
    assert shown_bytes == sorted(shown_bytes, reverse=True)
    assert not draw_overlays(sources, cohort.classes, slides=rows, budget_bytes=10_000)


def test_the_same_places_are_shown_for_every_experiment(cohort: Any) -> None:
    sources, rows = crowd_of(cohort, 4, 4)
    pictures = draw_overlays(sources[:12], cohort.classes, slides=rows)
    assert [[shot.experiment for shot in place.shots] for place in pictures.places] == [["e0", "e1", "e2"]] * 4
    assert [place.kind for place in pictures.places] == sorted((p.kind for p in pictures.places), reverse=True)
    worst = next(place for place in pictures.places if place.kind == "worst")
    assert worst.pq == pytest.approx((0 + 1 + 2) / 3 / 99)
    assert [shot.pq for shot in worst.shots] == [pytest.approx(e / 99) for e in range(3)]
    page = section(pictures, cohort.classes)
    assert page.count('class="shot first"') == 4
    assert page.count('class="shot"') == 12
    assert "PQ 0.010 on average of 3 experiments" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {target for target in re.findall(r'href="#([^"]+)"', page)} <= set(ids)
    assert re.findall(r'<button[^>]*data-layer="(\w+)"[^>]*aria-pressed="true"', page) == [
        "image", "truth", "prediction", "errors"
    ]  # fmt: skip


def test_everything_is_escaped(cohort: Any) -> None:
    page = section(draw_overlays(cohort.sources, cohort.classes), cohort.classes)
    assert "tumour &lt;&amp;&gt;" in page
    assert "tumour <&>" not in page
    assert not re.search(r"https?:|url\(|@import", page)


def test_false_colours_name_their_channels() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (4, 30, 30)).astype(np.uint16)
    pixels[0, 5:10, 5:10] = 4000
    pixels[2, 15:20] = pixels[3, 15:20] = 900
    pixels[1, :, 3:8] = 700
    channels = [Channel("c0", "DNA", "", True), Channel("c1", "CD3"), Channel("c2", "CK"), Channel("c3", "")]
    picture, colours = false_colour(pixels, channels, False)
    assert (picture.shape, picture.dtype) == ((30, 30, 3), np.uint8)
    assert colours.startswith("DNA blue, ")
    assert "CD3" in colours
    assert not ("CK" in colours and "c3" in colours)
    assert picture[7, 7, 2] > 200 > picture[25, 25].max()
    assert false_colour(pixels[:1], channels[:1], False)[1] == "DNA blue"
    flat, _ = false_colour(np.zeros((2, 4, 4), np.float32), channels[:2], False)
    assert not flat.any()


def test_a_dot_has_the_most_frequent_class(cohort: Any) -> None:
    counts = np.zeros((4, 1, 5), np.int64)
    counts[:, 0, 0] = 3, 1, 2, 0
    counts[:, 0, 1] = 1, 0, 0, 0
    counts[:, 0, 2] = 0, 1, 1, 0
    counts[:, 0, 3] = 0, 0, 0, 4
    dots = class_dots(counts, (1, 2, 3))
    assert dots.tolist() == [[2, NO_CLASS, 1, 3, NO_NUCLEUS]]
    assert class_dots(counts[:1], ()).tolist() == [[NO_CLASS, NO_CLASS, NO_NUCLEUS, NO_NUCLEUS, NO_NUCLEUS]]
    shown = pixels_of(dots_uri(dots, cohort.classes))
    assert [tuple(one) for one in shown[0, [0, 2, 3], :3]] == [cohort.classes.colours[k] for k in (1, 0, 2)]
    assert shown[0, :, 3].tolist() == [255, 255, 255, 255, 0]


def test_a_small_slide_shows_the_shapes_of_its_nuclei(cohort: Any) -> None:
    runs = one_run_each([s for s in cohort.sources if s.row.slide_id == "s2"], [])
    (view,) = draw_slides(runs, [], cohort.classes, 1_000_000)
    layer = next(one for one in view.layers if one.experiment == "good")
    shown = pixels_of(layer.dots)
    source = runs["s2"]["good"][0]
    labels = read_array(source.labels / "0")
    at = ((np.arange(shown.shape[0]) + 0.5) * 96 / shown.shape[0]).astype(int)
    picked = labels[np.ix_(at, at)]
    assert np.array_equal(shown[..., 3] > 0, picked > 0)
    cells = pq.read_table(source.cells, partitioning=None).to_pydict()
    for cell, class_id in zip(cells["cell_id"], cells["class_id"], strict=True):
        colour = cohort.classes.colours[class_id - 1] if class_id in (1, 2, 3) else (140, 140, 140)
        assert (shown[picked == cell][:, :3] == colour).all()
    assert layer.box == (1, 1)
    assert (view.width_um, view.height_um) == (24, 24)


def test_a_large_slide_shows_dots_where_its_nuclei_are(blank: Any) -> None:
    row = blank.add_slide("s", np.full((64, 64, 3), 240, np.uint8), None, None)
    labels = np.zeros((64, 64), np.int32)
    labels[2:6, 2:6] = 1
    blank.predict("e", row, labels, (labels > 0).astype(np.uint8))
    source = blank.sources[0]
    size = 40_000, 20_000  # 10 mm: about 33 µm a dot
    facts = blank.facts(row, size)
    write_json(source.facts, {"schema": 1, **facts.as_dict()})
    rng = np.random.default_rng(3)
    y, x = rng.uniform(0, size[0], 5000), rng.uniform(0, size[1], 5000)
    kind = np.where(y < size[0] / 2, 1, 2).astype(np.uint8)
    table = {"cell_id": np.arange(5000), "x_px": x, "y_px": y, "class_id": kind}
    pq.write_table(pa.table(table), source.cells)
    (view,) = draw_slides({"s": {"e": (source, "")}}, [], blank.classes, 10_000_000)
    shown = pixels_of(view.layers[0].dots)
    assert shown.shape == (300, 150, 4)
    expected = np.zeros((300, 150), bool)
    expected[(y / size[0] * 300).astype(int), (x / size[1] * 150).astype(int)] = True
    assert np.array_equal(shown[..., 3] > 0, expected)
    upper, lower = shown[:150][expected[:150]], shown[150:][expected[150:]]
    assert (upper[:, :3] == blank.classes.colours[0]).all()
    assert (lower[:, :3] == blank.classes.colours[1]).all()
    assert view.layers[0].n == 5000
    assert (view.width, view.height) == (150, 300)


def test_sources_are_those_of_the_config_that_lie_on_disk(cohort: Any, tmp_path: Path) -> None:
    config = StudyConfig.model_validate(
        {
            "study": "x",
            "slides": "slides.tsv",
            "grids": {"g": {"image": "he", "tile_px": 32}},
            "encoders": {"r": {"model": "timm/x", "grid": "g", "random": 3}},
            "splits": {"s": {"scheme": "column"}},
            "experiments": {
                "good": {"encoder": "r", "split": "s"},
                "poor": {"labels": "other/{slide}.tif", "grid": "g", "split": "s"},
                "never": {"labels": "never/{slide}.tif", "grid": "g", "split": "s"},
            },
        }
    )
    paths = cohort.paths
    slides = [{"experiment": "good", "fold": "0", "slide_id": "s1", "role": "test", "pq": 0.5}]
    paths.reports().mkdir(parents=True, exist_ok=True)
    table = paths.reports() / "slides.parquet"
    before = table.read_bytes() if table.exists() else None
    pq.write_table(pa.Table.from_pylist(slides), table)
    marked = [paths.metrics(name, "0", "s1") / "tiles.parquet" for name in ("good", "poor")]
    added = [write_tiles(path, [scored(0.5)]) for path in marked if not path.exists()]
    found, sources = overlay_sources(config, paths, cohort.rows, cohort.root)
    for path in added:
        path.unlink()
    table.write_bytes(before) if before is not None else table.unlink()
    assert found == slides
    assert {(s.experiment, s.row.slide_id) for s in sources} == {(s.experiment, s.row.slide_id) for s in cohort.sources}
    assert {source.image for source in sources} == {"he"}
    # What an earlier run scored and this one did not is no result.
    assert [(s.experiment, s.row.slide_id) for s in sources if s.tiles is not None] == [("good", "s1")]


def test_sources_are_only_read_and_equal_inputs_give_equal_pictures(cohort: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(cohort.root).rglob("*") if path.is_file()}
    first = draw_overlays(cohort.sources, cohort.classes)
    assert {path: path.stat().st_mtime_ns for path in Path(cohort.root).rglob("*") if path.is_file()} == before
    assert draw_overlays(cohort.sources, cohort.classes) == first

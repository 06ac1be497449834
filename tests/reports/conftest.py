"""A small cohort on disk, as the stages would leave it: slides, maps, labels, cells, metrics, records, histories."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from slideloom.artefacts.files import read_json, write_json
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.tables import write_table
from slideloom.artefacts.zarrio import create_group, write_array
from slideloom.config.model import EvaluationConfig
from slideloom.metrics.biology import biology_rows
from slideloom.metrics.biology_schemas import BIOLOGY, NEIGHBOURS
from slideloom.metrics.cell_groups import Nuclei
from slideloom.metrics.contingency import PairCounter, majority
from slideloom.metrics.detail_schemas import SCORE_FIGURES
from slideloom.metrics.evaluate import evaluate_slide
from slideloom.metrics.neighbours import neighbour_rows
from slideloom.metrics.schemas import CLASS_FIGURES, SLIDE_FIGURES
from slideloom.metrics.semantic import ClassConfusion
from slideloom.metrics.tissue_area import PredictedTissue
from slideloom.patches.hv import hv_map
from slideloom.reports.aggregate import summarise_experiments
from slideloom.reports.beside import published_rows
from slideloom.reports.class_summary import summarise_classes
from slideloom.reports.comparisons import compare_experiments
from slideloom.reports.curves import PooledScores
from slideloom.reports.gather import Run
from slideloom.reports.groups import group_table
from slideloom.reports.overlays import OverlaySource
from slideloom.reports.schemas import BIOLOGY as BIOLOGY_TABLE
from slideloom.reports.schemas import CLASSES as CLASSES_TABLE
from slideloom.reports.schemas import CONFUSION, REPORT_TABLES
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, ClassTable

CLASSES = ClassTable(
    (1, 2, 3), ("tumour <&>", "stroma", "rare"), ((214, 39, 40), (44, 160, 44), (31, 119, 180)), ((), (), ())
)


SLIDE_FIGURE_NAMES = {column.name for column in SLIDE_FIGURES}


@dataclass
class Cohort:
    """Where things lie and what was run."""

    root: Path
    classes: ClassTable = CLASSES
    rows: list[SlideRow] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    sources: list[OverlaySource] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    benchmarks: list[Path] = field(default_factory=list)

    @property
    def paths(self) -> Paths:
        """Of the artefacts."""
        return Paths(self.root / "results")

    def add_slide(
        self,
        name: str,
        image: np.ndarray,
        instances: np.ndarray | None,
        class_map: np.ndarray | None,
        patient: str = "",
        tissue: str = "",
    ) -> SlideRow:
        """Save an H&E image (h, w, 3) and its annotation; write its facts and its overview picture."""
        self.root.mkdir(parents=True, exist_ok=True)
        np.save(self.root / f"{name}_he.npy", image)
        columns = {"slide_id": name, "patient_id": patient or name, "platform": "scanner", "he": f"{name}_he.npy"}
        columns |= {"extra": {"tissue": tissue}} if tissue else {}
        if instances is not None:
            np.save(self.root / f"{name}_instances.npy", instances)
            columns["instances"] = f"{name}_instances.npy"
        if class_map is not None:
            np.save(self.root / f"{name}_classes.npy", class_map)
            columns["classes"] = f"{name}_classes.npy"
        row = SlideRow(**columns)
        self.rows.append(row)
        write_json(self.paths.slide_facts(name), {"schema": 1, **self.facts(row, image.shape).as_dict()})
        Image.fromarray(image).save(self.paths.thumbnail(name))
        return row

    @staticmethod
    def facts(row: SlideRow, shape: tuple[int, ...]) -> SlideFacts:
        """Facts as the first stage would find them."""
        size = shape[:2]
        channels = tuple(Channel(colour, "") for colour in ("red", "green", "blue"))
        image = ImageFacts(
            row.he or "", "numpy", *size, 3, "uint8", 0.25, "sheet", (Level(*size, 1.0),), channels, True
        )
        return SlideFacts(row.slide_id, {"he": image})

    def predict(
        self,
        experiment: str,
        row: SlideRow,
        labels: np.ndarray,
        class_map: np.ndarray,
        *,
        random_weights: bool = False,
        external: bool = False,
    ) -> None:
        """Write maps, labels, cells and biology of a prediction, and score it; external: another program's labels."""
        maps = self.paths.maps(experiment, "0", row.slide_id)
        place = self.paths.labels(experiment, "0", row.slide_id)
        size = labels.shape
        weights = "random:3" if random_weights else f"sha256:{'ab' * 32} + sha256:{'cd' * 32}"
        attributes = {"scale": 1.0, "mpp_um": 0.25, "height_px": size[0], "width_px": size[1]}
        attributes |= {"encoder_weights": "labels" if external else weights}
        attributes |= {"encoder_notes": [] if external else [f"{experiment} does not read DNA"]}
        heads = ["labels", "classes"] if external else ["nucleus", "hv", "classes"]
        create_group(maps, {**attributes, "heads": heads})
        write_array(maps / "covered", np.ones(size, np.uint8))
        write_array(maps / "class_id", class_map.astype(np.uint8))
        if not external:
            sure = np.random.default_rng(len(row.slide_id)).integers(0, 60, size)
            write_array(maps / "nucleus", np.where(labels > 0, 245 - sure, sure).astype(np.uint8))
            write_array(maps / "class_probability", (250 - 2 * sure).astype(np.uint8))
            write_array(maps / "hv", (hv_map(labels) * 120).astype(np.int8))
        create_group(place, {"ome": {"version": "0.5", "multiscales": [{"datasets": [{"path": "0"}]}]}})
        write_array(place / "0", labels.astype(np.uint32))
        ids, area = np.unique(labels[labels > 0], return_counts=True)
        counter = PairCounter()
        counter.add(labels, class_map, labels > 0)
        at = np.array([np.argwhere(labels == i).mean(axis=0) + 0.5 for i in ids] or np.empty((0, 2))).reshape(-1, 2)
        kind = majority(*counter.pairs(), ids.astype(np.int64)).astype(np.uint8)
        cells = self.paths.cells(experiment, "0", row.slide_id)
        cells.parent.mkdir(parents=True, exist_ok=True)
        table = {"cell_id": ids.astype(np.int64), "x_px": at[:, 1], "y_px": at[:, 0], "class_id": kind}
        table["class_probability"] = np.full(ids.size, np.nan if external else 0.8)
        pq.write_table(pa.table(table), cells)
        nuclei = Nuclei(at[:, 1] / 4, at[:, 0] / 4, area / 16, kind, ("background", *self.classes.names))
        biology = self.paths.biology(experiment, "0", row.slide_id)
        self.measure(row.slide_id, nuclei, size, biology)
        facts_path = self.paths.slide_facts(row.slide_id)
        folder = self.paths.metrics(experiment, "0", row.slide_id)
        facts = self.facts(row, size)
        scored = evaluate_slide(
            maps, place, row, self.root, facts, "he", 1.0, self.classes, EvaluationConfig(), None, folder
        )
        run = self.runs.setdefault(
            experiment, Run(experiment, "0", random_weights, self.paths.split("s"), metrics={}, biology={})
        )
        run.biology[row.slide_id] = biology  # type: ignore[index]
        if scored:
            run.metrics[row.slide_id] = folder  # type: ignore[index]
        self.sources.append(OverlaySource(experiment, "0", "he", row, self.root, facts_path, maps, place, cells))

    @staticmethod
    def measure(slide: str, nuclei: Nuclei, size: tuple[int, ...], place: Path) -> None:
        """Write the tables of a prediction's biology; all but a border of the slide is tissue."""
        height, width = size[0] / 4, size[1] / 4
        tissue = PredictedTissue(height * (width - 2) / 1e6, shapely.box(2, 0, width, height))
        markers = [("DNA", 100 + nuclei.area_um2), ("CD3", np.where(nuclei.class_id == 1, 5.0, nuclei.x_um))]
        of_slide = {"slide_id": slide, "image": "he"}
        rows = [of_slide | row for row in biology_rows(nuclei, tissue, markers)]
        write_table(BIOLOGY, rows, place / "biology.parquet", made_from={"slide_id": slide})
        rows = [of_slide | row for row in neighbour_rows(nuclei)]
        write_table(NEIGHBOURS, rows, place / "neighbours.parquet", made_from={"slide_id": slide})

    def split(self, roles: dict[str, str]) -> None:
        """Write the split that every run uses."""
        place = self.paths.split("s")
        place.parent.mkdir(parents=True, exist_ok=True)
        table = [{"slide_id": slide, "fold": "0", "role": role} for slide, role in roles.items()]
        pq.write_table(pa.Table.from_pylist(table), place)

    def train(self, experiment: str, epochs: int = 12, seed: int = 0) -> None:
        """Write a training history."""
        rng = np.random.default_rng(seed)
        fall = np.exp(-np.arange(epochs) / 5)
        history = {
            "epoch": np.arange(1, epochs + 1),
            "lr": 5e-4 * fall,
            "seconds": np.full(epochs, 3.2),
            "train_loss": 0.4 + fall + rng.normal(0, 0.01, epochs),
            "train_nucleus_dice": 0.2 + fall / 2,
            "val_loss": 0.5 + fall + rng.normal(0, 0.03, epochs),
            "val_dice_binary": 0.9 - fall / 2 + rng.normal(0, 0.01, epochs),
            "val_dice_macro": [None, *(0.7 - fall[1:] / 2)],
            "is_best": np.arange(epochs) == epochs - 3,
        }
        place = self.paths.model(experiment, "0") / "history.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(history), place)
        run = self.runs[experiment]
        self.runs[experiment] = replace(run, history=place)

    def record(self, stage: str, context: str, items: dict[str, dict[str, str]], unit: str = "1-0") -> Path:
        """Write a job record."""
        place = self.paths.job_record(stage, context, unit)
        write_json(place, {"schema": 1, "stage": stage, "context": context, "items": items})
        self.records.append(place)
        return place

    def benchmark(self, stage: str, context: str, unit: str, seconds: float, values: str | None = None) -> Path:
        """Write a benchmark file as Snakemake does."""
        place = self.paths.benchmark(stage, context, unit)
        place.parent.mkdir(parents=True, exist_ok=True)
        head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
        values = values or f"512.5\t900.1\t500.0\t501.0\t12.5\t3.25\t95.5\t{seconds * 0.9:.2f}"
        place.write_text(f"{head}{seconds}\t0:00:01\t{values}\n")
        self.benchmarks.append(place)
        return place


def blobs(rng: np.random.Generator, size: int = 96, n: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with dark discs, their labels and their classes (one of them unknown)."""
    labels, classes = np.zeros((size, size), np.int32), np.zeros((size, size), np.uint8)
    y, x = np.mgrid[:size, :size]
    for label in range(1, n + 1):
        cy, cx = rng.uniform(0, size, 2)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(3, 7) ** 2
        labels[disc] = label
        classes[disc] = 255 if label == 3 else 1 + label % 2
    image = np.full((size, size, 3), 235, np.uint8)
    image[labels > 0] = (110, 60, 140)
    return (image + rng.integers(0, 12, image.shape)).astype(np.uint8), labels, classes


def worsen(rng: np.random.Generator, labels: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A prediction: moved a little, some missed, some of another class, some made up."""
    shift = rng.integers(-2, 3, 2)
    found = np.roll(labels, shift, (0, 1))
    kind = np.roll(np.where(classes == 255, 1, classes), shift, (0, 1))
    ids = np.unique(labels)[1:]
    found[np.isin(found, rng.choice(ids, max(1, ids.size // 8), replace=False))] = 0
    kind[np.isin(found, rng.choice(ids, max(1, ids.size // 6), replace=False))] = 1
    found[4:12, 4:12], kind[4:12, 4:12] = ids.max() + 1, 2
    return found, np.where(found > 0, kind, 0)


_OK = {"status": "ok", "digest": "d"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Four scored slides of three patients and one without annotation; a trained and a random-weights experiment."""
    whole = Cohort(tmp_path_factory.mktemp("cohort"))
    rng = np.random.default_rng(5)
    roles = {}
    for number, patient in enumerate(["P1", "P1", "P2", "P3"]):
        name = f"s{number}"
        image, labels, classes = blobs(rng)
        row = whole.add_slide(name, image, labels, classes, patient, "Breast" if patient == "P2" else "Colon")
        good = worsen(rng, labels, classes)
        whole.predict("good", row, *good)
        whole.predict("poor", row, *worsen(rng, *good), random_weights=True)
        roles[name] = "test" if number else "val"
    image, labels, classes = blobs(rng)
    row = whole.add_slide("bare", image, None, None)
    whole.predict("good", row, labels, np.where(classes == 255, 0, classes))
    noted = whole.paths.slide_facts("s1")
    write_json(noted, read_json(noted) | {"warnings": ["he: it holds 2 images; the largest, 'a <i>b</i>', is read"]})
    whole.split({**roles, "bare": "infer"})
    whole.train("good")
    failed = {
        "status": "failed",
        "stage": "facts",
        "code": "truncated",
        "message": "x <b>: cut",
        "hint": "Copy it again",
    }
    whole.record("facts", "", {"broken": failed, "s0": _OK, "s1": _OK})
    whole.record("tissue", "", {"broken": failed})
    whole.benchmark("facts", "", "1-0", 1.5)
    whole.benchmark("maps", "good/0", "1-0", 20.0)
    return whole


_TERMS = ("classes_cross_entropy", "classes_dice", "classes_focal_tversky", "classes_lovasz_softmax", "hv_mse")


@dataclass
class Grid:
    """Report tables of a made-up study with the experiments of a published report, without any artefact behind them.

    Attributes
    ----------
    levels : dict of str to float
        Dice that each experiment is drawn around.
    seed : int
        Of the noise.
    platform : str
        Of the slides.
    random_weights : tuple of str
        Experiments that ran with random weights.
    """

    levels: dict[str, float]
    seed: int = 0
    platform: str = "synthetic-a"
    random_weights: tuple[str, ...] = ()
    splits: dict[str, str] = field(default_factory=dict)

    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of slides, classes and training."""
        slides, classes, training = [], [], []
        for number, (name, level) in enumerate(self.levels.items()):
            self.splits[name] = split = _split_of(name)
            for fold, tested in enumerate(_TESTED[split]):
                about = {"experiment": name, "fold": str(fold), "random_weights": name in self.random_weights}
                rng = np.random.default_rng([self.seed, number, fold])
                training += _epochs(about, level, rng)
                for slide in tested:
                    ease = np.random.default_rng([self.seed, 99, slide]).normal(0, 0.05)
                    where = about | {"slide_id": f"slide_{slide:02}", "patient_id": f"patient_{slide // 2:02}"}
                    where |= {"platform": self.platform, "role": "test", "image": "sp", "tissue": _TISSUES[slide % 3]}
                    found = _class_rows(level + ease, rng, name.endswith("instances"))
                    classes += [where | row for row in found]
                    slides.append(where | _slide_row(level + ease, found, rng))
        return slides, classes, training

    def write(self, place: Path, published: str | None = "sp_he") -> Path:
        """Write every table; those of pixels, and the biology, of each experiment's first slide alone."""
        slides, classes, training = self.rows()
        tables: dict[str, Any] = {name: [] for name in REPORT_TABLES}
        tables |= {"slides": slides, "classes": classes, "training": training}
        tables["experiments"] = summarise_experiments(slides)
        tables["groups"] = group_table(slides).to_pylist()
        written = write_table(CLASSES_TABLE, [{"study": "grid"} | row for row in classes], place / "classes.parquet")
        for number, name in enumerate(self.levels):
            whose = {"experiment": name, "role": "test", "random_weights": name in self.random_weights}
            own = written.filter(pc.equal(written["experiment"], name))
            tables["experiment_classes"] += [whose | row for row in summarise_classes(own)[0]]
            about = next(row for row in slides if row["experiment"] == name)
            rng = np.random.default_rng([self.seed, number, 1000])
            for table, rows in _pixel_rows(about, whose, rng).items():
                tables[table] += rows
        tables["comparisons"] = compare_experiments(slides, self.splits)
        tables["published"] = published_rows(published, slides, classes, training, self.splits)
        for name, schema in REPORT_TABLES.items():
            write_table(schema, [{"study": "grid"} | row for row in tables[name]], place / f"{name}.parquet")
        return place


GRID_CLASSES = ClassTable(
    tuple(range(1, 10)),
    ("Stroma", "Tumor", "Macrophage", "Helper T", "Cytotoxic T cells", "Endothelia", "Other", "Treg", "B cells"),
    tuple((25 * k, 90, 250 - 25 * k) for k in range(1, 10)),
    tuple(() for _ in range(9)),
)
_TISSUES = ("Colon", "Breast", None)
_SHARES = (0.70, 0.104, 0.0873, 0.0512, 0.023, 0.0146, 0.0097, 0.0083, 0.0037, 0.0037)
_TESTED = {"quarters": (range(8, 16), range(24, 32)), "threefold": (range(11), range(11, 22), range(22, 32)),
           "holdout": (range(24, 32),)}  # fmt: skip
_QUARTERS = {"ce_dice", "ce_dice_cw", "ce_dice_ft", "ce_dice_ft_cw", "no_skips", "gamma_045", "gamma_085"}


def _split_of(experiment: str) -> str:
    return "quarters" if experiment in _QUARTERS else "threefold" if experiment in ("plain", "augmented") else "holdout"


def _epochs(about: dict[str, Any], level: float, rng: np.random.Generator, n: int = 20) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(n):
        fall = float(np.exp(-epoch / 5))
        row = about | {"epoch": epoch, "lr": 5e-4 * fall, "seconds": 2.0, "best": epoch == n - 3}
        row |= {f"train_{term}": 0.2 + fall + k / 10 for k, term in enumerate(_TERMS)}
        row |= {"train_loss": 0.4 + fall, "val_loss": 0.5 + fall + float(rng.normal(0, 0.01))}
        rows.append(row | {"val_dice_macro": level - fall / 3 + float(rng.normal(0, 0.004)), "val_dice_binary": 0.8})
    return rows


def _class_rows(level: float, rng: np.random.Generator, no_classes: bool) -> list[dict[str, Any]]:
    names = ("background", *GRID_CLASSES.names)
    rows = []
    for class_id, (name, share) in enumerate(zip(names, _SHARES, strict=True)):
        true = int(1e6 * share * rng.uniform(0.8, 1.2))
        row: dict[str, Any] = {column.name: None if column.null else 0 for column in CLASS_FIGURES}
        row |= {"class_id": class_id, "class_name": name, "gt_pixels": true, "gt_fraction": true / 1e6}
        if not no_classes:
            dice = float(np.clip(0.9 if class_id == 0 else level + rng.normal(0, 0.03), 0, 1))
            predicted = 0 if level < 0.3 and share < 0.015 else int(true * rng.uniform(0.8, 1.2))
            hits = min(int(dice * (true + predicted) / 2), true, predicted)
            row |= {"pred_pixels": predicted, "tp_pixels": hits, "pred_fraction": predicted / 1e6}
            row |= {"dice": 2 * hits / (true + predicted)}
        rows.append(row)
    return rows


def _pixel_rows(
    about: dict[str, Any], whose: dict[str, Any], rng: np.random.Generator
) -> dict[str, list[dict[str, Any]]]:
    """Made-up confusion, curves, calibration and biology of one slide, as the stages write them."""
    size = 160
    classes = ("background", *GRID_CLASSES.names)
    truth = rng.choice(10, (size, size), p=np.array(_SHARES) / sum(_SHARES))
    found = np.where(rng.random((size, size)) < 0.7, truth, rng.integers(0, 10, (size, size)))
    pixels, of = ClassConfusion(), {key: about[key] for key in about if key in CONFUSION.names}
    pixels.add(truth.astype(np.uint8), found.astype(np.uint8))
    confusion = [
        of | {"true_class_id": row["true_class_id"], "true_class_name": classes[row["true_class_id"]]}
        | {"pred_class_id": row["pred_class_id"], "pred_class_name": classes[row["pred_class_id"]]}
        | {"pixels": row["pixels"], "nuclei": None if row["true_class_id"] == row["pred_class_id"] == 0 else 3}
        for row in pixels.rows(range(10))
    ]  # fmt: skip
    sure = np.clip(np.where(found == truth, 200, 120) + rng.normal(0, 30, truth.shape), 0, 255)
    scores = PooledScores()
    scores.add(_score_rows(truth, found, 5 * (sure / 5).astype(np.uint8)), about["slide_id"], about["patient_id"])
    n = 400
    places = rng.uniform(0, 500, (2, n))
    nuclei = Nuclei(*places, rng.uniform(20, 80, n), rng.choice(10, n, p=np.array(_SHARES) / sum(_SHARES)), classes)
    of = {key: about[key] for key in about if key in BIOLOGY_TABLE.names and key not in SLIDE_FIGURE_NAMES}
    tissue = PredictedTissue(0.2, shapely.box(0, 0, 500, 400))
    markers = [(name, rng.gamma(2, 50, n)) for name in ("DNA", "CD3", "CD8", "CD20", "CD68", "PanCK")]
    return {
        "confusion": confusion,
        "curves": [whose | row for row in scores.curves().to_pylist() if row["class_id"] in (None, 0, 1, 2)],
        "calibration": [whose | row for row in scores.calibration()],
        "biology": [of | row for row in biology_rows(nuclei, tissue, markers)],
        "neighbours": [of | row for row in neighbour_rows(nuclei)],
    }


def _score_rows(truth: np.ndarray, found: np.ndarray, score: np.ndarray) -> pa.Table:
    """Pixels by score, as an evaluated slide leaves them."""
    rows = []
    nucleus = np.where(found > 0, score, 255 - score)
    kinds = [(None, np.ones(truth.shape, bool), truth > 0, nucleus)]
    kinds += [(k, found == k, truth == k, score) for k in range(10)]
    for class_id, won, true, value in kinds:
        about = {"of": "nucleus" if class_id is None else "class", "class_id": class_id}
        about |= {"class_name": None if class_id is None else ("background", *GRID_CLASSES.names)[class_id]}
        positive, negative = (np.bincount(value[won & side], minlength=256) for side in (true, ~true))
        for level in np.flatnonzero((positive + negative > 0) | (np.arange(256) == 255)).tolist():
            counts = {"positive": int(positive[level]), "negative": int(negative[level])}
            rows.append(about | {"score": level, "n_true": int(true.sum())} | counts)
    return pa.Table.from_pylist(rows, pa.schema([(c.name, c.type) for c in SCORE_FIGURES]))


def _slide_row(level: float, classes: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    row: dict[str, Any] = {column.name: None if column.null else 0 for column in SLIDE_FIGURES}
    dice = [one["dice"] for one in classes]
    row |= {"n_tiles": 625, "area_mm2": 2.0, "n_gt": 900, "n_pred": 880, "tp": 700, "fp": 180, "fn": 200}
    row |= {"iou_sum": 500.0, "gt_pixels": 9000, "pred_pixels": 8800, "tp_pixels": 7000}
    values = dict(zip(("pq", "sq", "aji", "dice_binary", "map"), rng.normal(level + 0.1, 0.02, 5), strict=True))
    row |= {name: float(np.clip(value, 0, 1)) for name, value in values.items()}
    row |= {"dq": row["pq"], "f1_mean": row["pq"], "hv_mse": 0.1 - level / 10 + float(rng.normal(0, 0.002))}
    if dice[1] is not None:
        row |= {
            "dice_macro": float(np.mean(dice[1:])),
            "dice_macro_with_background": float(np.mean(dice)),
            "mpq": level,
        }
    return row


LEVELS = {
    "ce_dice": 0.46, "ce_dice_cw": 0.46, "ce_dice_ft": 0.48, "ce_dice_ft_cw": 0.46, "no_skips": 0.35,
    "gamma_045": 0.48, "gamma_085": 0.48, "plain": 0.55, "augmented": 0.56, "he_classes": 0.27, "sp_classes": 0.62,
    "he_instances": 0.6, "sp_instances": 0.6, "sp_boundary": 0.62, "sp_boundary_context": 0.62,
    "sp_boundary_attention": 0.63, "mean_marker": 0.5, "mean_marker_linear": 0.42, "sp_lovasz": 0.61, "sp_focal": 0.6,
    "sp_16": 0.55, "fused": 0.64, "sp_unfrozen": 0.66, "ema": 0.62, "plateau": 0.61, "one_slide": 0.3,
}  # fmt: skip


@pytest.fixture(scope="session")
def grid() -> type[Grid]:
    """Maker of studies of many experiments."""
    return Grid


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of a study of 26 experiments, those of the published report among them."""
    return Grid(LEVELS, random_weights=("sp_16",)).write(tmp_path_factory.mktemp("many"))


@pytest.fixture
def blank(tmp_path: Path) -> Cohort:
    """A cohort without anything in it."""
    return Cohort(tmp_path)

"""What runs again after an edit of each key of the config: the contract, a row a key.

A row names the stages whose own params change; what they feed follows through the graph. The three stages of the report
run after every edit of the science, so they stand in no row; rows of keys that hold none are marked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from slideloom.config.explain import kind_at
from slideloom.config.model import StudyConfig

PREDICTED = ("sp", "he", "live", "he_live", "any", "virtues", "published")
SCORED = (*PREDICTED, "other")


def _each(stage: str, names: tuple[str, ...] = PREDICTED) -> str:
    return " ".join(f"{stage}/{name}" for name in names)


MEAN = "embeddings/mean train/sp maps/sp train_live/live maps/live"
POOLED = f"statistics/mean {MEAN}"
VIT = "embeddings/vit train/he maps/he train_live/he_live maps/he_live"
VIRTUES = "embeddings/vt train/virtues maps/virtues"
MAPS, INSTANCES, METRICS = _each("maps"), _each("instances"), _each("metrics", SCORED)
PATCHES, TARGETS = (_each(stage, ("sp", "he", "vt", "cv", "labels", "any")) for stage in ("patches", "targets"))
EXPORTS = _each("exports", SCORED)
TERMS = ("cross_entropy", "dice", "focal", "tversky", "focal_tversky", "lovasz_softmax", "lovasz_hinge")
TRAIN, LIVE, HE_LIVE, ANY = "train/sp", "train_live/live", "train_live/he_live", "train_live/any"
FOUND: dict[str, Any] = {"method": "threshold", "nucleus_threshold": 0.4, "energy_threshold": 0.5, "min_area_um2": 9.0}
FOUND |= {"min_marker_um2": 2.0, "gradient_um": 4.0, "boundary_threshold": 0.4, "seed_distance_um": 3.0}
SEEDS: dict[str, Any] = {"preset": "python", "mask_threshold": 0.6, "seed_threshold": 0.6, "peak_distance_px": 3}
VERIFYING = {"hidden": 0, "weight_decay": 0.1, "folds": 4, "least": 30, "seed": 1, "threshold": 0.5}
#: Splits that hold validation slides, and an experiment that verifies.
VERIFIED: dict[str, Any] = {"splits.holdout.val": 0.4, "experiments.virtues.refine": {"verify": {}}}
SEEDS |= {"overlap_threshold": 0.4, "window_px": 32, "cleanup": False, "min_area_px": 5}


@dataclass(frozen=True)
class Row:
    """An edit and the stages whose params it changes, each with its grid, encoder, split or experiment.

    ``given`` is laid over the study before and after. ``science`` is false where not even the report depends on it.
    """

    edits: Mapping[str, Any]
    stages: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    science: bool = True


def row(key: str, value: Any, stages: str = "", **more: Any) -> Row:
    return Row({key: value}, stages, **more)


def _rows(prefix: str, values: Mapping[str, Any], stages: str) -> dict[str, Row]:
    """Rows of keys whose edits change the same stages; ``prefix`` names the section with the study's own names."""
    general = _general(prefix)
    return {f"{general}.{key}": row(f"{prefix}.{key}", value, stages) for key, value in values.items()}


def _general(key: str) -> str:
    """The key with ``*`` for a name that the study chose."""
    parts = key.split(".")
    for place in range(1, len(parts)):
        if _names_below(tuple(parts[:place])):
            parts[place] = "*"
    return ".".join(parts)


def _names_below(path: tuple[str, ...]) -> bool:
    kind = kind_at(StudyConfig, path)
    return get_origin(kind) is dict and _model(get_args(kind)[1]) is not None


def _model(kind: Any) -> type[BaseModel] | None:
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def schema_keys(model: type[BaseModel] = StudyConfig, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every key of the config that holds a value, with ``*`` for names that a study chooses."""
    for name in model.model_fields:
        here = (*path, name)
        if _names_below(here):
            here = (*here, "*")
        inner = _model(kind_at(StudyConfig, here))
        if inner is None:
            yield ".".join(here)
        else:
            yield from schema_keys(inner, here)


ROWS: dict[str, Row] = {
    "study": row("study", "renamed"),
    "data_root": row("data_root", "moved", science=False),
    "slides": row("slides", "moved/slides_too.tsv", given={"data_root": "."}),
    "markers": row("markers", "moved/markers_too.tsv"),
    "classes": row("classes", "moved/classes_too.tsv"),
    "results": row("results", "elsewhere", science=False),
    "published": row("published", "sp_he"),
    "references": row("references", ["pannuke"]),
    **_rows("tissue", {"method": "all", "mpp_um": 4.0, "min_area_um2": 9.0, "min_hole_um2": 9.0}, "tissue"),
    **_rows(
        "grids.sp",
        {"tile_px": 128, "stride_px": 32, "mpp_um": 1.0, "min_tissue": 0.5},
        f"patches/sp {TRAIN} {LIVE}",
    ),
    # The other image is worked on by other slides' names only where some slide lacks one; here each has both.
    "grids.*.image": row("grids.labels.image", "sp", "patches/labels imported/other biology/other metrics/other"),
    "encoders.*.model": row("encoders.vit.model", "timm/vit_small_patch16_224", VIT),
    "encoders.*.grid": row(
        "encoders.vit.grid",
        "labels",
        f"{VIT} instances/he instances/he_live metrics/he metrics/he_live",
    ),
    # Stored tokens are all that training reads of the encoder, and where a file lies changes none.
    "encoders.*.checkpoint": row("encoders.vt.checkpoint", "moved/vt.pt", "embeddings/vt maps/virtues"),
    "encoders.*.marker_embeddings": row(
        "encoders.vt.marker_embeddings", "moved/esm.safetensors", "embeddings/vt maps/virtues"
    ),
    **_rows("encoders.vit", {"random": 1, "blocks": [6, 12], "final_norm": True}, VIT),
    **_rows("encoders.mean", {"patch_px": 16, "symmetries": True, "off_resolution": True}, MEAN),
    **_rows("encoders.mean", {"markers": ["DNA"], "statistics": "second"}, POOLED),
    **_rows("encoders.mean.normalisation", {"clip_quantile": 0.9, "log1p": False, "clip": "slide"}, POOLED),
    "encoders.*.normalisation.scope": row("encoders.mean.normalisation.scope", "clip", POOLED),
    **_rows(
        "encoders.vt", {"context": "patch", "marker_ids": {"DNA": "P68431"}, "unknown_markers": "drop"}, VIRTUES
    ),
    **_rows(
        "splits.second",
        {"scheme": "column", "column": "site", "train": 0.5, "val": 0.25, "folds": 4, "group": "platform"}
        | {"stratify": "site"},
        "splits/second",
    ),
    # Slides of other platforms leave the jobs of the experiments that split by it.
    "splits.*.platforms": row(
        "splits.second.platforms",
        ["codex"],
        "splits/second " + " ".join(_each(s, ("he", "he_live")) for s in ("maps", "instances", "biology", "metrics")),
    ),
    "experiments.*.encoder": row("experiments.he.encoder", ["vit", "mean"], "train/he maps/he"),
    "experiments.*.labels": row("experiments.other.labels", "moved/{slide}_other.tif", "imported/other"),
    "experiments.*.label_classes": row("experiments.other.label_classes", "moved/{slide}_class.tif", "imported/other"),
    "experiments.*.grid": row("experiments.other.grid", "he", "imported/other metrics/other"),
    "experiments.*.pretrained": Row(
        {"experiments.published.pretrained": "moved/cv.pth", "encoders.cv.checkpoint": "moved/cv.pth"},
        "embeddings/cv pretrained/published maps/published",
    ),
    # Another program is taken over; maps follow where its bytes are others.
    "experiments.*.torchscript": row(
        "experiments.any.torchscript",
        "moved/is.pt",
        "pretrained/any",
        given={
            "experiments.any": {"encoder": "plain", "split": "holdout", "torchscript": "is.pt"}
            | {"decoder": {"kind": "instanseg"}, "heads": ["instanseg"]}
        },
    ),
    "experiments.*.split": row("experiments.he.split", "holdout", "train/he maps/he metrics/he"),
    **_rows("experiments.sp", {"heads": ["nucleus", "hv"]}, TRAIN),
    **_rows(
        "experiments.sp.decoder",
        {"kind": "linear", "width": 0.5, "skips": False, "image_skip": False, "branches": "shared", "dropout": 0.1}
        | {"global_context": True, "masked_attention": True, "attention_window_px": 8},
        TRAIN,
    ),
    **_rows(
        "experiments.sp.loss",
        dict.fromkeys(
            (*TERMS, "hv_mse", "hv_msge", "boundary", "focal_gamma", "tversky_alpha", "tversky_beta", "tversky_gamma"),
            0.7654,
        )
        | {"class_weights": True, "original": True},
        TRAIN,
    ),
    **_rows(
        "experiments.sp.loss",
        dict.fromkeys(("distance", "three_class", "instanseg_instance", "instanseg_seed"), 0.7)
        | {"instanseg_hot_start": 3, "instanseg_seed_loss": "binary", "instanseg_window_px": 64},
        TRAIN,
    ),
    **_rows(
        "experiments.any.adapter",
        {"kind": "channel_adapter", "out_channels": 4, "aggregation": "sum", "widths": [4, 8, 16]}
        | {"norm": "instance", "original": True, "in_channels": 16},
        ANY,
    ),
    **_rows(
        "experiments.any.decoder",
        {"backbone": "resnet18", "mode": "original", "widths": [8, 16], "multihead": True},
        ANY,
    ),
    **_rows("experiments.any.instances", FOUND, "instances/any"),
    **_rows("experiments.any.instances.instanseg", SEEDS, "instances/any"),
    "experiments.*.instances.window_px": row("experiments.any.instances.window_px", 1024),
    # Not the verifier, whose nuclei nobody verifies; with one, it judges what is there after the split.
    **_rows(
        "experiments.virtues.refine.split",
        {"min_part_um2": 9.0, "max_solidity": 0.9, "max_hv_fit": 0.8, "most": 3, "silhouette": 0.6, "apart_um": 3.0},
        "instances/virtues",
    ),
    # What it drops follows from its record, so the nuclei run again where that is another one.
    **{
        f"experiments.*.refine.verify.{key}": row(
            f"experiments.virtues.refine.verify.{key}", value, "verifier/virtues", given=VERIFIED
        )
        for key, value in VERIFYING.items()
    },
    **_rows(
        "experiments.sp.refine.network", {"width": 8, "depth": 1, "image": False, "token_channels": 0}, TRAIN
    ),
    **_rows(
        "experiments.sp.loss.heads.nucleus",
        dict.fromkeys(TERMS, 0.7),
        TRAIN,
    ),
    **_rows(
        "experiments.sp.sampling", {"gamma": 0.5, "by": "group", "column": "site", "formula": "report"}, TRAIN
    ),
    **_rows(
        "experiments.live.augmentation",
        {"flips": 0.5, "turns": 0.5, "channel_dropout": 0.1, "intensity_scaling": 0.1, "intensity_sigma": 0.3},
        LIVE,
    ),
    **_rows(
        "experiments.he_live.augmentation",
        {"colour_jitter": 0.1, "brightness": 0.1, "contrast": 0.1, "saturation": 0.2, "hue": 0.1}
        | {"stain_jitter": 0.1, "stain_sigma": 0.2},
        HE_LIVE,
    ),
    **_rows(
        "experiments.sp.training",
        {"epochs": 9, "batch_size": 2, "accumulate": 2, "optimiser": "adam", "lr": 0.1, "weight_decay": 0.1}
        | {"betas": [0.8, 0.9], "schedule": "constant", "warmup_epochs": 1, "t_0": 2, "decay": 0.9}
        | {"plateau_epochs": 2, "eta_min": 0.0, "clip_norm": 1.0, "ema": 0.9, "patience": 3, "monitor": "dice_macro"}
        | {"keep": "last", "encoder_lr": 0.1, "seed": 1, "precision": "bf16", "shuffle_targets": True},
        TRAIN,
    ),
    "experiments.*.training.input": row("experiments.sp.training.input", "live", "train_live/sp"),
    # Whose encoder was trained is predicted on the fly, from the grid.
    "experiments.*.training.unfreeze_epoch": row(
        "experiments.he_live.training.unfreeze_epoch", 1, f"{HE_LIVE} maps/he_live"
    ),
    **_rows("inference", {"batch_size": 4, "precision": "bf16", "compile": True, "source": "live"}, MAPS),
    "inference.overlap_px": row("inference.overlap_px", 8, MAPS, given={"inference.source": "live"}),
    "inference.symmetries": row("inference.symmetries", "flips", MAPS, given={"inference.source": "live"}),
    "inference.seam_check": row("inference.seam_check", True, MAPS, given={"inference.source": "live"}),
    "inference.roles": row("inference.roles", ["test"], f"{MAPS} imported/other", given={"evaluation.roles": ["test"]}),
    **_rows(
        "instances",
        FOUND,
        INSTANCES,
    ),
    **_rows("instances.instanseg", SEEDS, INSTANCES),
    "instances.window_px": row("instances.window_px", 1024),
    **_rows("exports", {"geojson": True, "anndata": True, "spatialdata": True}, EXPORTS),
    **_rows(
        "evaluation",
        {"convention": "stardist", "iou_threshold": 0.6, "detection_radius_um": 6.0, "boundary_tolerance_um": 1.0}
        | {"roles": ["test"]},
        METRICS,
    ),
    # Other jobs, which find every slide done: see test_other_bins_compute_nothing.
    "jobs.slides_per_job": row("jobs.slides_per_job", 2, science=False),
    "jobs.gb_per_job": row("jobs.gb_per_job", 2e-7, science=False),
    "jobs.bands": row("jobs.bands", 3, _each("bands"), science=False),
}  # fmt: skip

#: Of the sheet's columns, as above: one slide's value is edited.
COLUMN_ROWS: dict[str, tuple[str, str]] = {
    "patient_id": ("someone", "splits/holdout splits/second"),
    "platform": ("vectra", "splits/holdout splits/second"),
    "he": ("moved/he.tif", f"facts tissue {PATCHES} {TARGETS} {MAPS} {METRICS}"),
    "sp": ("moved/sp.tif", f"facts tissue {PATCHES} {TARGETS} {MAPS} {METRICS}"),
    "instances": ("moved/inst.tif", f"facts {TARGETS} {METRICS}"),
    "classes": ("moved/cls.tif", f"facts {TARGETS} {METRICS}"),
    "mpp_um": ("0.25", "facts"),
    "split": ("test", "splits/holdout splits/second"),
    "site": ("Bern", ""),
}


def rerun_study(folder: Path) -> dict[str, Any]:
    """A study with an experiment of every kind; its files are empty, and no job is run."""
    marker = "channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\tP62805\tyes\nCD3\tCD3e\tP07766\tno\n"
    classes = "id\tname\tcolour\n1\tTumour\t#ff0000\n2\tStroma\t#00ff00\n"
    for place, end in ((folder, ""), (folder / "moved", "_too")):
        place.mkdir(exist_ok=True)
        (place / f"markers{end}.tsv").write_text(marker)
        (place / f"classes{end}.tsv").write_text(classes)
        (place / f"slides{end}.tsv").write_text(sheet_text())
        for name in ("he.tif", "sp.tif", "inst.tif", "cls.tif", "vt.pt", "esm.safetensors", "cv.pth", "is.pt"):
            (place / name).write_bytes(bytes(1200))  # 200 bytes a slide of its two images, which all twelve share
        for k in range(N_SLIDES):
            (place / f"s{k}_other.tif").touch()
            (place / f"s{k}_class.tif").touch()
    he, sp = {"image": "he", "tile_px": 64}, {"image": "sp", "tile_px": 64}
    live = {"input": "live"}
    return {
        "study": "s",
        "slides": "slides.tsv",
        "markers": "markers.tsv",
        "classes": "classes.tsv",
        "grids": {"sp": sp, "he": he, "vt": dict(sp), "cv": dict(he), "labels": dict(he), "any": dict(sp)},
        "encoders": {
            "mean": {"model": "mean_marker", "grid": "sp", "statistics": "holdout"},
            "vit": {"model": "timm/vit_tiny_patch16_224", "grid": "he", "random": 0},
            "vt": {"model": "virtues/sp31", "grid": "vt", "checkpoint": "vt.pt", "statistics": "holdout"}
            | {"marker_embeddings": "esm.safetensors"},
            "cv": {"model": "cellvit/vit256", "grid": "cv", "checkpoint": "cv.pth"},
            "plain": {"model": "mean_rgb", "grid": "any"},
        },
        "splits": {"holdout": {"scheme": "sequential"}, "second": {"scheme": "sequential"}},
        "experiments": {
            "sp": {"encoder": "mean", "split": "holdout"},
            "live": {"encoder": "mean", "split": "holdout", "training": dict(live)},
            "he": {"encoder": "vit", "split": "second"},
            "he_live": {"encoder": "vit", "split": "second", "training": dict(live)},
            "any": {"encoder": "plain", "split": "holdout", "adapter": {"widths": [2, 3, 4]}}
            | {"decoder": {"kind": "unet"}, "training": dict(live)},
            "virtues": {"encoder": "vt", "split": "holdout"},
            "published": {"encoder": "cv", "split": "holdout", "pretrained": "cv.pth"},
            "other": {"labels": "{slide}_other.tif", "grid": "labels", "split": "holdout"},
        },
        "jobs": {"slides_per_job": 4},
    }


N_SLIDES = 12
_SPLIT = ("train", "val", "test")


def sheet_text(**first: str) -> str:
    """The sheet; keywords are columns of the first slide."""
    columns = ("slide_id", "patient_id", "platform", "he", "sp", "instances", "classes", "mpp_um", "split", "site")
    lines = ["\t".join(columns)]
    for k in range(N_SLIDES):
        values = [f"s{k}", f"p{k}", ("codex", "orion")[k % 2], "he.tif", "sp.tif", "inst.tif", "cls.tif", "0.5"]
        values += [_SPLIT[k % 3], ("Basel", "Genf")[k % 2]]
        if k == 0:
            values = [first.get(name, value) for name, value in zip(columns, values, strict=True)]
        lines.append("\t".join(values))
    return "\n".join(lines) + "\n"


def edited(mapping: Mapping[str, Any], edits: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with values set by their dotted keys."""
    whole = copy.deepcopy(dict(mapping))
    for key, value in edits.items():
        *sections, last = key.split(".")
        part = whole
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    return whole

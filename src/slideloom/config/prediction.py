"""The config from tiles to figures: inference, instances, exports, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from slideloom.config.fields import AutoCount, Count, Positive, Strict, Weight

__all__ = ["EvaluationConfig", "ExportsConfig", "InferenceConfig", "InstanSegConfig", "InstancesConfig", "Role"]

Role = Literal["train", "val", "test", "infer"]
InstanceMethod = Literal["auto", "hv_watershed", "boundary_watershed", "distance_watershed", "threshold", "instanseg"]


class InferenceConfig(Strict):
    """From tiles to slide maps."""

    batch_size: AutoCount = Field(
        "auto",
        validate_default=True,
        description="Tiles a forward pass; auto: 16 on a CPU, as many as a GPU's memory holds. Halved where memory "
        "runs out.",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass.")
    compile: bool = Field(False, description="Compile the decoder with torch.compile; pays on a GPU and many slides.")
    source: Literal["stored", "live"] = Field(
        "stored", description="stored: patches and embeddings on disk; live: tiles cut and encoded on the fly."
    )
    overlap_px: Annotated[int, Field(ge=0)] = Field(
        0, description="Overlap of neighbouring tiles, pixels (source: live; stored tiles overlap by their grid)."
    )
    symmetries: Literal["none", "flips", "turns", "all"] = Field(
        "none",
        description="Predict every tile in several poses as well, and average: flips (4 poses: as it lies, mirrored "
        "either way, both), turns (4 quarter turns), all (8). Stored tokens need encoders.<name>.symmetries.",
    )
    seam_check: bool = Field(
        False,
        description="Predict every slide once more with the tiles shifted by half a tile, and report the share of "
        "nuclei that this changes (source: live).",
    )
    roles: list[Role] = Field(["val", "test", "infer"], min_length=1, description="Which slides are predicted.")


class InstanSegConfig(Strict):
    """How InstanSeg's maps become nuclei: seeds, and the pixels that each claims. Lengths in pixels of the grid."""

    preset: Literal["torchscript", "python"] = Field(
        "torchscript",
        description="What every key below is when left out: torchscript: as the published models and QuPath have it, "
        "or as the file of an experiment's own `torchscript` says; python: as the training program judges its models.",
    )
    mask_threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Probability from which a seed claims a pixel (0.53)."
    )
    seed_threshold: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Seed map above which there may be a seed (torchscript: 0.7; python: 0.5)."
    )
    peak_distance_px: Count | None = Field(
        None, description="A seed is the highest within so many pixels (torchscript: 5; python: 4)."
    )
    overlap_threshold: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="IoU above which two seeds' claims are one nucleus (torchscript: 0.3; python: 0.5)."
    )
    window_px: Annotated[int, Field(ge=8, le=512)] | None = Field(
        None, description="Side of the square around a seed in which it claims pixels (torchscript: 64; python: 128)."
    )
    cleanup: bool | None = Field(
        None,
        description="A seed keeps the piece of its claim that it lies in, holes filled (torchscript: true; python: "
        "false).",
    )
    min_area_px: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Claims with no more pixels are dropped (torchscript: 0; python: 10)."
    )


class InstancesConfig(Strict):
    """From maps to nuclei. Areas and lengths are physical and scaled to each slide."""

    method: InstanceMethod = Field(
        "auto",
        description="hv_watershed: HoVer-Net's, on fixed scales; boundary_watershed: parted along the boundary map; "
        "distance_watershed: parted at the necks of the nucleus map, or of the distance map of experiments with the "
        "head distance; threshold: connected components of the nucleus map; instanseg: InstanSeg's seeds and what "
        "they claim; auto: what the experiment's heads were made for: the first of instanseg, hv_watershed, "
        "boundary_watershed (heads boundary, three_class), distance_watershed (head distance), else threshold.",
    )
    nucleus_threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="Nucleus probability of foreground."
    )
    energy_threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.4, description="HV gradient above which a pixel separates two nuclei (hv_watershed)."
    )
    min_area_um2: Weight = Field(4.0, description="Smaller nuclei are dropped, µm².")
    min_marker_um2: Weight = Field(1.0, description="Smaller watershed markers are dropped, µm².")
    gradient_um: Positive = Field(5.0, description="Width of the HV gradient filter, µm.")
    boundary_threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="Boundary probability from which a pixel seeds no nucleus (boundary_watershed)."
    )
    seed_distance_um: Positive = Field(
        2.0, description="Two nuclei of one component have middles at least this far apart, µm (distance_watershed)."
    )
    instanseg: InstanSegConfig = Field(InstanSegConfig(), description="Of the method instanseg.")
    window_px: Annotated[int, Field(ge=64)] = Field(
        2048, description="Side of the windows a slide is worked in; changes memory and speed, no pixel."
    )


class ExportsConfig(Strict):
    """Files for other programs, made of the labels and the cell table. Level-0 pixels throughout."""

    geojson: bool = Field(False, description="A detection a nucleus for QuPath: <slide>.geojson.zip.")
    anndata: bool = Field(False, description="AnnData of nuclei × markers: <slide>.h5ad.")
    spatialdata: bool = Field(
        False, description="SpatialData store with labels, shapes and table linked: <slide>.spatialdata.zarr."
    )


class EvaluationConfig(Strict):
    """How predictions are scored."""

    convention: Literal["pannuke", "stardist", "instanseg", "instanseg_pairs"] = Field(
        "pannuke",
        description="How instances match. pannuke: IoU strictly greater than the threshold, as HoVer-Net, PanNuke and "
        "CellViT; stardist, instanseg: at least the threshold, one to one; instanseg_pairs: as InstanSeg's program "
        "counts, where one nucleus can be several true positives.",
    )
    iou_threshold: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        0.5, description="IoU from which (pannuke: above which) two instances match."
    )
    detection_radius_um: Positive = Field(
        3.0, description="Two centroids no farther apart are one detection, µm (12 px at ×40, as HoVer-Net)."
    )
    boundary_tolerance_um: Annotated[float, Field(ge=0, le=8)] = Field(
        0.5, description="How far a predicted outline may lie from the true one for boundary F1, µm."
    )
    roles: list[Role] = Field(["val", "test"], min_length=1, description="Which slides are scored, where annotated.")

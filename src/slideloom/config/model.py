"""The typed config: one YAML file of science, every key known, every value checked.

Threads, memory, GPUs and partitions live in profiles, never here. Sizes are in the unit that the key's name carries
(``_px`` pixels of the grid, ``_um`` micrometres, ``_um2`` square micrometres).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "DecoderConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "GridConfig",
    "Head",
    "InferenceConfig",
    "InstancesConfig",
    "JobsConfig",
    "LossConfig",
    "Modality",
    "NormalisationConfig",
    "Role",
    "SplitConfig",
    "StudyConfig",
    "TissueConfig",
    "TrainingConfig",
]

Modality = Literal["he", "sp"]
Head = Literal["nucleus", "hv", "classes", "boundary"]
Role = Literal["train", "val", "test", "infer"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
#: One name, or several: always a tuple once read.
OneOrMore = Annotated[
    tuple[Name, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | list[str]
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TissueConfig(_Strict):
    """How the tissue mask is found."""

    method: Literal["otsu", "all"] = Field(
        "otsu",
        description="otsu: Otsu's threshold on saturation (H&E) or on the summed channels (SP); all: the whole slide.",
    )
    mpp_um: Positive = Field(8.0, description="Resolution at which the mask is made, µm per pixel.")
    min_area_um2: Weight = Field(5000.0, description="Tissue pieces smaller than this are dropped, µm².")
    min_hole_um2: Weight = Field(5000.0, description="Holes smaller than this are filled, µm².")


class GridConfig(_Strict):
    """How one image of a slide is cut into tiles."""

    image: Modality = Field(description="Which image of the slide: he or sp.")
    tile_px: Annotated[int, Field(ge=8, le=4096)] = Field(description="Tile side, pixels at the grid's resolution.")
    stride_px: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Step between tiles, pixels; the tile side when left out."
    )
    mpp_um: Positive | None = Field(
        None, description="Resolution of the grid, µm per pixel; the image's own when left out."
    )
    min_tissue: Fraction = Field(
        0.0, description="Tiles with a smaller share of tissue are left out, and counted. 0 keeps every tile."
    )

    @property
    def step_px(self) -> int:
        """Step between tiles in pixels."""
        return self.stride_px or self.tile_px

    @model_validator(mode="after")
    def _stride_within_tile(self) -> GridConfig:
        if self.step_px > self.tile_px:
            raise ValueError(f"stride_px {self.stride_px} is larger than tile_px {self.tile_px}: pixels would be lost")
        return self


class NormalisationConfig(_Strict):
    """How raw channel intensities become network input."""

    scope: Literal["training", "slide"] = Field(
        "training", description="Mean and deviation of the training slides of a split, or of each slide itself."
    )
    clip: Literal["training", "slide"] | None = Field(
        None,
        description="Whose quantile clips: one for all training slides, or each slide's own; as the encoder's weights "
        "expect (VirTues: slide; mean_marker: training) when left out.",
    )
    clip_quantile: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Intensities above this quantile of the tissue are clipped; as the weights expect (VirTues: 0.99; "
        "mean_marker: 0.999) when left out.",
    )
    log1p: bool | None = Field(
        None, description="Take log(1 + x) after clipping; as the weights expect (true) when left out."
    )


class EncoderConfig(_Strict):
    """A frozen encoder and what it is fed."""

    model: str = Field(description="Name in the catalogue, such as virtues/sp31; `slideloom weights` lists them.")
    grid: Name = Field(description="The grid whose patches it reads.")
    checkpoint: Path | None = Field(None, description="Weights on disk; nothing is ever fetched.")
    random: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Run without weights, from this seed. Shouted in every table and report it touches."
    )
    blocks: list[Count] = Field(
        default_factory=list, description="Blocks whose tokens are kept, 1-based; empty: the encoder's own choice."
    )
    final_norm: bool = Field(
        False, description="Give the last block's tokens after the encoder's final normalisation, not before it."
    )
    markers: list[str] = Field(
        default_factory=list, description="Markers it reads, in this order; empty: every channel of the panel."
    )
    patch_px: Count | None = Field(None, description="Side of one token, pixels, where the encoder lets one choose.")
    normalisation: NormalisationConfig = Field(
        NormalisationConfig(), description="For marker channels; RGB encoders declare their own."
    )
    statistics: Name | None = Field(
        None, description="The split whose training slides give the channel statistics (scope: training)."
    )
    context: Literal["tile", "patch"] = Field(
        "tile", description="VirTues: tokens see their whole tile, or (as the SP/H&E report had it) only themselves."
    )
    marker_embeddings: Path | None = Field(
        None,
        description="VirTues: protein embeddings, a folder of `<UniProt>.pt` or one safetensors file with a vector for "
        "each accession.",
    )
    marker_ids: dict[str, str] = Field(
        default_factory=dict,
        description="VirTues: UniProt accessions of markers, over those of the markers table, such as `{DNA: P68431}`.",
    )
    unknown_markers: Literal["error", "drop"] = Field(
        "error",
        description="VirTues: what becomes of channels whose marker has no embedding. What is dropped is listed.",
    )
    off_resolution: bool = Field(
        False, description="Use it at another resolution than its weights were made for, on purpose."
    )


class SplitConfig(_Strict):
    """Which slides train, validate and test."""

    scheme: Literal["column", "sequential", "kfold"] = Field(
        "column",
        description="column: the sheet's own; sequential: the first share, sorted by id; kfold: each group tests once.",
    )
    column: str = Field("split", description="Sheet column with train, val, test or infer (scheme: column).")
    train: Annotated[float, Field(gt=0, lt=1)] = Field(0.8, description="Share that trains (scheme: sequential).")
    val: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the training part set aside for validation (sequential, kfold)."
    )
    folds: Annotated[int, Field(ge=2)] = Field(3, description="Number of folds (scheme: kfold).")
    group: Literal["patient_id", "slide_id", "platform"] = Field(
        "patient_id", description="Slides that share this never stand on both sides."
    )
    platforms: list[str] = Field(default_factory=list, description="Only slides of these platforms; empty: all.")

    @property
    def fold_names(self) -> tuple[str, ...]:
        """Names of the folds, as they stand in paths: ``0``, ``1``, …"""
        return tuple(str(k) for k in range(self.folds if self.scheme == "kfold" else 1))


class DecoderConfig(_Strict):
    """The CellViT decoder and its variants."""

    width: Annotated[float, Field(gt=0, le=4)] = Field(1.0, description="Multiplier of every channel count.")
    skips: bool = Field(True, description="Feed the encoder's intermediate blocks to the decoder.")
    image_skip: bool = Field(True, description="Feed the input image to the last decoder stage.")
    branches: Literal["separate", "shared"] = Field(
        "separate", description="One decoder a head, or one for all with a 1×1 convolution a head."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout rate.")


class LossConfig(_Strict):
    """Weights of the loss terms; 0 switches a term off."""

    cross_entropy: Weight = Field(0.4, description="Cross-entropy, nucleus and class heads.")
    dice: Weight = Field(0.4, description="Dice, nucleus and class heads.")
    focal_tversky: Weight = Field(0.2, description="Focal Tversky, nucleus and class heads.")
    hv_mse: Weight = Field(2.5, description="Mean squared error of the HV maps.")
    hv_msge: Weight = Field(8.0, description="Mean squared error of the HV maps' gradients, inside nuclei.")
    boundary: Weight = Field(1.0, description="Binary cross-entropy and Dice of the boundary head.")
    class_weights: bool = Field(
        False, description="Weight the class head's cross-entropy by inverse root frequency in the training slides."
    )


class TrainingConfig(_Strict):
    """The optimiser and the loop."""

    epochs: Count = Field(100, description="Upper bound of epochs.")
    batch_size: Count = Field(16, description="Patches a step.")
    lr: Positive = Field(5e-4, description="Peak learning rate.")
    weight_decay: Weight = Field(1e-2, description="AdamW weight decay.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW betas.")
    t_0: Count = Field(20, description="Epochs of the first cosine period; warm restarts follow.")
    eta_min: Weight = Field(1e-6, description="Lowest learning rate.")
    patience: Count | None = Field(30, description="Epochs without improvement before stopping; null: never.")
    monitor: Literal["loss", "dice_macro", "dice_binary"] = Field(
        "loss", description="Validation figure that chooses the best epoch."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of weights, order and dropout.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass.")
    shuffle_targets: bool = Field(
        False, description="Control: give every patch another patch's targets. Nothing can be learnt from it."
    )


class ExperimentConfig(_Strict):
    """One named choice of encoder, decoder, heads, loss, optimiser and split."""

    encoder: OneOrMore = Field(
        min_length=1,
        description="Name of an entry of encoders; or a list of them, whose tokens of the same place are joined on the "
        "first one's tiles.",
    )
    pretrained: Path | None = Field(
        None,
        description="A published CellViT checkpoint: its decoder and heads are used as they are, nothing is trained. "
        "The encoder's checkpoint must be the same file.",
    )
    split: Name = Field(description="Name of an entry of splits.")
    decoder: DecoderConfig = Field(DecoderConfig(), description="The decoder.")
    heads: list[Head] = Field(["nucleus", "hv", "classes"], min_length=1, description="Outputs of the decoder.")
    loss: LossConfig = Field(LossConfig(), description="Loss weights.")
    training: TrainingConfig = Field(TrainingConfig(), description="Optimiser and loop.")

    @property
    def first_encoder(self) -> str:
        """Name of the encoder whose grid is the experiment's."""
        return self.encoder[0]

    @model_validator(mode="after")
    def _encoders_once(self) -> ExperimentConfig:
        if len(set(self.encoder)) != len(self.encoder):
            raise ValueError(f"encoder {list(self.encoder)} names one twice")
        return self

    @model_validator(mode="after")
    def _heads_once(self) -> ExperimentConfig:
        if len(set(self.heads)) != len(self.heads):
            raise ValueError(f"heads {self.heads} names one twice")
        if "nucleus" not in self.heads:
            raise ValueError("heads must hold 'nucleus': instances grow from the nucleus map")
        return self


class InferenceConfig(_Strict):
    """From tiles to slide maps."""

    batch_size: Count = Field(16, description="Tiles a forward pass.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass.")
    source: Literal["stored", "live"] = Field(
        "stored", description="stored: patches and embeddings on disk; live: tiles cut and encoded on the fly."
    )
    overlap_px: Annotated[int, Field(ge=0)] = Field(
        0, description="Overlap of neighbouring tiles, pixels (source: live; stored tiles overlap by their grid)."
    )
    roles: list[Role] = Field(["val", "test", "infer"], min_length=1, description="Which slides are predicted.")


class InstancesConfig(_Strict):
    """From maps to nuclei. Areas and lengths are physical and scaled to each slide."""

    method: Literal["hv_watershed", "threshold"] = Field(
        "hv_watershed",
        description="hv_watershed: HoVer-Net's, on fixed scales; threshold: connected components of the nucleus map.",
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
    window_px: Annotated[int, Field(ge=64)] = Field(2048, description="Side of the windows a slide is worked in.")
    halo_px: Annotated[int, Field(ge=0)] = Field(128, description="Context round a window, pixels.")


class EvaluationConfig(_Strict):
    """How predictions are scored."""

    iou_threshold: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        0.5, description="Two instances match when their IoU is strictly greater."
    )
    roles: list[Role] = Field(["val", "test"], min_length=1, description="Which slides are scored, where annotated.")


class JobsConfig(_Strict):
    """How slides are gathered into jobs. Changes no result."""

    slides_per_job: Count = Field(16, description="Slides that one job works through, on average.")


class StudyConfig(_Strict):
    """A whole study."""

    study: Name = Field(description="The study's name; stands in every table.")
    data_root: Path | None = Field(
        None, description="Folder that the sheet's paths start from; the sheet's own if left out."
    )
    slides: Path = Field(description="Sample sheet, tab- or comma-separated; a row a slide.")
    markers: Path | None = Field(None, description="Channel names to markers; needed when any slide has an sp image.")
    classes: Path | None = Field(None, description="Nuclear classes: id, name, colour; needed by the classes head.")
    results: Path = Field(Path("results"), description="Folder that everything is written to.")
    tissue: TissueConfig = Field(TissueConfig(), description="Tissue masks.")
    grids: dict[Name, GridConfig] = Field(min_length=1, description="How images are cut.")
    encoders: dict[Name, EncoderConfig] = Field(min_length=1, description="Frozen encoders.")
    splits: dict[Name, SplitConfig] = Field(min_length=1, description="Who trains and who tests.")
    experiments: dict[Name, ExperimentConfig] = Field(min_length=1, description="What is compared.")
    inference: InferenceConfig = Field(InferenceConfig(), description="Tiles to maps.")
    instances: InstancesConfig = Field(InstancesConfig(), description="Maps to nuclei.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Nuclei to figures.")
    jobs: JobsConfig = Field(JobsConfig(), description="Slides to jobs.")

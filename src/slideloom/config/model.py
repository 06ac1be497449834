"""The typed config: one YAML file of science, every key known, every value checked.

Threads, memory, GPUs and partitions live in profiles, never here. Sizes are in the unit that the key's name carries
(``_px`` pixels of the grid, ``_um`` micrometres, ``_um2`` square micrometres).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from slideloom.config.fields import Count, Fraction, Mpp, Name, Positive, Strict, Weight
from slideloom.config.learning import (
    AdapterConfig,
    AugmentationConfig,
    DecoderConfig,
    Head,
    HeadLossConfig,
    LossConfig,
    SamplingConfig,
    TrainingConfig,
)
from slideloom.config.prediction import EvaluationConfig, ExportsConfig, InferenceConfig, InstancesConfig, Role
from slideloom.config.refinement import RefineConfig, RefineNetworkConfig, RefineSplitConfig, RefineVerifyConfig

__all__ = [
    "AdapterConfig",
    "AugmentationConfig",
    "DecoderConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "ExportsConfig",
    "GridConfig",
    "Head",
    "HeadLossConfig",
    "InferenceConfig",
    "InstancesConfig",
    "JobsConfig",
    "LossConfig",
    "Modality",
    "NormalisationConfig",
    "RefineConfig",
    "RefineNetworkConfig",
    "RefineSplitConfig",
    "RefineVerifyConfig",
    "Role",
    "SamplingConfig",
    "SplitConfig",
    "StudyConfig",
    "TissueConfig",
    "TrainingConfig",
]

Modality = Literal["he", "sp"]
#: One name, or several: always a tuple once read.
OneOrMore = Annotated[
    tuple[Name, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | list[str]
    ),
]


class TissueConfig(Strict):
    """How the tissue mask is found."""

    method: Literal["otsu", "all"] = Field(
        "otsu",
        description="otsu: Otsu's threshold on saturation (H&E) or on the summed channels (SP); all: the whole slide.",
    )
    mpp_um: Mpp = Field(8.0, description="Resolution at which the mask is made, µm per pixel.")
    min_area_um2: Weight = Field(5000.0, description="Tissue pieces smaller than this are dropped, µm².")
    min_hole_um2: Weight = Field(5000.0, description="Holes smaller than this are filled, µm².")


class GridConfig(Strict):
    """How one image of a slide is cut into tiles."""

    image: Modality = Field(description="Which image of the slide: he or sp.")
    tile_px: Annotated[int, Field(ge=8, le=4096)] = Field(description="Tile side, pixels at the grid's resolution.")
    stride_px: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Step between tiles, pixels; the tile side when left out."
    )
    mpp_um: Mpp | None = Field(None, description="Resolution of the grid, µm per pixel; the image's own when left out.")
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


class NormalisationConfig(Strict):
    """How raw channel intensities become network input."""

    scope: Literal["training", "slide", "clip", "percentiles"] = Field(
        "training",
        description="Mean and deviation of the training slides of a split, or of each slide itself; clip: no mean is "
        "taken off, and the clipping point becomes 1; percentiles: each slide's own clip_quantile becomes 1, the "
        "quantile at the other end 0, and nothing is clipped.",
    )
    clip: Literal["training", "slide"] | None = Field(
        None,
        description="Whose quantile clips: one for all training slides, or each slide's own; as the encoder's weights "
        "expect (VirTues: slide; mean_marker: training) when left out. Plays no part in scope: percentiles.",
    )
    clip_quantile: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Intensities above this quantile of the tissue are clipped; as the weights expect (VirTues: 0.99; "
        "mean_marker: 0.999) when left out.",
    )
    log1p: bool | None = Field(
        None, description="Take log(1 + x) after clipping; as the weights expect (true) when left out."
    )


class EncoderConfig(Strict):
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
    symmetries: bool = Field(
        False,
        description="Store the tokens of the eight flips and quarter turns of every tile, so that training on stored "
        "tokens may flip and turn: eight times the time and the space.",
    )


class SplitConfig(Strict):
    """Which slides train, validate and test. All slides of a patient stand on one side, whatever the scheme."""

    scheme: Literal["column", "sequential", "quarters", "kfold", "leave_platform_out"] = Field(
        "column",
        description="column: the sheet's own; sequential: the first share, sorted by id; quarters: two folds that "
        "train on the first and third quarter and test on the second and fourth; kfold: each group tests once; "
        "leave_platform_out: each platform tests once, with a fold named after it.",
    )
    column: str = Field("split", description="Sheet column with train, val, test or infer (scheme: column).")
    train: Annotated[float, Field(gt=0, lt=1)] = Field(0.8, description="Share that trains (scheme: sequential).")
    val: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the training part set aside for validation (every scheme but column)."
    )
    folds: Annotated[int, Field(ge=2, le=1000)] = Field(3, description="Number of folds (scheme: kfold).")
    group: Literal["patient_id", "platform"] = Field(
        "patient_id", description="Slides that share this never stand on both sides; those of a patient never do."
    )
    stratify: str | None = Field(
        None, description="Sheet column whose values every part holds in like shares (sequential, quarters, kfold)."
    )
    platforms: list[str] = Field(default_factory=list, description="Only slides of these platforms; empty: all.")


class ExperimentConfig(Strict):
    """One named choice of encoder, decoder, heads, loss, optimiser and split; or labels that another program made."""

    encoder: OneOrMore = Field(
        (),
        description="Name of an entry of encoders; or a list of them, whose tokens of the same place are joined on the "
        "first one's tiles. Every experiment has it, or labels.",
    )
    labels: str | None = Field(
        None,
        description="Nuclei that another program found, scored like any others: a label image or GeoJSON a slide, such "
        "as `mesmer/{slide}.tif`; written as the sheet's column instances, {slide} for the slide's id. Nothing is "
        "trained.",
    )
    label_classes: str | None = Field(
        None,
        description="Classes of those nuclei, as the sheet's column classes, with {slide}; GeoJSON brings its own.",
    )
    grid: Name | None = Field(
        None, description="With labels: the grid whose frame and tiles they are scored on; its image is theirs."
    )
    pretrained: Path | None = Field(
        None,
        description="A published checkpoint, used as it is: nothing is trained. A CellViT's, which is the encoder's "
        "checkpoint, too; with decoder.kind instanseg or hovernet the whole network, behind the encoder mean_rgb.",
    )
    torchscript: Path | None = Field(
        None,
        description="An InstanSeg published as a TorchScript program (instanseg.pt), run as it is, behind the encoder "
        "mean_rgb, with decoder.kind: instanseg. A program is code: docs/security.md.",
    )
    split: Name = Field(description="Name of an entry of splits.")
    adapter: AdapterConfig | None = Field(
        None,
        description="A trainable front that maps any channels to those that the encoder, and the decoder's image skip, "
        "read; needs training.input: live.",
    )
    decoder: DecoderConfig = Field(DecoderConfig(), description="The decoder.")
    heads: list[Head] = Field(["nucleus", "hv", "classes"], min_length=1, description="Outputs of the decoder.")
    loss: LossConfig = Field(LossConfig(), description="Loss weights.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="How often each patch is seen.")
    augmentation: AugmentationConfig = Field(AugmentationConfig(), description="Random changes of training patches.")
    training: TrainingConfig = Field(TrainingConfig(), description="Optimiser and loop.")
    instances: InstancesConfig | None = Field(
        None, description="Maps to nuclei of this experiment: keys given here stand for those of the study."
    )
    refine: RefineConfig | None = Field(None, description="What mends its maps and nuclei; docs/refinement.md.")

    @property
    def first_encoder(self) -> str:
        """Name of the encoder whose grid is the experiment's; an experiment with labels has none."""
        return self.encoder[0]

    @property
    def trains(self) -> bool:
        """Whether a decoder is trained; neither a published model is, nor labels of another program."""
        return self.published is None and self.labels is None

    @property
    def published(self) -> Path | None:
        """File of the published model that is used as it is: a checkpoint, or a program."""
        return self.pretrained if self.torchscript is None else self.torchscript

    @property
    def adapted(self) -> bool:
        """Whether an adapter stands before the encoder; a published InstanSeg brings one, if only to pass channels."""
        return self.adapter is not None or (self.published is not None and self.decoder.kind == "instanseg")

    @property
    def learns_cells(self) -> bool:
        """Whether a decoder learns whole cells, from annotations of them."""
        return self.trains and "instanseg_cells" in self.heads

    @property
    def verified(self) -> bool:
        """Whether a verifier judges its nuclei."""
        return self.refine is not None and self.refine.verify is not None

    @model_validator(mode="after")
    def _encoder_or_labels(self) -> ExperimentConfig:
        if self.labels is None:
            if not self.encoder:
                raise ValueError("an experiment names an 'encoder', or the 'labels' that another program made")
            if found := [key for key in ("label_classes", "grid") if getattr(self, key) is not None]:
                raise ValueError(f"{found[0]!r} belongs to 'labels', which the experiment does not have")
            return self
        if self.encoder or self.published is not None:
            raise ValueError("labels of another program have neither 'encoder' nor 'pretrained' nor 'torchscript'")
        if self.grid is None:
            raise ValueError("'labels' need a 'grid': the frame and the tiles that they are scored on")
        for key in ("labels", "label_classes"):
            if (pattern := getattr(self, key)) is not None and "{slide}" not in pattern:
                raise ValueError(f"{key} {pattern!r} is one file for all slides: write {{slide}} for the slide's id")
        return self

    @model_validator(mode="after")
    def _one_published_model(self) -> ExperimentConfig:
        if self.pretrained is not None and self.torchscript is not None:
            raise ValueError("'pretrained' and 'torchscript' name a published model each: keep one")
        if self.published is not None and self.adapter is not None:
            raise ValueError("'adapter' is trained, and a published model is used as it is: keep one of them")
        return self

    @model_validator(mode="after")
    def _encoders_once(self) -> ExperimentConfig:
        if len(set(self.encoder)) != len(self.encoder):
            raise ValueError(f"encoder {list(self.encoder)} names one twice")
        return self

    @model_validator(mode="after")
    def _heads_once(self) -> ExperimentConfig:
        if len(set(self.heads)) != len(self.heads):
            raise ValueError(f"heads {self.heads} names one twice")
        growing = {"nucleus", "classes"}
        if self.published is not None:  # cells alone are refused with what the published model has
            growing |= {"instanseg", "instanseg_cells"}
        if not growing & set(self.heads):
            raise ValueError("heads must hold 'nucleus' or 'classes': instances grow from one of them")
        return self


class JobsConfig(Strict):
    """How slides are gathered into jobs. Changes no result."""

    slides_per_job: Count = Field(32, description="Slides that one job works through at most.")
    gb_per_job: Positive = Field(
        128.0,
        description="Size of the image files that one job works through at most, 10⁹ bytes; a larger slide has a job "
        "of its own.",
    )
    bands: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Bands of rows that a slide is predicted in, each by a job of its own; for very large slides."
    )


class StudyConfig(Strict):
    """A whole study."""

    study: Name = Field(description="The study's name; stands in every table.")
    data_root: Path | None = Field(
        None, description="Folder that the sheet's paths start from; the sheet's own if left out."
    )
    slides: Path = Field(description="Sample sheet, tab- or comma-separated; a row a slide.")
    markers: Path | None = Field(None, description="Channel names to markers; needed when any slide has an sp image.")
    classes: Path | None = Field(None, description="Nuclear classes: id, name, colour; needed by the classes head.")
    results: Path = Field(Path("results"), description="Folder that everything is written to.")
    published: Literal["sp_he"] | None = Field(
        None,
        description="The published report whose figures stand beside those of experiments of the same names; sp_he: "
        "nuclei from spatial proteomics and H&E (2025).",
    )
    references: list[Literal["pannuke", "cpdmi", "stain_agnostic"]] = Field(
        default_factory=list,
        description="Public data that the slides are, split as its literature splits it: published figures stand "
        "beside those of experiments whose protocol is the same, and are marked where it is not. A PanNuke split is "
        "known by the name of the split or of its column: split_1, split_2 or split_3.",
    )
    tissue: TissueConfig = Field(TissueConfig(), description="Tissue masks.")
    grids: dict[Name, GridConfig] = Field(min_length=1, description="How images are cut.")
    encoders: dict[Name, EncoderConfig] = Field(default_factory=dict, description="Frozen encoders.")
    splits: dict[Name, SplitConfig] = Field(min_length=1, description="Who trains and who tests.")
    experiments: dict[Name, ExperimentConfig] = Field(min_length=1, description="What is compared.")
    inference: InferenceConfig = Field(InferenceConfig(), description="Tiles to maps.")
    instances: InstancesConfig = Field(InstancesConfig(), description="Maps to nuclei.")
    exports: ExportsConfig = Field(ExportsConfig(), description="Nuclei to files for other programs.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Nuclei to figures.")
    jobs: JobsConfig = Field(JobsConfig(), description="Slides to jobs.")

    def instances_of(self, experiment: str) -> InstancesConfig:
        """How maps of an experiment become nuclei: the study's keys, and over them its own."""
        own = self.experiments[experiment].instances
        if own is None:
            return self.instances
        common = self.instances.model_dump(exclude_unset=True)
        given = own.model_dump(exclude_unset=True)
        inner = common.get("instanseg", {}) | given.get("instanseg", {})
        return InstancesConfig(**(common | given | ({"instanseg": inner} if inner else {})))

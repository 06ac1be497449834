"""Paths, params and input functions that the rules share."""

import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

BASE = Path(workflow.basedir)
# A clone works on every node without an install step of its own.
sys.path.insert(0, str(BASE / "src"))

from slideloom.errors import ConfigError
from slideloom.reports.figures import FIGURES
from slideloom.slides.study import study_from_mapping
from slideloom.workflow.bins import JOB_PATTERN
from slideloom.workflow.needs import mem_mb, runtime_min
from slideloom.workflow.plan import Plan
from slideloom.workflow.upkeep import forget_broken_records, share_package

share_package()

try:
    STUDY = study_from_mapping(
        config, Path.cwd(), [Path(path) for path in workflow.configfiles]
    )
except ConfigError as error:
    raise WorkflowError(str(error)) from None

validate(
    STUDY.config.model_dump(mode="json"),
    str(BASE / "config/schema/config.schema.json"),
    set_default=False,
)
config["results"] = str(STUDY.config.results)
config["data_root"] = str(STUDY.data_root)
# Changes no result, so no rule is keyed by it.
config["window_px"] = STUDY.config.instances.window_px

PLAN = Plan(STUDY, BASE / "workflow/scripts")
ENV = str(BASE / "envs/slideloom.yaml")
TABLES = [
    "slides",
    "classes",
    "experiments",
    "comparisons",
    "training",
    "costs",
    "failures",
    "published",
    "references",
    "groups",
    "experiment_classes",
    "confusion",
    "curves",
    "calibration",
    "biology",
    "neighbours",
]

EXPERIMENTS = STUDY.config.experiments
EXTERNAL = PLAN.external
PREDICTED = [name for name in EXPERIMENTS if name not in EXTERNAL]
VERIFIED = [name for name in EXPERIMENTS if EXPERIMENTS[name].verified]
PUBLISHED = [name for name in EXPERIMENTS if EXPERIMENTS[name].published]
LIVE = [
    name
    for name in PREDICTED
    if name not in PUBLISHED and EXPERIMENTS[name].training.input == "live"
]
TRAINED = [name for name in PREDICTED if name not in (*PUBLISHED, *LIVE)]

if workflow.is_main_process:
    gone = forget_broken_records(PLAN.all_records(), STUDY.config.results)
    for note in [*STUDY.warnings, *gone]:
        logger.warning(note)


wildcard_constraints:
    job=JOB_PATTERN,
    grid=r"[^/]+",
    encoder=r"[^/]+",
    split=r"[^/]+",
    experiment=r"[^/]+",
    fold=r"[^/]+",
    band=r"\d+",


def one_of(names):
    """A pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, names)) or "(?!)"


def record(stage, *context, unit="{job}"):
    """Path of a stage's job records, as a rule's output."""
    return str(STUDY.paths.job_record(stage, "/".join(context), unit))


def log_of(stage, *context, unit="{job}"):
    """Path of a stage's logs."""
    return str(STUDY.paths.log(stage, "/".join(context), unit))


def benchmark_of(stage, *context, unit="{job}"):
    """Path of a stage's benchmarks."""
    return str(STUDY.paths.benchmark(stage, "/".join(context), unit))


def spec_of(stage, *context):
    """A params function: the canonical text that a job of the stage is keyed by."""

    def spec(wildcards):
        values = [wildcards[name] for name in context]
        return PLAN.spec(stage, values, wildcards.get("job", ""))

    return spec


def load_of(stage, wildcards, context):
    """What is before a job."""
    values = tuple(wildcards[name] for name in context)
    return PLAN.load(stage, values, wildcards.get("job", ""))


def memory_of(stage, *context):
    """A resources function: memory of a job of the stage, MB."""
    return lambda wildcards, attempt: mem_mb(
        stage, load_of(stage, wildcards, context), attempt
    )


def minutes_of(stage, *context):
    """A resources function: time of a job of the stage, minutes."""
    return lambda wildcards, attempt: runtime_min(
        stage, load_of(stage, wildcards, context), attempt
    )


def slide_sources(wildcards):
    """Files that the sheet names for a job's slides."""
    return PLAN.sources(wildcards.job)


def experiment_of(wildcards):
    """The experiment that the wildcards name."""
    return STUDY.config.experiments[wildcards.experiment]


def grid_of(wildcards):
    """Name of the grid of the encoder, or of the experiment's tiles."""
    if wildcards.get("encoder"):
        return STUDY.config.encoders[wildcards.encoder].grid
    return STUDY.grid_of(wildcards.experiment)


def patches_job(wildcards):
    """Record of the patches of the same slides."""
    return record("patches", grid_of(wildcards), unit=wildcards.job)


def targets_job(wildcards):
    """Record of the targets of the same slides."""
    return record("targets", grid_of(wildcards), unit=wildcards.job)


def stored_grids(wildcards, stage):
    """Grids of the encoders whose stored tokens a stage reads, the experiment's own first."""
    encoders = PLAN.stored_encoders(wildcards.experiment, stage)
    grids = [STUDY.config.encoders[name].grid for name in encoders]
    return list(dict.fromkeys([STUDY.grid_of(wildcards.experiment), *grids]))


def experiment_patches_job(wildcards):
    """Records of the patches of the same slides, on every grid that the experiment's tokens lie on."""
    grids = stored_grids(wildcards, "maps")
    return [record("patches", grid, unit=wildcards.job) for grid in grids]


def embeddings_job(wildcards):
    """Records of the stored tokens of the same slides; those that are encoded on the fly have none."""
    names = PLAN.stored_encoders(wildcards.experiment, "maps")
    return [record("embeddings", name, unit=wildcards.job) for name in names]


def maps_job(wildcards):
    """Record of the maps of the same slides; labels of another program have none."""
    if wildcards.experiment in EXTERNAL:
        return []
    return [record("maps", wildcards.experiment, wildcards.fold, unit=wildcards.job)]


def judged_jobs(stage):
    """An input function: records of a stage on the slides that a verifier is fitted on."""

    def records(wildcards):
        names = (wildcards.experiment, wildcards.fold)
        return list(PLAN.judged_records(stage, *names))

    return records


def verifier_record(wildcards):
    """Record of what verifies the experiment's nuclei; nothing where nothing does."""
    return PLAN.verifier_record(wildcards.experiment, wildcards.fold)


def external_files(wildcards):
    """Files in which another program left the nuclei of a job's slides."""
    return PLAN.external_files(wildcards.experiment, wildcards.job)


def bands_job(wildcards):
    """Records of the bands of the same slides, where slides are predicted in several."""
    context = ("bands", wildcards.experiment, wildcards.fold)
    return [record(*context, band, unit=wildcards.job) for band in PLAN.bands]


def split_record(wildcards):
    """Record of the experiment's split."""
    return record("splits", unit=experiment_of(wildcards).split)


def statistics_split(wildcards):
    """Record of the split that gives an encoder's statistics."""
    return record("splits", unit=STUDY.config.encoders[wildcards.encoder].statistics)


def statistics_of(encoder):
    """Record of an encoder's statistics; nothing when it needs none."""
    pooled = STUDY.config.encoders[encoder].statistics
    return [record("statistics", unit=encoder)] if pooled else []


def statistics_record(wildcards):
    """Record of the statistics of the encoder, or of the experiment's first one."""
    if wildcards.get("encoder"):
        return statistics_of(wildcards.encoder)
    return statistics_of(experiment_of(wildcards).first_encoder)


def weight_files(wildcards):
    """Files that the encoder, or the experiment's first one, is made from."""
    if wildcards.get("encoder"):
        return PLAN.slices.weight_files([wildcards.encoder])
    return PLAN.slices.weight_files([experiment_of(wildcards).first_encoder])


def published_file(wildcards):
    """The published checkpoint, or program, of an experiment that is not trained."""
    return PLAN.slices.published(wildcards.experiment)


def all_patches(wildcards):
    """Records of the patches of every slide of the grid."""
    return list(PLAN.records("patches", grid_of(wildcards)))


def train_patches(wildcards):
    """Records of the patches of every slide, on every grid that the experiment's tokens lie on."""
    return [
        path
        for grid in stored_grids(wildcards, "train")
        for path in PLAN.records("patches", grid)
    ]


def train_targets(wildcards):
    """Records of the targets of every slide of the experiment's grid."""
    return list(PLAN.records("targets", grid_of(wildcards)))


def train_cells(wildcards):
    """Records of the targets of whole cells, where the experiment learns them."""
    return list(PLAN.cell_target_records(wildcards.experiment))


def cell_files(wildcards):
    """Annotations of whole cells that the sheet names for a job's slides."""
    return PLAN.cell_files(wildcards.grid, wildcards.job)


def train_embeddings(wildcards):
    """Records of the tokens of every slide of the experiment's encoders."""
    names = PLAN.stored_encoders(wildcards.experiment, "train")
    return [path for name in names for path in PLAN.records("embeddings", name)]


def report_targets():
    """The tables, the page and the figures."""
    folder = STUDY.paths.reports()
    names = [f"{name}.parquet" for name in TABLES]
    names += ["report.html", *(f"figures/{name}.svg" for name in FIGURES)]
    return [str(folder / name) for name in names]

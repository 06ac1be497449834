"""Paths, params and input functions that the rules share."""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

BASE = Path(workflow.basedir)
# A clone works on every node without an install step of its own.
sys.path.insert(0, str(BASE / "src"))

from slideloom.errors import ConfigError
from slideloom.slides.study import study_from_mapping
from slideloom.workflow.plan import Plan, forget_broken_records, share_package

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
]

if workflow.is_main_process:
    gone = forget_broken_records(PLAN.all_records(), STUDY.config.results)
    for note in [*STUDY.warnings, *gone]:
        logger.warning(note)


wildcard_constraints:
    job=r"\d+-\d+",
    grid=r"[^/]+",
    encoder=r"[^/]+",
    split=r"[^/]+",
    experiment=r"[^/]+",
    fold=r"[^/]+",


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


def slide_sources(wildcards):
    """Files that the sheet names for a job's slides."""
    return PLAN.sources(wildcards.job)


def experiment_of(wildcards):
    """The experiment that the wildcards name."""
    return STUDY.config.experiments[wildcards.experiment]


def encoder_of(wildcards):
    """Name of the encoder: the wildcard's, or the experiment's."""
    return wildcards.get("encoder") or experiment_of(wildcards).encoder


def grid_of(wildcards):
    """Name of the grid that the encoder reads."""
    return STUDY.config.encoders[encoder_of(wildcards)].grid


def patches_job(wildcards):
    """Record of the patches of the same slides."""
    return record("patches", grid_of(wildcards), unit=wildcards.job)


def targets_job(wildcards):
    """Record of the targets of the same slides."""
    return record("targets", grid_of(wildcards), unit=wildcards.job)


def embeddings_job(wildcards):
    """Record of the embeddings of the same slides; nothing when tiles are encoded on the fly."""
    if STUDY.config.inference.source == "live":
        return []
    return record("embeddings", encoder_of(wildcards), unit=wildcards.job)


def split_record(wildcards):
    """Record of the experiment's split."""
    return record("splits", unit=experiment_of(wildcards).split)


def statistics_split(wildcards):
    """Record of the split that gives an encoder's statistics."""
    return record("splits", unit=STUDY.config.encoders[wildcards.encoder].statistics)


def statistics_record(wildcards):
    """Record of an encoder's statistics; nothing when it needs none."""
    name = encoder_of(wildcards)
    pooled = STUDY.config.encoders[name].statistics
    return record("statistics", unit=name) if pooled else []


def checkpoint_file(wildcards):
    """The encoder's weights, when it has any."""
    return PLAN.checkpoint(encoder_of(wildcards))


def all_patches(wildcards):
    """Records of the patches of every slide of the grid."""
    return PLAN.records("patches", grid_of(wildcards))


def all_targets(wildcards):
    """Records of the targets of every slide of the grid."""
    return PLAN.records("targets", grid_of(wildcards))


def all_embeddings(wildcards):
    """Records of the embeddings of every slide of the encoder."""
    return PLAN.records("embeddings", encoder_of(wildcards))


def report_targets():
    """The tables and the page."""
    folder = STUDY.paths.reports()
    return [str(folder / f"{name}.parquet") for name in TABLES] + [
        str(folder / "report.html")
    ]

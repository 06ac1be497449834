"""Slideloom: whole slides to nuclei and tables. See README.md; rules lie in workflow/rules, science in config."""

import os

from snakemake.utils import min_version

min_version("9.0")


# Where jobs run in a container (--sdm apptainer): the image's path, see envs/README.md.
container: os.environ.get("SLIDELOOM_CONTAINER")


if not workflow.configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/slides.smk"
include: "workflow/rules/encode.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/reports.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        PLAN.all_records(),
        report_targets(),

"""Run a trained decoder over a job's slides."""

from slideloom.workflow.job import Job
from slideloom.workflow.run_maps import run_maps

run_maps(Job.start(snakemake))

"""Predict a band of rows of a job's slides."""

from slideloom.workflow.job import Job
from slideloom.workflow.run_maps import run_maps

run_maps(Job.start(snakemake))

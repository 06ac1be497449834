"""Fit what drops false nuclei, on the validation slides of a fold."""

from slideloom.workflow.job import Job
from slideloom.workflow.run_verifier import run_verifier

run_verifier(Job.start(snakemake))

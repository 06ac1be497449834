"""Run a frozen encoder over a job's patches and keep its tokens."""

from slideloom.workflow.job import Job
from slideloom.workflow.run_embeddings import run_embeddings

run_embeddings(Job.start(snakemake))

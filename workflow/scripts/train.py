"""Train one fold of one experiment."""

from slideloom.workflow.job import Job
from slideloom.workflow.run_train import run_train

run_train(Job.start(snakemake))

"""Train one fold of an experiment whose encoder runs in every step."""

from slideloom.encoders.registry import build_encoder
from slideloom.workflow.job import Job
from slideloom.workflow.run_train import run_train

run_train(Job.start(snakemake), build_encoder)

"""Put a published model where a trained decoder would stand."""

from slideloom.workflow.job import Job
from slideloom.workflow.run_pretrained import run_pretrained

run_pretrained(Job.start(snakemake))

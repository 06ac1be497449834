"""Predict a job's slides, or join the bands that they were predicted in."""

from slideloom.workflow.job import Job
from slideloom.workflow.run_join import run_join
from slideloom.workflow.run_maps import run_maps

job = Job.start(snakemake)
if job.inputs.get("bands"):
    run_join(job)
else:
    run_maps(job)

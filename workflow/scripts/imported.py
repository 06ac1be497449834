"""Take nuclei of another program over, as if they had been predicted here."""

from slideloom.workflow.job import Job
from slideloom.workflow.run_imported import run_imported

run_imported(Job.start(snakemake))

"""Gather every slide's figures into the report tables."""

from pathlib import Path

from slideloom.artefacts.files import read_json
from slideloom.config.model import StudyConfig
from slideloom.reports.gather import gather_reports, runs_of
from slideloom.slides.sheet import SlideRow
from slideloom.workflow.job import Job

job = Job.start(snakemake)
config = StudyConfig(**job.config["study"])
rows = [SlideRow.from_dict(row) for row in job.config["rows"]]
records = [Path(path) for path in snakemake.input]
benchmarks = sorted((job.paths.root / "benchmarks").rglob("*.tsv"))

accounts = {}
for benchmark in benchmarks:
    rule, *context = benchmark.relative_to(job.paths.root / "benchmarks").parent.parts
    account = benchmark.with_suffix(".json")
    accounts[rule, "/".join(context), benchmark.stem] = read_json(account) if account.is_file() else {}

gather_reports(
    config.study,
    runs_of(config, rows, job.paths, records),
    rows,
    records,
    benchmarks,
    job.paths.root,
    job.paths.reports(),
    accounts=accounts,
    published=config.published,
    config=config,
)

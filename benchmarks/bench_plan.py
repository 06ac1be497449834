"""What the driver costs: planning a thousand slides, finding nothing to do, and each finished job.

A sheet of stub slides (empty files that only claim a size) and three experiments, planned by Snakemake as a user would.
Then every record and artefact is written as a stub and marked as up to date, and the same command must find nothing to
do; and one stage runs for real with a script that writes nothing but its record, to see what the driver spends on a job
from start to end. CPU seconds and memory are of the driver alone, its jobs left out.

Run: ``python benchmarks/bench_plan.py [--slides 1000] [--jobs 16]``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.reports.figures import FIGURES
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.slides.study import load_study
from slideloom.workflow.plan import Plan

REPOSITORY = Path(__file__).resolve().parents[1]
#: What the workflow promises for 1000 slides and three experiments.
DRY_RUN_S, DRY_RUN_MB, NO_OP_S, JOB_CPU_S = 20.0, 1000.0, 30.0, 0.5

#: Runs Snakemake and leaves its own CPU seconds, wall seconds and peak memory behind.
_DRIVER = """
import atexit, json, os, resource, sys, time
start, driver = time.perf_counter(), os.getpid()
def leave():
    if os.getpid() == driver:
        own = resource.getrusage(resource.RUSAGE_SELF)
        spent = [time.perf_counter() - start, own.ru_utime + own.ru_stime, own.ru_maxrss / 1024]
        with open("spent.json", "w") as file:
            json.dump(spent, file)
atexit.register(leave)
if "--touch" in sys.argv:
    from snakemake.executors.touch import Executor
    Executor.SLEEPING_TIME = 0
from snakemake.cli import main
main()
"""

_STUB = """
import json
from pathlib import Path
spec = json.loads(snakemake.params.spec)
items = {item: {"status": "ok", "digest": "0"} for item in spec["items"]}
Path(snakemake.log[0]).touch()
body = {"schema": 1, "stage": spec["stage"], "context": spec["context"], "items": items}
Path(snakemake.output[0]).write_text(json.dumps(body))
"""


def write_study(folder: Path, n_slides: int) -> Path:
    """A config of three experiments and a sheet of stub slides; the config's path."""
    rng = np.random.default_rng(0)
    sheet = ["slide_id\tpatient_id\the\tsp\tinstances\tclasses\tmpp_um"]
    sizes = rng.lognormal(np.log(2e9), 0.8, (n_slides, 2)).astype(int)
    (folder / "data").mkdir()
    for number, pair in enumerate(sizes):
        names = [f"s{number:04d}_{kind}.tif" for kind in ("he", "sp", "inst", "cls")]
        for name, size in zip(names, (*pair, 0, 0), strict=True):
            with (folder / "data" / name).open("wb") as file:
                file.truncate(int(size))  # a hole: it takes no space
        sheet.append("\t".join([f"s{number:04d}", f"p{number // 2:04d}", *names, "0.5"]))
    (folder / "data" / "slides.tsv").write_text("\n".join(sheet) + "\n")
    markers = "channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\t\tyes\nCD3\tCD3e\t\tno\n"
    (folder / "markers.tsv").write_text(markers)
    (folder / "classes.tsv").write_text("id\tname\tcolour\n1\tTumour\t#ff0000\n2\tStroma\t#00ff00\n")
    config = {
        "study": "stub",
        "slides": "data/slides.tsv",
        "markers": "markers.tsv",
        "classes": "classes.tsv",
        "grids": {"sp": {"image": "sp", "tile_px": 64}, "he": {"image": "he", "tile_px": 64}},
        "encoders": {
            "mean": {"model": "mean_marker", "grid": "sp", "statistics": "holdout"},
            "vit": {"model": "timm/vit_tiny_patch16_224", "grid": "he", "random": 0},
        },
        "splits": {"holdout": {"scheme": "sequential"}},
        "experiments": {
            "sp": {"encoder": "mean", "split": "holdout"},
            "he": {"encoder": "vit", "split": "holdout"},
            "both": {"encoder": ["vit", "mean"], "split": "holdout"},
        },
        "exports": {"geojson": True},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "config.yaml"


def copy_workflow(place: Path) -> Path:
    """The workflow with a stub for the script of the facts; the path of its Snakefile."""
    shutil.copy(REPOSITORY / "Snakefile", place / "Snakefile")
    for name in ("workflow", "config", "envs", "src"):
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "workflow" / "scripts" / "facts.py").write_text(_STUB)
    return place / "Snakefile"


def write_records(plan: Plan, folder: Path) -> int:
    """Every job record, item record and artefact of the study, as stubs; the number of items."""
    count = 0
    reports = folder / plan.paths.reports()
    names = [
        "report.html",
        *(f"{table}.parquet" for table in REPORT_TABLES),
        *(f"figures/{one}.svg" for one in FIGURES),
    ]
    for name in names:
        _write(reports / name, None)
    for text in plan.all_records():
        record = folder / text
        stage, *context = record.relative_to(folder / "results" / "state").parent.parent.parts
        context_text = "/".join(context)
        items = plan.job_slides(stage, context, record.stem) if record.stem in plan.jobs else (record.stem,)
        body: dict[str, Any] = {"schema": 1, "stage": stage, "context": context_text}
        body["items"] = {item: {"status": "ok", "digest": "0" * 40} for item in items}
        _write(record, body)
        for item in items:
            output = Path("stub", stage, *context, item)
            _write(folder / "results" / output, None)
            _write(folder / plan.paths.record(stage, context_text, item), {"outputs": [str(output)]})
        count += len(items)
    return count


def _write(place: Path, body: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("" if body is None else json.dumps(body))


def drive(folder: Path, snakefile: Path, *arguments: str) -> tuple[float, float, float, str]:
    """Run Snakemake; wall seconds, CPU seconds and peak MB of the driver, and what it said."""
    command = [sys.executable, "-c", _DRIVER, "--snakefile", str(snakefile), "--configfile", "config.yaml"]
    command += ["--profile", str(REPOSITORY / "profiles" / "local"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"snakemake {' '.join(arguments)} failed:\n{said[-4000:]}")
    wall_s, cpu_s, peak_mb = json.loads((folder / "spent.json").read_text())
    return wall_s, cpu_s, peak_mb, said


def tell(what: str, value: float, unit: str, most: float) -> None:
    """One figure beside the most that it may be."""
    print(f"{what:<44} {value:8.2f} {unit:<3} of at most {most:g}{'' if value <= most else '  TOO MUCH'}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=16, help="jobs that really run, with a stub for a script")
    parser.add_argument("--keep", type=Path, help="an empty folder that the stubs are left in")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as text:
        folder = options.keep or Path(text)
        (folder / "workflow").mkdir(parents=True)
        write_study(folder, options.slides)
        snakefile = copy_workflow(folder / "workflow")
        os.chdir(folder)
        plan = Plan(load_study(Path("config.yaml")), snakefile.parent / "workflow" / "scripts")
        records = plan.all_records()
        print(f"{options.slides} slides, {len(plan.jobs)} bins, {len(plan.runs())} experiments, {len(records)} jobs")

        wall_s, cpu_s, peak_mb, _ = drive(folder, snakefile, "--dry-run")
        tell("dry run, all to do: wall", wall_s, "s", DRY_RUN_S)
        tell("dry run, all to do: CPU", cpu_s, "s", DRY_RUN_S)
        tell("dry run, all to do: memory", peak_mb, "MB", DRY_RUN_MB)

        chosen = plan.records("facts")[: options.jobs]
        (folder / "results").mkdir()
        drive(folder, snakefile, "--dry-run", *chosen)  # takes the fingerprints of the code, once
        _, planning_s, _, _ = drive(folder, snakefile, "--dry-run", *chosen)
        _, cpu_s, _, _ = drive(folder, snakefile, "--cores", "2", *chosen)
        tell(f"driver's CPU a finished job, of {len(chosen)}", (cpu_s - planning_s) / len(chosen), "s", JOB_CPU_S)

        n_items = write_records(plan, folder)
        drive(folder, snakefile, "--touch", "--cores", str(len(records)))
        wall_s, cpu_s, peak_mb, said = drive(folder, snakefile)
        if "Nothing to be done" not in said:
            raise SystemExit(f"something was to be done:\n{said[-4000:]}")
        print(f"{n_items} items with a record and an artefact")
        tell("nothing to do: wall", wall_s, "s", NO_OP_S)
        tell("nothing to do: CPU", cpu_s, "s", NO_OP_S)
        tell("nothing to do: memory", peak_mb, "MB", DRY_RUN_MB)


if __name__ == "__main__":
    main()

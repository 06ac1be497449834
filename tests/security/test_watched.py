"""A study run where everything but its own folder is read-only, and there is no network; every attempt is noted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slideloom.artefacts.tables import read_table
from slideloom.reports.schemas import REPORT_TABLES
from tests.workflow.undisturbed import BROKEN, write_study

REPOSITORY = Path(__file__).resolve().parents[2]
#: Only ``$1`` stays writable. The shared memory is an empty one of its own. Then what follows is run.
_JAIL = """
set -e
study=$1 outside=$2
shift 2
mount --make-rprivate /
mount --bind "$study" "$study"
mount -t tmpfs tmpfs /dev/shm
cut -d ' ' -f 2 /proc/self/mounts | sort -u | while read -r place; do
  case $place in "$study"|/dev/shm|/proc|/proc/*) ;; *) mount -o remount,bind,ro "$place" 2>/dev/null || true ;; esac
done
for place in / /tmp "$HOME" "$outside" /dev /var/tmp; do
  if touch "$place/.watched" 2>/dev/null; then echo "$place is still writable"; exit 77; fi
done
cd "$study"
export HOME=$study/home TMPDIR=$study/tmp XDG_CACHE_HOME=$study/home/.cache
"$@"
code=$?
[ -z "$(ls -A /dev/shm)" ] || { echo "left in shared memory: $(ls -A /dev/shm)"; exit 78; }
exit $code
"""
#: Read by every Python of the run: notes whoever looks for a host or opens a connection, and starts a shell.
_WATCH = """
import json, os, sys

EVENTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect",
          "ftplib.connect", "smtplib.connect", "os.system", "pickle.find_class", "webbrowser.open"}


def note(event, arguments):
    if event in EVENTS:
        frame, callers = sys._getframe(1), []
        while frame is not None:
            callers.append(frame.f_globals.get("__name__") or "")
            frame = frame.f_back
        line = json.dumps({"event": event, "arguments": repr(arguments)[:200], "callers": callers[:60]}) + "\\n"
        fd = os.open(os.environ["SLIDELOOM_WATCHED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, line.encode())
        os.close(fd)


sys.addaudithook(note)
"""


def jailed() -> str:
    """Why a folder cannot be shut in here; empty when it can."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return "no unshare and mount on the PATH"
    line = ["unshare", "--mount", "--net", "bash", "-c", "mount --make-rprivate / && mount -o remount,bind,ro /"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"namespaces are not to be had here: {done.stderr.strip()[:200]}"


@pytest.mark.workflow
@pytest.mark.slow
def test_a_study_writes_into_its_own_folder_and_speaks_to_nobody(tmp_path: Path) -> None:
    if why := jailed():
        pytest.skip(why)
    from slideloom.demo.cohort import write_cohort

    cohort, study = tmp_path / "cohort", tmp_path / "study"
    sheet = write_cohort(cohort, seed=11, n_slides=5, size_px=192)
    broken = cohort / "sp" / f"{BROKEN}.ome.tif"
    broken.write_bytes(broken.read_bytes()[:5000])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    workspace = write_study(study, sheet.parent)
    for name in ("home", "tmp", "watch"):
        (study / name).mkdir()
    (study / "watch" / "sitecustomize.py").write_text(_WATCH)
    noted = study / "watch" / "noted"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--profile", str(REPOSITORY / "profiles" / "local"), "--configfile", str(workspace.config_path)]
    done = subprocess.run(
        ["unshare", "--mount", "--net", "bash", "-c", _JAIL, "bash", str(study), str(cohort), *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(study / "watch"), "SLIDELOOM_WATCHED": str(noted)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert (study / "results" / "reports" / "report.html").is_file()
    failed = read_table(REPORT_TABLES["failures"], study / "results" / "reports" / "failures.parquet")
    assert set(failed["slide_id"].to_pylist()) == {BROKEN}
    # Beside the results: what the test laid there, and Snakemake's own notes.
    assert {path.name for path in study.iterdir()} == {"config.yaml", "results", ".snakemake", "home", "tmp", "watch"}
    assert [path for path in (study / "tmp").rglob("*") if path.is_file()] == [], "no temporary file is left"
    # Compiled code is kept beside its source, and at home where the clone is read-only, as it is here.
    kept = [path for path in (study / "home").rglob("*") if path.is_file()]
    assert [path for path in kept if path.suffix not in (".nbi", ".nbc") or ".cache" not in path.parts] == []
    links = [path for path in (study / "results").rglob("*") if path.is_symlink()]
    assert links == [], "no link leads out of the results"
    now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if study not in (path, *path.parents)}
    assert {path: time for path, time in before.items() if study not in (path, *path.parents)} == now
    lines = [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []
    ours = [line for line in lines if any(name.startswith("slideloom.") for name in line["callers"])]
    assert [line for line in ours if line["event"] != "pickle.find_class"] == []
    assert {line["event"] for line in lines} <= {"pickle.find_class"}, lines[:3]

"""Damaged files of every kind: only Slideloom's own errors come out, soon, in little memory, and nothing is written.

``SLIDELOOM_FUZZ_S`` sets how many cases hypothesis draws; a few when unset, and always the same ones.
"""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from .edits import DAMAGES, LARGEST, Edit, apply, random_edits
from .targets import TARGETS
from .worker import REPOSITORY, Worker, environment

FUZZ_S = float(os.environ.get("SLIDELOOM_FUZZ_S", "0"))
#: A case takes a few milliseconds.
_EXAMPLES = int(max(40, 20 * FUZZ_S))
_EDITS = st.lists(
    st.builds(Edit, st.sampled_from(DAMAGES), st.integers(0, LARGEST), st.integers(0, LARGEST)), min_size=1, max_size=5
)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(tmp_path_factory.mktemp("worker")) as worker:
        yield worker
        print(f"\n{worker.cases} cases drawn by hypothesis")


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_refused_in_words(name: str, worker: Worker) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=_EXAMPLES,
        derandomize=not FUZZ_S,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.sampled_from(target.seeds), edits=_EDITS)
    def check(seed: bytes, edits: list[Edit]) -> None:
        assert not worker.run(name, apply(edits, seed, target.form))

    check()


def _grey_jpeg_among_rgb() -> bytes:
    """A tile that decodes to one sample a pixel, in an image of three."""
    whole = TARGETS["tiff"].seeds[3]
    place = io.BytesIO()
    Image.new("L", (32, 32), 80).save(place, "JPEG", quality=5, optimize=True)
    at, grey = whole.index(b"\xff\xd8\xff"), place.getvalue()
    assert at + len(grey) <= len(whole)
    return whole[:at] + grey + whole[at + len(grey) :]


def _long_chunk(png: bytes) -> bytes:
    at = png.index(b"IDAT") - 4
    return png[:at] + b"\xff\xff\xff\xff" + png[at + 4 :]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("tiff", _grey_jpeg_among_rgb(), id="a grey JPEG tile in an RGB TIFF"),
        pytest.param("png", _long_chunk(TARGETS["png"].seeds[0]), id="a PNG chunk of 4 GB"),
        pytest.param("png", _long_chunk(TARGETS["png"].seeds[3]), id="a PNG chunk of 4 GB behind a colour table"),
        pytest.param("npy", b"\x93NUMPY\2\0\xf0\xff\xff\x7f{'descr': ", id="a NumPy header of 2 GB"),
        pytest.param(
            "geojson_packed", b"PK\5\6" + bytes(8) + b"\x32" + bytes(9), id="a zip that begins before the file"
        ),
        pytest.param("markers", b"channel\tmarker\n" + b"\x1b[2J" * 999 + b"\t\n", id="a name that clears the screen"),
    ],
)
def test_what_was_found_once_stays_mended(name: str, data: bytes, worker: Worker) -> None:
    assert worker.run(name, data) == ""


_MISDEEDS = """
import os, pickle, subprocess, sys
from pathlib import Path
from slideloom.errors import SlideError
from tests.fuzz import targets, watch

def misbehave(data, folder):
    exec(data.decode())

watched = watch.Watch(Path(sys.argv[1]), [])
targets.TARGETS["bad"] = targets.Target("bad", "none", targets.FORMS["bytes"], misbehave)
for case, told in {
    "raise KeyError(1)": "KeyError: 1",
    "bytes(1 << 31)": "MemoryError",
    "list(range(20_000_000))": "MB",
    "open('/nowhere/a', 'w')": "to write",
    "os.mkdir('/nowhere/a')": "os.mkdir",
    "os.rename('b', '../../a')": "os.rename",
    "subprocess.run(['true'])": "subprocess.Popen",
    "pickle.loads(pickle.dumps(print))": "pickle.find_class",
    "error = SlideError('a', code='c'); error.hint = chr(27) + '[31m'; raise error": "no text for a person",
    "error = SlideError('a', code='c'); error.hint = 'b' * 9999; raise error": "no text for a person",
}.items():
    wrong = watched.run("bad", case.encode())
    assert told in wrong, (case, wrong)
assert not watched.run("bad", b"(folder / 'inside').write_text('')")
assert not watched.run("bad", b"raise SlideError('a', where='b', code='c')")
"""


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    """A watch that saw nothing would let everything pass."""
    command = [sys.executable, "-c", _MISDEEDS, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_edits_damage_every_seed_and_leave_checksums_right() -> None:
    for target in TARGETS.values():
        for seed in target.seeds:
            damaged = {apply(random_edits(random.Random(number)), seed, target.form) for number in range(20)}
            assert len(damaged - {seed}) >= 15, target.name

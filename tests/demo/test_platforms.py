from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from slideloom.demo.cohort import grow_slide, plan_cohort
from slideloom.demo.panel import MARKERS
from slideloom.demo.platforms import PLATFORMS, draw_dna, image_channels, write_platforms
from slideloom.errors import SlideloomError
from slideloom.slides.headers import read_facts
from slideloom.slides.sheet import read_sheet
from slideloom.slides.tables import read_markers

SEED, SIZE_PX = 2, 192
#: Their haze shows nuclei, too.
NUCLEAR = {marker.name for marker in MARKERS if marker.locus == "nucleus"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("platforms")
    assert write_platforms(folder, seed=SEED, n_slides=2, size_px=SIZE_PX) == folder / "slides.tsv"
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _rows(cohort: Path) -> list[dict[str, str]]:
    with (cohort / "slides.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_equal_seeds_give_equal_bytes(cohort: Path, tmp_path: Path) -> None:
    write_platforms(tmp_path / "same", seed=SEED, n_slides=2, size_px=SIZE_PX)
    write_platforms(tmp_path / "other", seed=SEED + 1, n_slides=2, size_px=SIZE_PX)
    first, same, other = _digests(cohort), _digests(tmp_path / "same"), _digests(tmp_path / "other")
    assert len(first) == 2 + 2 * len(PLATFORMS) * 2
    assert first == same
    assert {name for name in first if first[name] == other[name]} == {"markers.tsv", "slides.tsv"}


def test_panels_differ_in_number_order_and_depth() -> None:
    assert [len(platform.channels) for platform in PLATFORMS] == [7, 5, 16]
    assert [platform.bits for platform in PLATFORMS] == [8, 16, 16]
    shown = {name: marker for platform in PLATFORMS for name, marker in platform.channels}
    assert all(shown[name] == marker for platform in PLATFORMS for name, marker in platform.channels)
    known = {marker.name for marker in MARKERS} | {"DNA", "blank"}
    common = set.intersection(*({marker for _, marker in platform.channels} for platform in PLATFORMS))
    assert set(shown.values()) <= known
    assert common == {"DNA", "CD3e", "CD68", "Pan-CK"}
    panels = [[marker for _, marker in platform.channels] for platform in PLATFORMS]
    assert all(len({panel.index(marker) for panel in panels}) > 1 for marker in common), "none has one place everywhere"
    assert sum(marker == "DNA" for _, marker in PLATFORMS[2].channels) == 4


def test_files_are_what_the_sheet_says(cohort: Path) -> None:
    rows, problems = read_sheet(cohort / "slides.tsv")
    assert problems == []
    markers, problems = read_markers(cohort / "markers.tsv")
    assert problems == []
    assert [row.platform for row in rows] == [platform.name for platform in PLATFORMS] * 2
    assert len({row.patient_id for row in rows}) == len(rows)
    for row, platform in zip(rows, PLATFORMS * 2, strict=True):
        image = read_facts(row, cohort, markers).image("sp")
        assert (image.height_px, image.width_px, image.mpp_um) == (SIZE_PX, SIZE_PX, 0.5)
        assert [(one.name, one.marker) for one in image.channels] == list(platform.channels)
        assert [one.nuclear for one in image.channels] == [shown == "DNA" for _, shown in platform.channels]
        assert tifffile.imread(cohort / str(row.sp)).dtype == (np.uint8 if platform.bits == 8 else np.uint16)


def test_nuclei_are_those_of_the_tissue_and_shine_in_dna_alone(cohort: Path) -> None:
    plans = plan_cohort(SEED, 2 * len(PLATFORMS), SIZE_PX)
    for plan, row, platform in zip(plans, _rows(cohort), PLATFORMS * 2, strict=True):
        labels = tifffile.imread(cohort / row["instances"])
        np.testing.assert_array_equal(labels, grow_slide(plan)[1].labels)
        picture = tifffile.imread(cohort / row["sp"]).astype(np.float64)
        # Rank of nuclear pixels among all: 0.5 where a channel knows nothing of them.
        inside = labels.ravel() > 0
        order = np.argsort(picture.reshape(len(picture), -1), axis=1)
        ranks = np.argsort(order, axis=1)[:, inside].mean(1) / labels.size
        for (name, shown), rank in zip(platform.channels, ranks, strict=True):
            if shown == "DNA":
                assert rank > 0.8, name
            elif shown == "blank":
                assert abs(rank - 0.5) < 0.02, name
            elif shown not in NUCLEAR:
                assert rank < 0.75, name


def test_later_rounds_of_dna_fade_and_nothing_is_clipped_much(cohort: Path) -> None:
    for row, platform in zip(_rows(cohort), PLATFORMS * 2, strict=True):
        picture = tifffile.imread(cohort / row["sp"])
        assert (picture == 2**platform.bits - 1).mean() < 0.01
        assert all(np.unique(channel).size > 10 for channel in picture)
    plan = plan_cohort(SEED, 3, SIZE_PX)[2]
    nuclei = grow_slide(plan)[1]
    dna = draw_dna(np.random.default_rng(0), nuclei)
    counts = np.full((len(MARKERS), *dna.shape), 95, np.uint16)
    codex = PLATFORMS[2]
    seen = [image_channels(np.random.default_rng(seed), codex, counts, dna) for seed in range(8)]
    means = np.mean([[one[k][nuclei.labels > 0].mean() for k in (0, 4, 8, 12)] for one in seen], axis=0)
    assert (np.diff(means) < 0).all(), means


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideloomError):
        write_platforms(tmp_path, n_slides=0)
    with pytest.raises(SlideloomError):
        write_platforms(tmp_path, size_px=64)
    assert not any(tmp_path.iterdir())

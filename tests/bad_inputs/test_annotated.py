"""Every kind of bad annotation gets its one answer; what is hostile takes little memory and time."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from slideloom.config.model import GridConfig, TissueConfig
from slideloom.errors import ConfigError, SlideError, SlideloomError
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.patches.target_store import TargetStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.headers import read_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.study import study_from_mapping
from slideloom.slides.tables import ClassTable, MarkerTable
from slideloom.slides.tissue import write_tissue
from tests.bad_inputs.annotated import KINDS
from tests.bad_inputs.kinds import Kind, check_shape, peak_mb
from tests.bad_inputs.scene import CLASS_NAMES, MPP_UM, labels, tell

CLASSES = ClassTable((1, 2, 3), CLASS_NAMES, ((9, 9, 9),) * 3)
GRID = GridConfig.model_validate({"image": "he", "tile_px": 96, "stride_px": 96, "mpp_um": MPP_UM})
HOSTILE = (
    *("deep_lists", "gzip_bomb", "layers", "swollen_parquet", "one_long_line", "hostile_words", "endless_number"),
    *("pickled_labels", "disguised_pickle", "deep_collections", "swollen_archive"),
)
_MOST_MB, _MOST_S = 500, 5.0


def row_of(cells: dict[str, str]) -> SlideRow:
    return SlideRow("field", he=cells["he"], instances=cells.get("instances"), classes=cells.get("classes"),
                    he_mpp_um=float(cells["mpp_um"]))  # fmt: skip


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    """Of the field that all kinds share: its annotation plays no part in them."""
    return cut_field(tmp_path_factory.mktemp("field"))


def cut_field(root: Path) -> PatchStore:
    row = row_of(dict(tell(root, None)))
    facts = read_facts(row, root, MarkerTable())
    write_tissue(facts, row, root, TissueConfig(method="all"), root / "tissue.geojson", root / "thumbnail.png")
    cut_patches(row, root, facts, root / "tissue.geojson", GRID, root / "patches.zarr")
    return PatchStore(root / "patches.zarr")


def take(row: SlideRow, folder: Path, patches: PatchStore) -> tuple[str, SlideloomError | None, list[str]]:
    """Stage that fails, its error, and the warnings until then."""
    try:
        facts = read_facts(row, folder, MarkerTable())
    except SlideError as error:
        return "facts", error, []
    try:
        cut_targets(row, folder, facts, patches, CLASSES, folder / "targets.zarr")
    except SlideError as error:
        return "targets", error, list(facts.warnings)
    return "", None, [*facts.warnings, *TargetStore(folder / "targets.zarr").attributes["warnings"]]


def test_names_are_unique() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert set(HOSTILE) <= {kind.name for kind in KINDS}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.answer != "refused"], ids=str)
def test_every_kind_gets_its_answer(kind: Kind, tmp_path: Path, patches: PatchStore) -> None:
    row = row_of(dict(kind.make(tmp_path)))
    stage, error, warnings = take(row, tmp_path, patches)
    if kind.answer == "failed":
        assert error is not None, f"it was taken, with {warnings}"
        assert (stage, error.code) == (kind.stage, kind.code), str(error)
        named = {Path(text.split("::")[0]).name for text in (row.instances, row.classes) if text}
        check_shape(error, names=("field",))
        assert any(name in str(error) for name in named), f"it names the file: {error}"
        assert error.expected, f"it says what was expected: {error}"
        assert re.search(kind.says, str(error)), str(error)
    else:
        assert error is None, str(error)
        assert len(warnings) == (kind.answer == "warned"), warnings
        assert re.search(kind.says, " ".join(warnings)), warnings
        assert all(len(warning) < 400 for warning in warnings)
    assert not (tmp_path / "sprung").exists(), "a pickle was taken apart"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.answer == "refused"], ids=str)
def test_what_the_sheet_shows_is_refused(kind: Kind, tmp_path: Path) -> None:
    cells = {"slide_id": "field", "patient_id": "P1", **kind.make(tmp_path)}
    (tmp_path / "slides.tsv").write_text("\t".join(cells) + "\n" + "\t".join(cells.values()) + "\n")
    rows = "".join(f"{number}\t{name}\t#808080\n" for number, name in enumerate(CLASS_NAMES, 1))
    (tmp_path / "classes.tsv").write_text("id\tname\tcolour\n" + rows)
    config = {"study": "s", "slides": "slides.tsv", "classes": "classes.tsv", "data_root": str(tmp_path)}
    config |= {"grids": {"he": {"image": "he", "tile_px": 96}}}
    with pytest.raises(ConfigError) as caught:
        study_from_mapping(config, tmp_path)
    told = [problem for problem in caught.value.problems if re.search(kind.says, problem.what)]
    assert len(told) == 1, str(caught.value)
    assert "field" in str(told[0])
    assert str(tmp_path / "slides.tsv") in told[0].where


def test_the_field_itself_is_taken_without_a_word(tmp_path: Path, patches: PatchStore) -> None:
    np.save(tmp_path / "nuclei.npy", labels())
    assert take(row_of(dict(tell(tmp_path, "nuclei.npy"))), tmp_path, patches) == ("", None, [])


def test_hostile_annotations_take_little_memory_and_time(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bad_inputs.test_annotated", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert set(lines) == {*HOSTILE, "peak_mb"}
    assert float(lines.pop("peak_mb")) < _MOST_MB
    assert {name: took for name, took in lines.items() if float(took) > _MOST_S} == {}


def _take_hostile(root: Path) -> None:
    """Take every hostile kind in this process; print the processor time of each, and the peak memory."""
    (root / "field").mkdir()
    patches = cut_field(root / "field")
    for kind in KINDS:
        if kind.name in HOSTILE:
            (root / kind.name).mkdir()
            row = row_of(dict(kind.make(root / kind.name)))
            start = time.process_time()
            stage, error, warnings = take(row, root / kind.name, patches)
            assert error is not None, (kind.name, stage, warnings)
            print(f"{kind.name} {time.process_time() - start:.3f}")
    print(f"peak_mb {peak_mb():.0f}")


if __name__ == "__main__":
    _take_hostile(Path(sys.argv[1]))

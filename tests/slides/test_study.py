from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from slideloom.config.model import SplitConfig
from slideloom.errors import ConfigError, SlideloomError
from slideloom.slides.sheet import read_sheet
from slideloom.slides.study import Study, load_study, study_from_mapping
from slideloom.training.splits import make_split

CONFIG: dict[str, Any] = {
    "study": "demo",
    "slides": "slides.tsv",
    "markers": "markers.tsv",
    "classes": "classes.tsv",
    "grids": {"sp120": {"image": "sp", "tile_px": 120}, "he256": {"image": "he", "tile_px": 256, "mpp_um": 0.25}},
    "encoders": {
        "mm": {"model": "mean_marker", "grid": "sp120", "markers": ["DNA", "CD3e"], "statistics": "holdout"},
        "vit": {"model": "timm/vit_tiny_patch16_224", "grid": "he256", "random": 0},
    },
    "splits": {"holdout": {"scheme": "column"}, "folds": {"scheme": "kfold", "folds": 2}},
    "experiments": {"sp": {"encoder": "mm", "split": "holdout"}, "he": {"encoder": "vit", "split": "holdout"}},
}
SHEET = (
    "slide_id | patient_id | platform | he | sp | instances | classes | sp_channels | split | part",
    "a | P1 | codex | a.svs | a.tif | a_l.tif | c.csv::a | DAPI;CD3 | train | test",
    "b | P2 | codex | b.svs | b.tif | b_l.tif | c.csv::b | DAPI;CD3 | val | train",
    "c | P3 | orion | c.svs |  | c_l.tif |  |  | test | ",
    "d | P4 | orion |  | d.tif |  |  |  |  | ",
)
OWN_CLIP = {"scope": "slide", "clip": "training"}
MACRO = {"monitor": "dice_macro"}
VIRTUES = {"model": "virtues", "grid": "sp120", "markers": ["DNA", "CD3e"], "statistics": "holdout", "random": 0}
PUBLISHED = {"model": "cellvit/vit256", "grid": "he256"}
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def study_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_sheet(SHEET)
    names = {"a.svs", "a.tif", "a_l.tif", "b.svs", "b.tif", "b_l.tif", "c.svs", "c_l.tif", "d.tif", "c.csv"}
    for name in names:
        Path(name).touch()
    Path("markers.tsv").write_text("channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\t\tyes\nCD3\tCD3e\tP07766\tno\n")
    Path("classes.tsv").write_text("id\tname\tcolour\n1\ttumour\t#ff0000\n2\tstroma\t#00ff00\n")
    return tmp_path


def write_sheet(lines: tuple[str, ...]) -> None:
    Path("slides.tsv").write_text("".join(line.replace(" | ", "\t") + "\n" for line in lines))


def load(edit: Edit | None = None) -> Study:
    config = copy.deepcopy(CONFIG)
    if edit:
        edit(config)
    Path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return load_study(Path("config.yaml"))


def told(edit: Edit | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(edit)
    return [str(problem) for problem in caught.value.problems]


def put(path: str, value: Any, *more: tuple[str, Any]) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        for other, its_value in more:
            put(other, its_value)(config)
        *above, last = path.split(".")
        holder = config
        for key in above:
            holder = holder.setdefault(key, {})
        if value is ...:
            del holder[last]
        else:
            holder[last] = value

    return edit


def test_a_right_study_loads() -> None:
    study = load()
    assert [row.slide_id for row in study.rows] == ["a", "b", "c", "d"]
    assert study.paths.root == Path("results")
    assert study.data_root == Path()
    assert study.markers.markers == {"DNA", "CD3e"}
    assert study.classes.names == ("tumour", "stroma")
    assert study.row("c").platform == "orion"
    assert (study.image_of("mm"), study.image_of("vit")) == ("sp", "he")
    assert (study.grid_of("sp"), study.grid_of("he")) == ("sp120", "he256")
    assert [row.slide_id for row in study.experiment_slides("sp")] == ["a", "b", "d"]
    assert [row.slide_id for row in study.experiment_slides("he")] == ["a", "b", "c"]
    assert any("WITHOUT WEIGHTS" in warning for warning in study.warnings)


def test_an_experiment_on_two_encoders_takes_the_slides_that_have_both_images() -> None:
    study = load(put("experiments.both", {"encoder": ["vit", "mm"], "split": "holdout"}))
    assert study.config.experiments["both"].encoder == ("vit", "mm")
    assert study.images_of("both") == ("he", "sp")
    assert study.grid_of("both") == "he256"
    assert [row.slide_id for row in study.experiment_slides("both")] == ["a", "b"]


def test_a_published_model_needs_no_training_slide() -> None:
    write_sheet((SHEET[0], *(line.replace("| train |", "| infer |") for line in SHEET[1:])))

    def edit(config: dict[str, Any]) -> None:
        del config["experiments"]["sp"], config["encoders"]["mm"]
        config["encoders"]["vit"] = PUBLISHED | {"checkpoint": "c.csv"}
        config["experiments"]["he"]["pretrained"] = "c.csv"

    study = load(edit)
    assert study.config.experiments["he"].pretrained == Path("c.csv")
    message = told(put("splits.holdout.platforms", []))[0]
    assert "no slide has the role train" in message


def test_a_split_of_some_platforms_narrows_its_experiments() -> None:
    study = load(put("splits.holdout.platforms", ["codex"]))
    assert [row.slide_id for row in study.experiment_slides("he")] == ["a", "b"]


def test_a_mapping_is_the_same_study_from_another_folder(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load()
    same = study_from_mapping(CONFIG, Path.cwd(), [Path("config.yaml")])
    assert (same.config, same.rows, same.paths, same.data_root) == (here.config, here.rows, here.paths, here.data_root)
    monkeypatch.chdir("/")
    there = study_from_mapping(CONFIG, study_folder)
    assert (there.config, there.rows) == (here.config, here.rows)
    assert there.paths.root == study_folder / "results"
    assert there.data_root == study_folder


def test_a_mapping_tells_the_lines_of_the_files_it_came_from() -> None:
    load()
    config = copy.deepcopy(CONFIG)
    config["experiments"]["sp"]["encoder"] = "nobody"
    with pytest.raises(ConfigError) as caught:
        study_from_mapping(config, Path.cwd(), [Path("config.yaml")])
    line = 1 + Path("config.yaml").read_text().splitlines().index("    encoder: mm")
    assert caught.value.problems[0].where == f"config.yaml:{line}: experiments.sp.encoder"
    with pytest.raises(ConfigError) as caught:
        study_from_mapping(config, Path.cwd())
    assert caught.value.problems[0].where == "config: experiments.sp.encoder"


def test_five_different_mistakes_are_told_at_once() -> None:
    write_sheet((*SHEET, "a | P9 | codex | a.svs"))
    Path("b.tif").unlink()

    def edit(config: dict[str, Any]) -> None:
        config["grids"]["sp120"]["strid_px"] = 60
        config["encoders"]["mm"]["markers"] = ["DNA", "CD8"]
        config["experiments"]["third"] = {"encoder": "virtues", "split": "holdout"}

    messages = told(edit)
    assert len(messages) == 5, messages
    for words in (
        ("config.yaml:", "grids.sp120.strid_px", "unknown key", "'stride_px'"),
        ("config.yaml:", "encoders.mm.markers[1]", "'CD8' is no marker"),
        ("config.yaml:", "experiments.third.encoder", "no entry 'virtues'"),
        ("slides.tsv:3: sp", "b.tif", "does not exist"),
        ("slides.tsv:6: slide_id", "'a' is the id of line 2 already"),
    ):
        assert any(all(word in message for word in words) for message in messages), (words, messages)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("slides", "none.tsv"), ("slides: 'none.tsv' does not exist", "slideloom sheet")),
        (put("markers", "none.tsv"), ("markers: 'none.tsv' does not exist",)),
        (put("classes", "none.tsv"), ("classes: 'none.tsv' does not exist",)),
        (put("data_root", "nowhere"), ("data_root: the folder 'nowhere'",)),
        (put("encoders.mm.grid", "sp12"), ("encoders.mm.grid: grids has no entry 'sp12'", "Did you mean 'sp120'?")),
        (put("encoders.mm.statistics", "holdouts"), ("encoders.mm.statistics: splits has no entry", "'holdout'")),
        (put("encoders.mm.statistics", "folds"), ("split 'folds' has 2 folds",)),
        (put("encoders.mm.statistics", ...), ("the key 'statistics' is missing",)),
        (put("encoders.mm.normalisation", {"scope": "slide"}), ("statistics: every slide is measured by itself",)),
        (put("encoders.mm.model", "mean_markers"), ("no encoder is called 'mean_markers'", "'mean_marker'")),
        (put("encoders.mm.model", "timm/"), ("no encoder is called 'timm/'", "timm/<name>")),
        (put("encoders.mm.grid", "he256"), ("'mean_marker' reads marker channels, but grid 'he256' cuts he",)),
        (put("encoders.vit.grid", "sp120"), ("reads RGB, but grid 'sp120' cuts sp images",)),
        (put("encoders.vit.random", ...), ("encoders.vit: 'timm/vit_tiny_patch16_224' needs weights",)),
        (put("encoders.vit.checkpoint", "classes.tsv"), ("gives both 'checkpoint' and 'random'",)),
        (put("encoders.mm.random", 0), ("encoders.mm.random: 'mean_marker' has no weights",)),
        (put("encoders.vit.markers", ["DNA"]), ("encoders.vit.markers: 'timm/vit_tiny_patch16_224' reads RGB",)),
        (put("encoders.vit.statistics", "holdout"), ("encoders.vit.statistics", "its own normalisation")),
        (put("encoders.vit.patch_px", 16), ("encoders.vit.patch_px", "cannot be chosen")),
        (
            put("encoders.vit.model", "timm/vit_base_patch32_224"),
            ("encoders.vit.model: tokens of 32 px", "patch8, 14 or 16"),
        ),
        (put("encoders.vit.context", "patch"), ("encoders.vit.context: plays no part in 'timm/vit_tiny",)),
        (put("encoders.mm.final_norm", True), ("'mean_marker' has no final normalisation",)),
        (put("encoders.mm.marker_ids", {"DNA": "P68431"}), ("encoders.mm.marker_ids: plays no part",)),
        (
            put("encoders.mm", {**CONFIG["encoders"]["mm"], "statistics": None, "normalisation": OWN_CLIP}),
            ("normalisation.clip: 'clip: training' needs 'scope: training'",),
        ),
        (put("encoders.mm", VIRTUES), ("encoders.mm.markers: no UniProt accession is known of DNA", "marker_ids")),
        (
            put("encoders.mm", VIRTUES | {"unknown_markers": "drop", "blocks": [17]}),
            ("encoders.mm.blocks: 'virtues' has 16 blocks, not 17",),
        ),
        (
            put("encoders.mm", VIRTUES | {"marker_ids": {"DNA": "histone H3"}}),
            ("encoders.mm.marker_ids.DNA: 'histone H3' is not a UniProt accession",),
        ),
        (
            put("encoders.mm", VIRTUES | {"marker_ids": {"DNA": "P68431", "CD3": "P07766"}}),
            ("encoders.mm.marker_ids: 'CD3' is no marker",),
        ),
        (
            put("encoders.mm", VIRTUES | {"unknown_markers": "drop", "marker_embeddings": "esm"}),
            ("encoders.mm.marker_embeddings: 'esm' does not exist",),
        ),
        (
            put("encoders.mm", VIRTUES | {"unknown_markers": "drop", "random": None, "checkpoint": "c.csv"}),
            ("encoders.mm: 'virtues' needs protein embeddings",),
        ),
        (
            put("grids.sp120.mpp_um", 0.5, ("encoders.mm", VIRTUES | {"unknown_markers": "drop"})),
            ("encoders.mm.grid: 'virtues' was made for 0.9 to 1.1 um/px, grid 'sp120' has 0.5", "off_resolution"),
        ),
        (put("experiments.sp.encoder", ["mm", "mm"]), ("experiments.sp: encoder ['mm', 'mm'] names one twice",)),
        (put("experiments.sp.encoder", ["mm", "vitt"]), ("experiments.sp.encoder", "no entry 'vitt'", "'vit'")),
        (
            put("experiments.he.pretrained", "none.pth", ("encoders.vit", PUBLISHED | {"checkpoint": "c.csv"})),
            ("experiments.he.pretrained: 'none.pth' does not exist",),
        ),
        (
            put(
                "experiments.he",
                {"encoder": "vit", "split": "holdout", "pretrained": "c.csv", "training": {"epochs": 3}},
                ("encoders.vit", PUBLISHED | {"checkpoint": "c.csv"}),
            ),
            ("experiments.he.training: plays no part",),
        ),
        (put("experiments.he.pretrained", "c.csv"), ("its encoder does not come from the same file",)),
        (
            put(
                "experiments.he",
                {"encoder": ["vit", "mm"], "split": "holdout", "pretrained": "c.csv"},
                ("encoders.vit", PUBLISHED | {"checkpoint": "c.csv"}),
            ),
            ("reads the tokens of its own encoder only",),
        ),
        (put("encoders.mm.patch_px", 12), ("encoders.mm.patch_px: tokens of 12 px", "8 or 16")),
        (put("grids.sp120.tile_px", 100), ("encoders.mm.grid: tiles of 100 px", "96 or 104")),
        (put("encoders.mm.patch_px", 16), ("encoders.mm.grid: tiles of 120 px cannot be cut into tokens of 16 px",)),
        (put("encoders.mm.blocks", [2, 1]), ("encoders.mm.blocks: [2, 1] must rise",)),
        (put("encoders.mm.markers", ["DNA", "DNA"]), ("markers[1]: 'DNA' stands in the list twice",)),
        (put("encoders.mm.markers", ["DAPI"]), ("'DAPI' is no marker", "its marker is 'DNA'")),
        (put("encoders.mm.markers", ["CD3"]), ("'CD3' is no marker", "its marker is 'CD3e'")),
        (put("experiments.sp.split", "holdot"), ("experiments.sp.split: splits has no entry 'holdot'", "'holdout'")),
        (put("splits.holdout.column", "parts"), ("no slide has a value in the sheet's column 'parts'", "column: part")),
        (put("splits.holdout.platforms", ["codec", "codex"]), ("platforms[0]: no slide is of platform 'codec'",)),
        (put("inference.overlap_px", 16), ("inference.overlap_px: stored tiles overlap by their grid",)),
        (
            put("inference", {"source": "live", "overlap_px": 120}),
            ("overlap_px: 120 px is no less than the tiles of experiment 'sp', 120 px",),
        ),
        (put("inference.seam_check", True), ("inference.seam_check: seam_check shifts the tiles", "'source: live'")),
        (
            put("experiments.sp.heads", ["nucleus", "classes"], ("instances.method", "hv_watershed")),
            ("experiments.sp.heads", "needs the head 'hv'"),
        ),
        (
            put("experiments.he.heads", ["nucleus", "boundary"], ("instances.method", "boundary_watershed")),
            ("experiments.sp.heads", "boundary_watershed needs the head 'boundary'"),
        ),
        (
            put("experiments.sp", {**CONFIG["experiments"]["sp"], "heads": ["nucleus", "hv"], "training": MACRO}),
            ("experiments.sp.training.monitor: dice_macro needs the head 'classes'",),
        ),
        (put("evaluation.roles", ["train", "test"]), ("evaluation.roles", "'train'", "inference.roles")),
    ],
)
def test_one_mistake_is_told_once(edit: Edit, words: tuple[str, ...]) -> None:
    messages = told(edit)
    assert len(messages) == 1, messages
    assert all(word in messages[0] for word in words), messages


def test_a_missing_checkpoint_counts_for_encoders_that_are_used() -> None:
    def edit(config: dict[str, Any]) -> None:
        config["encoders"]["vit"] = {"model": "timm/vit_tiny_patch16_224", "grid": "he256", "checkpoint": "no.pth"}

    assert any("'no.pth' does not exist" in message for message in told(edit))

    def unused(config: dict[str, Any]) -> None:
        edit(config)
        del config["experiments"]["he"]

    assert "encoder 'vit' is used by no experiment" in load(unused).warnings


def test_tables_may_be_left_out_where_nothing_needs_them() -> None:
    def edit(config: dict[str, Any]) -> None:
        del config["markers"], config["classes"]
        del config["encoders"]["mm"], config["experiments"]["sp"], config["grids"]["sp120"]
        config["experiments"]["he"]["heads"] = ["nucleus", "hv"]

    write_sheet(("slide_id | he | instances | split", "a | a.svs | a_l.tif | train", "c | c.svs | c_l.tif | test"))
    study = load(edit)
    assert (len(study.markers.markers), len(study.classes)) == (0, 0)

    write_sheet(SHEET)
    messages = told(put("markers", ...))
    assert len(messages) == 1
    assert "the key 'markers' is missing" in messages[0]
    messages = told(put("classes", ...))
    assert [message.split(": ")[1] for message in messages] == ["experiments.sp.heads", "experiments.he.heads"]


def test_wrong_roles_and_torn_patients() -> None:
    write_sheet(
        (
            "slide_id | patient_id | he | sp | instances | classes | split",
            "a | P1 | a.svs | a.tif | a_l.tif | c.csv | Train",
            "b | P1 | b.svs | b.tif | b_l.tif | c.csv | test",
            "c | P2 | c.svs |  | c_l.tif |  | validation",
        )
    )
    messages = told()
    assert len(messages) == 2, messages
    assert "splits.holdout: patient_id P1 both trains and tests" in messages[0]
    assert messages[1].startswith("slides.tsv:4: split: 'validation' is no role")


def test_a_patient_may_not_validate_either_and_is_told_how_to_mend_it() -> None:
    write_sheet(tuple(line.replace("P2", "P1") for line in SHEET))
    (message,) = told()
    assert "splits.holdout: patient_id P1 both trains and validates" in message
    assert "patient ids of their own" in message
    (first, second) = told(put("splits.holdout.group", "platform"))
    assert "patient_id P1 both trains and validates" in first
    assert "platform codex both trains and validates" in second


@pytest.mark.parametrize(
    ("split", "where", "what"),
    [
        ({"scheme": "sequential", "stratify": "parts"}, "splits.holdout.stratify", "Did you mean 'part'?"),
        ({"scheme": "column", "stratify": "part"}, "splits.holdout.stratify", "plays no part in the scheme column"),
        ({"scheme": "quarters"}, "splits.holdout", "3 annotated groups (by patient_id) are too few to split"),
        (
            {"scheme": "leave_platform_out", "platforms": ["codex"]},
            "splits.holdout",
            "annotated slides of 1 platform are too few",
        ),
    ],
)
def test_splits_that_cannot_be_made_are_told_before_anything_runs(split: dict[str, Any], where: str, what: str) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["splits"]["holdout"] = split
        config["encoders"]["mm"].pop("statistics")
        config["encoders"]["mm"]["normalisation"] = {"scope": "slide"}

    (message,) = told(edit)
    assert f"{where}: " in message
    assert what in message
    assert "expected" in message


def test_nothing_to_train_on() -> None:
    def role(line: str) -> str:
        return line.replace("train", "test", 1).replace("val", "train", 1)

    write_sheet((SHEET[0], role(SHEET[1]), SHEET[3].replace(" test ", " train "), SHEET[4]))
    assert [message.split(": ", 1)[1] for message in told()] == [
        "experiments.sp: no training slide of split 'holdout' has an sp image and annotated instances. "
        "Slides that train: 0 with an sp image, 1 with 'instances', none with both",
        "experiments.he.heads: the head 'classes' has nothing to learn: "
        "no training slide of split 'holdout' has 'classes'. Fill the sheet's column 'classes', or leave the head out",
    ]
    write_sheet((SHEET[0], role(SHEET[1])))
    messages = told()
    assert len(messages) == 1, messages
    assert "no slide has the role train" in messages[0]


@pytest.mark.parametrize("scheme", [{"scheme": "sequential"}, {"scheme": "kfold", "folds": 4}])
def test_too_few_groups(scheme: dict[str, Any]) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["splits"] = {"holdout": {**scheme, "group": "platform"}}
        config["encoders"]["mm"].pop("statistics")
        config["encoders"]["mm"]["normalisation"] = {"scope": "slide"}
        if scheme["scheme"] == "sequential":
            config["splits"]["holdout"]["platforms"] = ["codex"]

    messages = told(edit)
    assert len(messages) == 1, messages
    assert "groups (by platform) are too few to split" in messages[0]


def test_channels_of_the_sheet_without_a_marker() -> None:
    lines = [line.replace("DAPI;CD3", "DAPI;CD33;GFP") for line in SHEET]
    write_sheet(tuple(lines))
    messages = told()
    assert len(messages) == 2, messages
    assert messages[0].startswith("slides.tsv:2: sp_channels: channel 'CD33' (named by 2 slides) has no row")
    assert "Did you mean 'CD3'?" in messages[0]


def test_many_missing_files_stay_one_screen() -> None:
    rows = [f"s{k} | P{k} | x | s{k}.svs |  |  |  |  | infer | " for k in range(50)]
    write_sheet((*SHEET, *rows))
    messages = told()
    assert len(messages) == 6
    assert messages[-1].startswith("slides.tsv: 45 more files do not exist")
    for path in Path().glob("*.svs"):
        path.unlink()
    for path in [*Path().glob("*.tif"), Path("c.csv")]:
        path.unlink()
    messages = told()
    assert len(messages) == 1, messages
    assert "none of the 61 files that the sheet names exists" in messages[0]
    assert "data_root" in messages[0]


def test_members_are_no_part_of_the_file_and_a_bad_source_is_told() -> None:
    write_sheet((*SHEET, "e | P5 | x | a.svs:: |  |  |  |  | infer | "))
    messages = told()
    assert len(messages) == 1, messages
    assert messages[0].startswith("slides.tsv:6: he: 'a.svs::' names no member")


def test_an_unreadable_table_does_not_hide_the_rest() -> None:
    Path("markers.tsv").write_bytes(b"\xff\xfe")
    messages = told(put("experiments.sp.encoder", "nobody"))
    assert len(messages) == 2, messages
    assert "experiments.sp.encoder" in messages[0]
    assert "not UTF-8" in messages[1]


def test_a_broken_config_file_is_told_alone() -> None:
    Path("config.yaml").write_text("study: [\n")
    with pytest.raises(ConfigError) as caught:
        load_study(Path("config.yaml"))
    assert len(caught.value.problems) == 1
    with pytest.raises(ConfigError) as caught:
        load_study(Path("none.yaml"))
    assert "does not exist" in str(caught.value)


def test_statistics_of_another_split_are_remarked_on() -> None:
    def edit(config: dict[str, Any]) -> None:
        config["splits"]["other"] = {"scheme": "sequential"}
        config["experiments"]["sp"]["split"] = "other"

    assert any("slides it tests on may have been measured" in warning for warning in load(edit).warnings)


def test_overrides_are_laid_over_the_file() -> None:
    load()
    study = load_study(Path("config.yaml"), {"results": "elsewhere", "jobs": {"slides_per_job": 2}})
    assert study.paths.root == Path("elsewhere")
    assert study.config.jobs.slides_per_job == 2


SHEETS = {
    "as it is": SHEET,
    "no roles": tuple(line.replace(" train | ", "  | ").replace(" val | ", "  | ") for line in SHEET),
    "one patient": tuple(line.replace("P2", "P1").replace("P3", "P1").replace("P4", "P1") for line in SHEET),
    "wrong role": tuple(line.replace(" val ", " valid ") for line in SHEET),
    "no annotation": tuple(
        line.replace("a_l.tif | c.csv::a", " | ").replace("b_l.tif | c.csv::b", " | ") for line in SHEET
    ),
}
SPLITS: list[dict[str, Any]] = [
    {"scheme": "column"},
    {"scheme": "column", "column": "part"},
    {"scheme": "sequential"},
    {"scheme": "sequential", "group": "platform"},
    {"scheme": "sequential", "platforms": ["orion"]},
    {"scheme": "kfold", "folds": 3},
    {"scheme": "kfold", "folds": 2, "group": "platform"},
    {"scheme": "quarters"},
    {"scheme": "leave_platform_out"},
    {"scheme": "leave_platform_out", "platforms": ["codex"]},
    {"scheme": "sequential", "stratify": "part"},
    {"scheme": "sequential", "stratify": "parts"},
    {"scheme": "column", "stratify": "part"},
]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("sheet", SHEETS)
def test_a_split_that_passes_can_be_made_and_trains(sheet: str, split: dict[str, Any]) -> None:
    write_sheet(SHEETS[sheet])
    rows, problems = read_sheet(Path("slides.tsv"))
    assert problems == []

    def edit(config: dict[str, Any]) -> None:
        config["splits"]["tried"] = split
        config["experiments"] = {"he": {"encoder": "vit", "split": "tried", "heads": ["nucleus", "hv"]}}
        del config["encoders"]["mm"], config["grids"]["sp120"]

    try:
        load(edit)
    except ConfigError as error:
        told_of_split = any("splits.tried" in one.where or ".tsv" in one.where for one in error.problems)
    else:
        told_of_split = False
    try:
        made = make_split(rows, SplitConfig(**split), {row.slide_id for row in rows if row.instances})
        wrong = not made.groupby("fold")["role"].agg(lambda roles: "train" in set(roles)).all()
    except SlideloomError:
        wrong = True
    assert told_of_split == wrong


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("decoder", {"kind": "linear", "masked_attention": True}, "the linear decoder has no masked_attention"),
        ("loss", {"heads": {"boundary": {"dice": 1.0}}}, "the experiment has no head 'boundary'"),
        ("loss", {"heads": {"classes": {"lovasz_hinge": 1.0}}}, "use lovasz_softmax"),
        ("loss", {"heads": {"nucleus": {}}}, "every loss term of the head 'nucleus' has weight 0"),
        ("loss", {"hv_mse": 0.0, "hv_msge": 0.0}, "every loss term of the head 'hv' has weight 0"),
        ("training", {"unfreeze_epoch": 2}, "stored tokens are of the frozen encoder"),
        ("training", {"input": "live", "unfreeze_epoch": 2}, "has no weights to train"),
        ("augmentation", {"channel_dropout": 0.1}, "channel_dropout cannot be had on stored tokens"),
        ("augmentation", {"flips": 0.5}, "set 'encoders.mm.symmetries: true'"),
        ("sampling", {"gamma": 0.5, "by": "group", "column": "platfrom"}, "did you mean 'platform'?"),
    ],
)
def test_trainings_that_cannot_work_are_told(part: str, value: dict[str, Any], says: str) -> None:
    problems = told(put(f"experiments.sp.{part}", value))
    assert any(says in problem.lower() or says in problem for problem in problems), problems
    assert all(f"experiments.sp.{part}" in problem or "config.yaml" in problem for problem in problems)


def test_looks_of_the_other_kind_of_image_are_told() -> None:
    live = ("experiments.sp.training", {"input": "live"})
    found = told(put("experiments.sp.augmentation", {"colour_jitter": 0.5}, live))
    assert "colour_jitter is for stained (RGB) images" in found[0]
    study = load(put("experiments.sp.augmentation", {"channel_dropout": 0.1, "flips": 0.5}, live))
    assert study.config.experiments["sp"].augmentation.channel_dropout == 0.1
    load(put("experiments.sp.augmentation", {"turns": 0.5}, ("encoders.mm.symmetries", True)))


def test_a_live_training_takes_one_encoder() -> None:
    both = {"encoder": ["mm", "vit"], "split": "holdout", "training": {"input": "live"}}
    assert "live input takes one encoder, not 2" in told(put("experiments.both", both))[0]


@pytest.mark.parametrize("column", ["split_1", "splits"])
def test_a_split_by_a_column_like_split_needs_no_column_split(column: str) -> None:
    write_sheet((SHEET[0].replace("split |", f"{column} |"), *SHEET[1:]))
    study = load(put("splits.holdout.column", column))
    assert [row.column(column) for row in study.rows] == ["train", "val", "test", None]
    assert {row.split for row in study.rows} == {None}


def test_a_column_like_split_that_nothing_names_is_told() -> None:
    write_sheet((SHEET[0].replace("split |", "splits |"), *SHEET[1:]))
    with pytest.raises(ConfigError, match="Did you mean 'split'"):
        load()

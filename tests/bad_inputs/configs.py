"""Configs that are wrong, or odd and right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.kinds import Cells, Kind
from tests.bad_inputs.little_study import CONFIG, SHEET, cell, of_config, sparse, swap, write_study

__all__ = ["KINDS"]


def _laughs(merge: bool) -> Callable[[str], str]:
    """Ten lines that mean 9¹⁰ values."""
    lines = ["x0: &x0 {k: lol}" if merge else "x0: &x0 [lol]"]
    for level in range(1, 11):
        again = ", ".join([f"*x{level - 1}"] * 9)
        lines.append(f"x{level}: &x{level} {{<<: [{again}]}}" if merge else f"x{level}: &x{level} [{again}]")
    return lambda text: "\n".join(lines) + "\n" + text


def _deep(levels: int) -> Callable[[str], str]:
    return lambda text: text + "more: " + "[" * levels + "]" * levels + "\n"


def of_results(name: str, what: str, arrange: Callable[[Path], str], says: str) -> Kind:
    """A config whose results lie at a place that is arranged first."""

    def make(folder: Path) -> Cells:
        results = arrange(folder)
        return write_study(folder, config=CONFIG.replace("results: results", f"results: {results}"))

    return Kind(name, "config", what, make, "refused", says=says)


def _file_named_out(folder: Path) -> str:
    (folder / "out").write_text("a file\n")
    return "out"


def _link_to_itself(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return "loop/results"


def _zarr_study(folder: Path) -> Cells:
    cells = write_study(
        folder, cell("sp", "stack.zarr")(SHEET), CONFIG.replace("results: results", "results: stack.zarr/x")
    )
    (folder / "stack.zarr").mkdir()
    return cells


KINDS: tuple[Kind, ...] = (
    of_config("config_empty", "an empty file", lambda t: "", says="is empty"),
    of_config("config_no_yaml", "no YAML", lambda t: "a: [1, 2\n" + t, says="Close the bracket of line 1"),
    of_config("config_tabs", "tabs for indents", swap("  sp120", "\tsp120"), says="not with tabs"),
    of_config("config_sheet", "the sheet in place of the config", lambda t: SHEET, says="Is it a table"),
    of_config("config_list", "a list at the top", lambda t: "- a\n- b\n", says="keys and values"),
    of_config(
        "config_tight_colon",
        "a colon without a blank",
        swap("study: little", "study:little"),
        says="blank after the colon",
    ),
    of_config("config_indent", "keys of one level apart", swap("  holdout:", "  x: {}\n holdout:"), says="one column"),
    of_config("config_utf16", "UTF-16", lambda t: t.encode("utf-16"), says="UTF-16"),
    of_config("config_latin1", "Latin-1", lambda t: ("# Müller\n" + t).encode("latin-1"), says="Latin-1"),
    of_config("config_nul", "NUL bytes", lambda t: t + "\0", says="NUL bytes"),
    of_config("config_laughs", "aliases that mean 9¹⁰ values", _laughs(False), says="once every alias is written out"),
    of_config("config_laughs_merged", "merged aliases that do", _laughs(True), says="once every alias is written out"),
    of_config("config_alias_itself", "an alias that holds itself", lambda t: t + "x: &x [*x]\n", says="holds itself"),
    of_config("config_deep", "ten thousand open brackets", _deep(10_000), says="nested deeper"),
    of_config("config_rather_deep", "sixty open brackets", _deep(60), says="nested deeper"),
    Kind(
        "config_gigabyte",
        "config",
        "a file of a gigabyte",
        sparse("config.yaml", 2**30),
        "refused",
        says="more than a config may",
    ),
    of_config(
        "config_python",
        "a Python object",
        swap("little", "!!python/object/apply:os.system [id]"),
        says="is not allowed: a config holds plain",
    ),
    of_config("config_tag", "a tag that does not fit", swap("120}", "!!int wide}"), says="invalid literal for int"),
    of_config("config_bytes", "a value of bytes", swap("little", "!!binary aGk="), says="!!binary is not allowed"),
    of_config("config_long_number", "a number of 5000 digits", swap("120}", "9" * 5000 + "}"), says="digits"),
    of_config(
        "config_twice", "a key twice", lambda t: t + "results: elsewhere\n", says="stands twice, first in line 5"
    ),
    of_config("config_two", "two documents", lambda t: t + "---\n" + t, says="One file holds one config"),
    of_config("config_unknown_key", "an unknown key", swap("tile_px", "tile_pixels"), says="Did you mean 'tile_px'"),
    of_config("config_no_key", "a key that is missing", swap("slides: slides.tsv\n", ""), says="'slides' is missing"),
    of_config(
        "config_text_for_number", "text where a number belongs", swap("120", "wide"), says="expected a whole number"
    ),
    of_config("config_number_as_text", "a number in quotes", swap("tile_px: 120", "tile_px: '120'"), "accepted"),
    of_config("config_unit", "a number with its unit", swap("120", "120px"), says="Write the number alone"),
    of_config("config_yes", "yes for true", lambda t: t + "exports: {geojson: yes}\n", "accepted"),
    of_config("config_off", "off for false", lambda t: t + "exports: {geojson: off}\n", "accepted"),
    of_config(
        "config_maybe",
        "neither true nor false",
        lambda t: t + "exports: {geojson: maybe}\n",
        says="Write true or false",
    ),
    of_config("config_one", "1 for true", lambda t: t + "exports: {geojson: 1}\n", says="expected true or false"),
    of_config("config_true_for_number", "true for a number", swap("120", "true"), says="expected a number"),
    of_config(
        "config_infinite",
        "a number without end",
        lambda t: t + "instances: {min_area_um2: .inf}\n",
        says="min_area_um2",
    ),
    of_config(
        "config_percent",
        "percent for a share",
        swap("scheme: column", "scheme: sequential, train: 80"),
        says="write 0.8 for 80 %",
    ),
    of_config("config_nanometres", "a resolution in nm", swap("120}", "120, mpp_um: 250}"), says="µm per pixel"),
    of_config(
        "config_many_folds",
        "a thousand million folds",
        swap("scheme: column", "scheme: kfold, folds: 1000000000"),
        says="expected ≤ 1000",
    ),
    of_config(
        "config_many_bands",
        "a thousand million bands",
        lambda t: t + "jobs: {bands: 1000000000}\n",
        says="expected ≤ 1000",
    ),
    of_config(
        "encoder_unknown", "an encoder that there is not", swap("encoder: mm", "encoder: mn"), says="no entry 'mn'"
    ),
    of_config(
        "split_unknown",
        "a split that there is not",
        swap("split: holdout", "split: hold"),
        says="Did you mean 'holdout'",
    ),
    of_config(
        "grid_unknown", "a grid that there is not", swap("grid: sp120", "grid: sp12"), says="Did you mean 'sp120'"
    ),
    of_config(
        "model_unknown",
        "a model that there is not",
        swap("model: mean_marker", "model: mean_maker"),
        says="Did you mean 'mean_marker'",
    ),
    of_config(
        "names_crossed",
        "entries that name one another",
        swap("encoder: mm, split: holdout", "encoder: holdout, split: mm"),
        says="encoders has no entry 'holdout'",
    ),
    of_config(
        "grid_climbs",
        "a grid's name that climbs folders",
        swap("sp120", "../sp120"),
        says="'../sp120' cannot be a name",
    ),
    of_config("encoder_slash", "an encoder's name with a slash", swap("mm", "m/m"), says="'m/m' cannot be a name"),
    of_config(
        "split_climbs", "a split's name that climbs folders", swap("holdout", ".."), says="'..' cannot be a name"
    ),
    of_config(
        "experiment_absolute",
        "an experiment's name that is a path",
        swap("  sp: {", "  /tmp/sp: {"),
        says="'/tmp/sp' cannot be a name",
    ),
    of_config("experiment_dots", "two points in an experiment's name", swap("  sp: {", "  a..b: {"), says="holds '..'"),
    of_config("experiment_device", "a name that Windows keeps", swap("  sp: {", "  nul: {"), says="name of a device"),
    of_config(
        "experiment_case",
        "experiments that differ by letter case",
        lambda t: t + "  SP: {encoder: mm, split: holdout}\n",
        says="letter case only",
    ),
    of_config("study_name", "a study's name with a line in it", swap("little", '"a\\nb"'), says="cannot be a name"),
    of_config(
        "slides_missing", "a sheet that is not there", swap("slides.tsv", "slide.tsv"), says="slideloom sheet FOLDER"
    ),
    of_config(
        "slides_device", "a device in place of the sheet", swap("slides.tsv", "/dev/zero"), says="no ordinary file"
    ),
    of_config(
        "data_root_missing",
        "a folder of data that is not there",
        lambda t: t + "data_root: /no/such/folder\n",
        says="where the sheet's paths start",
    ),
    of_config(
        "config_foreign",
        "a thousand keys of another program",
        lambda t: t + "".join(f"key_{k}: 1\n" for k in range(1000)),
        says="900 more keys and values are wrong",
    ),
    of_results("results_here", "results where the study is run from", lambda folder: ".", says="run from"),
    of_results("results_root", "results at the root", lambda folder: "/", says="root of the file system"),
    of_results("results_nothing", "no results folder", lambda folder: "~", says="found nothing, expected a path"),
    of_results("results_home", "results at home", lambda folder: "~/results", says="stands for no home here"),
    of_results("results_file", "results where a file is", _file_named_out, says="is a file"),
    of_results(
        "results_below_file", "results below a file", lambda folder: "slides.tsv/results", says="Not a directory"
    ),
    of_results("results_loop", "results behind a link to itself", _link_to_itself, says="leads in a circle"),
    of_results("results_braces", "braces in the results' name", lambda folder: "'out/{date}'", says="wildcard"),
    of_results("results_long", "a name too long for the disk", lambda folder: "x" * 300, says="name too long"),
    Kind(
        "results_in_image",
        "config",
        "results inside an image",
        _zarr_study,
        "refused",
        says="inside the image of slide 'a'",
    ),
)

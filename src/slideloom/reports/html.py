"""``report.html``: one file that opens anywhere, with no network, on screen and on paper."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from slideloom._version import __version__
from slideloom.artefacts.files import write_text
from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.config.model import ExperimentConfig, HeadLossConfig, StudyConfig
from slideloom.reports.aggregate import main_role
from slideloom.reports.comparison_views import comparison_matrices, comparison_rows, power_notes
from slideloom.reports.overlays import Overlay
from slideloom.reports.plots import SERIES_COLOURS, hex_colour
from slideloom.reports.published_views import published_caution, published_views
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.reports.views import (
    FEW,
    HEADLINES,
    class_charts,
    class_heat,
    cost_rows,
    experiment_rows,
    interval_figure,
    trained_rows,
    training_charts,
)
from slideloom.slides.tables import ClassTable

__all__ = ["TEMPLATE", "describe_experiments", "installed_versions", "render_report"]

#: The page's template.
TEMPLATE = Path(__file__).with_name("template") / "report.html.j2"
#: Up to so many experiments every pair is listed; pairs of more are shown as matrices.
_LISTED = 4
#: Columns of the slides table: column, heading, digits (``None``: as it stands).
_SLIDE_COLUMNS: tuple[tuple[str, str, int | None], ...] = (
    ("experiment", "experiment", None),
    ("fold", "fold", None),
    ("slide_id", "slide", None),
    ("patient_id", "patient", None),
    ("platform", "platform", None),
    ("role", "role", None),
    ("n_gt", "true nuclei", 0),
    ("n_pred", "predicted", 0),
    ("pq", "PQ", 3),
    ("dq", "DQ", 3),
    ("sq", "SQ", 3),
    ("f1_50", "F1", 3),
    ("f1_mean", "F1 mean", 3),
    ("aji", "AJI", 3),
    ("mpq", "mPQ", 3),
    ("dice_binary", "Dice nucleus", 3),
    ("dice_macro", "Dice classes", 3),
    ("map", "AP pixels", 3),
    ("hv_mse", "HV error", 4),
    ("area_mm2", "area mm²", 3),
)


def render_report(
    tables: Path,
    place: Path,
    *,
    study: str,
    classes: ClassTable,
    experiments: Mapping[str, str] | None = None,
    overlays: Sequence[Overlay] = (),
    n_slides: int | None = None,
    config_text: str = "",
    versions: Mapping[str, str] | None = None,
    published: str | None = None,
) -> None:
    """Write the report.

    Parameters
    ----------
    tables : Path
        Folder of the report tables, ``slides.parquet`` and the others.
    place : Path
        The HTML file.
    study : str
        Name of the study.
    classes : ClassTable
        Names and colours.
    experiments : mapping of str to str, optional
        A line about each experiment, as :func:`describe_experiments` makes it.
    overlays : sequence of Overlay
        Pictures; see :mod:`slideloom.reports.overlays`.
    n_slides : int, optional
        Slides of the sheet, scored or not.
    config_text : str
        The config as it was run.
    versions : mapping of str to str, optional
        Programs and their versions; those installed when left out.
    published : str, optional
        The published report that the study names (``StudyConfig.published``); its tables are shown beside ours.

    Notes
    -----
    Everything is embedded, everything that comes from outside is escaped, and a content security policy forbids
    the page to load anything. The text depends on the arguments only: no date, no path of this machine.
    """
    read = {name: read_table(schema, tables / f"{name}.parquet") for name, schema in REPORT_TABLES.items()}
    found = {name: table.to_pylist() for name, table in read.items()}
    slides = found["slides"]
    recorded = table_metadata(read["slides"])["made_from"]
    weights, notes = recorded.get("encoder_weights", {}), recorded.get("encoder_notes", {})
    described = {
        name: " · ".join([line, *_weight_texts(weights.get(name, ())), *notes.get(name, ())])
        for name, line in (experiments or {}).items()
    }
    names = list(
        dict.fromkeys([*described, *(row["experiment"] for table in ("slides", "training") for row in found[table])])
    )
    series = {name: number for number, name in enumerate(names)}
    role = main_role(slides)
    many = len(names) > FEW
    bars, frequencies = class_charts(found["classes"], role, classes, series)
    told = comparison_rows(found["comparisons"], role)
    beside = published_views(published, found["published"]) if published is not None else None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(fixed=_fixed, duration=_duration, thousands=_thousands)
    text = environment.get_template(TEMPLATE.name).render(
        study=study,
        version=__version__,
        versions=dict(versions if versions is not None else installed_versions()),
        config_text=config_text,
        n_slides=n_slides,
        slides=slides,
        slide_columns=[column for column in _SLIDE_COLUMNS if _worth_showing(column[0], slides)],
        n_scored=len({row["slide_id"] for row in slides}),
        n_patients=len({row["patient_id"] for row in slides}),
        n_gt=_annotated(slides),
        role=role,
        series={name: number % SERIES_COLOURS for name, number in series.items()},
        many=many,
        described=described,
        random_experiments=sorted(
            {row["experiment"] for table in ("slides", "training") for row in found[table] if row["random_weights"]}
        ),
        headlines=HEADLINES,
        summaries=experiment_rows(found["experiments"], role),
        intervals=interval_figure(found["experiments"], role, series),
        comparisons=[] if len(names) > _LISTED else told,
        matrices=comparison_matrices(found["comparisons"], found["experiments"], role) if len(names) > _LISTED else [],
        power=power_notes(found["comparisons"], role),
        published=beside,
        caution=published_caution(found["published"], slides),
        class_bars=bars,
        heat=class_heat(found["classes"], role, classes) if many else None,
        frequencies=frequencies,
        training=training_charts(found["training"], series),
        trained=trained_rows(found["training"]),
        overlays=overlays,
        classes=[(i, n, hex_colour(c)) for i, n, c in zip(classes.ids, classes.names, classes.colours, strict=True)],
        failures=found["failures"],
        n_failed=len({row["slide_id"] for row in found["failures"] if row["slide_id"]}),
        costs=cost_rows(found["costs"]),
        tables=[(name, schema.row, len(found[name])) for name, schema in REPORT_TABLES.items()],
    )
    write_text(place, text)


def describe_experiments(config: StudyConfig) -> dict[str, str]:
    """A line about each experiment: encoder, image, grid, heads, split, loss, and whatever else is switched on.

    Parameters
    ----------
    config : StudyConfig
        The study.

    Returns
    -------
    dict of str to str
        By experiment, in the order of the config.
    """
    result = {}
    for name, experiment in config.experiments.items():
        grid = config.grids[config.encoders[experiment.first_encoder].grid]
        resolution = f" at {grid.mpp_um:g} µm/px" if grid.mpp_um else ""
        encoders = [(one, config.encoders[one]) for one in experiment.encoder]
        parts = [
            f"encoder {' + '.join(f'{one} ({encoder.model})' for one, encoder in encoders)}",
            f"{'H&E' if grid.image == 'he' else 'multiplexed'} tiles of {grid.tile_px} px{resolution}",
            f"heads {', '.join(experiment.heads)}",
            f"split {experiment.split}",
            *_choices(experiment),
        ]
        if seeds := [f"{one} seed {encoder.random}" for one, encoder in encoders if encoder.random is not None]:
            parts.insert(1, f"RANDOM WEIGHTS: {', '.join(seeds)}")
        if off := [one for one, encoder in encoders if encoder.off_resolution]:
            parts.append(f"off the resolution that weights were made for, on purpose: {', '.join(off)}")
        if experiment.pretrained is not None:
            parts.append(f"published model {experiment.pretrained.name}, not trained here")
        if experiment.training.shuffle_targets:
            parts.append("control: SHUFFLED TARGETS")
        result[name] = " · ".join(parts)
    return result


def _choices(experiment: ExperimentConfig) -> list[str]:
    """What sets an experiment apart: its decoder, loss, sampling, augmentation and training, where not plain."""
    decoder, loss, training = experiment.decoder, experiment.loss, experiment.training
    variants = {
        "linear decoder": decoder.kind == "linear",
        "no skips": not decoder.skips,
        "no image skip": not decoder.image_skip,
        "global context": decoder.global_context,
        "masked attention": decoder.masked_attention,
    }
    parts = [name for name, chosen in variants.items() if chosen]
    if experiment.pretrained is not None:
        return parts
    terms = {name: getattr(loss, name) for name in HeadLossConfig.model_fields}
    terms |= {name: getattr(loss, name) for name in ("hv_mse", "hv_msge") if "hv" in experiment.heads}
    terms |= {"boundary": loss.boundary} if "boundary" in experiment.heads else {}
    told = [f"{weight:g} {name}" for name, weight in terms.items() if weight]
    told += [f"{head} on its own weights" for head in loss.heads if head in experiment.heads]
    parts.append("loss " + " + ".join(told) + (", class weights" if loss.class_weights else ""))
    if experiment.sampling.gamma:
        parts.append(f"oversampling γ {experiment.sampling.gamma:g} by {experiment.sampling.by}")
    chances = ("flips", "turns", "colour_jitter", "stain_jitter", "channel_dropout", "intensity_scaling")
    if chosen := [f"{name} {value:g}" for name in chances if (value := getattr(experiment.augmentation, name))]:
        parts.append(f"augmentation {', '.join(chosen)}")
    if training.input == "live":
        trained = (
            "" if training.unfreeze_epoch is None else f", the encoder trained from epoch {training.unfreeze_epoch}"
        )
        parts.append(f"encoded in every step{trained}")
    return [part.replace("_", " ") for part in parts]


def _weight_texts(weights: Sequence[str]) -> list[str]:
    """The digests of published weights; that an encoder ran without any is told already."""
    digests = dict.fromkeys(part for text in weights for part in text.split(" + ") if part.startswith("sha256:"))
    return [f"weights {', '.join(digests)}"] if digests else []


def installed_versions() -> dict[str, str]:
    """Versions of Slideloom, Python and the packages that figures depend on."""
    packages = (
        "numpy",
        "scipy",
        "torch",
        "timm",
        "opencv-python-headless",
        "zarr",
        "tensorstore",
        "pyarrow",
        "snakemake",
    )
    found = {"slideloom": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _worth_showing(column: str, slides: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a column tells anything: not all null, not always the same, not another column once more."""
    values = [row[column] for row in slides]
    if column == "f1_50":  # DQ is F1, at the config's threshold
        return any(row["f1_50"] != row["dq"] for row in slides)
    if column == "patient_id":
        return any(row["patient_id"] != row["slide_id"] for row in slides)
    if column in ("fold", "platform"):
        return len(set(values)) > 1
    return not values or any(value is not None for value in values)


def _annotated(slides: Sequence[Mapping[str, Any]]) -> int:
    """True nuclei of all slides; of experiments that saw different parts of a slide, the one that saw most counts."""
    most: dict[str, int] = {}
    for row in slides:
        most[row["slide_id"]] = max(row["n_gt"], most.get(row["slide_id"], 0))
    return sum(most.values())


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _thousands(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

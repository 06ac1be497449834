"""``report.html``: one file that opens anywhere, with no network, on screen and on paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from slideloom._version import __version__
from slideloom.artefacts.files import write_text
from slideloom.artefacts.provenance import installed_versions
from slideloom.config.model import EvaluationConfig
from slideloom.reports.aggregate import main_role
from slideloom.reports.biology_views import biology_views
from slideloom.reports.charts import CLASS_BARS, page_charts
from slideloom.reports.cohort import cohort_lines, cohort_total
from slideloom.reports.comparison_views import comparison_matrices, comparison_rows, power_notes
from slideloom.reports.cost_views import cost_rows, device_rows, duration
from slideloom.reports.describe import describe_evaluation, describe_experiments, origins
from slideloom.reports.metric_groups import MAIN, group_rules, group_tables, groups_of, summary_lines
from slideloom.reports.overlays import Pictures
from slideloom.reports.page_tables import read_page_tables, series_numbers
from slideloom.reports.published_views import published_caution, published_views
from slideloom.reports.reference_views import reference_views
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.reports.svg import SERIES_COLOURS, line_style, thousands
from slideloom.reports.views import FEW, HEADLINES, Rows, class_heat, class_names, trained_rows
from slideloom.reports.warned import warning_lines
from slideloom.slides.tables import ClassTable

__all__ = ["TEMPLATE", "describe_experiments", "installed_versions", "render_report"]

#: The page's template.
TEMPLATE = Path(__file__).with_name("template") / "report.html.j2"
#: Up to so many experiments every pair is listed; pairs of more are shown as matrices.
_LISTED = 4
#: Longer tables are folded: a page must stay readable, and printable.
_FOLDED = 200
#: Columns of the slides table before its figures: column and heading.
_SLIDE_COLUMNS: tuple[tuple[str, str], ...] = (
    ("experiment", "experiment"),
    ("fold", "fold"),
    ("slide_id", "slide"),
    ("patient_id", "patient"),
    ("platform", "platform"),
    ("tissue", "tissue"),
    ("role", "role"),
)
#: Columns of the experiments table before its figures.
_SUMMARY_COLUMNS = 4


def render_report(
    tables: Path,
    place: Path,
    *,
    study: str,
    classes: ClassTable,
    experiments: Mapping[str, str] | None = None,
    overlays: Pictures | None = None,
    n_slides: int | None = None,
    config_text: str = "",
    versions: Mapping[str, str] | None = None,
    published: str | None = None,
    evaluation: EvaluationConfig | None = None,
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
    overlays : Pictures, optional
        As :func:`slideloom.reports.overlays.draw_overlays` draws them.
    n_slides : int, optional
        Slides of the sheet, scored or not.
    config_text : str
        The config as it was run.
    versions : mapping of str to str, optional
        Programs and their versions; those installed when left out.
    published : str, optional
        The published report that the study names (``StudyConfig.published``); its tables are shown beside ours.
    evaluation : EvaluationConfig, optional
        How predictions were compared with the truth; told under Provenance.

    Notes
    -----
    Everything is embedded, everything that comes from outside is escaped, and a content security policy forbids
    the page to load anything and to run any script but the page's own, which it names by their digests. The text
    depends on the arguments only: no date, no path of this machine.
    """
    tables_read = read_page_tables(tables)
    found = tables_read.rows
    slides = found["slides"]
    series = series_numbers(found, list(experiments or {}))
    role = main_role(slides)
    many = len(series) > FEW
    charts = page_charts(found, classes, series, role)
    text = (
        _environment()
        .get_template(TEMPLATE.name)
        .render(
            study=study,
            scripts=_scripts(),
            digest=_digest,
            version=__version__,
            versions=dict(versions if versions is not None else installed_versions()),
            config_text=config_text,
            evaluation=describe_evaluation(evaluation) if evaluation is not None else [],
            n_slides=n_slides,
            folded=_FOLDED,
            cohort=cohort_total(slides, found["biology"]),
            cohort_by=cohort_lines(slides, found["biology"]),
            role=role,
            series={name: number % SERIES_COLOURS for name, number in series.items()},
            numbers=series,
            line_styles={name: line_style(number) for name, number in series.items()},
            many=many,
            origins=origins(list(series), experiments or {}, tables_read.made_from),
            random_experiments=sorted(
                {row["experiment"] for table in ("slides", "training") for row in found[table] if row["random_weights"]}
            ),
            charts=charts,
            class_bars=CLASS_BARS,
            heat=class_heat(found["classes"], role, classes) if many else None,
            trained=trained_rows(found["training"]),
            biology=biology_views(found["biology"], tables_read.biology, tables_read.neighbours, list(series)),
            overlays=overlays or Pictures(),
            classes=class_names(classes)[1:],
            failures=found["failures"],
            n_failed=len({row["slide_id"] for row in found["failures"] if row["slide_id"]}),
            warnings=warning_lines(found["warnings"]),
            n_warned=len({row["slide_id"] for row in found["warnings"]}),
            costs=cost_rows(found["costs"]),
            devices=device_rows(found["costs"]),
            tables=[(name, schema.row, tables_read.counts[name]) for name, schema in REPORT_TABLES.items()],
            **_metric_context(found, role),
            **_pair_context(found, role, len(series) > _LISTED),
            **_published_context(found, published),
        )
    )
    write_text(place, text)


def _metric_context(found: Mapping[str, Rows], role: str) -> dict[str, Any]:
    """The tables of figures by slide and by experiment, with their column groups."""
    slides, experiments = found["slides"], found["experiments"]
    fixed = [column for column in _SLIDE_COLUMNS if _worth_showing(column[0], slides)]
    long = len(slides) > _FOLDED
    groups = groups_of(
        lambda column: (not long or column in MAIN) and any(row.get(column) is not None for row in slides)
    )
    known = {row["metric"] for row in experiments if row["role"] == role and row["mean"] is not None}
    summary_groups = groups_of(known.__contains__)
    rules = [
        group_rules("slide-table", len(fixed), groups),
        group_rules("summary-table", _SUMMARY_COLUMNS, summary_groups),
    ]
    return {
        "slides": slides,
        "slide_columns": fixed,
        "groups": groups,
        "summaries": summary_lines(experiments, role),
        "summary_groups": summary_groups,
        "by_group": group_tables(found["groups"], role, HEADLINES),
        "group_rules": "\n".join(rules),
    }


def _pair_context(found: Mapping[str, Rows], role: str, matrices: bool) -> dict[str, Any]:
    """Comparisons of pairs: a list of few, matrices of many."""
    told = found["comparisons"]
    return {
        "comparisons": [] if matrices else comparison_rows(told, role),
        "matrices": comparison_matrices(told, found["experiments"], role) if matrices else [],
        "power": power_notes(told, role),
    }


def _published_context(found: Mapping[str, Rows], published: str | None) -> dict[str, Any]:
    """Figures of others: those of the report that the study names, and of the literature."""
    return {
        "published": published_views(published, found["published"]) if published is not None else None,
        "caution": published_caution(found["published"], found["slides"]),
        "references": reference_views(found.get("references", ())),
    }


def _worth_showing(column: str, slides: Rows) -> bool:
    """Whether a column tells anything: not all null, not always the same, not another column once more."""
    values = {row.get(column) for row in slides}
    if column == "patient_id":
        return any(row["patient_id"] != row["slide_id"] for row in slides)
    if column in ("fold", "platform", "tissue"):
        return len(values) > 1
    return True


@cache
def _environment() -> Environment:
    """Templates, compiled once a process."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(fixed=_fixed, duration=duration, thousands=_thousands)
    return environment


@cache
def _scripts() -> dict[str, Markup]:
    """The page's own scripts by name. They are the same for every study: nothing is ever written into them."""
    names = {"page": "script.js.j2", "pictures": "pictures.js.j2"}
    return {
        name: Markup("\n" + (TEMPLATE.parent / file).read_text(encoding="utf-8").strip() + "\n")
        for name, file in names.items()
    }


def _digest(script: str) -> str:
    """A script's digest, as a content security policy has it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _thousands(value: float | None) -> str:
    return "–" if value is None else thousands(value)

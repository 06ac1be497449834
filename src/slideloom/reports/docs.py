"""``docs/tables.md``, written from the schemas: ``python -m slideloom.reports.docs docs/tables.md``."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from slideloom.artefacts.files import write_text
from slideloom.artefacts.tables import Column, OpenColumns, TableSchema
from slideloom.instances.cells import CELLS
from slideloom.metrics.biology_schemas import BIOLOGY, NEIGHBOURS
from slideloom.metrics.conventions import CONVENTIONS, DEFAULT, Convention
from slideloom.metrics.detail_schemas import CONFUSION, SCORES, TILES
from slideloom.metrics.schemas import CLASS_METRICS, SLIDE_METRICS
from slideloom.reports.schemas import REPORT_TABLES

__all__ = ["tables_markdown"]

_HEAD = """# Tables

*Written from the schemas in the package by `python -m slideloom.reports.docs docs/tables.md`; a test keeps it
current.*

All tables are Parquet (zstd). Every table is checked against its schema when it is written: names, types, nulls, keys.
A value that cannot be defined is **null**, never 0 or 1 by convention; the last column says when. The file's metadata
key `slideloom` holds, as JSON, the table's name, the schema's version, the Slideloom version, the units and what the
table was made from: of report tables, by experiment, the encoder's weights and the config's section `evaluation` as
slides were scored. Each column's field metadata holds its meaning and unit. A schema's version is raised when a column
changes its name, type or meaning, not when one is added.

```python
import pandas as pd

slides = pd.read_parquet("results/reports/slides.parquet")
slides.groupby("experiment")[["pq", "dice_macro"]].mean()
```

## How the figures are defined

* **Area.** Only pixels where a tile looked count, on both sides. A nucleus that reaches beyond counts with its part.
* **Undefined is null.** A figure whose denominator is 0 is null, not 0 and not 1: PQ of a slide without nuclei on
  either side, precision without predictions, recall without truth. No small constants are added to denominators, so
  that a perfect result is exactly 1. Averages skip nulls, and `n` says how many values they were taken over.
* **Match.** `evaluation.convention` names how a true and a predicted nucleus match.

  | convention | a match needs | one nucleus | without true nuclei |
  |---|---|---|---|
CONVENTIONS

  At an IoU above 0.5 matches are unique without an assignment; where they are not, the assignment is solved exactly.
  The threshold of PQ, DQ, SQ, precision, recall and the class figures is `evaluation.iou_threshold`. F1, AP and their
  kin at 0.5 to 0.9 do not depend on it.
* **PQ** = ΣIoU / (TP + FP/2 + FN/2) = DQ · SQ. `pq` looks at no classes. `bpq` leaves out predicted nuclei whose class
  is background, as PanNuke's bPQ does. `mpq` is the mean, over classes, of the PQ within each.
* **F1 and AP.** `f1_50` to `f1_90` are F1 of matched nuclei by IoU, `f1_mean` their mean (F1^µ). `ap_50` to `ap_90` are
  TP / (TP + FP + FN), which cell segmentation calls average precision; nuclei of a label image have no score to sort
  them by. `map` is the area under a precision-recall curve, of pixels.
* **Detection.** Figures ending in `_d` pair centroids no farther apart than `evaluation.detection_radius_um`, one to
  one, as many as possible and then with the least total distance. Of a class, `f1_d` counts every error once;
  `f1_d_hovernet` weighs errors of class double, as HoVer-Net's F_c does.
* **Outlines.** `boundary_…` and `surface_dice` look at the outermost pixels of every nucleus; one is right when the
  other side has an outline pixel no farther than `evaluation.boundary_tolerance_um`.
* **Class of a nucleus.** True: the class of most of its pixels. Predicted: the foreground class of most of its pixels
  in the class map; background when it has none.
* **Unknown classes.** Truth may hold nuclei whose class nobody knows. They count in every figure that looks at no
  classes. Class figures leave their pixels out, and with them predictions that lie mostly on them.
* **Dice of classes** comes from the class map, pixel by pixel. `dice_macro` averages the nuclear classes that occur in
  truth or prediction; `dice_macro_with_background` adds the background as one more class.
* **Probabilities** are counted as they are stored, in 255ths; curves and calibration are exact for the stored maps. Of
  the classes only the winning one's probability is stored. Above one half that is all there is to know; below, curves
  leave out pixels that another class won (`exact` is false), and the area under them is `ap_won`, not average
  precision.
* **Masks are not instances.** Truth or labels that mark all nuclei with one value are refused (`binary_labels`):
  scored as instances, two masks are one nucleus each, and F1 is 1 as soon as their IoU passes the threshold.
* **Labels of another program** are scored like any others. What needs a map that they do not bring (probabilities, HV)
  is null.
* **Averaging.** In `experiments.parquet`, `slide`, `patient` and `fold` are means; `pooled` is one figure from the
  summed counts, in which large slides weigh more; `image` and `tissue` are PanNuke's means over images that hold
  nuclei. Pooled figures add a slide of several folds once a fold; means take the mean of its figures first. Intervals
  resample patients with all their slides, 2000 times with a fixed seed.
* **Is a difference real?** `comparisons.parquet` sets pairs of experiments side by side on the slides that both
  predicted; a slide counts once, however many folds predicted it. `p_value` flips the signs of patients' differences.
  `p_adjusted` is Holm's correction over all pairs of one role and metric. With n patients no p can be below 2 / 2ⁿ:
  `p_smallest` and `p_adjusted_smallest` say what could have been shown at all. The columns `fold_…` do the same over
  folds, with Student's interval. The report calls a difference shown when `p_adjusted` is below 0.05 and the interval
  leaves out 0.
"""

_CELLS = """GeoParquet: `geopandas.read_parquet` gives it geometry; pandas and DuckDB read the columns. All slides of a
run open as one table: `pd.read_parquet("results/cells/sp/0")`."""

_METRICS = "metrics/{experiment}/{fold}/{slide}"
_OF_SLIDES = """## Files of every slide

The reports are gathered from them. All slides of a run open as one table with a pattern, as in DuckDB's
`read_parquet('results/metrics/sp/0/*/tiles.parquet')`; each row names its slide.
"""
#: Files whose columns are those of a report table: place, schema, the table, and its first column of theirs.
_GATHERED = (
    (f"{_METRICS}/slide.parquet", SLIDE_METRICS, "slides", "n_tiles"),
    (f"{_METRICS}/classes.parquet", CLASS_METRICS, "classes", "class_id"),
    (f"{_METRICS}/confusion.parquet", CONFUSION, "confusion", "true_class_id"),
    ("biology/{experiment}/{fold}/{slide}/biology.parquet", BIOLOGY, "biology", "scope"),
    ("biology/{experiment}/{fold}/{slide}/neighbours.parquet", NEIGHBOURS, "neighbours", "scope"),
)


def tables_markdown() -> str:
    """The whole page.

    Returns
    -------
    str
        Markdown; ends with a newline.
    """
    parts = [_HEAD.replace("CONVENTIONS", "\n".join(map(_convention, CONVENTIONS.values())))]
    for name, schema in REPORT_TABLES.items():
        parts.append(f"## `reports/{name}.parquet`\n\n{_table(schema)}")
    parts.append(f"## `cells/{{experiment}}/{{fold}}/slide_id={{slide}}/cells.parquet`\n\n{_CELLS}\n\n{_table(CELLS)}")
    parts.append(_OF_SLIDES)
    for name, schema in (("scores", SCORES), ("tiles", TILES)):
        parts.append(f"### `{_METRICS}/{name}.parquet`\n\n{_table(schema)}")
    parts.append("## Files whose columns stand above\n")
    for place, schema, name, first in _GATHERED:
        text = f"holds `slide_id`, `image` and the columns of `{name}.parquet` from `{first}` on"
        parts.append(f"* `{place}` {text}: {_facts(schema)}")
    return "\n".join(parts) + "\n"


def _convention(rule: Convention) -> str:
    """A line of the table of conventions."""
    name = f"`{rule.name}`" + (" (the default)" if rule is DEFAULT else "")
    least = "IoU at least the threshold" if rule.inclusive else "IoU strictly greater than the threshold"
    once = "matches once" if rule.one_to_one else "may match several times; each pair counts"
    empty = "left out of averages" if rule.empty_truth == "undefined" else "0 where something is predicted"
    return f"  | {name} | {least} | {once} | {empty} |"


def _facts(schema: TableSchema) -> str:
    key = ", ".join(f"`{name}`" for name in schema.key)
    return f"one row per {schema.row}; unique by {key}; schema version {schema.version}."


def _table(schema: TableSchema) -> str:
    key = ", ".join(f"`{name}`" for name in schema.key)
    lines = [f"One row per {schema.row}. Unique by {key}. Schema version {schema.version}."]
    lines += ["", "| column | type | unit | meaning | null when |", "|---|---|---|---|---|"]
    lines += [_row(column.name, column, column.unit) for column in schema.columns]
    lines += [_row(f"{group.prefix}…", group, "") for group in schema.open_columns]
    return "\n".join(lines) + "\n"


def _row(name: str, column: Column | OpenColumns, unit: str) -> str:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return f"| `{name}` | {kind} | {unit} | {_cell(column.meaning)} | {_cell(column.null) or 'never'} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), tables_markdown())

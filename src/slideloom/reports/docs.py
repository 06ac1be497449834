"""``docs/tables.md``, written from the schemas: ``python -m slideloom.reports.docs docs/tables.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from slideloom.artefacts.files import write_text
from slideloom.artefacts.tables import Column, OpenColumns, TableSchema
from slideloom.instances.cells import CELLS
from slideloom.metrics.schemas import CLASS_METRICS, SLIDE_METRICS
from slideloom.reports.schemas import REPORT_TABLES

__all__ = ["tables_markdown"]

_HEAD = """# Tables

*Written from the schemas in the package by `python -m slideloom.reports.docs docs/tables.md`; a test keeps it
current.*

All tables are Parquet (zstd). Every table is checked against its schema when it is written: names, types, nulls, keys.
A value that cannot be defined is **null**, never 0 or 1 by convention; the last column says when. The file's metadata
key `slideloom` holds, as JSON, the table's name, the schema's version, the Slideloom version, the units and what the
table was made from; each column's field metadata holds its meaning and unit. A schema's version is raised when a column
changes its name, type or meaning, not when one is added.

```python
import pandas as pd

slides = pd.read_parquet("results/reports/slides.parquet")
slides.groupby("experiment")[["pq", "dice_macro"]].mean()
```

## How the figures are defined

* **Area.** Only pixels where a tile looked count, on both sides. A nucleus that reaches beyond counts with its part.
* **Match.** A true and a predicted nucleus match when their IoU is strictly greater than the threshold
  (`evaluation.iou_threshold`, at least 0.5), which makes matches unique without an assignment. No small constants are
  added to denominators, so that a perfect result is exactly 1.
* **PQ** = ΣIoU / (TP + FP/2 + FN/2) = DQ · SQ. `pq` looks at no classes. `bpq` leaves out predicted nuclei whose class
  is background, as PanNuke's bPQ does. `mpq` is the mean, over the classes that the slide's truth holds, of the PQ
  within each.
* **Class of a nucleus.** True: the class of most of its pixels. Predicted: the foreground class of most of its pixels
  in the class map; background when it has none.
* **Unknown classes.** Truth may hold nuclei whose class nobody knows. They count in every figure that looks at no
  classes. Class figures leave their pixels out, and with them predictions that lie mostly on them.
* **F1.** `f1_50` at IoU > 0.5; `f1_mean` is the mean over IoU > 0.5, 0.6, 0.7, 0.8, 0.9 (F1^µ of InstanSeg, which takes
  "at least" in place of "greater").
* **Dice of classes** comes from the class map, pixel by pixel. `dice_macro` averages the nuclear classes that occur in
  truth or prediction; `dice_macro_with_background` adds the background as one more class.
* **Averaging.** In `experiments.parquet`, `slide`, `patient` and `fold` are means; `pooled` is one figure from the
  summed counts, in which large slides weigh more. Intervals resample patients.
* **Is a difference real?** `comparisons.parquet` sets pairs of experiments side by side on the slides that both
  predicted; a slide counts once, however many folds predicted it. `p_value` flips the signs of patients' differences.
  `p_adjusted` is Holm's correction over all pairs of one role and metric. With n patients no p can be below 2 / 2ⁿ:
  `p_smallest` and `p_adjusted_smallest` say what could have been shown at all. The columns `fold_…` do the same over
  folds, with Student's interval. The report calls a difference shown when `p_adjusted` is below 0.05 and the interval
  leaves out 0.
"""

_CELLS = """GeoParquet: `geopandas.read_parquet` gives it geometry; pandas and DuckDB read the columns. All slides of a
run open as one table: `pd.read_parquet("results/cells/sp/0")`."""


def tables_markdown() -> str:
    """The whole page.

    Returns
    -------
    str
        Markdown; ends with a newline.
    """
    parts = [_HEAD]
    for name, schema in REPORT_TABLES.items():
        parts.append(f"## `reports/{name}.parquet`\n\n{_table(schema)}")
    parts.append(f"## `cells/{{experiment}}/{{fold}}/slide_id={{slide}}/cells.parquet`\n\n{_CELLS}\n\n{_table(CELLS)}")
    parts.append(
        "## Files that the reports are gathered from\n\n"
        "`metrics/{experiment}/{fold}/{slide}/slide.parquet` holds `slide_id`, `image` and the columns of\n"
        f"`slides.parquet` from `n_tiles` on: {_facts(SLIDE_METRICS)}\n\n"
        "`metrics/{experiment}/{fold}/{slide}/classes.parquet` holds `slide_id`, `image` and those of\n"
        f"`classes.parquet` from `class_id` on: {_facts(CLASS_METRICS)}\n"
    )
    return "\n".join(parts)


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
    return f"| `{name}` | {column.type} | {unit} | {_cell(column.meaning)} | {_cell(column.null) or 'never'} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), tables_markdown())

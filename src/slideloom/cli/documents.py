"""Documents made from the code: ``config/README.md`` and ``config/schema/config.schema.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slideloom.artefacts.files import write_text
from slideloom.cli.encoder_page import resolution_words, token_words
from slideloom.config.catalogue import CATALOGUE, EncoderEntry
from slideloom.config.schema import keys_markdown, schema_text
from slideloom.slides.classlist import CLASS_FIELDS, ID_FIELDS
from slideloom.slides.sheet import COLUMNS
from slideloom.slides.tables import CLASS_COLUMNS, MARKER_COLUMNS

__all__ = ["config_readme", "write_documents"]

_HEAD = """\
# The config, the sheet and the tables

<!-- Made by `slideloom schema --write config` from the config's model; edit the descriptions there. -->

A study is one YAML file and up to three small tables. `slideloom check CONFIG` reads them all and tells every mistake
at once, each with its file, line and key, in about a second; the workflow does the same before its first job.

The config holds science only. Threads, memory, GPUs and partitions stand in `profiles/`. Paths in the config start at
the folder that the command runs in; paths in the sheet start at `data_root`, or at the sheet's own folder when that is
left out. A key that is not listed here is refused. `schema/config.schema.json` is made from the same model; editors
that are told of it complete and check keys while you write:

```yaml
# yaml-language-server: $schema=schema/config.schema.json
```

Names of grids, encoders, splits and experiments stand in paths: letters, digits, `_`, `-` and single `.`, at most 64,
different in more than letter case, and none that Windows keeps for devices (`con`, `nul`, …). A file's name may hold no
braces, which Snakemake takes for wildcards. Results need a folder of their own: not the one that the study is run from,
not the one that the sheet's paths start from, not one inside an image.

A config has at most 128 kB and holds plain values: no tags (`!!…`), and no aliases that multiply.
"""
_SHEET = """\
## The sheet (`slides`)

One row a slide, with a header line; tabs, commas or semicolons, UTF-8, at most 16 MB. Blank rows and rows that start
with `#` are skipped. `slideloom sheet FOLDER` makes one from a folder of images.

Patients and platforms whose names look alike, such as `P1` and `p1`, are told as a warning: they count as two.
So are an image that slides of several patients name, and an annotation that slides of several images name.
"""
_SHEET_TAIL = """\
Any other column is kept, and a split with `scheme: column` may use it. Of these, `tissue` (the organ, such as
`colon`) stands beside the slide in the tables and gives averages by tissue; the rest stand in no table.

Images and annotations are written `path`, or `path::member` for one of many in a file: `fields.npz::images[3]`,
`stack.npy::[3]`, `store.zarr::labels/0`, and `classes.csv::slide_7` for the rows of a class table whose column `image`
holds `slide_7`.

A class table is CSV, TSV or Parquet, a row a nucleus: its number in the label image in a column called {ids}, its class
in one called {classes}, as a name, an alias or an id of the classes table.

A pixel size in the file and one in the sheet: the sheet counts, with a warning where they differ by more than 5 %. With
neither, the slide fails (`no_pixel_size`).
"""
_MARKERS = """\
## The markers table (`markers`)

What the channel names of multiplexed images mean. A channel without a row is refused: it would be dropped in silence.
Letter case does not count.
"""
_CLASSES = """\
## The classes table (`classes`)

The kinds of nuclei. Needed by experiments with the head `classes`.
"""


def _columns(columns: Mapping[str, str]) -> str:
    lines = ["| column | meaning |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in columns.items())]
    return "\n".join(lines) + "\n"


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(f'`{name}`' for name in names[:-1])} or `{names[-1]}`"


def _encoder_row(entry: EncoderEntry) -> str:
    reads = "RGB (`image: he`)" if entry.kind == "rgb" else "markers (`image: sp`)"
    # A model whose sizes only its checkpoint tells cannot be drawn from a seed.
    sized = entry.width or entry.family != "cellvit"
    weights = ("`checkpoint` or `random`" if sized else "`checkpoint`") if entry.weights else "none"
    return f"| `{entry.name}` | {reads} | {weights} | {token_words(entry)} | {resolution_words(entry)} |"


def config_readme() -> str:
    """Text of ``config/README.md``."""
    encoders = ["| model | reads | weights | token | made for |", "|---|---|---|---|---|"]
    encoders += [_encoder_row(entry) for entry in CATALOGUE.values()]
    rules = (
        "[`docs/encoders.md`](../docs/encoders.md) says what each expects and gives, what it costs, its licence, and "
        "where its weights are published; `slideloom weights` tells the same, and whether your files are whole.\n\n"
        "`tile_px` must be a whole number of tokens of 8 or 16 px; tiles of encoders with tokens of 14 px may have any "
        "size, and are reduced to the multiple below. An encoder on marker channels names in `statistics` the split "
        "whose training slides are measured, or says `normalisation: {scope: slide}`.\n"
    )
    parts = [
        _HEAD,
        "## Keys\n",
        keys_markdown(),
        "## Encoders (`encoders.<name>.model`)\n",
        "\n".join(encoders) + "\n",
        rules,
        _SHEET,
        _columns(COLUMNS),
        _SHEET_TAIL.format(ids=_either(ID_FIELDS), classes=_either(CLASS_FIELDS)),
        _MARKERS,
        _columns(MARKER_COLUMNS),
        _CLASSES,
        _columns(CLASS_COLUMNS),
    ]
    return "\n".join(parts)


def write_documents(folder: Path) -> list[Path]:
    """Write both documents below the repository's ``config`` folder.

    Parameters
    ----------
    folder : Path
        The folder.

    Returns
    -------
    list of Path
        What was written.
    """
    texts = {folder / "README.md": config_readme(), folder / "schema" / "config.schema.json": schema_text()}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)

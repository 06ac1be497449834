"""The tables of ``docs/encoders.md``: ``python -m slideloom.cli.encoder_page docs/encoders.md`` writes them anew.

The page is written by hand; between ``<!-- table: name -->`` and ``<!-- end -->`` it holds tables made from the
catalogue and from ``docs/data/encoder_costs.json``, which ``benchmarks/bench_encoders.py`` writes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slideloom.artefacts.files import write_text
from slideloom.cli.weights import describe_entry
from slideloom.config.catalogue import CATALOGUE, EncoderEntry
from slideloom.encoders.base import even_blocks

__all__ = ["COSTS", "fill_tables", "resolution_words", "tables", "token_words"]

#: Beside the page.
COSTS = Path("data/encoder_costs.json")
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_UNKNOWN = "as the checkpoint says"
#: Shown instead of a figure that nobody took.
_UNMEASURED = "not measured"


def resolution_words(entry: EncoderEntry) -> str:
    """The resolution that an encoder was made for."""
    if entry.mpp_um:
        return f"{entry.mpp_um[0]:g} to {entry.mpp_um[1]:g} µm/px"
    if entry.family == "cellvit":
        return _UNKNOWN
    return "not stated" if entry.family == "timm" else "any"


def token_words(entry: EncoderEntry) -> str:
    """The side of an encoder's tokens."""
    if entry.token_px is None:
        return "as the name says"
    return f"`patch_px`, {entry.token_px} px unless set" if entry.free_token else f"{entry.token_px} px"


def tables(costs: Mapping[str, Any]) -> dict[str, str]:
    """Every table of the page, by its name there.

    Parameters
    ----------
    costs : mapping
        Content of ``encoder_costs.json``: ``encoders`` by model (``tile_px``, ``markers``, ``tokens``, ``gflop``) and
        ``measured`` by device (``command``, ``machine``, and ``encoders`` by model with ``wall_s``, ``cpu_s``,
        ``peak_mb``).

    Returns
    -------
    dict of str to str
        Markdown; each ends with a newline.
    """
    return {
        "expects": _expects(CATALOGUE.values()),
        "gives": _gives(CATALOGUE.values()),
        "costs": _costs(costs),
        "sources": _sources(CATALOGUE.values()),
    }


def fill_tables(page: str, costs: Mapping[str, Any]) -> str:
    """The page with its tables as they are now.

    Raises
    ------
    ValueError
        A table of the page has no name that is known, or one that is made is not on it.
    """
    made = tables(costs)
    named = [name for _, name, _ in _TABLE.findall(page)]
    if sorted(named) != sorted(made):
        raise ValueError(f"the page has the tables {', '.join(named)}; there are {', '.join(made)}")
    return _TABLE.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n{found[3]}", page)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _expects(entries: Iterable[EncoderEntry]) -> str:
    rows = []
    for entry in entries:
        tile = f"{entry.tile_px} px" if entry.tile_px else "any"
        scaled = dict(describe_entry(entry))["scaled"] if entry.settings or entry.family != "timm" else "timm's own"
        rows.append((f"`{entry.name}`", entry.summary, _input(entry), tile, resolution_words(entry), scaled))
    return _markdown(("model", "what it is", "reads", "trained on tiles of", "at", "normalisation"), rows)


def _input(entry: EncoderEntry) -> str:
    if entry.kind == "rgb":
        return "RGB, 8 bits"
    return "any markers that have a protein embedding" if entry.embedding else "any markers"


def _gives(entries: Iterable[EncoderEntry]) -> str:
    rows = []
    for entry in entries:
        name_tells = "as the name says" if entry.family == "timm" else _UNKNOWN
        width = str(entry.width or ("one a marker" if entry.family == "mean_marker" else name_tells))
        depth = str(entry.depth or name_tells)
        blocks = ", ".join(map(str, even_blocks(entry.depth))) if entry.depth else "four, evenly spaced"
        prefix = str(entry.prefix_tokens) if entry.family != "timm" or entry.width else name_tells
        params = name_tells if entry.params is None else f"{entry.params / 1e6:,.1f} M" if entry.params else "none"
        rows.append((f"`{entry.name}`", token_words(entry), width, depth, blocks, prefix, params))
    head = (
        "model",
        "token",
        "width",
        "blocks",
        "given unless `blocks` is set",
        "prefix tokens, left out",
        "parameters",
    )
    return _markdown(head, rows)


def _costs(costs: Mapping[str, Any]) -> str:
    measured = costs["measured"]
    head = ["model", "tile", "tokens", "GFLOP a tile", "GFLOP a megapixel"]
    for device in measured:
        head += [f"s a tile, {device}"] + (["CPU s"] if device == "cpu" else []) + ["peak MB"]
    rows = []
    for name, about in costs["encoders"].items():
        side = about["tile_px"]
        tile = f"{side} × {side} px" + (f", {about['markers']} markers" if about["markers"] else "")
        tokens = f"{about['tokens']} × {about['tokens']}"
        row = [f"`{name}`", tile, tokens, _figure(about["gflop"]), _figure(about["gflop"] / side**2 * 1e6)]
        for device, run in measured.items():
            row += _times(run["encoders"].get(name), device)
        rows.append(row)
    notes = [f"* {device}: {run['machine']}; `{run['command']}`" for device, run in measured.items()]
    return _markdown(head, rows) + "\n" + "".join(f"{note}\n" for note in notes)


def _figure(value: float) -> str:
    return "< 0.01" if value < 0.01 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(figures: Mapping[str, float] | None, device: str) -> list[str]:
    if figures is None:
        return [_UNMEASURED] + [""] * (2 if device == "cpu" else 1)
    cells = [f"{figures['wall_s']:.3g}"] + ([f"{figures['cpu_s']:.3g}"] if device == "cpu" else [])
    return [*cells, f"{figures['peak_mb']:,.0f}"]


def _sources(entries: Iterable[EncoderEntry]) -> str:
    rows = []
    for entry in entries:
        files = ", ".join(f"`{file}`" for file in entry.files)
        source = ", ".join(f"<{place}>" if place.startswith("http") else place for place in entry.source.split("; "))
        rows.append((f"`{entry.name}`", entry.licence, entry.gated, source, files))
    return _markdown(("model", "licence of the weights", "before you get them", "published at", "files"), rows)


def _main(page: Path) -> None:
    costs = json.loads((page.parent / COSTS).read_text(encoding="utf-8"))
    write_text(page, fill_tables(page.read_text(encoding="utf-8"), costs))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

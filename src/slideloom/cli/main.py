"""``slideloom``: look at a study before, and at its results after, the workflow runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from slideloom._version import __version__
from slideloom.cli.data_set import SheetCommand, bring_in, check_layout
from slideloom.errors import SlideloomError
from slideloom.slides.pixel_size import COARSEST_UM, FINEST_UM

if TYPE_CHECKING:
    from slideloom.slides.study import Study

__all__ = ["app"]

_TRACEBACK = "--traceback"


class _Commands(TyperGroup):
    """Tells errors in a person's words; ``--traceback`` may stand anywhere on the line."""

    def main(self, args: Any = None, *more: Any, **named: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        self._traceback = _TRACEBACK in words
        return super().main([word for word in words if word != _TRACEBACK], *more, **named)

    def invoke(self, ctx: Any) -> Any:
        if self._traceback:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except SlideloomError as error:
            from slideloom.cli.screens import console, print_error

            print_error(error, console(stderr=True))
            raise typer.Exit(1) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
            raise typer.Exit(1) from None
        except OSError as error:
            typer.echo(f"error: {error.filename or ''}: {error.strerror or error}", err=True)
            raise typer.Exit(1) from None
        except (KeyboardInterrupt, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if type(error).__module__.startswith(("click", "typer")):
                raise
            typer.echo(f"unforeseen error: {type(error).__name__}: {error}", err=True)
            typer.echo(f"Run it again with {_TRACEBACK} and please report it.", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Whole slides, H&E and multiplexed, to nuclei and tables.\n\n"
    "Before a run: sheet, weights, check, doctor. The run: snakemake --profile profiles/local. After it: show.\n\n"
    "Between runs: why, verify.",
)
ConfigArgument = Annotated[Path, typer.Argument(help="The study's YAML file.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slideloom {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[bool, typer.Option(_TRACEBACK, help="Show where in the code an error arose.")] = False,
) -> None:
    """Options of every command."""


@app.command(cls=SheetCommand)
def sheet(
    folder: Annotated[Path, typer.Argument(help="Folder of images; folders below it are searched, too.")],
    out: Annotated[Path | None, typer.Option(help="The sheet to write; printed when left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a sheet that is there.")] = False,
    layout: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT",
            callback=check_layout,
            help="How the folder is laid out (see below); auto: looked up, by names when it is none of the others.",
        ),
    ] = "names",
    mpp: Annotated[
        float | None,
        typer.Option(min=FINEST_UM, max=COARSEST_UM, help="Pixel size of every image, µm, where files have none."),
    ] = None,
    one_modality: Annotated[
        bool,
        typer.Option("--one-modality", help="With a layout: pictures stand in sp, too, as channels red, green, blue."),
    ] = False,
) -> None:
    """Make a sheet from a folder of images.

    Names decide what belongs together: case7_he.svs and case7_sp.ome.tif (also _mif, _codex, …) are one slide,
    case7_labels.tif (also _instances) and case7_classes.csv its annotation. Look through the result, and add pixel
    sizes, patients, platforms and splits where they matter.

    A data set in a known layout (--layout) also gives markers.tsv and classes.tsv, written beside the sheet, and some
    give cells.tsv (a sheet whose instances are whole cells) and files.tsv (the files that were used).
    """
    from dataclasses import replace

    from slideloom.cli.discover import discover
    from slideloom.cli.guards import check_image_folder, check_sheet_place
    from slideloom.slides.layouts.choose import find_layout
    from slideloom.slides.sheet import sheet_text, write_sheet

    check_image_folder(folder)
    if out is not None:
        check_sheet_place(out, force)
    looks_like = find_layout(folder)
    known = looks_like if layout == "auto" else None if layout == "names" else layout
    if known:
        bring_in(known, folder, out, force=force, mpp_um=mpp, one_modality=one_modality)
        return
    if one_modality:
        what = "--one-modality writes markers, too, which names of files do not give"
        raise SlideloomError(what, expected="a data set in a known layout", hint="Name it with --layout")
    if looks_like:
        typer.echo(f"note: this folder has the layout {looks_like}: --layout {looks_like} knows it better", err=True)
    found = discover(folder)
    rows = [
        replace(row, he_mpp_um=mpp if row.he else None, sp_mpp_um=mpp if row.sp else None) if mpp else row
        for row in found.rows
    ]
    if out is not None:
        start = os.path.relpath(folder, out.parent)
        if start != ".":
            names = ("he", "sp", "instances", "classes", "cells")
            moved = [{n: Path(start, text).as_posix() for n in names if (text := getattr(row, n))} for row in rows]
            rows = [replace(row, **paths) for row, paths in zip(rows, moved, strict=True)]  # type: ignore[arg-type]
        write_sheet(rows, out)
    else:
        typer.echo(sheet_text(rows), nl=False)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    where = f"in {out}; its paths start at its own folder" if out else f"found; the paths start at {folder}"
    typer.echo(f"{len(rows)} {'slide' if len(rows) == 1 else 'slides'} {where}.", err=True)


@app.command()
def check(config: ConfigArgument) -> None:
    """Tell every mistake in config, sheet and tables.

    Opens no slide and takes about a second. Ends with exit code 1 when there is any mistake.
    """
    from slideloom.cli.screens import console, print_study

    print_study(_load(config), console())


def _load(config: Path) -> Study:
    from slideloom.slides.study import load_study

    return load_study(config)


@app.command()
def doctor(
    config: ConfigArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Also read every pixel, annotation and weight once.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all cores, at most 8, if left out.")] = None,
    table: Annotated[Path | None, typer.Option(help="Also write the findings as Parquet, a row an image.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="The profile that Snakemake will be given; its cluster must know its settings.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 1 if any slide will fail.")] = False,
) -> None:
    """Open every slide and say which will fail, and why.

    Reads headers and an overview; looks at free disk, weights, GPU and Slurm, too. Ends with exit code 0 when the run
    may start: every side of a split that training needs has a good slide, the disk suffices and no weights are missing.
    A slide that is not good fails alone; the others finish.
    """
    from slideloom.cli.doctor import look_after

    may_start, bad = look_after(_load(config), deep=deep, workers=workers, table=table, profile=profile)
    if not may_start or (strict and bad):
        raise typer.Exit(1)


@app.command()
def weights(
    config: Annotated[
        Path | None, typer.Argument(help="A study's YAML file; left out: every encoder there is.")
    ] = None,
    digest: Annotated[
        bool, typer.Option("--hash/--no-hash", help="Read each file through: checksums and sha256.")
    ] = True,
) -> None:
    """List the encoders, or the files that a study needs.

    With a config, ends with exit code 1 when a file is missing, damaged or of another model. Opens no slide.
    """
    from slideloom.cli.screens import console
    from slideloom.cli.weights import examine_weights, print_catalogue, print_files

    if config is None:
        print_catalogue(console())
        return
    from slideloom.config.load import load_config
    from slideloom.slides.tables import read_markers

    study = load_config(config)
    channels = read_markers(study.markers)[0].channels if study.markers and study.markers.is_file() else ()
    if print_files(examine_weights(study, channels, digest=digest), console()):
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the cohort is written.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another cohort; the same seed, the same bytes.")] = 0,
    slides: Annotated[
        int | None,
        typer.Option(min=1, help="Number of slides, 8 if left out; with --platforms, of each platform, 2 if left out."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=128, help="Side of a slide, pixels: 960 if left out; with --platforms, 384.")
    ] = None,
    platforms: Annotated[
        bool,
        typer.Option("--platforms", help="Slides of three platforms, whose panels have 5, 7 and 16 channels; no H&E."),
    ] = False,
) -> None:
    """Write a synthetic cohort with known nuclei.

    Paired H&E and 16-marker slides of the same tissue, as real files, with sheet, markers and classes.
    """
    from slideloom.cli.guards import check_demo_folder

    check_demo_folder(folder)
    if platforms:
        from slideloom.demo.platforms import PLATFORMS, write_platforms

        each = slides or 2
        place = write_platforms(folder, seed=seed, n_slides=each, size_px=size or 384)
        typer.echo(f"{each * len(PLATFORMS)} slides of {len(PLATFORMS)} platforms; the sheet is {place}")
        return
    from slideloom.demo.cohort import write_cohort

    n_slides = slides or 8
    place = write_cohort(folder, seed=seed, n_slides=n_slides, size_px=size or 960)
    typer.echo(f"{n_slides} slides; the sheet is {place}")


@app.command()
def why(config: ConfigArgument) -> None:
    """Say why each job would run now, in words.

    Which key of the config, slide, file or module of the code has changed since. Opens no slide.
    """
    from slideloom.cli.screens import console
    from slideloom.cli.why import print_reasons, reasons_of

    print_reasons(reasons_of(_load(config)), console())


@app.command()
def verify(
    config: ConfigArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only; reads no content.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Only tell; change nothing.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 4,
) -> None:
    """Find artefacts that are not what was written.

    After a crash of the disk, or a hand in the results: the workflow itself looks whether stores are there, not into
    them. What is broken is forgotten, so that the next run makes it again. Ends with exit code 1 when anything is.
    """
    from slideloom.cli.screens import console
    from slideloom.cli.why import print_broken, verify_study

    broken = verify_study(_load(config), quick=quick, keep=keep, workers=workers)
    print_broken(broken, console(), keep=keep)
    if broken:
        raise typer.Exit(1)


_SHOWN = (
    *("experiment", "fold", "slide_id", "platform", "role", "n_gt", "n_pred", "pq", "dq", "sq", "aji", "f1_50"),
    *("dice_binary", "dice_macro"),
)


@app.command()
def show(results: Annotated[Path, typer.Argument(help="The study's results folder.")]) -> None:
    """Print the slides table of a finished run.

    And what failed, and where the report is.
    """
    from slideloom.cli.guards import read_report, reports_folder
    from slideloom.cli.screens import console, print_frame

    reports = reports_folder(results)
    frame = read_report(reports / "slides.parquet")
    screen = console()
    print_frame(frame, [name for name in _SHOWN if name in frame.columns], screen)
    failures = reports / "failures.parquet"
    if failures.is_file() and len(failed := read_report(failures)):
        screen.print(f"\n[bold red]{len(failed)} failed[/]")
        print_frame(
            failed, [name for name in ("slide_id", "stage", "code", "message") if name in failed.columns], screen
        )
    screen.print(f"\ntables  {reports}", soft_wrap=True)
    if (reports / "report.html").is_file():
        screen.print(f"report  {reports / 'report.html'}", soft_wrap=True)


@app.command()
def schema(
    write: Annotated[
        Path | None, typer.Option(help="Write README.md and schema/config.schema.json below this folder instead.")
    ] = None,
) -> None:
    """Print the config's JSON Schema.

    With --write, write it and the page that describes every key.
    """
    if write is None:
        from slideloom.config.schema import schema_text

        typer.echo(schema_text(), nl=False)
        return
    from slideloom.cli.documents import write_documents

    for path in write_documents(write):
        typer.echo(str(path))


if __name__ == "__main__":
    app()

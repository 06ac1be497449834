"""Which encoders there are, and whether the files that a study needs are there and whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from slideloom.config.catalogue import CATALOGUE, EncoderEntry, find_entry
from slideloom.config.model import EncoderConfig, NormalisationConfig, StudyConfig
from slideloom.encoders.checkpoints.files import check_checksums, check_file, file_sha256, read_archive, vector_names
from slideloom.encoders.checkpoints.recognise import misfits, recognise
from slideloom.errors import SlideloomError
from slideloom.slides.tables import Channel

if TYPE_CHECKING:
    from slideloom.encoders.checkpoints.weights import Weights

__all__ = ["FileReport", "describe_entry", "examine_weights", "print_catalogue", "print_files"]

_SHOWN = 12
#: What ``clip`` and ``scope`` say, in words.
_WHOSE = {"slide": "its own", "training": "the training slides'"}


def describe_entry(entry: EncoderEntry) -> list[tuple[str, str]]:
    """What an encoder reads and needs, as pairs of a word and a text."""
    token = f", tokens of {entry.token_px} px" if entry.token_px else ""
    tile = f"tiles of {entry.tile_px} px{token}" if entry.tile_px else f"tiles of any size{token}"
    low, high = entry.mpp_um or (None, None)
    open_scale = "at the checkpoint's resolution" if entry.family == "cellvit" else "at any resolution"
    scale = f"{low:g} to {high:g} µm/px" if entry.mpp_um else open_scale
    needs = [" or ".join(entry.files) or ("a checkpoint" if entry.weights else "nothing")]
    if entry.embedding:
        needs.append("an ESM-2 vector of each marker's protein (marker_embeddings)")
    lines = [
        ("reads", f"{'RGB' if entry.kind == 'rgb' else 'any markers'}, {tile}, {scale}"),
        ("scaled", _scaling(entry)),
        ("needs", "; ".join(needs)),
        ("from", entry.source),
        ("licence", entry.licence + (f"; gated: {entry.gated}" if entry.gated else "")),
    ]
    return [(word, text) for word, text in lines if text]


def _scaling(entry: EncoderEntry) -> str:
    own: NormalisationConfig | None = entry.normalisation
    if own is None:
        numbers = (", ".join(f"{value:.4g}" for value in values) for values in (entry.mean, entry.std))
        mean, std = numbers
        return f"mean {mean}, deviation {std}"
    log = ", log1p" if own.log1p else ""
    clip = _WHOSE[own.clip or "training"]
    return f"clipped at {clip} {own.clip_quantile:g} quantile{log}, {_WHOSE[own.scope]} mean and deviation"


@dataclass(frozen=True)
class FileReport:
    """What is known of one file that a study names.

    Attributes
    ----------
    where : str
        Config key, such as ``encoders.virtues.encoder.checkpoint``.
    path : Path or None
        The file or folder; None where none is needed, or none is named.
    size : int or None
        Bytes; None when it is not there, or a folder.
    sha256 : str
        Empty when it was not asked for, or could not be taken.
    seems : str
        What it holds, as far as that can be told.
    fault, hint : str
        What is wrong, and how to mend it; empty when nothing is.
    notes : tuple of str
        What is worth knowing.
    """

    where: str
    path: Path | None = None
    size: int | None = None
    sha256: str = ""
    seems: str = ""
    fault: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()


def examine_weights(config: StudyConfig, channels: tuple[Channel, ...], *, digest: bool = True) -> Iterator[FileReport]:
    """Look at every file of weights that a study names.

    Parameters
    ----------
    config : StudyConfig
        The study; its paths start at the current folder.
    channels : tuple of Channel
        Rows of its markers table.
    digest : bool
        Read the files through, for checksums and sha256; else only what says how long they should be.

    Yields
    ------
    FileReport
        In the order of the config; also of encoders that need no file, or run from a seed.
    """
    for name, encoder in config.encoders.items():
        entry = find_entry(encoder.model)
        if encoder.checkpoint is not None:
            yield _checkpoint(f"encoders.{name}.checkpoint", encoder.checkpoint, digest, entry=entry)
        elif encoder.random is not None:
            seed = f"runs WITHOUT WEIGHTS (random: {encoder.random}): it has learnt nothing"
            yield FileReport(f"encoders.{name}", notes=(seed,))
        elif entry is None or entry.weights:
            fault = f"{encoder.model!r} needs weights, and none are named"
            yield FileReport(f"encoders.{name}", fault=fault, hint="`slideloom check` tells every mistake of a config")
        else:
            yield FileReport(f"encoders.{name}", seems="needs no weights")
        if encoder.marker_embeddings is not None:
            yield _vectors(f"encoders.{name}.marker_embeddings", encoder.marker_embeddings, encoder, channels, digest)
        elif entry is not None and entry.embedding:
            fault = f"{encoder.model!r} needs protein embeddings, and none are named"
            yield FileReport(f"encoders.{name}.marker_embeddings", fault=fault, hint="Name their folder, or one file")
    for name, experiment in config.experiments.items():
        if experiment.pretrained is not None:
            kind = experiment.decoder.kind if experiment.decoder.whole else "cellvit"
            yield _checkpoint(f"experiments.{name}.pretrained", experiment.pretrained, digest, published=kind)
        elif experiment.torchscript is not None:
            yield _program(f"experiments.{name}.torchscript", experiment.torchscript, digest)


def _checkpoint(
    where: str, path: Path, digest: bool, *, entry: EncoderEntry | None = None, published: str = ""
) -> FileReport:
    size = path.stat().st_size if path.is_file() else None
    try:
        kind = check_file(path)
        if kind == "zip" and digest:
            check_checksums(path)
        # Only now: torch takes seconds to load, and a file that is not there needs none of it.
        from slideloom.encoders.checkpoints.weights import read_weights

        weights = read_weights(path, digest=digest)
        network = _network(weights, published) if published in ("instanseg", "hovernet") else ""
    except SlideloomError as error:
        return FileReport(where, path, size, fault=error.message, hint=error.hint)
    if not weights.tensors:
        fault, hint = "it holds no weights", "Copy it again from where it was published, or name another file"
        return FileReport(where, path, size, weights.sha256, fault=fault, hint=hint)
    seen = recognise({name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}, weights.arch)
    fault = hint = ""
    if network:
        return FileReport(where, path, size, weights.sha256, network)
    if published and not seen.decoder:
        fault, hint = (
            "it holds no CellViT decoder",
            "Name a published CellViT file, or leave 'pretrained' out and train",
        )
    elif entry and (wrong := misfits(seen, entry)):
        fault, hint = f"not {entry.name}: {'; '.join(wrong)}", "Name the model that the checkpoint was made with"
    return FileReport(where, path, size, weights.sha256, str(seen), fault, hint)


def _network(weights: Weights, kind: str) -> str:
    """What whole network a checkpoint holds, every key accounted for."""
    if kind == "hovernet":
        from slideloom.decoders.hovernet_published import from_published as hovernet_from

        hovernet = hovernet_from(weights.tensors, path=weights.path)
        return f"HoVer-Net, mode {hovernet.config.mode}, heads {', '.join(hovernet.heads)}"
    from slideloom.decoders.instanseg_published import from_published as instanseg_from

    adapter, instanseg = instanseg_from(weights.tensors, path=weights.path)
    behind = " behind ChannelNet" if adapter else f" of {instanseg.image_channels} channels"
    return f"InstanSeg{behind}, widths {list(instanseg.config.widths)}, heads {', '.join(instanseg.heads)}"


def _program(where: str, path: Path, digest: bool) -> FileReport:
    """A published program; it is not loaded."""
    size = path.stat().st_size if path.is_file() else None
    try:
        if check_file(path) != "zip" or not read_archive(path).script:
            hint = "Weights alone are named as 'pretrained'"
            return FileReport(where, path, size, fault="it is no TorchScript program", hint=hint)
        if digest:
            check_checksums(path)
    except SlideloomError as error:
        return FileReport(where, path, size, fault=error.message, hint=error.hint)
    seems = "a TorchScript program, which is code: compare its sha256 with its publisher's"
    return FileReport(where, path, size, file_sha256(path) if digest else "", seems)


def _vectors(where: str, path: Path, encoder: EncoderConfig, channels: tuple[Channel, ...], digest: bool) -> FileReport:
    accessions = {channel.marker: channel.uniprot for channel in channels if channel.uniprot} | encoder.marker_ids
    wanted = encoder.markers or list(dict.fromkeys(channel.marker for channel in channels))
    try:
        names = vector_names(path)
        known = [marker for marker in wanted if accessions.get(marker) in names]
        if path.is_dir():
            for accession in sorted({accessions[marker] for marker in known}):
                file = path / f"{accession}.pt"
                if check_file(file) == "zip":
                    read_archive(file)
    except SlideloomError as error:
        return FileReport(where, path, fault=error.message, hint=error.hint)
    size = path.stat().st_size if path.is_file() else None
    sha256 = file_sha256(path) if digest and path.is_file() else ""
    seems = f"vectors of {len(names)} proteins; {len(known)} of {len(wanted)} markers have one"
    lacking = [marker for marker in wanted if marker not in known]
    told = ", ".join(lacking[:_SHOWN]) + (f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else "")
    if lacking and encoder.markers and encoder.unknown_markers == "error":
        hint = "Add their vectors, map them with marker_ids, or set unknown_markers: drop"
        return FileReport(where, path, size, sha256, seems, f"there is none for {told}", hint)
    fate = "they are dropped" if encoder.unknown_markers == "drop" else "slides that have them will fail"
    return FileReport(where, path, size, sha256, seems, notes=(f"none for {told}: {fate}",) if lacking else ())


def print_catalogue(screen: Console) -> None:
    """Print every encoder of the catalogue: what it reads and needs, where its weights are published, their licence."""
    for entry in CATALOGUE.values():
        screen.print(f"[bold]{escape(entry.name)}[/]  {escape(entry.summary)}")
        _print_pairs(describe_entry(entry), screen)
    screen.print("Nothing is ever fetched. Put a file where you like and name it: 'checkpoint: <file>'.")


def print_files(reports: Iterable[FileReport], screen: Console) -> int:
    """Print what was found of each file, as it is found; returns how many are missing or damaged."""
    bad = 0
    for report in reports:
        bad += bool(report.fault)
        state = "[bold red]wrong[/]" if report.fault else "[green]fine[/] "
        screen.print(f"{state}  [bold]{escape(report.where)}[/]  {escape(str(report.path or ''))}", soft_wrap=True)
        size = "" if report.size is None else f"{report.size:,} bytes".replace(",", " ")
        lines = [("", report.fault), ("→", report.hint), ("holds", report.seems), ("size", size)]
        lines += [("sha256", report.sha256), *(("note", note) for note in report.notes)]
        _print_pairs([(word, text) for word, text in lines if text], screen)
    return bad


def _print_pairs(pairs: Sequence[tuple[str, str]], screen: Console) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=7, no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for word, text in pairs:
        table.add_row(word, escape(text))
    screen.print(Padding(table, (0, 0, 1, 7), expand=False))

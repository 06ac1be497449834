"""A study: config, sheet, markers and classes, checked against each other before anything runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slideloom.artefacts.paths import Paths
from slideloom.config.load import CheckedConfig, Draft, check_mapping, read_config
from slideloom.config.model import Modality, StudyConfig
from slideloom.config.texts import absence
from slideloom.config.yaml_lines import Places, read_yaml
from slideloom.errors import ConfigError, Problem
from slideloom.slides.alike import alike_warnings
from slideloom.slides.checks import check_study
from slideloom.slides.evidence import Evidence
from slideloom.slides.shared_files import shared_file_warnings
from slideloom.slides.sheet import SlideRow, read_sheet
from slideloom.slides.tables import ClassTable, MarkerTable, read_classes, read_markers

__all__ = ["Study", "load_study", "study_from_mapping"]

_MADE_BY = {
    "slides": "`slideloom sheet FOLDER` makes one from a folder of images; paths start at the current folder",
    "markers": "It says which marker each channel name means; config/README.md describes it",
    "classes": "It lists id, name and colour of each class; config/README.md describes it",
}
_PLACE = re.compile(r"^(?P<file>.*?):(?P<line>\d+)(?:: (?P<column>.*)|:|$)")
#: Mistakes of one kind in one file that are told before the rest is counted.
_SHOWN, _SHOWN_OF_CONFIG = 5, 8
#: What differs between mistakes of one kind: quoted texts and numbers.
_VALUES = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes
    ----------
    config : StudyConfig
        The config.
    config_path : Path
        Its file.
    rows : tuple of SlideRow
        The sheet.
    markers : MarkerTable
        Empty when the config names no table.
    classes : ClassTable
        Empty when the config names no table.
    data_root : Path
        Where the sheet's paths start.
    base : Path
        Where the config's paths start.
    warnings : tuple of str
        What a reader of the results must know.
    """

    config: StudyConfig
    config_path: Path
    rows: tuple[SlideRow, ...]
    markers: MarkerTable
    classes: ClassTable
    data_root: Path
    base: Path = field(default_factory=Path)
    warnings: tuple[str, ...] = ()

    @property
    def paths(self) -> Paths:
        """Where the study's artefacts lie."""
        return Paths(self.base / self.config.results)

    @cached_property
    def _by_id(self) -> dict[str, SlideRow]:
        return {row.slide_id: row for row in self.rows}

    def row(self, slide_id: str) -> SlideRow:
        """A slide's row of the sheet.

        Raises
        ------
        KeyError
            No slide has that id.
        """
        return self._by_id[slide_id]

    def image_of(self, encoder: str) -> Modality:
        """The image that an encoder reads, ``he`` or ``sp``, by the encoder's name."""
        return self.config.grids[self.config.encoders[encoder].grid].image

    def grid_of(self, experiment: str) -> str:
        """Name of the grid that an experiment's first encoder reads, or its labels lie on, by the experiment's name."""
        config = self.config.experiments[experiment]
        return config.grid or self.config.encoders[config.first_encoder].grid

    def images_of(self, experiment: str) -> tuple[Modality, ...]:
        """The images that an experiment's encoders read, its own first, by the experiment's name."""
        own = self.config.grids[self.grid_of(experiment)].image
        return tuple(
            dict.fromkeys([own, *(self.image_of(name) for name in self.config.experiments[experiment].encoder)])
        )

    def experiment_slides(self, experiment: str) -> tuple[SlideRow, ...]:
        """Slides of the split's platforms that have the images of the experiment's grids, in the order of the sheet."""
        images = self.images_of(experiment)
        platforms = self.config.splits[self.config.experiments[experiment].split].platforms
        return tuple(
            row
            for row in self.rows
            if all(getattr(row, image) for image in images) and (not platforms or row.platform in platforms)
        )


def load_study(config_path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study from its config file; the config's paths start at the current folder.

    Parameters
    ----------
    config_path : Path
        YAML file.
    overrides : mapping, optional
        Laid over the file's mapping, key by key.

    Returns
    -------
    Study
        Checked.

    Raises
    ------
    ConfigError
        With every mistake in the config, the sheet and the tables.
    """
    return _study(read_config(config_path, overrides), config_path, Path())


def study_from_mapping(mapping: Mapping[str, Any], base: Path, sources: Sequence[Path] = ()) -> Study:
    """Read a study from a mapping, such as Snakemake's merged config.

    Parameters
    ----------
    mapping : mapping
        Plain values.
    base : Path
        Where the config's paths start.
    sources : sequence of Path, optional
        The files that the mapping was read from, later ones laid over earlier ones: mistakes are told with their lines,
        and keys that stand twice in a file, which the mapping cannot show, are told, too.

    Returns
    -------
    Study
        Checked.

    Raises
    ------
    ConfigError
        With every mistake.
    """
    places = Places(str(sources[-1]) if sources else "config")
    problems: list[Problem] = []
    for source in sources:
        file = read_yaml(source)
        places.cover(file.places)
        problems += file.problems
    # Paths stay short, as people wrote them, when they start at the current folder.
    here = Path() if base.resolve() == Path.cwd() else base
    return _study(check_mapping(mapping, places, problems), Path(places.default), here)


def _study(checked: CheckedConfig, config_path: Path, base: Path) -> Study:
    draft, problems = checked.draft, list(checked.problems)
    rows: tuple[SlideRow, ...] | None = None
    markers: MarkerTable | None = None
    classes: ClassTable | None = None
    sheet = base / (draft.slides or "")
    there = {key for key in _MADE_BY if _is_there(key, checked, base, problems)}
    if "slides" in there:
        found, faults = read_sheet(sheet, _named_columns(draft))
        rows = tuple(found) or None
        problems += faults
    if "markers" in there and draft.markers is not None:
        marker_table, faults = read_markers(base / draft.markers)
        markers = marker_table if marker_table.channels else None
        problems += faults
    if "classes" in there and draft.classes is not None:
        class_table, faults = read_classes(base / draft.classes)
        classes = class_table if len(class_table) else None
        problems += faults
    data_root = base / draft.data_root if draft.data_root is not None else sheet.parent
    evidence = Evidence(draft, checked.places, base, sheet, data_root, rows, markers, classes)
    problems += check_study(evidence)
    if problems or checked.config is None:
        raise ConfigError(_ordered(problems, checked.places.default))
    return Study(
        config=checked.config,
        config_path=config_path,
        rows=rows or (),
        markers=markers or MarkerTable(),
        classes=classes or ClassTable(),
        data_root=data_root,
        base=base,
        warnings=(*_warnings(checked.config), *alike_warnings(rows or ()), *shared_file_warnings(rows or ())),
    )


def _named_columns(draft: Draft) -> frozenset[str]:
    """Columns of the sheet that splits and samplings name."""
    splits = (name for split in draft.splits.values() for name in (split.column, split.stratify) if name)
    return frozenset(splits) | {experiment.sampling.column for experiment in draft.experiments.values()}


def _is_there(key: str, checked: CheckedConfig, base: Path, problems: list[Problem]) -> bool:
    path: Path | None = getattr(checked.draft, key)
    if path is None:
        return False
    if why := absence(base / path):
        problems.append(Problem(checked.places.of((key,)), f"{str(base / path)!r} {why}", _MADE_BY[key]))
        return False
    return True


def _ordered(problems: Sequence[Problem], first: str) -> list[Problem]:
    """Each told once: the config's own before the other files', by line, what has no line last."""
    files = {first: 0}
    keyed = []
    for problem in dict.fromkeys(problems):
        match = _PLACE.match(problem.where)
        file = match["file"] if match else problem.where.split(": ")[0]
        keyed.append((files.setdefault(file, len(files)), int(match["line"]) if match else math.inf, problem))
    return _counted([problem for *_, problem in sorted(keyed, key=lambda one: one[:2])])


def _counted(problems: Sequence[Problem]) -> list[Problem]:
    """The first of each kind, and behind the last that is told, how many more there are: one slip fills no screens."""
    told: list[Problem] = []
    kinds: dict[tuple[str, str, str], list[int]] = {}  # indices of those that are told
    rest: Counter[tuple[str, str, str]] = Counter()
    for problem in problems:
        match = _PLACE.match(problem.where)
        file, column = (match["file"], match["column"] or "") if match else (problem.where, "")
        config = Path(file).suffix in (".yaml", ".yml", ".json")
        kind = (file, "" if config else column, _VALUES.sub("…", problem.what))
        places = kinds.setdefault(kind, [])
        if len(places) < (_SHOWN_OF_CONFIG if config else _SHOWN):
            places.append(len(told))
            told.append(problem)
        else:
            rest[kind] += 1
    last = {kinds[kind][-1]: kind for kind in rest}
    result = []
    for index, problem in enumerate(told):
        result.append(problem)
        ended = last.get(index)
        if ended is not None:
            where = f"{ended[0]}: {ended[1]}" if ended[1] else ended[0]
            what = f"{rest[ended]} more lines have the mistake of the {len(kinds[ended])} above"
            result.append(Problem(where, what, "Mend the ones above, and check again"))
    return result


def _warnings(config: StudyConfig) -> list[str]:
    warnings = []
    used: dict[str, list[str]] = {}
    for name, experiment in config.experiments.items():
        for encoder_name in experiment.encoder:
            used.setdefault(encoder_name, []).append(name)
            statistics = config.encoders[encoder_name].statistics
            if statistics and statistics != experiment.split:
                warnings.append(
                    f"experiment {name!r} splits by {experiment.split!r}, but its encoder's channel statistics are of "
                    f"the training slides of {statistics!r}: slides it tests on may have been measured"
                )
    for name, encoder in config.encoders.items():
        if name not in used:
            warnings.append(f"encoder {name!r} is used by no experiment")
        elif encoder.random is not None:
            seed = f"random: {encoder.random}"
            warnings.append(f"encoder {name!r} runs WITHOUT WEIGHTS ({seed}): it has learnt nothing")
        if encoder.off_resolution and name in used:
            warnings.append(f"encoder {name!r} runs off the resolution that its weights were made for (off_resolution)")
    return warnings

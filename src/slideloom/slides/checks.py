"""Config against sheet and tables: names that point nowhere, missing files, choices that cannot work together.

Each check looks at one part and goes on whatever the others found, so that every mistake is told at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from slideloom.config.fields import unfit_for_paths
from slideloom.config.load import Draft
from slideloom.config.model import ExperimentConfig, InferenceConfig, SplitConfig
from slideloom.config.texts import quoted
from slideloom.errors import Problem, SlideloomError
from slideloom.slides.delimited import nearest
from slideloom.slides.encoder_checks import check_encoder
from slideloom.slides.evidence import Evidence
from slideloom.slides.external import check_external
from slideloom.slides.places import check_places, shorten_list
from slideloom.slides.published_checks import check_published
from slideloom.slides.refine_checks import check_refine
from slideloom.slides.sheet import ROLES, SlideRow
from slideloom.slides.sides import check_stratify, take_sides, torn_groups, written_role
from slideloom.slides.training_checks import check_training

__all__ = ["check_study"]

#: Mistakes of one kind that are told one by one before the rest is counted.
_SHOWN = 8
_LONGEST_NAME = 64
_DOES = {"train": "trains", "val": "validates", "test": "tests"}

#: Heads of which one gives what a method reads.
_READS = {"hv_watershed": ("hv",), "boundary_watershed": ("boundary", "three_class"), "instanseg": ("instanseg",)}


def check_study(evidence: Evidence) -> list[Problem]:
    """Check the config against the sheet and the tables.

    Parameters
    ----------
    evidence : Evidence
        What was read.

    Returns
    -------
    list of Problem
        Every mistake.
    """
    problems = [*check_places(evidence), *_names(evidence), *_markers(evidence)]
    for name, encoder in evidence.draft.encoders.items():
        problems += check_encoder(evidence, name, encoder)
    for name, split in evidence.draft.splits.items():
        if name in _used_splits(evidence.draft):
            problems += _split(evidence, name, split)
    for name, experiment in evidence.draft.experiments.items():
        problems += _experiment(evidence, name, experiment)
    return [*problems, *_inference(evidence)]


def _used_splits(draft: Draft) -> set[str]:
    used = {experiment.split for experiment in draft.experiments.values()}
    return used | {encoder.statistics for encoder in draft.encoders.values() if encoder.statistics}


# ---- names -----------------------------------------------------------------------------------------------------------


def _names(evidence: Evidence) -> Iterator[Problem]:
    """Names that stand in paths: grids, encoders, splits and experiments."""
    for section in ("grids", "encoders", "splits", "experiments"):
        taken: dict[str, str] = {}
        for name in getattr(evidence.draft, section):
            unfit = unfit_for_paths(name, _LONGEST_NAME)
            if unfit:
                what = f"{quoted(name)} cannot be a name: it {unfit}"
                yield evidence.at(section, name, what=what, hint="It stands in paths: choose another one")
            other = taken.setdefault(name.casefold(), name)
            if other != name:
                what = f"{name!r} differs from {other!r} by letter case only"
                hint = "They would share a path on file systems that ignore case: rename one"
                yield evidence.at(section, name, what=what, hint=hint)


# ---- markers ---------------------------------------------------------------------------------------------------------


def _markers(evidence: Evidence) -> Iterator[Problem]:
    rows = [row for row in evidence.rows or () if row.sp]
    if evidence.markers is None:
        if rows and not evidence.draft.gives("markers"):
            what = f"the key 'markers' is missing, but slides have sp images, such as {rows[0].slide_id!r}"
            yield Problem(evidence.places.default, what, "Name a table of channel names and their markers")
        return
    unknown: dict[str, list[SlideRow]] = defaultdict(list)
    for row in rows:
        for channel in row.sp_channels or ():
            if evidence.markers.lookup(channel) is None:
                unknown[channel].append(row)
    known = [channel.name for channel in evidence.markers.channels]
    told = []
    for channel, holders in unknown.items():
        near = nearest(channel, known)
        others = f" (named by {len(holders)} slides)" if len(holders) > 1 else ""
        what = f"channel {channel!r}{others} has no row in {evidence.draft.markers}"
        hint = f"Did you mean {near!r}?" if near else "Add a row that says which marker it shows"
        told.append(evidence.on(holders[0], "sp_channels", what, hint))
    yield from shorten_list(told, f"{evidence.sheet}: sp_channels", "more channels have no row in the markers table")


# ---- splits ----------------------------------------------------------------------------------------------------------


def _split(evidence: Evidence, name: str, split: SplitConfig) -> Iterator[Problem]:
    if not evidence.rows:
        return
    path = ("splits", name)
    present = sorted({row.platform for row in evidence.rows})
    for index, platform in enumerate(split.platforms):
        if platform not in present:
            near = nearest(platform, present)
            hint = f"Did you mean {near!r}?" if near else f"The sheet has: {', '.join(present)}"
            yield evidence.at(*path, "platforms", index, what=f"no slide is of platform {platform!r}", hint=hint)
    rows = _of_split(evidence.rows, split)
    if not rows:
        return
    if split.scheme == "column":
        yield from _column_split(evidence, name, split, rows)
        return
    try:
        take_sides(rows, split)
    except SlideloomError as error:
        yield _as_problem(evidence, name, error)


def _as_problem(evidence: Evidence, name: str, error: SlideloomError) -> Problem:
    key = ("stratify",) if error.code in ("stratify", "unknown_column") else ()
    return evidence.at("splits", name, *key, what=f"{error.what}, expected {error.expected}", hint=error.hint)


def _of_split(rows: Iterable[SlideRow], split: SplitConfig) -> list[SlideRow]:
    return [row for row in rows if not split.platforms or row.platform in split.platforms]


def _role(row: SlideRow, split: SplitConfig) -> str:
    return written_role(row, split.column)


def _column_split(evidence: Evidence, name: str, split: SplitConfig, rows: Sequence[SlideRow]) -> Iterator[Problem]:
    path = ("splits", name)
    try:
        check_stratify(rows, split)
    except SlideloomError as error:
        yield _as_problem(evidence, name, error)
    if not any(row.column(split.column) for row in rows):
        columns = {key for row in rows for key in row.extra} | ({"split"} if any(row.split for row in rows) else set())
        near = nearest(split.column, sorted(columns))
        hint = f"Did you mean 'column: {near}'?" if near else f"Fill it with {', '.join(ROLES)}, or use another scheme"
        yield evidence.at(*path, what=f"no slide has a value in the sheet's column {split.column!r}", hint=hint)
        return
    wrong = [
        evidence.on(row, split.column, f"{row.column(split.column)!r} is no role", _role_hint(_role(row, split)))
        for row in rows
        if _role(row, split) not in ROLES
    ]
    yield from shorten_list(wrong, f"{evidence.sheet}: {split.column}", "more slides have a value that is no role")
    trained = any(one.split == name and one.trains for one in evidence.draft.experiments.values())
    trained = trained or any(one.statistics == name for one in evidence.draft.encoders.values())
    if trained and not wrong and not any(_role(row, split) == "train" for row in rows):
        what = f"no slide has the role train in the sheet's column {split.column!r}"
        yield evidence.at(*path, what=what, hint="Write train into the rows to learn from, or use another scheme")
    for (group, one, other), torn in torn_groups(rows, split).items():
        names = f"{', '.join(torn[:_SHOWN])}{', …' if len(torn) > _SHOWN else ''}"
        hint = "Move the slides to one side; slides that really are independent get patient ids of their own"
        if group == "platform":
            hint = "Move the slides to one side, or leave 'group: platform' out"
        yield evidence.at(*path, what=f"{group} {names} both {_DOES[one]} and {_DOES[other]}", hint=hint)


def _role_hint(role: str) -> str:
    near = nearest(role, ROLES) or {"validation": "val", "training": "train", "holdout": "test"}.get(role, "")
    return f"Did you mean {near!r}?" if near else f"Roles are {', '.join(ROLES)}"


# ---- experiments -----------------------------------------------------------------------------------------------------


def _experiment(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path = ("experiments", name)
    for encoder_name in experiment.encoder:
        yield from evidence.points_nowhere((*path, "encoder"), encoder_name, "encoders")
    yield from evidence.points_nowhere((*path, "split"), experiment.split, "splits")
    yield from check_refine(evidence, name, experiment)
    if experiment.labels is not None:
        yield from check_external(evidence, name, experiment)
        return
    if "classes" in experiment.heads and not evidence.draft.gives("classes"):
        hint = "Name a table of classes, or leave the head 'classes' out"
        yield evidence.at(*path, "heads", what="the head 'classes' needs the key 'classes'", hint=hint)
    instances = experiment.instances or evidence.draft.instances
    method = instances.method if instances else "auto"
    needed = _READS.get(method, ())
    if needed and not set(needed) & set(experiment.heads):
        hint = "Add the head, or set 'method: auto' under 'instances'"
        what = f"instances.method {method} needs the head {' or '.join(map(repr, needed))}"
        yield evidence.at(*path, "heads", what=what, hint=hint)
    if experiment.published is None:
        yield from check_training(evidence, name, experiment)
        yield from _training_slides(evidence, name, experiment)
    else:
        yield from check_published(evidence, name, experiment)


def _training_slides(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path = ("experiments", name)
    encoders = [evidence.draft.encoders.get(one) for one in experiment.encoder]
    grids = [evidence.draft.grids.get(one.grid) for one in encoders if one]
    split = evidence.draft.splits.get(experiment.split)
    if None in encoders or None in grids or split is None or not evidence.rows:
        return
    try:
        folds = take_sides(evidence.rows, split).folds
    except SlideloomError:
        return  # told of the split already
    images = list(dict.fromkeys(grid.image for grid in grids if grid))
    for fold, roles in folds.items():
        rows = [row for row in evidence.rows if roles.get(row.slide_id) == "train"]
        if not rows:
            continue  # likewise
        where = f"training slide of split {experiment.split!r}" + (f", fold {fold}," if len(folds) > 1 else "")
        able = [row for row in rows if all(getattr(row, image) for image in images) and row.instances]
        if not able:
            needs = " and ".join(f"an {image} image" for image in images)
            what = f"no {where} has {needs} and annotated instances"
            annotated = sum(bool(row.instances) for row in rows)
            hint = "Fill the sheet's column 'instances': it names the label images of annotated nuclei"
            if annotated:
                imaged = sum(all(getattr(row, image) for image in images) for row in rows)
                hint = f"Slides that train: {imaged} with {needs}, {annotated} with 'instances', none with both"
            yield evidence.at(*path, what=what, hint=hint)
        elif "classes" in experiment.heads and not any(row.classes for row in able):
            what = f"the head 'classes' has nothing to learn: no {where} has 'classes'"
            yield evidence.at(
                *path, "heads", what=what, hint="Fill the sheet's column 'classes', or leave the head out"
            )
        if able and experiment.learns_cells and not any(row.cells for row in able):
            what = f"the head 'instanseg_cells' has nothing to learn: no {where} has 'cells'"
            hint = "Fill the sheet's column 'cells' with label images of whole cells, or leave the head out"
            yield evidence.at(*path, "heads", what=what, hint=hint)


# ---- inference -------------------------------------------------------------------------------------------------------


def _inference(evidence: Evidence) -> Iterator[Problem]:
    draft, inference = evidence.draft, evidence.draft.inference
    if inference is None:
        return
    path = ("inference", "overlap_px")
    if inference.source == "stored" and inference.overlap_px > 0:
        hint = "Set 'source: live', or give the grid a stride_px below its tile_px"
        yield evidence.at(*path, what="stored tiles overlap by their grid, not by overlap_px", hint=hint)
    elif inference.source == "live":
        for name, experiment in draft.experiments.items():
            encoder = draft.encoders.get(experiment.first_encoder) if experiment.encoder else None
            grid = draft.grids.get(encoder.grid) if encoder else None
            if grid and inference.overlap_px >= grid.tile_px:
                what = f"{inference.overlap_px} px is no less than the tiles of experiment {name!r}, {grid.tile_px} px"
                yield evidence.at(*path, what=what, hint=f"Set it below {grid.tile_px}; a quarter of a tile is much")
    if inference.seam_check and inference.source == "stored":
        what = "seam_check shifts the tiles, and stored tokens are of tiles where they lie"
        yield evidence.at("inference", "seam_check", what=what, hint="Set 'source: live', or remove the key")
    yield from _poses(evidence, inference)
    scored = draft.evaluation.roles if draft.evaluation else []
    for role in scored:
        if role not in inference.roles:
            what = f"slides of the role {role!r} are to be scored, but inference.roles leaves them out"
            yield evidence.at("evaluation", "roles", what=what, hint=f"Add {role!r} to inference.roles")


def _poses(evidence: Evidence, inference: InferenceConfig) -> Iterator[Problem]:
    """Poses of tiles need the tokens of those poses."""
    if inference.symmetries == "none":
        return
    at = ("inference", "symmetries")
    for name, experiment in evidence.draft.experiments.items():
        if not experiment.encoder:
            continue
        first = experiment.first_encoder
        encoder = evidence.draft.encoders.get(first)
        if len(experiment.encoder) > 1:
            what = f"the tokens of the several encoders of {name!r} can be neither flipped nor turned together"
            yield evidence.at(*at, what=what, hint="Set 'symmetries: none'")
        elif inference.source == "stored" and encoder and not encoder.symmetries and not _tuned(experiment):
            what = f"experiment {name!r} needs the tokens of flipped and turned tiles, which are not stored"
            hint = f"Set 'encoders.{first}.symmetries: true', or 'inference: {{source: live}}'"
            yield evidence.at(*at, what=what, hint=hint)


def _tuned(experiment: ExperimentConfig) -> bool:
    """Whether tiles are encoded as they are predicted in any case."""
    whole = experiment.published is not None and experiment.decoder.whole
    return whole or experiment.training.unfreeze_epoch is not None

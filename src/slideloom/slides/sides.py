"""Who stands on which side of each fold: train, val or test.

Worked out from the sheet alone, in milliseconds, so that a split that cannot be made is told before anything runs. The
result depends on the rows' content only, never on their order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from slideloom.config.model import SplitConfig
from slideloom.errors import SlideloomError
from slideloom.slides.delimited import nearest
from slideloom.slides.folds import fold_names, is_annotated, platform_folds
from slideloom.slides.parts import Group, cut_or_deal
from slideloom.slides.sheet import ROLES, SlideRow

__all__ = ["PAIRS", "Sides", "check_stratify", "groups_of", "take_sides", "torn_groups", "written_role"]

#: Pairs of sides that no patient may stand on both of. A slide that is only predicted is on no side.
PAIRS = (("train", "test"), ("train", "val"), ("val", "test"))
_STRATIFIED = ("sequential", "quarters", "kfold")


@dataclass(frozen=True)
class Sides:
    """The roles of a split.

    Attributes
    ----------
    folds : dict of str to dict of str to str
        By fold and slide, the role: train, val, test or infer. A slide that plays no part in a fold is not there.
    notes : tuple of str
        What a reader of the results must know.
    """

    folds: dict[str, dict[str, str]]
    notes: tuple[str, ...]


def take_sides(rows: Iterable[SlideRow], split: SplitConfig, annotated: Container[str] | None = None) -> Sides:
    """Give every slide a role in every fold.

    Parameters
    ----------
    rows : iterable of SlideRow
        The sheet's rows, in any order.
    split : SplitConfig
        Scheme, shares and grouping. Slides of platforms other than ``platforms``, where it names some, play no part.
    annotated : container of str, optional
        Slides that have an instance annotation; those that the sheet gives one when left out. The others can neither
        train nor be scored: every scheme but ``column`` gives them the role ``infer``.

    Returns
    -------
    Sides
        Roles and notes.

    Raises
    ------
    SlideloomError
        ``unknown_role``: the sheet's column holds something else; ``group_on_both_sides``: it puts a patient or, with
        ``group: platform``, a platform on two sides; ``too_few_groups``: fewer groups than the scheme needs;
        ``unknown_column``: no annotated slide has a value to stratify by; ``stratify``: the scheme knows no strata.

    Notes
    -----
    Groups are patients or, with ``group: platform``, platforms, where those that share a patient are one. They are
    sorted as text and never torn; shares count slides.

    ``column``: as the sheet says; an empty cell means ``infer``. ``sequential``: the first share trains, the rest
    tests. ``kfold``: ``folds`` contiguous parts, each of which tests once. ``quarters``: four contiguous parts; fold 0
    trains on the first and tests on the second, fold 1 trains on the third and tests on the fourth, and the other half
    plays no part (SP/H&E report, section 4.1). A cut falls at the group boundary nearest to the share, and no part is
    empty. ``leave_platform_out``: each platform tests once; other slides of its patients play no part in that fold.
    ``val`` is taken from the end of the training part.

    With ``stratify``, parts are not contiguous, but hold each value in like shares:
    :func:`slideloom.slides.parts.cut_or_deal` says how like.
    """
    chosen = sorted(
        (row for row in rows if not split.platforms or row.platform in split.platforms), key=lambda row: row.slide_id
    )
    if split.scheme == "column":
        check_stratify((), split)
        return Sides({"0": _written(chosen, split)}, ())
    marked = [row for row in chosen if is_annotated(row, annotated)]
    check_stratify(marked, split)
    notes: list[str] = []
    if split.scheme == "leave_platform_out":
        folds = _platforms_left_out(marked, split, notes)
    else:
        names = fold_names(split, marked, annotated)
        folds = dict(zip(names, _parts_in_turn(marked, split, notes), strict=True))
    predicted = {row.slide_id: "infer" for row in chosen if not is_annotated(row, annotated)}
    return Sides(
        {name: dict(sorted((predicted | roles).items())) for name, roles in folds.items()},
        tuple(notes),
    )


# ---- the sheet's own roles -------------------------------------------------------------------------------------------


def written_role(row: SlideRow, column: str) -> str:
    """What the sheet's column says, in small letters; ``infer`` where it is empty."""
    return (row.column(column) or "").strip().lower() or "infer"


def torn_groups(rows: Iterable[SlideRow], split: SplitConfig) -> dict[tuple[str, str, str], list[str]]:
    """Patients, and with ``group: platform`` platforms, that the sheet's column puts on two sides.

    Parameters
    ----------
    rows : iterable of SlideRow
        Slides of the split.
    split : SplitConfig
        Of the scheme ``column``.

    Returns
    -------
    dict of (str, str, str) to list of str
        By ``patient_id`` or ``platform`` and one of :data:`PAIRS`, the names, sorted. Empty when all is well.
    """
    sides: dict[str, dict[str, set[str]]] = {
        name: defaultdict(set) for name in dict.fromkeys(("patient_id", split.group))
    }
    for row in rows:
        for name, found in sides.items():
            found[getattr(row, name)].add(written_role(row, split.column))
    torn = {
        (name, *pair): sorted(group for group, roles in found.items() if set(pair) <= roles)
        for name, found in sides.items()
        for pair in PAIRS
    }
    return {place: groups for place, groups in torn.items() if groups}


def _written(rows: Sequence[SlideRow], split: SplitConfig) -> dict[str, str]:
    roles = {row.slide_id: written_role(row, split.column) for row in rows}
    wrong = sorted(f"{slide}: {role!r}" for slide, role in roles.items() if role not in ROLES)
    if wrong:
        raise SlideloomError(
            f"unknown roles: {', '.join(wrong)}",
            where=f"sample sheet, column {split.column}",
            expected=", ".join(ROLES) + " or empty",
            code="unknown_role",
        )
    for (name, one, other), groups in torn_groups(rows, split).items():
        raise SlideloomError(
            f"{name} {', '.join(groups)} on both sides of {one} and {other}",
            where=f"sample sheet, column {split.column}",
            expected=f"every {name} on one side",
            hint="Move the slides to one side; slides that really are independent get patient ids of their own",
            code="group_on_both_sides",
        )
    return roles


# ---- groups ----------------------------------------------------------------------------------------------------------


def groups_of(rows: Iterable[SlideRow], group: str) -> list[Group]:
    """Slides that stay together: those of a patient or, with ``platform``, of platforms that share patients.

    Parameters
    ----------
    rows : iterable of SlideRow
        Slides, in any order.
    group : {"patient_id", "platform"}
        As in :class:`~slideloom.config.model.SplitConfig`.

    Returns
    -------
    list of tuple of SlideRow
        Sorted by patient, or by the first of the group's platforms, as text.
    """
    ordered = sorted(rows, key=lambda row: row.slide_id)
    patients = _gathered((row.patient_id, row) for row in ordered)
    if group == "patient_id":
        return [patients[name] for name in sorted(patients)]
    first: dict[str, str] = {}

    def root(platform: str) -> str:
        while first.setdefault(platform, platform) != platform:
            platform = first[platform]
        return platform

    for slides in patients.values():
        roots = {root(row.platform) for row in slides}
        first.update(dict.fromkeys(roots, min(roots)))
    joined = _gathered((root(row.platform), row) for row in ordered)
    return [joined[name] for name in sorted(joined)]


def _gathered(named: Iterable[tuple[str, SlideRow]]) -> dict[str, Group]:
    found: dict[str, list[SlideRow]] = defaultdict(list)
    for name, row in named:
        found[name].append(row)
    return {name: tuple(rows) for name, rows in found.items()}


def _note_joined(groups: Iterable[Group], split: SplitConfig, notes: list[str]) -> None:
    for group in groups:
        platforms = sorted({row.platform for row in group})
        if split.group == "platform" and len(platforms) > 1:
            notes.append(f"platforms {', '.join(platforms)} share patients and stand on one side together")


def check_stratify(rows: Sequence[SlideRow], split: SplitConfig) -> None:
    """Check that there is something to stratify by.

    Parameters
    ----------
    rows : sequence of SlideRow
        Annotated slides.
    split : SplitConfig
        The split.

    Raises
    ------
    SlideloomError
        ``stratify`` and ``unknown_column``, as :func:`take_sides` has them.
    """
    if split.stratify is None:
        return
    if split.scheme not in _STRATIFIED:
        raise SlideloomError(
            f"'stratify' plays no part in the scheme {split.scheme}",
            expected=f"the scheme {', '.join(_STRATIFIED[:-1])} or {_STRATIFIED[-1]}",
            hint="Remove the key, or use one of these schemes",
            code="stratify",
        )
    if rows and not any(row.column(split.stratify) for row in rows):
        known = sorted({"platform", *(name for row in rows for name in row.extra)})
        near = nearest(split.stratify, known)
        raise SlideloomError(
            f"no annotated slide has a value in the sheet's column {split.stratify!r}",
            expected="a column to stratify by",
            hint=f"Did you mean {near!r}?" if near else f"There is: {', '.join(known)}",
            code="unknown_column",
        )


# ---- schemes ---------------------------------------------------------------------------------------------------------


def _parts_in_turn(rows: Sequence[SlideRow], split: SplitConfig, notes: list[str]) -> list[dict[str, str]]:
    """Roles of the annotated slides in each fold of ``sequential``, ``kfold`` and ``quarters``."""
    groups = groups_of(rows, split.group)
    count = {"kfold": split.folds, "quarters": 4}.get(split.scheme, 2)
    if len(groups) < count:
        raise _too_few(f"{len(groups)} annotated groups (by {split.group}) are too few to split", count, split)
    _note_joined(groups, split, notes)
    shares = [split.train, 1 - split.train] if split.scheme == "sequential" else [1 / count] * count
    parts = cut_or_deal(groups, shares, split.stratify)
    if split.scheme == "kfold":
        folds = []
        for part in parts:
            tested = {group[0].slide_id for group in part}
            folds.append(([group for group in groups if group[0].slide_id not in tested], part))
    else:
        folds = list(zip(parts[::2], parts[1::2], strict=True))
    return [
        _learning(training, split, str(number), notes) | {row.slide_id: "test" for group in testing for row in group}
        for number, (training, testing) in enumerate(folds)
    ]


def _platforms_left_out(rows: Sequence[SlideRow], split: SplitConfig, notes: list[str]) -> dict[str, dict[str, str]]:
    folds = platform_folds(split, rows, {row.slide_id for row in rows})
    if len(folds) < 2:
        some = "1 platform" if len(folds) == 1 else f"{len(folds)} platforms"
        raise _too_few(f"annotated slides of {some} are too few to leave one out", 2, split)
    result = {}
    for name, platform in folds.items():
        testing = [row for row in rows if row.platform == platform]
        patients = {row.patient_id for row in testing}
        others = [row for row in rows if row.platform != platform]
        training = [row for row in others if row.patient_id not in patients]
        if not training:
            raise _too_few(
                f"platform {platform!r} shares every patient with the others: nothing is left to train on", 1, split
            )
        if shared := len(others) - len(training):
            one = "slide of another platform is" if shared == 1 else "slides of other platforms are"
            notes.append(f"fold {name}: {shared} {one} left out of training, of patients that {platform} tests")
        groups = groups_of(training, split.group)
        _note_joined(groups, split, notes)
        result[name] = _learning(groups, split, name, notes) | {row.slide_id: "test" for row in testing}
    return result


def _learning(groups: list[Group], split: SplitConfig, fold: str, notes: list[str]) -> dict[str, str]:
    """Roles of the slides of a training part: train, and val where a share is asked for."""
    parts: list[list[Group]] = [groups, []]
    if split.val > 0 and len(groups) > 1:
        parts = cut_or_deal(groups, [1 - split.val, split.val], split.stratify)
    elif split.val > 0:
        notes.append(f"fold {fold}: one {split.group} trains, so none is left to validate on")
    return {
        row.slide_id: role
        for role, part in zip(("train", "val"), parts, strict=True)
        for group in part
        for row in group
    }


def _too_few(what: str, least: int, split: SplitConfig) -> SlideloomError:
    return SlideloomError(
        what,
        where=f"split scheme {split.scheme}",
        expected=f"at least {least}",
        hint="Only slides with 'instances' count, and those of a patient stay together: annotate more, ask for fewer "
        "parts, or write roles into the sheet (scheme: column)",
        code="too_few_groups",
    )

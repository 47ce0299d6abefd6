"""Which cases train, validate and test, and which few of them are enough to train on."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from fastht.data.cases import SPLITS, Case, CaseSet, Split, sort_classes, split_part
from fastht.data.images import DataError


def split_cases(
    cases: CaseSet, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), *, seed: int = 0
) -> CaseSet:
    """Give every case a split: a patient's cases the same one, each class in like proportions.

    Splits that the cases have already stay as they are; a side that then lacks is taken out of
    the training cases, e.g. an eighth of them for validation where 0.7 train and 0.1 validate.
    Cases without patient go by their image file. The result depends on the seed and on names and
    patients, not on the order of the cases; a patient who is added later moves few others.

    fractions: of train, val and test; those of val and test may be 0. Patients are not cut up, so
        they are met as nearly as that allows.

    Raises DataError if the fractions are no such numbers, only some cases have a split, no case
    trains, or there are fewer patients than sides.
    """
    share: dict[Split, float] = dict(zip(SPLITS, fractions, strict=True))
    if not (share["train"] > 0 and min(fractions) >= 0 and abs(sum(fractions) - 1) < 1e-6):
        raise DataError(f"fractions {fractions} of train, val and test; choose shares of 1")
    given = Counter(case.split for case in cases)
    if 0 < given[None] < len(cases):
        what = f"{given[None]:,} of {len(cases):,} cases have no split"
        raise DataError(f"{cases.source}: {what}; give one to all or to none")
    if not given[None] and not given["train"]:
        raise DataError(f"{cases.source}: no case trains; give some the split train")
    sides = [split for split in SPLITS if share[split] and (split == "train" or not given[split])]
    if len(sides) == 1:
        return cases if not given[None] else _assign(cases, dict.fromkeys(cases, "train"))
    groups: dict[tuple[bool, str], list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.name):
        if case.split in (None, "train"):
            by_patient = case.patient is not None
            groups[by_patient, case.patient or split_part(case.image)[0]].append(case)
    if len(groups) < len(sides):
        what = f"{len(groups)} patients or images for {len(sides)} sides ({', '.join(sides)})"
        raise DataError(f"{cases.source}: {what}; add cases or set fractions to 0")
    chosen: dict[Case, Split] = {}
    for split, groups_of_side in _distribute(list(groups.values()), share, sides, seed).items():
        chosen |= {case: split for group in groups_of_side for case in group}
    return _assign(cases, chosen)


def few_shot(cases: Sequence[Case], percent: float, *, seed: int = 0) -> tuple[Case, ...]:
    """A share of training cases: that percentage of every class, rounded down, at least one case.

    Cases without label count as one class. Single cases are chosen, not whole patients, as in the
    paper; nothing leaks by it, since all of them are training cases. With the same seed, a smaller
    percentage gives a part of what a larger one gives.

    Raises DataError if percent is not above 0 and at most 100, or there is no case.
    """
    if not 0 < percent <= 100:
        raise DataError(f"few-shot percentage is {percent}; choose one above 0 and at most 100")
    if not cases:
        raise DataError("no training cases to take a share of; check the splits")
    classes: dict[str | None, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: _rank(case.name, seed)):
        classes[case.label].append(case)
    kept: set[Case] = set()
    for members in classes.values():
        # The margin is for shares such as 0.29 %, which binary fractions miss by a hair.
        count = int(percent * len(members) / 100 + 1e-9)
        kept.update(members[: max(1, count)])
    return tuple(case for case in cases if case in kept)


def _distribute(
    groups: list[list[Case]], share: dict[Split, float], sides: list[Split], seed: int
) -> dict[Split, list[list[Case]]]:
    """Deal groups out to sides; every side gets at least one."""
    total = sum(share[side] for side in sides)
    strata: dict[tuple[str, ...], list[list[Case]]] = defaultdict(list)
    for group in sorted(groups, key=lambda group: _rank(group[0].name, seed)):
        strata[sort_classes(case.label or "" for case in group)].append(group)
    dealt: dict[Split, list[list[Case]]] = {side: [] for side in sides}
    # What a side still lacks goes over to the next class; otherwise a side whose share of every
    # class is less than half a group would stay empty.
    lacking = dict.fromkeys(sides, 0.0)
    for _, stratum in sorted(strata.items()):
        size = sum(map(len, stratum))
        for side in sides:
            lacking[side] += size * share[side] / total
        for position, group in enumerate(stratum):
            # The first side that comes nearer to its share by this group, else the neediest. A
            # class that does not train cannot be learnt, so its first group does.
            nearer = (side for side in sides if 2 * lacking[side] >= len(group))
            side = next(nearer, max(sides, key=lacking.__getitem__)) if position else "train"
            dealt[side].append(group)
            lacking[side] -= len(group)
    for side in sides:
        if not dealt[side]:
            giver = max(sides, key=lambda other: len(dealt[other]))
            smallest = min(reversed(dealt[giver]), key=len)
            dealt[giver].remove(smallest)
            dealt[side].append(smallest)
    return dealt


def _assign(cases: CaseSet, chosen: dict[Case, Split]) -> CaseSet:
    return replace(
        cases,
        cases=tuple(replace(case, split=chosen.get(case, case.split)) for case in cases),
    )


def _rank(name: str, seed: int) -> bytes:
    """A sort key that looks random and is the same everywhere, whatever other names there are."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()

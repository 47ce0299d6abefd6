"""Which cases train, validate and test, and which few of them are enough to train on."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from fastht.data.cases import SPLITS, Case, CaseSet, Split, parse_split, sort_classes, split_part
from fastht.data.images import DataError
from fastht.data.places import Group, place_of
from fastht.data.tables import read_table

_SAMPLE_SPLIT = (0.1, 0.2, 0)  # shares of val and test, and the seed, of the sample's own sides


def split_cases(
    cases: CaseSet,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    *,
    seed: int = 0,
    kept: Mapping[str, Split] | None = None,
) -> CaseSet:
    """Give every case a split, all cases of a patient the same one.

    Which one depends on the seed and on the patient's or, without patient, the image's name alone:
    whoever sorts cases, adds or removes some moves nobody. So the fractions are met on average, of
    few patients more or less. Only where a class would not train, or a side would be empty, the
    patient goes over who is nearest to it.

    Splits that the cases have already stay as they are; a side that then lacks is taken out of
    the training cases, e.g. an eighth of them for validation where 0.7 train and 0.1 validate.

    fractions: of train, val and test; those of val and test may be 0.
    kept: splits by the names of cases, from a run that goes on; of these cases, no other is chosen.

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
    groups: dict[Group, list[Case]] = defaultdict(list)
    for case in cases:
        if case.split in (None, "train"):
            by_patient = case.patient is not None
            groups[by_patient, case.patient or split_part(case.image)[0]].append(case)
    if len(groups) < len(sides):
        what = f"{len(groups)} patients or images for {len(sides)} sides ({', '.join(sides)})"
        raise DataError(f"{cases.source}: {what}; add cases or set fractions to 0")
    named: dict[Group, list[Case]] = defaultdict(list)
    for key, group in groups.items():
        named[key if key[0] else (False, _file_name(group))] += group
    dealt = _deal(named, share, sides, seed, kept or {})
    return _assign(cases, {case: dealt[key] for key, group in named.items() for case in group})


def sample_sides(
    cases: Iterable[Case], fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> dict[str, Split]:
    """The sides that the embedded sample comes with, by the names of its cases.

    112, 16 and 32 patients. Its documented numbers are of these, whatever else deals sides out.

    fractions, seed: as :func:`split_cases` takes them; of others than its defaults there are none.
    """
    if (*fractions[1:], seed) != _SAMPLE_SPLIT:
        return {}
    file = Path(str(resources.files("fastht.data") / "sample" / "sides.csv"))
    sides = {row["patient"]: parse_split(row["split"]) for _, row in read_table(file)[1]}
    found = ((case.name, sides.get(case.patient or "")) for case in cases)
    return {name: side for name, side in found if side is not None}


def few_shot(
    cases: Sequence[Case], percent: float, *, seed: int = 0, at_least: int = 1
) -> tuple[Case, ...]:
    """A share of training cases: that percentage of every class, rounded down, at least one case.

    Cases without label count as one class. Single cases are chosen, not whole patients, as in the
    paper; nothing leaks by it, since all of them are training cases. With the same seed, a smaller
    percentage gives a part of what a larger one gives.

    at_least: cases of a class that has as many.

    Raises DataError if percent is not above 0 and at most 100, or there is no case.
    """
    if not 0 < percent <= 100:
        raise DataError(f"few-shot percentage is {percent}; choose one above 0 and at most 100")
    # The margin is for shares such as 0.29 %, which binary fractions miss by a hair.
    return _of_each_class(
        cases, seed, lambda count: max(at_least, int(percent * count / 100 + 1e-9))
    )


def k_shot(cases: Sequence[Case], shots: int, *, seed: int = 0) -> tuple[Case, ...]:
    """That many training cases of every class, all of a class that has fewer.

    Chosen as by :func:`few_shot`: with the same seed, fewer shots are a part of more.

    Raises DataError if there is no shot or no case.
    """
    if shots < 1:
        raise DataError(f"{shots} shots; choose at least 1")
    return _of_each_class(cases, seed, lambda count: shots)


def _of_each_class(
    cases: Sequence[Case], seed: int, wanted: Callable[[int], int]
) -> tuple[Case, ...]:
    """As many cases of every class as is wanted of its number, in the order of the cases."""
    if not cases:
        raise DataError("no training cases to take a share of; check the splits")
    classes: dict[str | None, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: _rank(case.name, seed)):
        classes[case.label].append(case)
    kept: set[Case] = set()
    for members in classes.values():
        kept.update(members[: wanted(len(members))])
    return tuple(case for case in cases if case in kept)


def _deal(
    groups: Mapping[Group, list[Case]],
    share: Mapping[Split, float],
    sides: Sequence[Split],
    seed: int,
    kept: Mapping[str, Split],
) -> dict[Group, Split]:
    """Give each group a side; every side gets at least one, and every class trains."""
    spans = _spans(share, sides)
    places = {key: place_of(key, seed) for key in sorted(groups)}

    def distance(key: Group, side: Split) -> float:
        low, high = spans[side]
        return max(low - places[key], places[key] - high, 0.0)

    dealt = {key: min(sides, key=lambda side: distance(key, side)) for key in places}
    members: dict[str, list[Group]] = defaultdict(list)
    for key in places:
        for label in sort_classes(case.label for case in groups[key] if case.label is not None):
            members[label].append(key)
    # A class that does not train cannot be learnt.
    for held in members.values():
        if not _training(held, dealt):
            dealt[min(held, key=lambda key: distance(key, "train"))] = "train"
    for side in sides:
        if side in dealt.values():
            continue
        filled = Counter(dealt.values())
        spare = [key for key in places if filled[dealt[key]] > 1]
        only = {found[0] for held in members.values() if len(found := _training(held, dealt)) == 1}
        giving = [key for key in spare if key not in only] or spare
        dealt[min(giving, key=lambda key: distance(key, side))] = side
    for key, group in groups.items():
        before = {kept.get(case.name) for case in group}
        if len(before) == 1 and (only_one := before.pop()) is not None:
            dealt[key] = only_one
    return dealt


def _training(keys: Iterable[Group], dealt: Mapping[Group, Split]) -> list[Group]:
    return [key for key in keys if dealt[key] == "train"]


def _spans(
    share: Mapping[Split, float], sides: Sequence[Split]
) -> dict[Split, tuple[float, float]]:
    """The span of places of each side. That of training is between the others, so that whoever
    changes the share of one moves nobody between other two.
    """
    total = sum(share[side] for side in sides)
    low = share["val"] / total if "val" in sides else 0.0
    high = 1 - share["test"] / total if "test" in sides else 1.0
    spans: dict[Split, tuple[float, float]] = {
        "train": (low, high),
        "val": (0.0, low),
        "test": (high, 1.0),
    }
    return {side: spans[side] for side in sides}


def _file_name(cases: Iterable[Case]) -> str:
    """The name of the file that these cases are of, as the set names it, wherever it lies."""
    return min(
        case.name if part is None else re.sub(rf"-0*{re.escape(part)}$", "", case.name)
        for case in cases
        for part in [split_part(case.image)[1]]
    )


def _assign(cases: CaseSet, chosen: dict[Case, Split]) -> CaseSet:
    return replace(
        cases,
        cases=tuple(replace(case, split=chosen.get(case, case.split)) for case in cases),
    )


def _rank(name: str, seed: int) -> bytes:
    """A sort key that looks random and is the same everywhere, whatever other names there are."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()

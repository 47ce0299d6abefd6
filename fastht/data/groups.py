"""Groups of records that belong together, and their split by a stable hash."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastht.data.cases import SPLITS, Case, CaseSet, Split, split_part
from fastht.data.images import DataError
from fastht.data.places import place

PATIENT, IMAGE, CAPTION = "patient", "image", "caption"
_Key = tuple[str, str]  # what it is of, and which


@dataclass(frozen=True)
class Groups:
    """The groups of a set.

    Attributes:
        members: positions of each group's cases, in the order of the first of each.
        names: the key that each group goes by.
        linked: how many groups hold several values of one key, such as a patient's two cases.
    """

    members: tuple[tuple[int, ...], ...]
    names: tuple[_Key, ...]
    linked: int


def find_groups(cases: Sequence[Case], by: Sequence[str] = (PATIENT,), *, seed: int = 0) -> Groups:
    """Put cases together that share a key, and those that share one with these.

    by: "patient", names of a case's groups, "caption"; the first that a group has names it. A case
        without any is one with those of its image.
    seed: decides which of a group's keys names it.
    """
    above: dict[_Key, _Key] = {}

    def root(key: _Key) -> _Key:
        above.setdefault(key, key)
        while above[key] != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    keys = [_keys(case, by) for case in cases]
    for first, *others in keys:
        for other in others:
            above[root(other)] = root(first)
    members: dict[_Key, list[int]] = defaultdict(list)
    held: dict[_Key, set[_Key]] = defaultdict(set)
    for index, own in enumerate(keys):
        members[root(own[0])].append(index)
        held[root(own[0])] |= {*own}
    order = {kind: number for number, kind in enumerate((*by, IMAGE))}
    names = [
        min(held[group], key=lambda key: (order[key[0]], _rank(key, seed), key))
        for group in members
    ]
    linked = sum(
        max(Counter(kind for kind, _ in held[group] if kind != IMAGE).values(), default=0) > 1
        for group in members
    )
    return Groups(tuple(map(tuple, members.values())), tuple(names), linked)


def split_groups(
    cases: CaseSet,
    ratios: tuple[float, float, float] = (0.6, 0.2, 0.2),
    *,
    by: Sequence[str] = (PATIENT,),
    seed: int = 0,
) -> tuple[CaseSet, Groups]:
    """Give every case a split, all of a group the same one.

    Which one depends on the seed and on the name of the group alone: records may be added, removed
    and sorted, and no group moves. Only a record that links two groups makes one, of which the
    part that does not name it may move. So the ratios are met on average, and less nearly the
    fewer groups there are.

    ratios: of train, val and test; those of val and test may be 0.

    Raises DataError if the ratios are no such numbers, a key of `by` is in no case, the cases have
    splits, or a side stays empty.
    """
    if not (ratios[0] > 0 and min(ratios) >= 0 and abs(sum(ratios) - 1) < 1e-6):
        raise DataError(f"ratios {ratios} of train, val and test; choose shares of 1")
    if any(case.split is not None for case in cases):
        what = "the data has a split already, which is not replaced unasked"
        raise DataError(f"{cases.source}: {what}; keep it, or ask for a new one by --anew")
    there = {kind for case in cases for kind, _ in _keys(case, by)}
    if lost := [kind for kind in by if kind not in there]:
        known = ", ".join(sorted({name for case in cases for name, _ in case.groups}))
        what = f"no {', '.join(lost)} to split by (keys of groups: {known or 'none'})"
        raise DataError(f"{cases.source}: {what}; name columns by --patient-key, --group-keys")
    groups = find_groups(cases.cases, by, seed=seed)
    chosen: dict[int, Split] = {}
    for members, name in zip(groups.members, groups.names, strict=True):
        side = _side(place(_text(name), seed), ratios)
        chosen |= dict.fromkeys(members, side)
    found = replace(
        cases, cases=tuple(replace(case, split=chosen[i]) for i, case in enumerate(cases))
    )
    empty = [side for side, share in zip(SPLITS, ratios, strict=True) if share]
    if empty := [side for side in empty if side not in chosen.values()]:
        what = f"no group of {len(groups.members):,} falls into {' or '.join(empty)}"
        raise DataError(f"{cases.source}: {what}; choose another --seed, or ratios")
    return found, groups


def _side(position: float, ratios: Sequence[float]) -> Split:
    reach = 0.0
    for side, share in zip(SPLITS, ratios, strict=True):
        reach += share
        if position < reach:
            return side
    return max(
        (side for side, share in zip(SPLITS, ratios, strict=True) if share), key=SPLITS.index
    )


def _keys(case: Case, by: Sequence[str]) -> list[_Key]:
    """The keys of a case, the first ones first; that of its image where there is no other."""
    groups = dict(case.groups)
    found: list[_Key] = []
    for kind in by:
        if kind == PATIENT and case.patient is not None:
            found.append((kind, case.patient))
        elif kind == CAPTION and (words := " ".join(case.caption.split())):
            found.append((kind, words))
        found += [(kind, value) for value in groups.get(kind, ())]
    return found or [(IMAGE, Path(split_part(case.image)[0]).name)]


def _rank(key: _Key, seed: int) -> float:
    """What chooses a group's name; apart from its place, or linked groups would crowd in train."""
    return place(f"name of {_text(key)}", seed)


def _text(key: _Key) -> str:
    return f"{key[0]}:{key[1]}"

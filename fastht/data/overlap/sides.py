"""What two data sets share, or one with itself, and whether it is on two sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

from fastht.data.cases import Case, CaseSet
from fastht.data.notes import examples
from fastht.data.overlap.equal import Group
from fastht.data.overlap.fingerprints import Fingerprints
from fastht.data.overlap.shared import KINDS, Kind, Pair, find_pairs, same_patients


@dataclass(frozen=True)
class SharedGroup:
    """Many equal images. apart, inside: their pairs on two sides, and on one.

    first, second: the cases of either set, which are the same for one. example: two of them, on two
    sides where there are such.
    """

    group: Group
    apart: int
    inside: int
    first: tuple[Case, ...]
    second: tuple[Case, ...]
    example: tuple[Case, Case]

    @property
    def members(self) -> tuple[Case, ...]:
        """Each case once."""
        return self.first if self.group.one_source else (*self.first, *self.second)

    def describe(self) -> str:
        """Kind, size, sides and the first names, in one line."""
        members = self.members
        text = f"{KINDS[self.group.kind]}: {len(members):,} images"
        if not self.group.one_source:
            text += f", {len(self.first):,} of the first and {len(self.second):,} of the second"
        splits = Counter(case.split or "no split" for case in members)
        if any(case.split for case in members):
            text += f" ({' | '.join(f'{split} {n:,}' for split, n in splits.items())})"
        if patients := len({case.patient for case in members} - {None}):
            text += f", {patients:,} patients"
        others = [case for case in members if case not in self.example]
        return (
            f"{text}, {self.apart:,} pairs: {examples(c.image for c in (*self.example, *others))}"
        )


@dataclass(frozen=True)
class Shared:
    """Pairs of two sets, or of one. inside: of one side, where copies leak nothing.

    groups: of many equal images, whose pairs are in neither.
    """

    first: CaseSet
    second: CaseSet
    pairs: tuple[Pair, ...]
    inside: tuple[Pair, ...] = ()
    patients: tuple[str, ...] = ()
    cut: int = 0
    groups: tuple[SharedGroup, ...] = ()

    @property
    def leaking(self) -> tuple[SharedGroup, ...]:
        """Groups with images on two sides."""
        return tuple(group for group in self.groups if group.apart)

    def counts(self) -> Counter[Kind]:
        """Pairs on two sides by kind, those of groups too."""
        kinds: Counter[Kind] = Counter(pair.kind for pair in self.pairs)
        for group in self.leaking:
            kinds[group.group.kind] += group.apart
        return kinds

    def counts_inside(self) -> Counter[Kind]:
        """Pairs on one side by kind, those of groups too."""
        kinds: Counter[Kind] = Counter(pair.kind for pair in self.inside)
        for group in self.groups:
            if group.inside:
                kinds[group.group.kind] += group.inside
        return kinds


def between(a: CaseSet, b: CaseSet, of_a: Fingerprints, of_b: Fingerprints) -> Shared:
    """What two sets share."""
    found = find_pairs(of_a, of_b)
    first, second = cases_once(a), cases_once(b)
    groups = []
    for group in found.groups:
        mine = tuple(first[i] for i in group.first)
        theirs = tuple(second[j] for j in group.second)
        groups.append(SharedGroup(group, group.pairs, 0, mine, theirs, (mine[0], theirs[0])))
    return Shared(a, b, found.pairs, (), same_patients(a, b), found.cut, tuple(groups))


def within(cases: CaseSet, prints: Fingerprints) -> Shared:
    """What one set shares with itself, apart from what is on one side anyway."""
    every = cases_once(cases)
    found = find_pairs(prints)
    sides = [_side(case, i) for i, case in enumerate(every)]
    apart: list[Pair] = []
    inside: list[Pair] = []
    for pair in found.pairs:
        (inside if sides[pair.first] == sides[pair.second] else apart).append(pair)
    groups = []
    for group in found.groups:
        members = tuple(every[i] for i in group.first)
        where = [sides[i] for i in group.first]
        on_one = group.pairs_within(where)
        other = next((i for i, side in enumerate(where) if side != where[0]), 1)
        example = members[0], members[other]
        groups.append(SharedGroup(group, group.pairs - on_one, on_one, members, members, example))
    patients = same_patients(cases)
    return Shared(cases, cases, tuple(apart), tuple(inside), patients, found.cut, tuple(groups))


def _side(case: Case, number: int) -> Hashable:
    """What two images must have in common for copies to leak nothing.

    Without splits, a command makes some, and parts what is not of one patient.
    """
    if case.split is not None:
        return "split", case.split
    return ("patient", case.patient) if case.patient is not None else ("image", number)


def cases_once(cases: CaseSet) -> list[Case]:
    """The cases in the order of their fingerprints: an image that has several counts once."""
    found: dict[str, Case] = {}
    for case in cases:
        found.setdefault(case.image, case)
    return list(found.values())

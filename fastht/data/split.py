"""``fastht data split``: sides for a data set, by patient or case, and what they still share."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from fastht.data.cases import SPLITS, CaseSet, Need
from fastht.data.export import TABLE_NAME, with_masks, write_cases
from fastht.data.groups import PATIENT, Groups, split_groups
from fastht.data.images import DataError
from fastht.data.notes import examples, plural
from fastht.data.overlap.fingerprints import fingerprint
from fastht.data.overlap.shared import KINDS
from fastht.data.overlap.sides import within
from fastht.data.source import DataSource


@dataclass(frozen=True)
class SplitArguments(DataSource):
    """Write a data set as a table with a column of splits, in which no patient is on two sides.

    Which side a patient is on depends on the seed and the patient alone: whoever adds or sorts rows
    moves nobody. Exit status 1 if sides share images all the same, or some cannot be used.

    Attributes:
        data: "sample", a folder, or a CSV, TSV, JSON or Parquet table.
        out: folder of the table.
        by: keys that keep images together, and whatever shares one of them: "patient", the
            columns of --group-keys, "caption". Default: the patient and all of --group-keys.
        ratios: of train, val and test.
        seed: another one gives other sides.
        anew: replace the splits that the data has.
        images: read all images and tell which are the same on two sides.
        task: what has to be there: masks (segment), labels (classify), captions (pairs), nothing.
    """

    data: Annotated[str, tyro.conf.Positional] = "sample"
    out: Path = Path("runs/split")
    by: tuple[str, ...] = ()
    ratios: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seed: int = 0
    anew: bool = False
    images: bool = True
    task: Need = "image"


def split(arguments: SplitArguments) -> int:
    """Write the table and tell of it; return the exit status.

    Raises DataError if the set cannot be read or split, or the folder holds a table already.
    """
    if (table := arguments.out / TABLE_NAME).exists():
        raise DataError(f"{table} is there already; give another --out")
    found = arguments.load(arguments.task, leave_out=True)
    if arguments.task != "segment":
        found = replace(found, cases=with_masks(arguments, found))
    if arguments.anew:
        found = replace(found, cases=tuple(replace(case, split=None) for case in found))
    named = dict.fromkeys(name for case in found for name, _ in case.groups)
    patient = (PATIENT,) if any(case.patient is not None for case in found) else ()
    by = arguments.by or (*patient, *named)
    if not by:
        what = "no patient and no key of groups, so that images of one patient may part"
        raise DataError(f"{found.source}: {what}; give --patient-key, or --by caption")
    divided, groups = split_groups(found, arguments.ratios, by=by, seed=arguments.seed)
    status = write_cases(arguments.out, divided)
    print(*describe(divided, groups, by, arguments.ratios), sep="\n")
    shared, lines = leaks(divided, images=arguments.images)
    print(*lines, sep="\n")
    return 1 if shared else status


def describe(
    cases: CaseSet, groups: Groups, by: tuple[str, ...], ratios: tuple[float, float, float]
) -> list[str]:
    """Lines on the groups, and on the shares that the sides have got."""
    sizes = Counter(cases.cases[members[0]].split for members in groups.members)
    images = Counter(case.split for case in cases)
    largest = max(map(len, groups.members))
    lines = [
        f"{plural(len(groups.members), 'group')} by {', '.join(by)}, the largest of "
        f"{plural(largest, 'image')}; {groups.linked:,} with several values of one key"
    ]
    for side, share in zip(SPLITS, ratios, strict=True):
        if share:
            got = 100 * images[side] / len(cases)
            lines.append(
                f"  {side:<6}{sizes[side]:>8,} groups{images[side]:>10,} images, {got:.1f} % "
                f"(asked for {100 * share:.1f} %)"
            )
    return lines


def leaks(cases: CaseSet, *, images: bool) -> tuple[int, list[str]]:
    """How many pairs of images the sides share, and lines on all that they share."""
    lines = ["what the sides share:"]
    patients: dict[str, set[str | None]] = defaultdict(set)
    captions: dict[str, set[str | None]] = defaultdict(set)
    for case in cases:
        keys = [("patient", (case.patient,))] if case.patient is not None else []
        for name, values in (*keys, *case.groups):
            for value in values:
                patients[f"{name} {value}"].add(case.split)
        if case.caption:
            captions[case.caption].add(case.split)
    parted = [key for key, sides in patients.items() if len(sides) > 1]
    alike = [caption for caption, sides in captions.items() if len(sides) > 1]
    for what, found in (("groups", parted), ("captions", alike)):
        lines.append(f"  {what}: {len(found):,}" + (f" ({examples(found, 2)})" if found else ""))
    if not images:
        return len(parted), [*lines, "  images: not read (--no-images)"]
    prints = fingerprint(cases.cases, title="reading images")
    shared = within(cases, prints)
    kinds = shared.counts()
    lines += [f"  images, {text}: {kinds[kind]:,}" for kind, text in KINDS.items()]
    lines += [f"    in a group of {group.describe()}" for group in shared.leaking]
    if prints.unreadable:
        lines.append(f"  {plural(len(prints.unreadable), 'image')} could not be read")
    if kinds:
        lines.append("  `fastht data overlap` on the table lists and draws the images")
    return len(parted) + kinds.total(), lines

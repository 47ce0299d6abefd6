"""``fastht data check``: read a whole data set and list everything that is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from tqdm import tqdm

from fastht.data.account import note_sides, one_class
from fastht.data.cases import SPLITS, Case, CaseSet, Need, read_case_image, sort_classes
from fastht.data.images import DataError
from fastht.data.layouts import scan_cases
from fastht.data.lesions import lesion_notes
from fastht.data.masks import read_mask
from fastht.data.notes import examples
from fastht.data.records import Record
from fastht.data.resize import lost_when_small
from fastht.data.source import DataSource
from fastht.data.spacing import Spacing, read_spacing


@dataclass(frozen=True)
class CheckArguments(DataSource):
    """Read all images, masks and labels of a data set; list what is wrong and what is there.

    Attributes:
        task: "segment" needs masks, "classify" labels, "image" nothing; "pairs", images with
            captions as fastht train reads them, has options of its own
            (`fastht data check --task pairs --help`).
        image_size: side of the images in a model, at which small lesions are looked for.
    """

    task: Need = "segment"
    image_size: int = 224


@dataclass
class Findings:
    """What a check has found."""

    summary: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, no reason to stop
    problems: list[str] = field(default_factory=list)  # "file: what; remedy"


def check(arguments: CheckArguments) -> int:
    """Print the findings; return the exit status, 1 if there is a problem."""
    try:
        options = asdict(arguments)
        size = options.pop("image_size")
        found, problems = scan_cases(**options)
        findings = inspect_cases(found, arguments.task, size)
        if arguments.task == "classify" and len(found.classes) == 1:
            problems.append(one_class(found))
        # A case that is listed twice has its problems only once.
        findings.problems = list(dict.fromkeys(problems + findings.problems))
    except DataError as error:
        findings = Findings(problems=[str(error)])
    return tell(findings)


def tell(findings: Findings) -> int:
    """Print findings; return the exit status, 1 if there is a problem."""
    print(*findings.summary, *(f"note: {note}" for note in findings.notes), sep="\n")
    count = len(findings.problems)
    print(f"\n{count or 'no'} problem{'' if count == 1 else 's'}{':' if count else ''}")
    for problem in findings.problems:
        print(f"  {problem}")
    return 1 if count else 0


def inspect_cases(cases: CaseSet, task: Need, image_size: int = 224) -> Findings:
    """Read every image and, for segmentation, every mask; collect instead of raising."""
    findings = Findings([cases.describe(), *count_table(cases.cases)])
    findings.notes += [note.text for note in (*cases.notes, *note_sides(cases)) if note.text]
    small: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    shares: dict[str, float] = {}  # of foreground, by name
    spacings: list[Spacing | None] = []
    same: dict[bytes, list[Case]] = defaultdict(list)
    flat: list[str] = []
    for case in tqdm(cases, desc="reading", unit="image", leave=False):
        try:
            image = read_case_image(case)
            sizes[image.size] += 1
            pixels = np.asarray(image)
            if (pixels == pixels[0, 0]).all():
                flat.append(case.name)  # nothing in it could leak
            else:
                key = repr(image.size).encode() + pixels.tobytes()
                same[hashlib.sha256(key).digest()].append(case)
            if task == "segment":
                mask = read_mask(case, image.size)
                shares[case.name] = float(mask.mean())
                if lost_when_small(mask, (image_size, image_size)):
                    small.append(case.name)
                spacings.append(read_spacing(case))
        except DataError as error:
            findings.problems.append(str(error))
    findings.summary += describe_pixels(sizes, list(shares.values()))
    findings.summary += _describe_spacings(spacings)
    empty = [name for name, share in shares.items() if not share]
    findings.notes += [note.text for note in lesion_notes(empty, small, image_size)]
    if flat:
        findings.notes.append(f"{len(flat):,} images of a single colour: {examples(flat)}")
    _compare(findings, [group for group in same.values() if len(group) > 1])
    follow_patients(findings, cases)
    return findings


def _compare(findings: Findings, groups: list[list[Case]]) -> None:
    """Judge images that are equal pixel by pixel."""
    repeated: list[str] = []
    for first, *others in groups:
        for other in others:
            if other.image == first.image:
                continue  # listed twice, which the readers tell
            what = f"{other.image}: the same pixels as {first.image}"
            if other.split != first.split:
                sides = f"that one in {first.split}, this in {other.split}"
                findings.problems.append(f"{what}, {sides}; remove one of the two")
            elif other.label != first.label:
                labels = f"that one labelled {first.label}, this {other.label}"
                findings.problems.append(f"{what}, {labels}; correct one or remove both")
            else:
                repeated.append(f"{other.name} of {first.name}")
    if repeated:
        findings.notes.append(f"{len(repeated):,} copies: {examples(repeated)}")


def follow_patients(findings: Findings, cases: Iterable[Case | Record]) -> None:
    """Note patients on several sides: published splits have some, and are what they are."""
    sides: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.patient is not None and case.split is not None:
            sides[case.patient].add(case.split)
    if several := sorted(patient for patient, splits in sides.items() if len(splits) > 1):
        findings.notes.append(f"{len(several):,} patients in several splits: {examples(several)}")


def describe_pixels(sizes: Counter[tuple[int, int]], shares: list[float]) -> list[str]:
    """Lines of the sizes that most images have, and of the share of foreground if any is known."""
    lines = []
    if sizes:
        common = [f"{w} x {h} ({count:,})" for (w, h), count in sizes.most_common(3)]
        more = f" and {len(sizes) - 3:,} other sizes" if len(sizes) > 3 else ""
        lines.append(f"image sizes: {', '.join(common)}{more}")
    if shares:
        mean, low, high = (100 * value for value in (np.mean(shares), min(shares), max(shares)))
        lines.append(f"foreground: {mean:.1f} % of an image, from {low:.1f} to {high:.1f} %")
    return lines


def _describe_spacings(spacings: list[Spacing | None]) -> list[str]:
    """Of how many images the pixels have a size in the body, and which."""
    known = [spacing for spacing in spacings if spacing is not None]
    if not spacings:
        return []
    lengths = sorted(length for spacing in known for length in spacing.mm)
    sizes = f", from {lengths[0]:.3g} to {lengths[-1]:.3g} mm" if lengths else ""
    return [f"pixel spacing: known of {len(known):,} of {len(spacings):,} images{sizes}"]


def count_table(cases: Sequence[Case | Record]) -> list[str]:
    """Rows of classes and columns of splits, where there are both."""
    counts = Counter((case.label, case.split) for case in cases)
    splits = [split for split in SPLITS if any(key[1] == split for key in counts)]
    classes = sort_classes(case.label for case in cases if case.label is not None)
    if not classes or not splits:
        return []
    width = max(map(len, classes))
    lines = [" " * width + "".join(f"{split:>8}" for split in splits)]
    for label in classes:
        cells = (f"{counts[label, split]:>8,}" for split in splits)
        lines.append(f"{label:<{width}}{''.join(cells)}")
    return lines

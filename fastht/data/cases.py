"""Cases: images with masks or labels, for segmentation and classification."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from PIL import Image

from fastht.data.archives import is_zipped, read_zipped
from fastht.data.captions import clean_caption
from fastht.data.images import DataError, read_image
from fastht.data.notes import Note, account, examples, plural
from fastht.data.parquet import is_cell, read_cell
from fastht.data.volumes import is_volume, read_slice

Task = Literal["segment", "classify"]
Need = Literal["segment", "classify", "pairs", "image"]
"""What is needed beside an image: a mask, a label, a caption, nothing."""

Values = tuple[tuple[str, tuple[str, ...]], ...]
"""What fields hold, each some values: (("Shape", ("oval", "round")), ...)."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One image and what is known about it.

    A file may be followed by "::" and a part of it: "scan.nii.gz::12" is slice 12 of a volume,
    "clip.dcm::3" a frame, "table.parquet::image/7" a cell, "images.zip::a.jpg" a member and, among
    masks, "annotation.xml::1" the outlines on image 1.
    """

    name: str  # unique in its set; outputs are named after it
    image: str
    masks: tuple[str, ...] = ()  # their union is the foreground
    label: str | None = None
    patient: str | None = None
    caption: str = ""  # as the data has it; whoever reads it cleans it
    split: Split | None = None
    origin: str | None = None  # of a set that pools others: the one that the image is from
    tags: Values = ()  # of each field that was asked for and is there, in order
    groups: Values = ()  # likewise keys that tie images together beside the patient


@dataclass(frozen=True)
class CaseSet:
    """Cases of one source and what was left out."""

    cases: tuple[Case, ...]
    source: str
    layout: str
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> count
    unusable: tuple[str, ...] = ()  # what is wrong with single images, "file: what; remedy"
    notes: tuple[Note, ...] = ()  # what its user should know

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, sorted; numbers by their value. The order is that of the class indices."""
        return sort_classes(case.label for case in self if case.label is not None)

    def side(self, split: Split) -> tuple[Case, ...]:
        """The cases of one split."""
        return tuple(case for case in self if case.split == split)

    def describe(self) -> str:
        """One paragraph: counts by split and class, patients, what was left out and why."""
        parts = [f"{len(self):,} cases from {self.source} (layout {self.layout})"]
        labels = Counter(case.label for case in self)
        if classes := self.classes:
            parts.append(", ".join(f"{labels[label]:,} {label}" for label in classes))
        if patients := {case.patient for case in self} - {None}:
            parts.append(f"{len(patients):,} patient{'s' if len(patients) > 1 else ''}")
        splits = Counter(case.split for case in self)
        if sides := [f"{split} {splits[split]:,}" for split in SPLITS if splits[split]]:
            parts.append(", ".join(sides))
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        return f"{'; '.join(parts)}; left out: {reasons or 'none'}."

    def account(self) -> str:
        """The paragraph, and a line for each note."""
        return account(self.describe(), self.notes)


@dataclass
class Reading:
    """What the reader of a layout gathers: cases, what it leaves out, what is wrong."""

    cases: list[Case] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)  # "file: what; remedy"
    unusable: list[str] = field(default_factory=list)  # those of them that are of single images
    notes: list[Note] = field(default_factory=list)
    used: set[str] = field(default_factory=set)  # tables, lists and the like that were read

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note a DataError and go on after the block, so that other problems are found too."""
        try:
            yield
        except DataError as error:
            self.problems.append(str(error))
            self.unusable.append(str(error))

    def finish(self, source: str, layout: str, task: Need) -> CaseSet:
        """Make the set, and note what makes it unfit for what is needed."""
        left_out, notes = dict(self.left_out), tuple(self.notes)
        found = CaseSet(tuple(self.cases), source, layout, left_out, notes=notes)
        self._note_repeated(captions=task == "pairs")
        lacking: list[str] = []
        if task == "classify" and found.cases:
            unlabelled = [case for case in found if case.label is None]
            if len(unlabelled) == len(found):
                self.problems.append(f"{source}: no image has a label; classification needs them")
            else:
                remedy = "give it one or remove the image"
                lacking = [f"{case.image}: no label; {remedy}" for case in unlabelled]
                self.problems += lacking
            for alike in labels_alike(case.label for case in found):
                what = f"classes that differ in spelling alone: {', '.join(alike)}"
                self.problems.append(f"{source}: {what}; write them alike")
        if (
            task == "pairs"
            and found.cases
            and not any(clean_caption(case.caption) for case in found)
        ):
            what = "no image has a caption that is in letters which the text towers read"
            self.problems.append(f"{source}: {what}; give a column that has, by its key")
        if not found.cases and not self.problems:
            self.problems.append(f"{source}: no image is left; {found.describe()}")
        return replace(found, unusable=(*self.unusable, *lacking))

    def _note_repeated(self, *, captions: bool) -> None:
        """Note cases that share their image or their name; an image may have several captions."""
        by_image: dict[str, Case] = {}
        by_name: dict[str, Case] = {}
        for case in self.cases:
            first = by_image.setdefault(case.image, case)
            if first is not case:
                if captions and first.split == case.split and first.caption != case.caption:
                    continue
                if first.split != case.split:
                    what = f"in {first.split} and in {case.split}; remove it from one of them"
                else:
                    what = "listed twice; remove one of the two"
                self.problems.append(f"{case.image}: {what}")
                continue
            first = by_name.setdefault(case.name, case)
            if first is not case:
                what = f"has the same name as {first.image}, {case.name}; rename one of them"
                self.problems.append(f"{case.image}: {what}")


def labels_alike(labels: Iterable[str | None]) -> list[tuple[str, ...]]:
    """Names that people mean the same by, in groups.

    They differ in case, spaces, the form of their letters in Unicode or how a number is written,
    as 1, 01 and 1.0.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    for label in labels:
        if label is not None:
            plain = unicodedata.normalize("NFKC", label).casefold().replace("_", " ")
            bare = "".join(plain.split())
            number = re.fullmatch(r"(-?)0*([0-9]+)(?:\.0+)?", bare)
            spellings["".join(number.groups()) if number else bare].add(label)
    return [tuple(sorted(alike)) for alike in spellings.values() if len(alike) > 1]


def note_alike(patients: Iterable[str | None]) -> Iterator[Note]:
    """Note patients who may be one: they could be trained on and held out."""
    if groups := labels_alike(patients):
        text = f"{plural(len(groups), 'patient')} perhaps under several names: "
        shown = examples(" = ".join(group) for group in groups)
        remedy = "they are taken for different ones: write those who are one alike"
        yield Note("patients_alike", len(groups), f"{text}{shown}; {remedy}")


def sort_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels in a fixed order: as numbers if all of them are, else as text."""
    different = set(labels)
    number = all(re.fullmatch(r"-?\d+", label, re.ASCII) for label in different)
    return tuple(sorted(different, key=lambda label: (int(label) if number else 0, label)))


def parse_split(name: str) -> Split | None:
    """The split that a folder or cell names, e.g. "valid" for val; None if it names none."""
    return _SPLIT_NAMES.get(name.strip().lower())


def side_of(cell: str, where: str) -> Split | None:
    """The split that a cell names; None if it is empty. Raises DataError if it names none."""
    split = parse_split(cell)
    if split is None and cell:
        what = f"split {cell!r} is none of train, val and test"
        raise DataError(f"{where}: {what}; correct the cell")
    return split


def split_part(file: str) -> tuple[str, str | None]:
    """Path and part of a file as cases name it."""
    path, mark, part = file.rpartition("::")
    # A cell of a table is an image by itself, as a member of a tar is, and no frame of a file.
    return (path, part) if mark and not is_inside(file) else (file, None)


def is_inside(file: str) -> bool:
    """Whether a name is of an image in a Parquet table or a zip file."""
    return is_cell(file) or is_zipped(file)


def read_inside(image: str) -> bytes:
    """The bytes of such an image. Raises DataError if it is not there."""
    return read_cell(image) if is_cell(image) else read_zipped(image)


def read_case_image(case: Case) -> Image.Image:
    """The image as 8-bit "RGB". Raises DataError, with the name of the file."""
    path, part = split_part(case.image)
    if is_inside(path):
        return read_image(read_inside(path), name=path)
    if part is None:
        return read_image(path)
    if is_volume(path):
        return Image.fromarray(read_slice(path, int(part))).convert("RGB")
    return read_image(path, frame=int(part), name=case.image)

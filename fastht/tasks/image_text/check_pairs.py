"""``fastht data check --task pairs``: read all images with captions, list what is wrong."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any, Literal

import open_clip
from tqdm import tqdm

from fastht.data import DataError, ImageTextDataset, Record, RecordSet, load_records
from fastht.data.captions import Cleaning
from fastht.data.check import Findings, count_table, describe_pixels, follow_patients, tell
from fastht.data.headers import with_frames_noted
from fastht.data.layouts import scan_cases
from fastht.data.notes import examples, plural
from fastht.data.set_records import is_set, make_records
from fastht.data.source import DataSource
from fastht.tasks.image_text.caption_fit import CaptionFit, CaptionPart, find_cut
from fastht.tasks.image_text.reading import READING_OPTIONS
from fastht.tasks.models.build import model_source


@dataclass(frozen=True)
class PairsCheckArguments(DataSource):
    """Read all images and captions of a data set as fastht train does; list what is wrong.

    Beside what the options below say of folders, JSON and Parquet, keys name columns of tables.

    Attributes:
        task: "pairs".
        data: "sample", a CSV or TSV table, webdataset shards ("shards/{000..009}.tar"), or a
            folder, JSON or Parquet file of a layout with captions.
        image_dirs: folders in which relative image paths are looked up, before that of the file.
        cleaning: what captions keep: letters of every script, or ASCII alone as in the paper.
        caption_part: what is read of captions that are longer than the text tower reads.
        model: whose text tower is to read the captions.
    """

    task: Literal["pairs"] = "pairs"
    data: str = "sample"
    image_dirs: tuple[str, ...] = ()
    cleaning: Cleaning = "letters"
    caption_part: CaptionPart = "start"
    model: str = "ViT-B-16"


def check_pairs(arguments: PairsCheckArguments) -> int:
    """Print the findings; return the exit status, 1 if there is a problem."""
    try:
        records, problems = _load(arguments)
    except DataError as error:
        return tell(Findings(problems=[str(error)]))
    if records is None:
        return tell(Findings(problems=problems))
    findings = inspect_records(records)
    findings.problems = list(dict.fromkeys(problems + findings.problems))
    captions = [record.caption for record in records]
    tokenizer = open_clip.get_tokenizer(model_source(arguments.model))
    cut = find_cut(CaptionFit(tokenizer, arguments.caption_part, captions), captions)
    if cut.most_are_equal:
        what = "most captions cannot be told apart"
        told = cut.describe(arguments.caption_part)
        findings.problems.append(f"{records.source}: {what}: {told}")
    else:
        notes = cut.notes(arguments.caption_part)
        findings.notes += [note.text for note in notes if note.text]
    return tell(findings)


def _load(arguments: PairsCheckArguments) -> tuple[RecordSet | None, list[str]]:
    """The pairs, and all that is wrong with those of a set in a layout; None if none is left."""
    options = arguments.reading()
    of_layouts = {
        name for name, value in options.items() if name not in ("data", *READING_OPTIONS) and value
    }
    # By identity, as fold 0 is an option and equals False.
    if arguments.fold is not None:
        of_layouts.add("fold")
    if not of_layouts and not is_set(arguments.data):
        reading = {name: getattr(arguments, name) for name in READING_OPTIONS}
        return load_records(arguments.data, **reading), []
    found, problems = scan_cases(task="pairs", **options)
    found = replace(found, unusable=())  # each is among the problems
    dirs, cleaning = arguments.image_dirs, arguments.cleaning
    try:
        return make_records(found, image_dirs=dirs, cleaning=cleaning), problems
    except DataError as error:
        return None, problems or [str(error)]


def inspect_records(records: RecordSet) -> Findings:
    """Read every image; collect what is wrong instead of raising."""
    records = with_frames_noted(records)
    findings = Findings([records.describe(), *count_table(records.records)])
    findings.notes += [note.text for note in records.notes if note.text]
    sizes: Counter[tuple[int, int]] = Counter()
    images = ImageTextDataset(records.records, _digest)
    same: dict[str, list[Record]] = defaultdict(list)
    read: set[tuple[str, int | None]] = set()
    for index, record in enumerate(tqdm(records, desc="reading", unit="image", leave=False)):
        if (record.image, record.frame) in read:
            continue  # an image of several captions
        read.add((record.image, record.frame))
        try:
            size, digest = images[index]["image"]
            sizes[size] += 1
            same[digest].append(record)
        except DataError as error:
            findings.problems.append(str(error))
    findings.summary += describe_pixels(sizes, [])
    copies = [group for group in same.values() if len(group) > 1]
    apart = [group for group in copies if len({record.patient for record in group}) > 1]
    for group in apart:
        patients = " and ".join(sorted({str(record.patient) for record in group}))
        names = " and ".join(record.name for record in group[:2])
        findings.problems.append(
            f"{names}: the same pixels, of patients {patients}; remove one, or correct the patient"
        )
    for group in (group for group in copies if group not in apart):
        first, *others = group
        for other in others:
            if other.split != first.split:
                sides = f"that one in {first.split}, this in {other.split}; remove one of the two"
                findings.problems.append(f"{other.name}: the same pixels as {first.name}, {sides}")
    if alike := [g for g in copies if g not in apart and len({r.split for r in g}) == 1]:
        some = examples(f"{group[1].name} of {group[0].name}" for group in alike)
        count = sum(len(group) - 1 for group in alike)
        remedy = "without patients, copies may be trained on and held out"
        findings.notes.append(f"{plural(count, 'image')} twice: {some}; {remedy}")
    follow_patients(findings, records)
    return findings


def _digest(image: Any) -> Any:
    """An image's size and a digest of it and the pixels: all that the data set is asked for."""
    return image.size, hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

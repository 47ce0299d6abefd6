"""``fastht data check --task pairs``: read all images with captions, list what is wrong."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
from tqdm import tqdm

from fastht.data import DataError, ImageTextDataset, Record, RecordSet, load_records
from fastht.data.captions import Cleaning
from fastht.data.check import Findings, tell
from fastht.data.headers import read_headers
from fastht.data.notes import examples, plural
from fastht.tasks.image_text.caption_fit import CaptionFit, CaptionPart, find_cut
from fastht.tasks.image_text.run import READING_OPTIONS
from fastht.tasks.models.build import model_source


@dataclass(frozen=True)
class PairsCheckArguments:
    """Read all images and captions of a data set; list what is wrong and what is there.

    Attributes:
        task: "pairs".
        data: "sample", a CSV or TSV table, or webdataset shards ("shards/{000..009}.tar").
        image_key: column of the image files; default: filepath, or filename.
        caption_key: column of the captions; default: title, or Caption.
        label_key: column of the classes; default: label.
        patient_key: column of the patients; default: patient, or a name that means the same.
        frame_key: column of the frames of multi-frame files; default: frame.
        separator: column separator of the table; default: found out.
        image_dirs: folders in which relative image paths are looked up, before the table's own.
        cleaning: what captions keep: letters of every script, or ASCII alone as in the paper.
        caption_part: what is read of captions that are longer than the text tower reads.
        model: whose text tower is to read the captions.
    """

    task: Literal["pairs"] = "pairs"
    data: str = "sample"
    image_key: str | None = None
    caption_key: str | None = None
    label_key: str | None = None
    patient_key: str | None = None
    frame_key: str | None = None
    separator: str | None = None
    image_dirs: tuple[Path, ...] = ()
    cleaning: Cleaning = "letters"
    caption_part: CaptionPart = "start"
    model: str = "ViT-B-16"


def check_pairs(arguments: PairsCheckArguments) -> int:
    """Print the findings; return the exit status, 1 if there is a problem."""
    options = {name: getattr(arguments, name) for name in READING_OPTIONS}
    try:
        records = load_records(arguments.data, **options)
    except DataError as error:
        return tell(Findings(problems=[str(error)]))
    findings = inspect_records(records)
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


def inspect_records(records: RecordSet) -> Findings:
    """Read every image; collect what is wrong instead of raising."""
    findings = Findings([records.describe()], [note.text for note in records.notes if note.text])
    images = ImageTextDataset(records.records, _digest)
    same: dict[str, list[Record]] = defaultdict(list)
    read: set[tuple[str, int | None]] = set()
    for index, record in enumerate(tqdm(records, desc="reading", unit="image", leave=False)):
        if (record.image, record.frame) in read:
            continue  # an image of several captions
        read.add((record.image, record.frame))
        try:
            same[images[index]["image"]].append(record)
        except DataError as error:
            findings.problems.append(str(error))
    copies = [group for group in same.values() if len(group) > 1]
    apart = [group for group in copies if len({record.patient for record in group}) > 1]
    for group in apart:
        patients = " and ".join(sorted({str(record.patient) for record in group}))
        names = " and ".join(record.name for record in group[:2])
        findings.problems.append(
            f"{names}: the same pixels, of patients {patients}; remove one, or correct the patient"
        )
    if alike := [group for group in copies if group not in apart]:
        some = examples(f"{group[1].name} of {group[0].name}" for group in alike)
        count = sum(len(group) - 1 for group in alike)
        remedy = "without patients, copies may be trained on and held out"
        findings.notes.append(f"{plural(count, 'image')} twice: {some}; {remedy}")
    files = [record.image for record in records if ".tar::" not in record.image]
    whole = {record.image for record in records if record.frame is None}
    headers = read_headers(file for file in files if file in whole)
    if several := [file for file, header in headers.items() if header.pictures > 1]:
        what = f"{plural(len(several), 'file')} of several pictures, read in the middle"
        findings.notes.append(f"{what}: {examples(several)}; name one by a column frame")
    return findings


def _digest(image: Any) -> Any:
    """A digest of an image's pixels and size, for a data set that is asked for nothing else."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

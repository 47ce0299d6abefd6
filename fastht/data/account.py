"""The account of an image set: every file that is there, and what may surprise its user."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fastht.data.cases import SPLITS, Case, CaseSet, Need, is_inside, note_alike, split_part
from fastht.data.headers import note_several_pictures, read_headers
from fastht.data.images import DataError
from fastht.data.layouts.files import is_hidden, is_image_file
from fastht.data.notes import Note, examples, plural
from fastht.data.volumes import is_volume, same_place

_NOT_NEEDED = "mask, not needed"
_MASKS = re.compile(r"mask|annotation|segmentation|label", re.IGNORECASE)


def add_account(cases: CaseSet, root: Path, used: Iterable[str], task: Need) -> CaseSet:
    """Count the files of a folder that are not read, and note what headers and labels say.

    used: tables, lists and the like that were read.
    """
    left_out = dict(cases.left_out)
    notes = [*cases.notes, *_note_headers(cases.cases, task), *_note_patients(cases.cases)]
    if task == "segment":
        notes += _note_places(cases.cases)
    if root.is_dir():
        named = (file for case in cases for file in (case.image, *case.masks))
        read = {_container(file) for file in named}
        files = _list_unread(root, read | set(used), task)
        if masks := files.pop(_NOT_NEEDED, []):
            notes.append(Note("masks_not_needed", len(masks), ""))
        for kind, names in sorted(files.items(), key=lambda item: -len(item[1])):
            left_out[kind] = len(names)
        if files:
            some = [name for names in files.values() for name in names[:2]]
            total = sum(map(len, files.values()))
            text = f"{plural(total, 'file')} of the folder not read: {examples(some)}"
            notes.append(Note("files_not_read", total, text))
    return replace(cases, left_out=left_out, notes=tuple(notes))


def _container(file: str) -> str:
    """The file that an image, a part or a cell is in."""
    return file.partition("::")[0] if is_inside(file) else split_part(file)[0]


def one_class(cases: CaseSet) -> str:
    """The problem of a set whose images are all of one class."""
    return f"{cases.source}: all images are {cases.classes[0]!r}; give several classes"


def note_sides(cases: CaseSet) -> Iterator[Note]:
    """Note classes that a side lacks. For sets whose cases have their sides."""
    for split in SPLITS:
        present = {case.label for case in cases.side(split)}
        lacking = [label for label in cases.classes if label not in present]
        if present and lacking:
            text = f"no image of {', '.join(lacking)} in {split}"
            what = {
                "train": "it cannot be learnt",
                "val": "it has no part in the choice of the best epoch",
                "test": "it is not scored",
            }[split]
            yield Note(f"classes_missing_in_{split}", len(lacking), f"{text}: {what}")


def _list_unread(root: Path, read: set[str], task: Need) -> dict[str, list[str]]:
    """The files below a folder that are not read, by what they are."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder, folders, names in os.walk(root):
        inside = Path(folder).relative_to(root).parts
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            if str(file) not in read:
                parts = (*inside, name)
                found[_kind(file, parts, task)].append("/".join(parts))
    return found


def _kind(file: Path, parts: Sequence[str], task: Need) -> str:
    if any(map(is_hidden, parts)):
        return "hidden file"
    if is_image_file(file) or file.name.lower().endswith((".nii", ".nii.gz")):
        if any(map(_MASKS.search, parts)):
            return "mask without image" if task == "segment" else _NOT_NEEDED
        return "image that no list, label or layout names"
    return f"{file.suffix.lower()} file" if file.suffix else "file without suffix"


def _note_headers(cases: Sequence[Case], task: Need) -> Iterator[Note]:
    """Note images that EXIF turns beside their masks, and files of several pictures."""
    headers = read_headers(
        case.image
        for case in cases
        if split_part(case.image)[1] is None and not is_inside(case.image)
    )
    if task == "segment":
        turned = [
            case.image
            for case in cases
            if case.masks and case.image in headers and headers[case.image].turned
        ]
        if turned:
            text = f"{plural(len(turned), 'image')} turned by EXIF beside masks: {examples(turned)}"
            remedy = "look whether the masks are turned too, or save the images without EXIF"
            yield Note("images_turned_by_exif", len(turned), f"{text}; {remedy}")
    yield from note_several_pictures(headers)


def _note_patients(cases: Sequence[Case]) -> Iterator[Note]:
    lacking = [case.image for case in cases if case.patient is None]
    if 0 < len(lacking) < len(cases):
        text = f"{plural(len(lacking), 'image')} without patient: {examples(lacking)}"
        yield Note("without_patient", len(lacking), f"{text}; each counts as one by itself")
    yield from note_alike(case.patient for case in cases)


def _note_places(cases: Sequence[Case]) -> Iterator[Note]:
    """Note volumes whose masks can be laid over them by their shapes alone."""
    pairs = {
        (mask, image)
        for case in cases
        for image, *masks in [[split_part(file)[0] for file in (case.image, *case.masks)]]
        for mask in masks
        if is_volume(image) and is_volume(mask)
    }
    without = sorted({image for mask, image in pairs if not _places_known(mask, image)})
    if without:
        what = "whose header, or whose mask's, does not say where it lies"
        text = f"{plural(len(without), 'volume')} {what}: {examples(without)}"
        remedy = "masks are laid on them by their shapes alone: look whether they fit"
        yield Note("volumes_without_place", len(without), f"{text}; {remedy}")


def _places_known(mask: str, image: str) -> bool:
    try:
        return same_place(mask, image)
    except DataError:
        return True  # told by the reader, which refuses it

"""The layout of US-365K (arXiv 2604.01749): captions by split, and a file of tags for all images.

Known from the authors' code and from others' that reads the release, not from the release itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fastht.data.archives import zip_members
from fastht.data.cases import SPLITS, Case, Need, Reading, Split, Values, parse_split
from fastht.data.documents import read_rows
from fastht.data.images import DataError
from fastht.data.layouts.lookup import Lookup
from fastht.data.notes import Note, examples, plural
from fastht.data.values import parse_key, parse_values, read_values

FIELDS = (
    "Diagnosis",
    "Body_system_level",
    "Organ_level",
    "Shape",
    "Margins",
    "Echogenicity",
    "InternalCharacteristics",
    "PosteriorAcoustics",
    "Vascularity",
)
"""The nine fields of tags, as records name them."""

_TAGS = "full_data.json"
_GROUPS = ("patient_id", "case_id")
_READ = {"image", "media_name", "caption", "split", "caption_id", *_GROUPS}
_UUID = re.compile(r"[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}(?![0-9a-f])", re.IGNORECASE)
_SUFFIX = ".jpg"


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (root / _TAGS).is_file() and bool(_sides(root) or _archives(root) or _images(root))


def read(
    root: Path, task: Need, *, tag_keys: Sequence[str] = (), image_dirs: Sequence[str] = ()
) -> Reading:
    """Read the cases with the official split, their tags and what ties them together.

    Captions are those of train.jsonl, valid.jsonl and test.jsonl; without these files, those of
    full_data.json, and there is no split. A record of full_data.json belongs to the image that its
    media_name names, with or without .jpg. Images lie in images/, beside the files or in
    images.zip, which need not be unpacked. Of a case the patient is its patient_id, else its
    case_id, else the UUID in the image's name, which is noted, as nothing says what it stands for.

    tag_keys: fields that hold tags; default: FIELDS. image_dirs: folders of the images.

    Raises DataError if a file cannot be read, or for masks or classes, which it has not.
    """
    if task in ("segment", "classify"):
        what = "US-365K has neither masks nor classes"
        raise DataError(f"{root}: {what}; it is for fastht train, retrieve and taxonomy check")
    reading = Reading()
    records = _Records(reading, root / _TAGS, tuple(tag_keys) or FIELDS)
    images = _Images(root, image_dirs)
    reading.used.update(map(str, images.archives))
    sides = _sides(root)
    rows: list[tuple[Split | None, str, dict[str, Any]]] = [
        (side, where, row) for file, side in sides.items() for where, row in _rows(reading, file)
    ]
    if not sides:
        rows = [(None, where, row) for where, row in records.rows]
    people = _People()
    names: Counter[str] = Counter()
    for side, where, row in rows:
        with reading.noting():
            named = _named(row)
            if not isinstance(named, str) or not named.strip():
                raise DataError(f"{where}: no image is named; correct the row")
            key = _key(named)
            tags, groups = records.find(key, row, where)
            image = images.find(named.strip(), where)
            caption = row.get("caption")
            if not isinstance(caption, str | None):
                raise DataError(f"{where}: caption {caption!r} is no text; correct it")
            names[key] += 1  # an image may have several captions
            name = key if names[key] == 1 else f"{key}-{names[key]}"
            patient = people.patient(key, groups)
            reading.cases.append(
                Case(
                    name,
                    image,
                    patient=patient,
                    caption=caption or "",
                    split=side,
                    tags=tags,
                    groups=groups,
                )
            )
    reading.notes += [*people.notes(), *records.notes({_key(str(_named(row))) for *_, row in rows})]
    return reading


class _Records:
    """The records of full_data.json by the image that they are of."""

    def __init__(self, reading: Reading, path: Path, fields: tuple[str, ...]) -> None:
        self.fields = fields
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self._by_key: dict[str, tuple[str, dict[str, Any]]] = {}
        self._without = self._empty = 0
        self._seen: dict[str, None] = {}
        if path.is_file():
            self.rows = list(_rows(reading, path))
        for where, row in self.rows:
            self._seen |= dict.fromkeys(row)
            with reading.noting():
                named = row.get("media_name")
                if not isinstance(named, str) or not named.strip():
                    raise DataError(f"{where}: no media_name; give the name of its image")
                _, first = self._by_key.setdefault(_key(named), (where, row))
                if first is not row and self._tags(first, where) != self._tags(row, where):
                    raise DataError(f"{where}: {named} has other tags before; remove one of both")

    def find(self, key: str, row: dict[str, Any], where: str) -> tuple[Values, Values]:
        """Tags and keys of an image, by its row and its record. Raises DataError if these differ.

        What is wrong with a record is told at the row of its image.
        """
        at, record = self._by_key.get(key, (where, {}))
        self._without += not record
        tags = self._tags(record or row, at)
        self._empty += bool(record) and not tags
        groups = []
        for name in _GROUPS:
            given, recorded = (parse_key(r.get(name), w) for r, w in ((row, where), (record, at)))
            if given and recorded and given != recorded:
                what = f"{name} is {given[0]} here and {recorded[0]} in {_TAGS}"
                raise DataError(f"{where}: {what}; correct one")
            if given or recorded:
                groups.append((name, given or recorded))
        return tags, tuple(groups)

    def notes(self, named: set[str]) -> list[Note]:
        """What is to be said of records without image, of images without, and of other fields."""
        notes = []
        if self._without:
            text = f"{plural(self._without, 'row')} without a record in {_TAGS}, so without tags"
            notes.append(Note("without_record", self._without, text))
        if self._empty:
            text = f"{plural(self._empty, 'row')} whose record has no tag"
            notes.append(Note("without_tags", self._empty, text))
        if lost := [key for key in self._by_key if key not in named]:
            text = f"{plural(len(lost), 'record')} of {_TAGS} that no row names: {examples(lost)}"
            notes.append(Note("records_not_named", len(lost), text))
        if others := [f for f in self._seen if f not in _READ and f not in self.fields]:
            text = f"{plural(len(others), 'field')} of {_TAGS} not read: {examples(others, 12)}"
            notes.append(Note("columns_not_read", len(others), text))
        return notes

    def _tags(self, row: dict[str, Any], where: str) -> Values:
        return read_values(row.get, self.fields, where, parse_values)


@dataclass
class _People:
    """What stands for patients."""

    cases: int = 0
    guessed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def patient(self, name: str, groups: Values) -> str | None:
        known = dict(groups)
        if "patient_id" in known:
            return known["patient_id"][0]
        if "case_id" in known:
            self.cases += 1
            return known["case_id"][0]
        if match := _UUID.search(name):
            self.guessed.append(name)
            return match[0].lower()
        self.unknown.append(name)
        return None

    def notes(self) -> list[Note]:
        notes = []
        if self.cases:
            text = f"case_id stands for the patient of {plural(self.cases, 'row')}"
            remedy = "whether a patient may have several cases is not known"
            notes.append(Note("patients_by_case", self.cases, f"{text}; {remedy}"))
        if self.guessed:
            text = f"{plural(len(self.guessed), 'row')} without case_id"
            remedy = "the UUID in the image's name stands for the patient, which nothing proves"
            told = f"{text}: {examples(self.guessed)}; {remedy}: give case_id"
            notes.append(Note("patients_guessed", len(self.guessed), told))
        if self.unknown:
            text = f"{plural(len(self.unknown), 'row')} without patient: {examples(self.unknown)}"
            notes.append(
                Note("without_patient", len(self.unknown), f"{text}; each image counts as one")
            )
        return notes


class _Images:
    """Where the images lie: files before members of archives, by the name with or without .jpg."""

    def __init__(self, root: Path, image_dirs: Sequence[str]) -> None:
        """Raises DataError if a folder is not there or an archive is damaged."""
        inside = [root / "images"] if (root / "images").is_dir() else []
        self.folders = [Path(folder) for folder in image_dirs] or [*inside, root]
        self.archives = _archives(root)
        self._lookup = Lookup(self.folders)
        self._members: dict[str, list[str]] = {}
        for archive in self.archives:
            for member in zip_members(archive):
                base = PurePosixPath(member).name
                self._members.setdefault(base, []).append(f"{archive}::{member}")

    def find(self, named: str, where: str) -> str:
        """Path of the image, or "images.zip::member". Raises DataError if it is not there."""
        parts = PurePosixPath(named.replace("\\", "/")).parts
        plain = "/".join(parts)
        stem = plain[: -len(_SUFFIX)] if plain.lower().endswith(_SUFFIX) else plain
        written = dict.fromkeys((plain, f"{stem}{_SUFFIX}", stem))
        if ".." in parts or not parts:
            raise DataError(f"{where}: {named!r} names no image; correct it")
        for name in written:
            for folder in self.folders:
                for path in (folder / name, folder / PurePosixPath(name).name):
                    if path.is_file():
                        return str(path)
        for name in written:
            found = self._members.get(PurePosixPath(name).name, [])
            if len(found) > 1:
                exact = [m for m in found if m.partition("::")[2] == name]
                if len(exact) != 1:
                    raise DataError(f"{where}: {named} may be {' or '.join(found[:4])}; name one")
                found = exact
            if found:
                return found[0]
        if self.archives and not any(self.folders[0].glob("*" + _SUFFIX)):
            told = ", ".join(map(str, self.archives))
            raise DataError(f"{where}: no image {named} in {told}; download it again")
        return str(self._lookup.find(plain, where))


def _rows(reading: Reading, path: Path) -> list[tuple[str, dict[str, Any]]]:
    reading.used.add(str(path))
    return list(read_rows(path))


def _named(row: dict[str, Any]) -> Any:
    return row.get("image", row.get("media_name"))


def _key(named: str) -> str:
    """The base name of an image without .jpg: what rows and records meet by."""
    base = PurePosixPath(named.strip().replace("\\", "/")).name
    return base[: -len(_SUFFIX)] if base.lower().endswith(_SUFFIX) else base


def _sides(root: Path) -> dict[Path, Split]:
    """The files of captions and their splits."""
    found = {file: parse_split(file.stem) for file in sorted(root.glob("*.jsonl"))}
    return {file: side for known in SPLITS for file, side in found.items() if side == known}


def _archives(root: Path) -> list[Path]:
    return sorted(root.glob("images*.zip"))


def _images(root: Path) -> bool:
    return (root / "images").is_dir() or any(root.glob("*" + _SUFFIX))

"""What a run has seen of its data, image by image: so that going on with other data is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fastht.data.cases import Case, split_part
from fastht.data.embedded import is_embedded, read_embedded
from fastht.data.images import DataError
from fastht.data.notes import Note, examples, plural
from fastht.data.records import Record
from fastht.data.tables import read_table

_READERS = 8  # threads; files lie on disks that answer several at once
_CHUNK = 1 << 22  # bytes
_TOLD = 3  # names of images beside what has changed


@dataclass(frozen=True, slots=True)
class Entry:
    """One image, or one pair of image and caption, on its side of a split.

    The texts are digests but for the label and the patient, which a run's tables show anyway.
    """

    file: str  # absolute path
    split: str
    name: str  # as the data names it, wherever it lies; empty in runs of older versions
    content: str = ""
    mask: str = ""
    caption: str = ""
    label: str = ""
    patient: str = ""


def record_entries(sides: Mapping[str, Sequence[Record]]) -> list[Entry]:
    """Read and describe the records of each side. Raises DataError if a file cannot be read."""
    digests = _digest_files(record.image for records in sides.values() for record in records)
    return [
        Entry(
            file=os.path.abspath(record.image),
            split=side,
            name=_with_part(record.name or record.image, record.frame),
            content=digests[_file(record.image)],
            caption=_digest("\0".join((record.caption, *record.others)).encode()),
            label=record.label or "",
            patient=record.patient or "",
        )
        for side, records in sides.items()
        for record in records
    ]


def case_entries(cases: Iterable[Case]) -> list[Entry]:
    """Read and describe cases. Raises DataError if a file cannot be read."""
    listed = list(cases)
    digests = _digest_files(file for case in listed for file in (case.image, *case.masks))
    return [
        Entry(
            file=os.path.abspath(case.image),
            split=case.split or "",
            name=case.name,
            content=digests[_file(case.image)],
            mask=" ".join(digests[_file(mask)] for mask in case.masks),
            label=case.label or "",
            patient=case.patient or "",
        )
        for case in listed
    ]


def note_copies(entries: Iterable[Entry]) -> tuple[Note, ...]:
    """Note images that are on several sides under different names, byte by byte the same."""
    alike: dict[tuple[str, str | None], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.content:
            alike[entry.content, split_part(entry.file)[1]].append(entry)
    told = []
    for group in alike.values():
        names = list({entry.file: f"{entry.name} ({entry.split})" for entry in group}.values())
        if len(names) > 1 and len({entry.split for entry in group}) > 1:
            told.append(" = ".join(names))
    if not told:
        return ()
    text = f"{plural(len(told), 'image')} on several sides, as copies byte by byte: "
    remedy = "scores will be too good: remove the copies, or give each and its image one patient"
    return (Note("copies_on_several_sides", len(told), f"{text}{examples(told)}; {remedy}"),)


def entries_table(entries: Iterable[Entry]) -> bytes:
    """Entries as a CSV table."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Entry)])
    table.writeheader()
    table.writerows(map(asdict, entries))
    return text.getvalue().encode()


def read_entries_table(path: Path) -> list[Entry]:
    """What :func:`entries_table` made; of older versions file and split alone.

    Raises DataError if the table cannot be read.
    """
    columns, rows = read_table(path)
    if not {"file", "split"} <= set(columns):
        raise DataError(f"{path}: no columns file and split; it is not a run's")
    names = [field.name for field in fields(Entry)]
    return [Entry(**{name: row.get(name, "") for name in names}) for _, row in rows]


def describe_changes(before: Sequence[Entry], now: Sequence[Entry]) -> str:
    """What has changed in the data since; empty if nothing that decides a run's numbers has.

    The order of rows and the place of the files are no change. Of runs of older versions only the
    sides of the files are known.
    """
    known = all(entry.name for entry in before)
    key: Callable[[Entry], str] = (lambda e: e.name) if known else (lambda e: e.file)
    old, new = _grouped(before, key), _grouped(now, key)
    told = []
    for names, what in ((new.keys() - old.keys(), "new"), (old.keys() - new.keys(), "gone")):
        if names:
            told.append(f"{_are(names, 'image')} {what}{_names(names)}")
    both = sorted(old.keys() & new.keys())
    aspects = ("content", "mask", "caption", "label", "patient") if known else ()
    for aspect in (*aspects, "split"):
        changed = [n for n in both if _values(old[n], aspect) != _values(new[n], aspect)]
        if changed:
            verb = _CHANGES[aspect][len(changed) > 1]
            told.append(f"{plural(len(changed), 'image')} {verb}{_names(changed)}")
    return "; ".join(told)


_CHANGES = {
    "content": ("has other pixels", "have other pixels"),
    "mask": ("has another mask", "have other masks"),
    "caption": ("has another caption", "have other captions"),
    "label": ("has another label", "have other labels"),
    "patient": ("is of another patient", "are of other patients"),
    "split": ("changes sides", "change sides"),
}


def _grouped(entries: Iterable[Entry], key: Callable[[Entry], str]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[key(entry)].append(entry)
    return groups


def _values(entries: Iterable[Entry], aspect: str) -> Counter[str]:
    return Counter(getattr(entry, aspect) for entry in entries)


def _are(names: Iterable[str], noun: str) -> str:
    count = len(list(names))
    return f"{plural(count, noun)} {'is' if count == 1 else 'are'}"


def _names(names: Iterable[str]) -> str:
    return f" ({examples(sorted(names), _TOLD)})"


def _with_part(name: str, part: int | None) -> str:
    return name if part is None else f"{name}::{part}"


def _file(image: str) -> str:
    """What is read of an image's name: what is inside a file, or a file without its part."""
    return image if is_embedded(image) else split_part(image)[0]


def _digest_files(images: Iterable[str]) -> dict[str, str]:
    """Digests of the contents of files, each read once."""
    files = list(dict.fromkeys(map(_file, images)))
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(files, pool.map(_digest_file, files), strict=True))


def _digest_file(file: str) -> str:
    if is_embedded(file):
        return _digest(read_embedded(file))
    try:
        digest = hashlib.sha256()
        with open(file, "rb") as stream:
            while part := stream.read(_CHUNK):
                digest.update(part)
        return digest.hexdigest()[:16]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

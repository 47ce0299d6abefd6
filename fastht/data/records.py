"""Image-text pairs as records, read from tables, and their split by patient."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from fastht.data.captions import MIN_CAPTION_LENGTH, clean_caption
from fastht.data.images import DataError
from fastht.data.tables import parse_frame, read_table

_KEY_PAIRS = (("filepath", "title"), ("filename", "Caption"))  # open_clip's, NextGen-UIA's
_Folder = str | os.PathLike[str]
_EXAMPLES = 5  # names of missing images that are kept for messages


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its caption."""

    image: str  # path, or "shard.tar::member"
    caption: str
    label: str | None = None
    patient: str | None = None
    frame: int | None = None  # of a multi-frame file; None takes the middle one


@dataclass(frozen=True)
class RecordSet:
    """Records of one source and what was left out."""

    records: tuple[Record, ...]
    source: str
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> count
    missing: tuple[str, ...] = ()  # the first few names of images that were not found

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def describe(self) -> str:
        """One paragraph: counts, labels, patients, what was dropped and why."""
        parts = [f"{len(self):,} image-caption pairs from {self.source}"]
        for attribute in ("label", "patient"):
            if values := {getattr(record, attribute) for record in self} - {None}:
                parts.append(f"{len(values):,} {attribute}{'s' if len(values) > 1 else ''}")
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        missing = f" (missing: {', '.join(self.missing)})" if self.missing else ""
        return f"{', '.join(parts)}; dropped: {reasons or 'none'}{missing}."


@dataclass(frozen=True, slots=True)
class Dropped:
    """A pair that a reader leaves out; missing: name of the image that was not found."""

    reason: str
    missing: str | None = None


def collect(source: str, pairs: Iterable[Record | Dropped]) -> RecordSet:
    """Clean the captions, drop the short ones, count. Raises DataError if no record is left."""
    records: list[Record] = []
    dropped: Counter[str] = Counter()
    missing: list[str] = []
    for pair in pairs:
        if isinstance(pair, Dropped):
            dropped[pair.reason] += 1
            if pair.missing is not None and len(missing) < _EXAMPLES:
                missing.append(pair.missing)
        elif len(caption := clean_caption(pair.caption)) < MIN_CAPTION_LENGTH:
            dropped[f"caption shorter than {MIN_CAPTION_LENGTH} characters"] += 1
        else:
            records.append(replace(pair, caption=caption))
    result = RecordSet(tuple(records), source, dict(dropped), tuple(missing))
    if not records:
        raise DataError(f"{result.describe()} Check image directories, columns and captions.")
    return result


def load_records(
    data: str | os.PathLike[str],
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    separator: str | None = None,
    image_dirs: Sequence[_Folder] = (),
    label_key: str = "label",
    patient_key: str = "patient",
    frame_key: str = "frame",
) -> RecordSet:
    """Read image-caption pairs; drop and count those without image file or with a short caption.

    data: "sample", the simulated set inside the package; a .csv, .tsv or .txt table (UTF-8); or
        webdataset shards, as fastht.data.shards.load_shards takes them.
    image_key, caption_key: column names. Default: filepath and title (open_clip), else filename
        and Caption (NextGen-UIA).
    separator: default a tab for .tsv, else a tab or comma, whichever the header has more of.
    image_dirs: where relative paths are looked up, then by base name alone, then beside the table.
    label_key, patient_key, frame_key: columns that are read if the table has them.

    Raises DataError for a table that cannot be read or lacks the columns, an image directory that
    does not exist, or if no pair is left.
    """
    sample = resources.files("fastht.data") / "sample" / "sample.csv"
    path = Path(str(sample) if str(data) == "sample" else data)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        from fastht.data.shards import load_shards  # here, since shards.py imports this module

        if image_key or caption_key or separator or image_dirs:
            options = "keys, separator and image directories"
            raise DataError(f"{data}: {options} are for .csv, .tsv and .txt tables; omit them")
        return load_shards(os.fspath(data))

    columns, rows = read_table(path, separator)
    image_column, caption_column = _find_keys(path, columns, image_key, caption_key)
    for key in {label_key, patient_key, frame_key} - {"label", "patient", "frame", *columns}:
        raise DataError(f"{path}: no column {key!r}; the columns are {', '.join(columns)}")
    for folder in image_dirs:
        if not os.path.isdir(folder):
            raise DataError(f"{path}: no image directory {folder}; correct the path")
    pairs: list[Record | Dropped] = []
    named_by: dict[str, str] = {}
    for line, row in rows:
        named = os.path.normpath(row[image_column])
        image = _find_image(named, image_dirs, path.parent)
        if image is None:
            pairs.append(Dropped("image file missing", row[image_column] or f"line {line}"))
            continue
        if (first := named_by.setdefault(image, named)) != named:
            # By base name, a/1.png and b/1.png would share an image and mix up their captions.
            both = f"{named} and {first} both lead to {image}"
            raise DataError(
                f"{path}, line {line}: {both}; use paths relative to an image directory"
            )
        frame = parse_frame(row.get(frame_key, ""), f"{path}, line {line}")
        label, patient = row.get(label_key) or None, row.get(patient_key) or None
        pairs.append(Record(image, row[caption_column], label, patient, frame))
    return collect(str(path), pairs)


def _find_keys(
    path: Path, columns: list[str], image_key: str | None, caption_key: str | None
) -> tuple[str, str]:
    """Columns of the image and the caption: the given names, completed by a known pair."""
    for default_image, default_caption in _KEY_PAIRS:
        keys = (image_key or default_image, caption_key or default_caption)
        if keys[0] in columns and keys[1] in columns:
            return keys
    raise DataError(
        f"{path}: no columns for image and caption; the columns are {', '.join(columns)}; name "
        "two of them with --image-key and --caption-key (and check --separator)"
    )


def _find_image(named: str, image_dirs: Sequence[_Folder], beside: Path) -> str | None:
    """The first existing file; joining leaves an absolute name as it is."""
    base = os.path.basename(named)
    candidates = [os.path.join(folder, name) for name in (named, base) for folder in image_dirs]
    return next(filter(os.path.isfile, [*candidates, os.path.join(beside, named)]), None)


def split_records(
    records: Sequence[Record], *, val_fraction: float = 0.1, seed: int = 0
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Split into training and validation records, each in the original order.

    All records of a patient fall on the same side; without a patient, all records of an image
    file do. The split depends on nothing but the arguments. The validation side comes close to
    the fraction in such whole groups; both sides get at least one.

    Raises DataError if val_fraction is not between 0 and 1 or there are fewer than two groups.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; choose a number between 0 and 1")
    groups: dict[tuple[bool, str], list[int]] = {}
    for index, record in enumerate(records):
        key = (True, record.patient) if record.patient is not None else (False, record.image)
        groups.setdefault(key, []).append(index)
    if len(groups) < 2:
        raise DataError(f"{len(records)} records of one patient or image cannot be split")
    # Python guarantees the sequence of random() for a seed, but not that of shuffle().
    generator = random.Random(seed)
    shuffled = sorted(groups.values(), key=lambda group: generator.random())
    target = val_fraction * len(records)
    chosen: set[int] = set()
    for group in shuffled[1:]:  # the first group always trains
        if len(group) < 2 * (target - len(chosen)):  # comes closer to the target
            chosen.update(group)
    if not chosen:
        smallest = min(shuffled[1:], key=len)
        chosen.update(smallest)
    train = tuple(record for i, record in enumerate(records) if i not in chosen)
    return train, tuple(records[i] for i in sorted(chosen))

"""Image-text pairs as records, and their split by patient."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fastht.data.captions import MIN_CAPTION_LENGTH, clean_caption
from fastht.data.images import DataError

_EXAMPLES = 5  # names of missing images that are kept for messages


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its caption."""

    image: str  # path, or "shard.tar::member"
    caption: str
    label: str | None = None
    patient: str | None = None
    frame: int | None = None  # of a multi-frame file; None takes the middle one
    split: str | None = field(default=None, compare=False)  # the side that the data gives it


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


def split_records(
    records: Sequence[Record], *, val_fraction: float = 0.1, seed: int = 0
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Split into training and validation records, each in the original order.

    All records of a patient fall on the same side; without a patient, all records of an image
    file do. The split depends on nothing but the arguments. The validation side comes close to
    the fraction in such whole groups; both sides get at least one. Where the data gives sides to
    its records they stay there, and those of "test" are on neither.

    Raises DataError if val_fraction is not between 0 and 1 or there are fewer than two groups.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; choose a number between 0 and 1")
    sides = {side: tuple(r for r in records if r.split == side) for side in ("train", "val")}
    if sides["train"] and sides["val"]:
        return sides["train"], sides["val"]
    records = [record for record in records if record.split in (None, "train")]
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

"""Image-text pairs as records, and their split by patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fastht.data.captions import (
    MIN_CAPTION_LENGTH,
    Cleaning,
    caption_length,
    clean_caption,
    lost_letters,
)
from fastht.data.cases import Split, labels_alike, note_alike
from fastht.data.images import DataError
from fastht.data.notes import Note, account, examples, plural, shorten
from fastht.data.places import Group, place_of
from fastht.data.refusals import refusal

_EXAMPLES = 5  # names of missing images that are kept for messages
_REFUSALS = 3  # captions that look like refusals and are told
_MANY_WORDS = 75  # more than CLIP's 77 tokens hold, of which two are marks, however short they are
_TOO_SHORT = f"caption shorter than {MIN_CAPTION_LENGTH} characters"
_DECODED_WRONG = "\ufffd"


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its caption."""

    image: str  # path, or "shard.tar::member"
    caption: str
    label: str | None = None
    patient: str | None = None
    frame: int | None = None  # of a multi-frame file; None takes the middle one
    split: Split | None = field(default=None, compare=False)  # the side that the data gives it
    # As the data names the image, wherever it lies; splits and signatures go by it.
    name: str = field(default="", compare=False)
    # Cells of columns that a reader was asked for beside these, by column.
    attributes: Mapping[str, str] = field(default_factory=dict, compare=False)
    # More captions of the same image; what judges a model reads the first alone.
    others: tuple[str, ...] = field(default=(), compare=False)

    @property
    def key(self) -> tuple[str, int, str]:
        """What orders records wherever their images lie and however their rows are sorted."""
        return self.name or self.image, -1 if self.frame is None else self.frame, self.caption


@dataclass(frozen=True)
class RecordSet:
    """Records of one source and what was left out."""

    records: tuple[Record, ...]
    source: str
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> count
    missing: tuple[str, ...] = ()  # the first few names of images that were not found
    notes: tuple[Note, ...] = ()  # what its user should know

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
        if long := sum(len(record.caption.split()) > _MANY_WORDS for record in self):
            parts.append(
                f"{plural(long, 'caption')} of over {_MANY_WORDS} words (CLIP reads 77 tokens)"
            )
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        missing = f" (missing: {', '.join(map(shorten, self.missing))})" if self.missing else ""
        return f"{', '.join(parts)}; dropped: {reasons or 'none'}{missing}."

    def account(self) -> str:
        """The paragraph, and a line for each note."""
        return account(self.describe(), self.notes)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A pair that a reader leaves out; missing: name of the image that was not found."""

    reason: str
    missing: str | None = None


def collect(
    source: str,
    pairs: Iterable[Record | Dropped],
    *,
    cleaning: Cleaning = "letters",
    notes: Callable[[], Iterable[Note]] = tuple,
) -> RecordSet:
    """Clean the captions, drop the short ones, count. Raises DataError if no record is left.

    notes: called after the last pair, tells what the reader has to say of the source.
    """
    records: list[Record] = []
    dropped: Counter[str] = Counter()
    missing: list[str] = []
    torn: list[str] = []
    wrong: list[str] = []
    short = 0
    for pair in pairs:
        if isinstance(pair, Dropped):
            dropped[pair.reason] += 1
            if pair.missing is not None and len(missing) < _EXAMPLES:
                missing.append(pair.missing)
            continue
        written = (pair.caption, *pair.others)
        cleaned = [clean_caption(text, cleaning) for text in written]
        usable = [text for text in cleaned if caption_length(text) >= MIN_CAPTION_LENGTH]
        lost = any(map(lost_letters, written, cleaned))
        if not usable:
            without = " once letters outside ASCII are removed" if lost else ""
            dropped[f"{_TOO_SHORT}{without}"] += 1
            continue
        if lost:
            torn.append(pair.name or pair.image)
        if any(_DECODED_WRONG in text for text in written):
            wrong.append(pair.name or pair.image)
        short += sum(bool(text) for text in cleaned) - len(usable)
        caption, *others = dict.fromkeys(usable)
        records.append(replace(pair, caption=caption, others=tuple(others)))
    _check_patients(source, records)
    found = [*notes(), *_note_captions(records, torn, wrong), *_note_several(records, short)]
    result = RecordSet(tuple(records), source, dict(dropped), tuple(missing), tuple(found))
    if not records:
        said = " ".join(f"{note.text}." for note in found)
        raise DataError(
            f"{result.describe()} Check image directories, columns and captions. {said}".rstrip()
        )
    return result


def _check_patients(source: str, records: Iterable[Record]) -> None:
    """Raise DataError for an image of two patients: it could be trained on and held out."""
    first: dict[str, Record] = {}
    for record in records:
        one = first.setdefault(record.image, record)
        if one.patient != record.patient:
            names = " and ".join(r.patient or "nobody" for r in (one, record))
            what = f"{record.name or record.image} is of {names}, by its rows"
            raise DataError(f"{source}: {what}; give an image one patient")


def _note_captions(
    records: Sequence[Record], torn: Sequence[str], wrong: Sequence[str]
) -> Iterator[Note]:
    """What captions have lost, and what is twice."""
    if torn:
        text = f"{plural(len(torn), 'caption')} lost letters that are not ASCII: {examples(torn)}"
        yield Note("captions_lost_letters", len(torn), f"{text}; keep them by --cleaning letters")
    if wrong:
        text = f"{plural(len(wrong), 'caption')} of a wrong encoding (U+FFFD): {examples(wrong)}"
        yield Note("captions_decoded_wrong", len(wrong), f"{text}; export the texts as UTF-8")
    yield from _note_refusals(records)
    again = Counter(record.key for record in records)
    if several := [key[0] for key, count in again.items() if count > 1]:
        count = sum(again.values()) - len(again)
        text = f"{plural(count, 'pair')} twice, image and caption: {examples(several)}"
        yield Note("pairs_twice", count, f"{text}; remove the copies")
    for alike in labels_alike(record.label for record in records):
        text = f"labels that differ in spelling alone: {', '.join(alike)}"
        yield Note("labels_alike", len(alike), f"{text}; write them alike")
    yield from note_alike(record.patient for record in records)
    labels: dict[tuple[str, int | None], set[str]] = defaultdict(set)
    for record in records:
        if record.label is not None:
            labels[record.image, record.frame].add(record.label)
    if several := [key[0] for key, found in labels.items() if len(found) > 1]:
        text = f"{plural(len(several), 'image')} with several labels: {examples(several)}"
        yield Note("images_of_several_labels", len(several), text)


def _note_refusals(records: Sequence[Record]) -> Iterator[Note]:
    """Captions by which a language model refused; a set's reader may have left some out before."""
    refused = {caption for caption in {record.caption for record in records} if refusal(caption)}
    if found := [record for record in records if record.caption in refused]:
        told = examples((f"{r.name or r.image} ({r.caption!r})" for r in found), _REFUSALS)
        text = f"{plural(len(found), 'caption')} that look like refusals to describe: {told}"
        remedy = (
            "nothing is left out; `fastht taxonomy check` lists all, and `fastht data export "
            "--data TABLE --refusals drop` writes a table without them"
        )
        yield Note("captions_like_refusals", len(found), f"{text}; {remedy}")


def _note_several(records: Sequence[Record], short: int) -> Iterator[Note]:
    """What is to be said of images with several captions."""
    if count := sum(bool(record.others) for record in records):
        text = f"{plural(count, 'image')} with several captions: fastht train takes one an epoch"
        yield Note("images_of_several_captions", count, f"{text}, what judges a model the first")
    if short:
        text = f"{plural(short, 'caption')} of those with several left out: {_TOO_SHORT}"
        yield Note("captions_too_short", short, text)


def split_records(
    records: Sequence[Record], *, val_fraction: float = 0.1, seed: int = 0
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Split into training and validation records, each in an order of its own.

    All records of a patient fall on the same side; without a patient, all records of an image
    file do. Which side depends on the seed and on the patient's or the image's name alone (as the
    data names it, not where it lies): whoever sorts rows, adds or removes some moves nobody. So
    the fraction is met on average; of few patients more or less of it are held out. Only where all
    would fall on one side, the one that is nearest to the other goes over. The order of either side
    depends on the names too, and not on that of the rows.

    Records that the data gives a side stay there: "train" or "val"; where none is for validation,
    it is taken out of training in the same way. Those of "test" are on neither side.

    Raises DataError if val_fraction is not between 0 and 1, there are fewer than two groups, only
    some records have a side, or none trains.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; choose a number between 0 and 1")
    given = Counter(record.split for record in records)
    if 0 < given[None] < len(records):
        what = f"{given[None]:,} of {len(records):,} pairs have no split"
        raise DataError(f"{what}; give one to all or to none")
    if records and not given[None] and not given["train"]:
        raise DataError(f"none of {len(records):,} pairs trains; give some the split train")
    to_split = [record for record in records if record.split in (None, "train")]
    if given["val"] and given["train"]:
        held_out = {id(record) for record in records if record.split == "val"}
    else:
        held_out = _draw(to_split, val_fraction, seed)
    ordered = sorted(records, key=lambda record: record.key)
    kept = [record for record in ordered if record.split != "test"]
    return (
        tuple(record for record in kept if id(record) not in held_out),
        tuple(record for record in kept if id(record) in held_out),
    )


def note_patients(train: Sequence[Record], val: Sequence[Record]) -> tuple[Note, ...]:
    """Note patients who are trained on and held out, which only sides that the data gives allow."""
    known = ({record.patient for record in side} - {None} for side in (train, val))
    both = sorted(map(str, set.intersection(*known)))
    if not both:
        return ()
    text = f"{plural(len(both), 'patient')} trained on and held out: {examples(both)}"
    remedy = "scores will be too good: give each patient one side in the column of the split"
    return (Note("patients_on_several_sides", len(both), f"{text}; {remedy}"),)


def _draw(records: Sequence[Record], fraction: float, seed: int) -> set[int]:
    """The ids of the records that are held out."""
    groups: dict[Group, list[Record]] = defaultdict(list)
    for record in records:
        known = record.patient is not None
        groups[known, record.patient if known else record.name or record.image].append(record)  # type: ignore[index]
    if len(groups) < 2:
        raise DataError(f"{len(records)} records of one patient or image cannot be split")
    places = {key: place_of(key, seed) for key in groups}
    chosen = [key for key in groups if places[key] < fraction]
    if not chosen:
        chosen = [min(groups, key=places.__getitem__)]
    elif len(chosen) == len(groups):
        chosen.remove(max(groups, key=places.__getitem__))
    return {id(record) for key in chosen for record in groups[key]}

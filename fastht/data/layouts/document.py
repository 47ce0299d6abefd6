"""JSON, JSON Lines and Parquet files of rows with an image each: fields are named by their keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastht.data import parquet
from fastht.data.cases import Case, Need, Reading, Split, parse_split
from fastht.data.columns import note_columns
from fastht.data.documents import read_rows, value_at
from fastht.data.images import DataError
from fastht.data.layouts.lookup import Lookup
from fastht.data.notes import Note
from fastht.data.values import parse_key, read_values

_JSON = (".json", ".jsonl")
_FIELDS = ("image", "caption", "label", "patient", "split")


@dataclass(frozen=True)
class Keys:
    """Where in a row its fields are, as dotted keys; None: under the field's own name, or absent.

    A key that is given has to lead somewhere in some row; a default need not.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    tags: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def found_in(self, row: dict[str, Any]) -> set[str]:
        """The fields that a row has something for, tags and groups by their own keys."""
        several = {key for key in (*self.tags, *self.groups) if value_at(row, key) is not None}
        return {field for field in _FIELDS if self.value(row, field) is not None} | several

    def value(self, row: dict[str, Any], field: str) -> Any:
        """What a row has for a field."""
        found = value_at(row, getattr(self, field) or field)
        return None if found is None or found == "" else found


def fits_json(root: Path) -> bool:
    """Whether the path looks like a JSON file, or a folder of JSON Lines by split."""
    if root.is_dir():
        return bool(_sides(root, ".jsonl"))
    return root.is_file() and root.suffix.lower() in _JSON


def fits_parquet(root: Path) -> bool:
    """Whether the path looks like a Parquet file, or a folder of them."""
    return bool(_tables(root))


def read_json_rows(
    root: Path,
    task: Need,
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    label_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    tag_keys: Sequence[str] = (),
    group_keys: Sequence[str] = (),
    image_dirs: Sequence[str] = (),
) -> Reading:
    """Read the cases of a JSON or JSON Lines file, or of train.jsonl, val.jsonl and test.jsonl.

    A row that names a list of images gives a case for each. Images lie below image_dirs, else below
    the folder of the file; see Lookup for how they are found.

    Raises DataError if a file cannot be read, or a given key leads nowhere.
    """
    if task == "segment":
        raise DataError(f"{root}: rows of JSON name no masks; give a table with a column mask")
    keys = Keys(
        image_key,
        caption_key,
        label_key,
        patient_key,
        split_key,
        tuple(tag_keys),
        tuple(group_keys),
    )
    reading = Reading()
    files = _sides(root, ".jsonl") if root.is_dir() else {root: None}
    beside = root if root.is_dir() else root.parent
    lookup = Lookup([Path(folder) for folder in image_dirs] or [beside])
    found: set[str] = set()
    fields: dict[str, None] = {}  # in order
    sides: dict[str, Split] = {}
    names: Counter[str] = Counter()
    for file, side in files.items():
        reading.used.add(str(file))
        for where, row in read_rows(file):
            fields |= dict.fromkeys(row)
            with reading.noting():
                found |= keys.found_in(row)
                images = keys.value(row, "image")
                if images is None:
                    raise DataError(f"{where}: no {keys.image or 'image'}; {_names(row)}")
                for named in images if isinstance(images, list) else [images]:
                    if not isinstance(named, str):
                        raise DataError(f"{where}: {named!r} names no image; correct it")
                    path = lookup.find(named, where)
                    name = _word(named)
                    names[name] += 1  # an image may have several captions, a row each
                    name = name if names[name] == 1 else f"{name}-{names[name]}"
                    case = _case(keys, row, where, str(path), name, side)
                    _check_side(sides, case, where)
                    reading.cases.append(case)
    _check_keys(root, keys, found)
    reading.notes += _note_fields(keys, found, fields)
    return reading


def read_parquet_rows(
    root: Path,
    task: Need,
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    label_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    tag_keys: Sequence[str] = (),
    group_keys: Sequence[str] = (),
) -> Reading:
    """Read the cases of Parquet files with images inside, as hubs distribute them.

    The image is in the one column of bytes, or in image_key. Files whose names begin with train,
    validation or test are of that split.

    Raises DataError if a file cannot be read, a given key leads nowhere, or there are several
    columns of images and none is chosen.
    """
    if task == "segment":
        what = "masks in Parquet are not read; write images and masks into files"
        raise DataError(f"{root}: {what}")
    keys = Keys(
        image_key,
        caption_key,
        label_key,
        patient_key,
        split_key,
        tuple(tag_keys),
        tuple(group_keys),
    )
    reading = Reading()
    found: set[str] = {"image"}
    fields: dict[str, None] = {}  # in order
    sides: dict[str, Split] = {}
    for file, side in _tables(root).items():
        columns = parquet.image_columns(file)
        if image_key not in columns and (image_key or len(columns) != 1):
            said = ", ".join(columns) or "none"
            what = f"columns of images are {said}; name one by --image-key"
            raise DataError(f"{file}: {what}")
        column = image_key or columns[0]
        for number, row in enumerate(parquet.read_rows(file, frozenset(columns))):
            fields |= dict.fromkeys(row)
            where = f"{file}, row {number}"
            with reading.noting():
                found |= keys.found_in(row)
                image = parquet.cell_name(file, column, number)
                case = _case(keys, row, where, image, f"{file.stem}-{number:06d}", side)
                _check_side(sides, case, where)
                reading.cases.append(case)
    _check_keys(root, keys, found)
    reading.notes += _note_fields(keys, found, fields)
    return reading


def _case(
    keys: Keys, row: dict[str, Any], where: str, image: str, name: str, side: Split | None
) -> Case:
    """The case of one image of a row."""
    label, patient, caption, stated = (
        keys.value(row, field) for field in ("label", "patient", "caption", "split")
    )
    for field, value in (("label", label), ("patient", patient), ("caption", caption)):
        if isinstance(value, dict | list):
            key = getattr(keys, field) or field
            raise DataError(f"{where}: {key} is no text but holds others; give a longer key")
    split = side if stated is None else parse_split(str(stated))
    if stated is not None and split is None:
        raise DataError(f"{where}: split {stated!r} is none of train, val and test; correct it")
    return Case(
        name=name,
        image=image,
        label=None if label is None else str(label),
        patient=None if patient is None else str(patient),
        caption=str(caption or ""),
        split=split,
        tags=read_values(lambda key: value_at(row, key), keys.tags, where),
        groups=read_values(lambda key: value_at(row, key), keys.groups, where, parse_key),
    )


def _check_side(sides: dict[str, Split], case: Case, where: str) -> None:
    """Raise DataError for a patient who is on two sides."""
    if case.patient is None or case.split is None:
        return
    if (first := sides.setdefault(case.patient, case.split)) != case.split:
        what = f"patient {case.patient} is in {first} and in {case.split}"
        raise DataError(f"{where}: {what}; correct the split")


def _check_keys(root: Path, keys: Keys, found: Iterable[str]) -> None:
    """Raise DataError for a key that was given and leads nowhere in all rows."""
    for field in _FIELDS:
        key = getattr(keys, field)
        if key is not None and field not in found:
            raise DataError(f"{root}: no row has {key}; correct --{field}-key")
    if lost := [key for key in keys.groups if key not in found]:
        raise DataError(f"{root}: no row has {', '.join(lost)}; correct --group-keys")


def _note_fields(keys: Keys, found: Iterable[str], fields: Iterable[str]) -> tuple[Note, ...]:
    """Note the fields of rows that are not read, with a hint where one looks like a patient's."""
    names = list(fields)
    used = {field: getattr(keys, field) or field for field in _FIELDS}
    read = {field: used[field] if field in found else None for field in ("label", "patient")}
    # Of a.b the field a is read, as far as a row's own fields go.
    several = (*keys.tags, *keys.groups)
    also = {key if key in names else key.partition(".")[0] for key in (*used.values(), *several)}
    return note_columns(names, read, also=also)


def _names(row: dict[str, Any]) -> str:
    return f"the fields are {', '.join(row)}; name one by --image-key"


def _word(named: str) -> str:
    """A path as one word, without its suffix: a/b.png is a-b."""
    parts = Path(named.replace("\\", "/")).with_suffix("").parts
    return "-".join(part.strip("/") for part in parts if part.strip("/"))


def _sides(root: Path, suffix: str) -> dict[Path, Split | None]:
    """The files of a folder that are named after splits."""
    files = sorted(root.glob(f"*{suffix}"))
    return {file: split for file in files if (split := parse_split(file.stem)) is not None}


def _tables(root: Path) -> dict[Path, Split | None]:
    """Parquet files and their splits by the beginning of their names."""
    if root.is_file():
        return {root: None} if root.suffix.lower() == ".parquet" else {}
    files = sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
    return {file: parse_split(file.name.partition("-")[0].partition(".")[0]) for file in files}

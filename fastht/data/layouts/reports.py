"""The layout of the Chinese report sets (liver, breast, thyroid): two images to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastht.data.cases import Case, Need, Reading, Split, parse_split
from fastht.data.documents import read_json, value_at
from fastht.data.images import DataError

_ORGANS = {
    "Liver": "new_Liver2.json",
    "Mammary": "new_Mammary2.json",
    "Thyroid": "new_Thyroid2.json",
}


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any((root / table).is_file() for table in _ORGANS.values())


def read(
    root: Path, task: Need, *, name: str | None = None, caption_key: str | None = None
) -> Reading:
    """Read the cases of one organ with the official split; a report is a patient.

    The reports are in Chinese. Their numbers of clusters are no diagnoses and no labels.

    name: Liver, Mammary or Thyroid; None takes the only one there is.
    caption_key: field of the text; default: finding. Give that of a translation if you add one.

    Raises DataError if there is no such organ, or its table is not of this form.
    """
    if task in ("segment", "classify"):
        what = "reports have neither masks nor diagnoses"
        raise DataError(f"{root}: {what}; they are for fastht train and retrieve")
    organ = _choose(root, name)
    table = root / _ORGANS[organ]
    found = read_json(table)
    if not isinstance(found, dict) or not all(isinstance(rows, list) for rows in found.values()):
        raise DataError(f"{table}: not an object of lists train, val and test; copy it again")
    reading = Reading()
    reading.used.add(str(table))
    sides: dict[str, Split] = {}
    folder = root / f"{organ}_report"
    for side, rows in found.items():
        split = parse_split(side)
        if split is None:
            reading.problems.append(f"{table}: list {side!r} is none of train, val and test")
            continue
        for number, row in enumerate(rows):
            with reading.noting():
                where = f"{table}, {side} {number}"
                _read_report(reading, folder, row, split, sides, where, caption_key)
    return reading


def _read_report(
    reading: Reading,
    folder: Path,
    row: Any,
    split: Split,
    sides: dict[str, Split],
    where: str,
    caption_key: str | None,
) -> None:
    """Add the images of one report."""
    uid, paths = (value_at(row, key) for key in ("uid", "image_path"))
    if uid is None or not isinstance(paths, list) or not paths:
        raise DataError(f"{where}: no uid or no image_path; copy the table again")
    text = value_at(row, caption_key or "finding")
    if caption_key is not None and text is None:
        raise DataError(f"{where}: no {caption_key}; add it or choose another --caption-key")
    stated = value_at(row, "split")
    if stated is not None and parse_split(str(stated)) != split:
        raise DataError(f"{where}: its split is {stated!r} in the list of {split}; correct one")
    if sides.setdefault(str(uid), split) != split:
        what = f"report {uid} is in {sides[str(uid)]} and in {split}"
        raise DataError(f"{where}: {what}; remove it from one of them")
    missing = [path for path in map(str, paths) if not (folder / path).is_file()]
    if missing:
        raise DataError(f"{where}: no image {folder / missing[0]}; copy the images again")
    caption = str(text or "")
    for path in map(str, paths):
        case_name = f"{folder.name}-{Path(path).with_suffix('').as_posix().replace('/', '-')}"
        image = str(folder / path)
        reading.cases.append(Case(case_name, image, patient=str(uid), caption=caption, split=split))


def _choose(root: Path, name: str | None) -> str:
    there = [organ for organ, table in _ORGANS.items() if (root / table).is_file()]
    if name is None and len(there) == 1:
        return there[0]
    if name not in there:
        what = "several organs" if name is None else f"no reports of {name}"
        raise DataError(f"{root}: {what}; choose one by --name: {', '.join(there)}")
    return name

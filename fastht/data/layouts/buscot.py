"""The layout of the breast set BUS-CoT, which pools other sets: lesions and who they are of."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from fastht.data.cases import Case, Need, Reading, Split
from fastht.data.documents import read_json, value_at
from fastht.data.images import DataError

_LESIONS = Path("DatasetFiles", "lesion_dataset.json")
_PATIENTS = Path("DatasetFiles", "BUS-Expert_dataset.json")
_SIDES: dict[str, Split] = {"trainval": "train", "train": "train", "val": "val", "test": "test"}
_CAPTIONS = ("caption.image_full_caption", "caption.image_relative_caption")


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (root / _LESIONS).is_file()


def read(root: Path, task: Need, *, exclude_origin: tuple[str, ...] = ()) -> Reading:
    """Read the lesions; patient and origin come from the table of the source images.

    The official split has trainval, which trains, and test. The caption is the full one, else the
    relative one. A lesion whose patient or origin is not known is a problem, since what it shares
    with other sets could not be told.

    exclude_origin: sets whose images are left out, as the column dataset spells them, whatever
        their case and punctuation: BUSI, BUSBRA.

    Raises DataError if a table cannot be read, or there is no image of an excluded origin.
    """
    reading = Reading()
    reading.used.update((str(root / _LESIONS), str(root / _PATIENTS)))
    lesions = _entries(root / _LESIONS)
    sources = _entries(root / _PATIENTS)
    origins = Counter(str(entry.get("dataset") or "") for entry in sources.values())
    excluded = {_bare(name) for name in exclude_origin}
    for name in exclude_origin:
        if _bare(name) not in {_bare(origin) for origin in origins}:
            known = ", ".join(sorted(filter(None, origins)))
            raise DataError(
                f"{root / _PATIENTS}: no image of origin {name}; the origins are {known}"
            )
    if task == "segment":
        what = "BUS-CoT as it is read here has no masks; choose --task classify or pairs"
        raise DataError(f"{root}: {what}")
    sides: dict[str, Split] = {}
    for key, entry in lesions.items():
        where = f"{root / _LESIONS}, {key}"
        with reading.noting():
            path = str(entry.get("image_path") or "")
            image = root / path if path else None
            if image is None or not image.is_file():
                raise DataError(f"{where}: no image {image or 'is named'}; correct image_path")
            source = sources.get(image.stem.partition("@")[0])
            patient = str((source or {}).get("patient_id") or "")
            origin = str((source or {}).get("dataset") or "")
            if not patient or not origin:
                what = f"{image.name} has no patient_id and dataset in {root / _PATIENTS}"
                raise DataError(f"{where}: {what}; copy both tables again")
            if _bare(origin) in excluded:
                reading.left_out[f"origin {origin}"] += 1
                reading.used.add(str(image))
                continue
            # Every pooled set numbers its patients by itself.
            patient = f"{origin}-{patient}"
            split = _SIDES.get(str(entry.get("split") or "").lower())
            if split is None:
                what = f"split {entry.get('split')!r} is none of {', '.join(_SIDES)}"
                raise DataError(f"{where}: {what}; correct it")
            if sides.setdefault(patient, split) != split:
                raise DataError(
                    f"{where}: patient {patient} is in {sides[patient]} and in {split}; remove the "
                    "patient from one of them"
                )
            label = value_at(entry, "pathology_histology.pathology")
            texts = (value_at(entry, key) for key in _CAPTIONS)
            reading.cases.append(
                Case(
                    name=image.stem,
                    image=str(image),
                    label=str(label).strip().lower() if label else None,
                    patient=patient,
                    caption=next((str(text) for text in texts if text), ""),
                    split=split,
                    origin=origin,
                )
            )
    return reading


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a table by their keys."""
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(e, dict) for e in found.values()):
        raise DataError(f"{path}: not an object of objects; take the file as it was published")
    return found


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()

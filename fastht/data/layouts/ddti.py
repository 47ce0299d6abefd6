"""The layout of the thyroid set DDTI: one XML file a patient, its images beside it."""

from __future__ import annotations

from pathlib import Path

from fastht.data.annotations import Annotation, read_annotation
from fastht.data.cases import Case, Need, Reading
from fastht.data.images import DataError
from fastht.data.layouts.files import ImageFolder, natural

# As the set is commonly divided: suspicion from category 4 upwards. No biopsy says so.
_MALIGNANCY = {
    "2": "benign",
    "3": "benign",
    "4a": "malignant",
    "4b": "malignant",
    "4c": "malignant",
    "5": "malignant",
}


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    stems = {file.stem for file in root.glob("*.xml")}
    return any(image.stem.rpartition("_")[0] in stems for image in ImageFolder(root).files)


def read(root: Path, task: Need, *, benign_malignant: bool = False) -> Reading:
    """Read the cases; images of one XML file are of one patient.

    The label is the TI-RADS category as written: 2, 3, 4a, 4b, 4c or 5. Left out are images
    without outline from segmentation, without category from classification.

    benign_malignant: label 2 and 3 "benign", 4a to 5 "malignant" instead.
    """
    reading = Reading()
    annotations: dict[str, Annotation] = {}
    unreadable: set[str] = set()
    for file in sorted(root.glob("*.xml"), key=lambda file: natural(file.name)):
        unreadable.add(file.stem)
        reading.used.add(str(file))
        with reading.noting():
            annotations[file.stem] = read_annotation(str(file))
            unreadable.remove(file.stem)
    pictured: set[tuple[str, str]] = set()
    for image in ImageFolder(root).files:
        stem, _, number = image.stem.rpartition("_")
        if stem in unreadable:
            continue
        if stem not in annotations:
            reading.problems.append(f"{image}: no annotation {stem}.xml; add it or the image goes")
            continue
        annotation = annotations[stem]
        pictured.add((stem, number))
        reading.used.add(str(image))
        with reading.noting():
            label = _label(annotation, benign_malignant, root / f"{stem}.xml")
            if task == "segment" and not annotation.outlines.get(number):
                reading.left_out["image without outline"] += 1
            elif task == "classify" and label is None:
                reading.left_out["image without TI-RADS category"] += 1
            else:
                masks = (f"{root / stem}.xml::{number}",) if task == "segment" else ()
                patient = annotation.number or stem
                reading.cases.append(Case(image.stem, str(image), masks, label, patient))
    outlined = {
        (stem, number)
        for stem, annotation in annotations.items()
        for number, outlines in annotation.outlines.items()
        if outlines
    }
    if task == "segment" and (lost := len(outlined - pictured)):
        reading.left_out["outlined image missing"] = lost
    return reading


def _label(annotation: Annotation, benign_malignant: bool, file: Path) -> str | None:
    category = annotation.tirads
    if category is None or not benign_malignant:
        return category
    if category.lower() not in _MALIGNANCY:
        known = ", ".join(_MALIGNANCY)
        raise DataError(f"{file}: TI-RADS category {category!r} is none of {known}; correct it")
    return _MALIGNANCY[category.lower()]

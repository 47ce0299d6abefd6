"""The layout of the Algerian thyroid set AUITD: folders of classes, in which names repeat."""

from __future__ import annotations

import os
from pathlib import Path

from fastht.data.cases import Case, Need, Reading, Split
from fastht.data.images import DataError
from fastht.data.layouts.files import is_image_name, natural

_SIDES: tuple[Split, ...] = ("train", "test")
_LABELS = {"benign": "benign", "malignant": "malignant", "normal thyroid": "normal"}


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return all(
        any(_LABELS.get(folder.name.lower()) == "normal" for folder in _folders(root / side))
        for side in _SIDES
    )


def read(root: Path, task: Need) -> Reading:
    """Read the cases with the official split; there are neither patients nor masks.

    Classes are the folders, in any case. Base names repeat over folders, also over classes, so that
    the name of a case is its whole path. Folders inside those of classes are not read as labels.
    """
    if task == "segment":
        raise DataError(f"{root}: AUITD has no masks; choose --task classify")
    reading = Reading()
    for side in _SIDES:
        for folder in _folders(root / side):
            label = _LABELS.get(folder.name.lower())
            if label is None:
                known = ", ".join(_LABELS)
                reading.problems.append(f"{folder}: no folder of a class ({known}); rename it")
                continue
            for image in _images(folder):
                path = image.relative_to(root).with_suffix("")
                name = "-".join(path.parts)
                reading.cases.append(Case(name, str(image), label=label, split=side))
    return reading


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*") if path.is_dir())


def _images(folder: Path) -> list[Path]:
    """The images of a folder and of those inside it."""
    found = [
        Path(parent, name)
        for parent, _, files in os.walk(folder)
        for name in files
        if is_image_name(name)
    ]
    return sorted(found, key=lambda path: natural(str(path.relative_to(folder))))

"""The layout of the thyroid set TN3K: folders for trainval and test, folds as JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from fastht.data.cases import Case, Need, Reading, Split
from fastht.data.images import DataError
from fastht.data.layouts.files import Described, ImageFolder, read_labels
from fastht.data.tables import read_text

_FOLD_SIDES: tuple[Split, ...] = ("train", "val")


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (root / "trainval-image").is_dir()


def read(root: Path, task: Need, *, fold: int | None = None) -> Reading:
    """Read the cases; labels come from label4trainval.csv and label4test.csv if they are there.

    fold: which tn3k-trainval-fold*.json says what trains and what validates. None takes fold 0 if
        there is one; without, everything in trainval trains.

    Raises DataError if the fold is not there or cannot be read.
    """
    reading = Reading()
    chosen = _read_fold(root, fold)
    reading.used.update(map(str, root.glob("tn3k-trainval-fold*.json")))
    for part in ("trainval", "test"):
        images = ImageFolder(root / f"{part}-image")
        masks = ImageFolder(root / f"{part}-mask")
        if not images.files:
            reading.problems.append(f"{images.path}: no images; copy the data again")
        labels: dict[str, Described] = {}
        if (table := root / f"label4{part}.csv").is_file():
            reading.used.add(str(table))
            with reading.noting():
                labels = read_labels(table)
        for image in images.files:
            split: Split = "test" if part == "test" else "train"
            if part == "trainval" and chosen is not None:
                if image.stem not in chosen:
                    reading.left_out["image in no side of the fold"] += 1
                    reading.used.add(str(image))
                    if (mask := masks.find(image.name, image.stem)) is not None:
                        reading.used.add(str(mask))
                    continue
                split = chosen.pop(image.stem)
            with reading.noting():
                mask = masks.find(image.name, image.stem) if task == "segment" else None
                if task == "segment" and mask is None:
                    raise DataError(f"{masks.path}: no mask for {image.name}; add it")
                reading.cases.append(
                    Case(
                        name=f"{part}-{image.stem}",
                        image=str(image),
                        masks=(str(mask),) if mask else (),
                        label=labels[image.name].label if image.name in labels else None,
                        split=split,
                    )
                )
    if chosen:
        missing = ", ".join(sorted(chosen)[:5])
        what = f"{len(chosen)} images of the fold are not there (e.g. {missing})"
        reading.problems.append(f"{root / 'trainval-image'}: {what}; copy the data again")
    return reading


def _read_fold(root: Path, fold: int | None) -> dict[str, Split] | None:
    """Side of each image by its stem."""
    path = root / f"tn3k-trainval-fold{fold or 0}.json"
    if fold is None and not path.is_file():
        return None
    try:
        listed = json.loads(read_text(path))
        sides = [(f"{int(index):04d}", side) for side in _FOLD_SIDES for index in listed[side]]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        what = f"{type(error).__name__}: {error}"
        form = '{"train": [0, ...], "val": [...]}'
        raise DataError(f"{path}: not of the form {form} ({what}); copy it again") from None
    split = dict(sides)
    if len(split) < len(sides):
        raise DataError(f"{path}: an image is listed twice; correct the fold")
    return split

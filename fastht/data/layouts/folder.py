"""The general layout: images and masks in two folders, or images in a folder for each class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fastht.data.cases import Case, Need, Reading, Split, parse_split
from fastht.data.images import DataError
from fastht.data.layouts.files import (
    Described,
    ImageFolder,
    has_images,
    is_hidden,
    read_labels,
    stem_of,
)
from fastht.data.notes import Note, examples, plural

_IMAGES, _MASKS = ("images", "image", "imgs"), ("masks", "mask")
# Folders of these names are no classes.
_NO_CLASSES = {*_IMAGES, "img", *_MASKS, "labels", "label", "annotations", "segmentations", "gt"}
_MASK_NAME = re.compile(
    r"(?:.*[\s_-])?(?:mask|seg|segmentation|annotation|gt)s?(?:[\s_-]*\d+)?", re.IGNORECASE
)


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any(_is_paired(part) or _class_folders(part) for _, part in _parts(root))


def read(root: Path, task: Need) -> Reading:
    """Read the cases of all splits that there are."""
    reading = Reading()
    described = _described(reading, root)
    taken: dict[str, str] = {}
    for split, part in _parts(root):
        if _is_paired(part):
            own = _described(reading, part) if part != root else {}
            _read_pairs(reading, root, part, split, task, described | own, taken)
        elif task == "segment":
            reading.problems.append(
                f"{part}: no folder images; class folders are for classification alone"
            )
        else:
            for folder in _class_folders(part):
                _read_class(reading, root, folder, split, described, taken)
    _note_rows(reading, root, described, taken)
    return reading


def _read_class(
    reading: Reading,
    root: Path,
    folder: Path,
    split: Split | None,
    described: Mapping[str, Described],
    taken: dict[str, str],
) -> None:
    """Add the cases of the folder of one class.

    described: rows of labels.csv, by the images' names or their paths below root.
    taken: images by the rows that told of them, to which those of this folder are added.
    """
    if folder.name.lower() in _NO_CLASSES:
        reading.problems.append(
            f"{folder}: a folder of this name is no class; rename it, or put images into images/ "
            "and their masks into masks/, with classes in labels.csv"
        )
        return
    files = ImageFolder(folder).files
    masks = {file for file in files if _MASK_NAME.fullmatch(stem_of(file))}
    if len(masks) == len(files):
        masks = set()
    for image in files:
        if image in masks:
            reading.left_out["mask among the images of a class"] += 1
            reading.used.add(str(image))
            continue
        name = _name(split, f"{folder.name}-{stem_of(image)}")
        key, (label, patient) = _row(described, root, image)
        with reading.noting():
            table = root / "labels.csv"
            if label not in (None, folder.name):
                what = f"lies in {folder.name} and is {label} in {table}"
                raise DataError(f"{image}: {what}; correct one of the two")
            if key and taken.setdefault(key, str(image)) != str(image) and patient:
                what = f"{key} of {table} may be {taken[key]} or {image}"
                named = f"{folder.name}/{image.name}"
                raise DataError(f"{what}; name the image with its folder, {named}")
            reading.cases.append(
                Case(name, str(image), label=folder.name, patient=patient, split=split)
            )


def _row(
    described: Mapping[str, Described], root: Path, image: Path
) -> tuple[str | None, Described]:
    """The row of an image, by as much of its path below root as there is in the table."""
    parts = image.relative_to(root).parts
    keys = ("/".join(parts[i:]) for i in range(len(parts)))
    key = next((key for key in keys if key in described), None)
    return key, described[key] if key is not None else Described(None, None)


def _note_rows(
    reading: Reading, root: Path, described: Mapping[str, Described], taken: Mapping[str, str]
) -> None:
    """Note rows of labels.csv whose images are not there."""
    if lost := [name for name in described if name not in taken]:
        text = f"{plural(len(lost), 'row')} of {root / 'labels.csv'} without image"
        reading.notes.append(Note("rows_without_image", len(lost), f"{text}: {examples(lost)}"))


def _described(reading: Reading, folder: Path) -> dict[str, Described]:
    """The rows of a folder's labels.csv, if it has one."""
    table = folder / "labels.csv"
    if table.is_file():
        reading.used.add(str(table))
        with reading.noting():
            return read_labels(table)
    return {}


def _read_pairs(
    reading: Reading,
    root: Path,
    part: Path,
    split: Split | None,
    task: Need,
    described: Mapping[str, Described],
    taken: dict[str, str],
) -> None:
    """Add the cases of a folder of images and one of masks; see :func:`_read_class`."""
    images = ImageFolder(_folder(part, _IMAGES) or part / "images")
    masks = ImageFolder(_folder(part, _MASKS) or part / "masks")
    if not images.files:
        reading.problems.append(f"{images.path}: no images; add some or remove the folder")
    if task == "segment" and not masks.path.is_dir():
        reading.problems.append(f"{masks.path}: no such folder; segmentation needs masks")
        return
    for image in images.files:
        with reading.noting():
            mask = None
            if task == "segment":
                stem = stem_of(image)
                mask = masks.find(image.name, stem, f"{stem}_mask")
                if mask is None:
                    raise DataError(f"{image}: no mask {masks.path / stem}.png; add it")
            key, (label, patient) = _row(described, root, image)
            taken |= {} if key is None else {key: str(image)}
            files = (str(mask),) if mask else ()
            name = _name(split, stem_of(image))
            reading.cases.append(Case(name, str(image), files, label, patient, split=split))


def _parts(root: Path) -> list[tuple[Split | None, Path]]:
    """The folders of the splits, or the one of all images."""
    if _is_paired(root):
        return [(None, root)]
    folders = [path for path in sorted(root.glob("*")) if path.is_dir()]
    splits = [(parse_split(path.name), path) for path in folders]
    return [(split, path) for split, path in splits if split is not None] or [(None, root)]


def _is_paired(part: Path) -> bool:
    return _folder(part, _IMAGES) is not None


def _folder(part: Path, names: tuple[str, ...]) -> Path | None:
    """The first folder that is called by one of some names, in any case."""
    found = {path.name.lower(): path for path in sorted(part.glob("*")) if path.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _class_folders(part: Path) -> list[Path]:
    return [
        path
        for path in sorted(part.glob("*"))
        if path.is_dir() and not is_hidden(path.name) and has_images(path)
    ]


def _name(split: Split | None, name: str) -> str:
    return f"{split}-{name}" if split else name

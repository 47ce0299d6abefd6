"""The general layout: images and masks in two folders, or images in a folder for each class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastht.data.cases import Case, Need, Reading, Split, parse_split
from fastht.data.images import DataError
from fastht.data.layouts.files import Described, ImageFolder, has_images, read_labels


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any(_is_paired(part) or _class_folders(part) for _, part in _parts(root))


def read(root: Path, task: Need) -> Reading:
    """Read the cases of all splits that there are."""
    reading = Reading()
    described = _described(reading, root)
    for split, part in _parts(root):
        if _is_paired(part):
            own = _described(reading, part) if part != root else {}
            _read_pairs(reading, part, split, task, described | own)
        elif task == "segment":
            reading.problems.append(
                f"{part}: no folder images; class folders are for classification alone"
            )
        else:
            for folder in _class_folders(part):
                for image in ImageFolder(folder).files:
                    name = _name(split, f"{folder.name}-{image.stem}")
                    reading.cases.append(Case(name, str(image), label=folder.name, split=split))
    return reading


def _described(reading: Reading, folder: Path) -> dict[str, Described]:
    """The rows of a folder's labels.csv, if it has one."""
    table = folder / "labels.csv"
    if table.is_file():
        with reading.noting():
            return read_labels(table)
    return {}


def _read_pairs(
    reading: Reading,
    part: Path,
    split: Split | None,
    task: Need,
    described: Mapping[str, Described],
) -> None:
    """Add the cases of a folder of images and one of masks."""
    images, masks = ImageFolder(part / "images"), ImageFolder(part / "masks")
    if not images.files:
        reading.problems.append(f"{images.path}: no images; add some or remove the folder")
    if task == "segment" and not masks.path.is_dir():
        reading.problems.append(f"{masks.path}: no such folder; segmentation needs masks")
        return
    for image in images.files:
        with reading.noting():
            mask = None
            if task == "segment":
                mask = masks.find(image.name, image.stem, f"{image.stem}_mask")
                if mask is None:
                    raise DataError(f"{image}: no mask {masks.path / image.stem}.png; add it")
            label, patient = described.get(image.name, Described(None, None))
            files = (str(mask),) if mask else ()
            name = _name(split, image.stem)
            reading.cases.append(Case(name, str(image), files, label, patient, split=split))


def _parts(root: Path) -> list[tuple[Split | None, Path]]:
    """The folders of the splits, or the one of all images."""
    if _is_paired(root):
        return [(None, root)]
    folders = [path for path in sorted(root.glob("*")) if path.is_dir()]
    splits = [(parse_split(path.name), path) for path in folders]
    return [(split, path) for split, path in splits if split is not None] or [(None, root)]


def _is_paired(part: Path) -> bool:
    return (part / "images").is_dir()


def _class_folders(part: Path) -> list[Path]:
    return [path for path in sorted(part.glob("*")) if path.is_dir() and has_images(path)]


def _name(split: Split | None, name: str) -> str:
    return f"{split}-{name}" if split else name

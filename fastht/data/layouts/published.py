"""The layout of the paper's data (NextGen-UIA): all images in one folder, splits as lists."""

from __future__ import annotations

from pathlib import Path

from fastht.data.cases import SPLITS, Case, Need, Reading
from fastht.data.images import DataError
from fastht.data.layouts.files import Described, ImageFolder, read_labels
from fastht.data.tables import read_text

_FOLDERS: dict[Need, str] = {"segment": "segmentation", "classify": "classification"}


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (root / "all" / "images").is_dir()


def read(root: Path, task: Need, *, name: str | None = None) -> Reading:
    """Read the cases of one of the data sets.

    name: which one, e.g. "BUSI"; None takes the only one there is.

    Raises DataError if there is no such data set.
    """
    folder = _choose(root / _FOLDERS.get(task, "segmentation"), name)
    reading = Reading()
    images, masks = ImageFolder(root / "all" / "images"), ImageFolder(root / "all" / "masks")
    labels: dict[str, Described] = {}
    if task == "classify":
        reading.used.add(str(folder / "labels.csv"))
        with reading.noting():
            labels = read_labels(folder / "labels.csv")
    for split in SPLITS:
        listing = folder / f"{split}.txt"
        reading.used.add(str(listing))
        with reading.noting():
            for file in _read_list(listing):
                image = images.get(file)
                if image is None:
                    reading.problems.append(
                        f"{listing}: {file} is not in {images.path}; add it or take the line out"
                    )
                    continue
                with reading.noting():
                    if labels and file not in labels:
                        raise DataError(f"{folder / 'labels.csv'}: no row for {file}; add it")
                    mask = masks.find(file, image.stem) if task == "segment" else None
                    if task == "segment" and mask is None:
                        raise DataError(f"{masks.path}: no mask for {file}; add {image.stem}.png")
                    reading.cases.append(
                        Case(
                            name=image.stem,
                            image=str(image),
                            masks=(str(mask),) if mask else (),
                            label=labels[file].label if file in labels else None,
                            split=split,
                        )
                    )
    return reading


def _choose(parent: Path, name: str | None) -> Path:
    """The folder of a data set."""
    names = sorted(folder.name for folder in parent.glob("*") if folder.is_dir())
    if not names:
        raise DataError(f"{parent}: no data set; add a folder of lists, or choose the other task")
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        what = "several data sets" if name is None else f"no data set {name}"
        raise DataError(f"{parent}: {what}; name one of {', '.join(names)}")
    return parent / name


def _read_list(path: Path) -> list[str]:
    """The image names of a list, one a line."""
    names = [name for line in read_text(path).split("\n") if (name := line.strip())]
    if not names:
        raise DataError(f"{path}: the list is empty; write one image file name a line")
    return names

"""The layout of the breast set BUSI: class folders, masks beside the images."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from fastht.data.cases import Case, Need, Reading
from fastht.data.layouts.files import ImageFolder

_CLASSES = ("benign", "malignant", "normal")
_MASK = re.compile(r"(.+)_mask(?:_\d+)?")  # stem of a mask; several belong to several lesions


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any(next((root / label).glob("*_mask*.*"), None) is not None for label in _CLASSES)


def read(root: Path, task: Need, *, include_normal: bool = False) -> Reading:
    """Read the cases; they have labels, but neither patients nor splits.

    include_normal: also take the images without lesion, whose masks are black.
    """
    reading = Reading()
    for label in _CLASSES:
        folder = ImageFolder(root / label)
        images: dict[str, Path] = {}
        masks: dict[str, list[Path]] = defaultdict(list)
        for file in folder.files:
            if match := _MASK.fullmatch(file.stem):
                masks[match[1]].append(file)
            else:
                images[file.stem] = file
        if label == "normal" and not include_normal:
            if images:
                reading.left_out["normal, no lesion"] = len(images)
                reading.used.update(map(str, folder.files))
            continue
        for stem in masks.keys() - images.keys():
            reading.problems.append(f"{masks[stem][0]}: no image {stem}; add it or remove the mask")
        for stem, image in images.items():
            if task == "segment" and stem not in masks:
                reading.problems.append(f"{image}: no mask {stem}_mask.png beside it; add it")
                continue
            files = tuple(map(str, masks[stem])) if task == "segment" else ()
            reading.cases.append(Case(stem, str(image), files, label))
    return reading

"""The layout of the annotated liver set AUL: class folders, outlines as JSON files."""

from __future__ import annotations

from pathlib import Path

from fastht.data.cases import Case, Need, Reading
from fastht.data.layouts.files import ImageFolder

_CLASSES = {"Benign": "benign", "Malignant": "malignant", "Normal": "normal"}


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any((_class_folder(root, name) / "image").is_dir() for name in _CLASSES)


def read(root: Path, task: Need) -> Reading:
    """Read the cases; they have labels, but neither patients nor splits.

    Numbers start again in every class, so that names hold the class. Masks are the outlines of
    masses; images of normal livers have none and are left out of segmentation.
    """
    reading = Reading()
    for name, label in _CLASSES.items():
        folder = _class_folder(root, name)
        images = ImageFolder(folder / "image")
        outlines = folder / "segmentation" / "mass"
        # Those of liver and body, and of masses where no mask is needed.
        reading.used.update(map(str, (folder / "segmentation").glob("*/*.json")))
        if not images.files:
            what = f"no images of class {label}; unpack {name}.zip here"
            reading.problems.append(f"{images.path}: {what}")
        if label == "normal" and task == "segment":
            reading.left_out["normal, no mass"] = len(images.files)
            reading.used.update(map(str, images.files))
            continue
        if task == "segment":
            stems = {image.stem for image in images.files}
            for outline in sorted(outlines.glob("*.json")):
                if outline.stem not in stems:
                    what = f"no image {outline.stem}; add it or remove the outline"
                    reading.problems.append(f"{outline}: {what}")
        for image in images.files:
            masks: tuple[str, ...] = ()
            if task == "segment":
                outline = outlines / f"{image.stem}.json"
                if not outline.is_file():
                    reading.problems.append(f"{image}: no outline {outline}; add it")
                    continue
                masks = (str(outline),)
            reading.cases.append(Case(f"{label}-{image.stem}", str(image), masks, label))
    return reading


def _class_folder(root: Path, name: str) -> Path:
    """The folder of a class, which may be one deeper: archives have it inside once more."""
    deeper = root / name / name
    return deeper if deeper.is_dir() else root / name

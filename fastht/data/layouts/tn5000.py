"""The layout of the thyroid set TN5000: that of Pascal VOC, boxes and classes in XML files."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from fastht.data.cases import SPLITS, Case, Need, Reading, Split
from fastht.data.images import DataError
from fastht.data.layouts.files import ImageFolder
from fastht.data.tables import read_text

_LABELS = {"0": "benign", "1": "malignant"}


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (root / "JPEGImages").is_dir() and (root / "ImageSets" / "Main").is_dir()


def read(root: Path, task: Need) -> Reading:
    """Read the cases with the official split; there are no patients.

    An image is malignant if any nodule in it is. Boxes are no masks, so it is not for segmentation.

    Raises DataError if the lists of the split cannot be read.
    """
    if task == "segment":
        raise DataError(f"{root}: TN5000 has boxes, no masks; choose --task classify")
    reading = Reading()
    images = ImageFolder(root / "JPEGImages")
    sides: dict[str, Split] = {}
    for split in SPLITS:
        listing = root / "ImageSets" / "Main" / f"{split}.txt"
        reading.used.update((str(listing), str(listing.with_name("trainval.txt"))))
        for line in read_text(listing).splitlines():
            # Lists of Pascal VOC may hold a second column for presence.
            for name in line.split()[:1]:
                if (first := sides.setdefault(name, split)) != split:
                    what = f"{name} is in {first} and in {split}; take it out of one list"
                    reading.problems.append(f"{listing}: {what}")
    for name, split in sides.items():
        with reading.noting():
            image = images.find(f"{name}.jpg", name)
            if image is None:
                listing = root / "ImageSets" / "Main" / f"{split}.txt"
                raise DataError(f"{listing}: no image {name} in {images.path}; copy it again")
            annotation = root / "Annotations" / f"{name}.xml"
            reading.used.add(str(annotation))
            label = _label(annotation) if task == "classify" else None
            reading.cases.append(Case(name, str(image), label=label, split=split))
    if lost := [str(image) for image in images.files if image.stem not in sides]:
        reading.left_out["image in no list of the split"] = len(lost)
        reading.used.update(lost)
    return reading


def _label(path: Path) -> str:
    """The class of an image by its annotation."""
    try:
        names = {(o.findtext("name") or "").strip() for o in ElementTree.parse(path).iter("object")}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); copy it again") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path}: not XML ({error}); copy it again") from None
    if not names or names - _LABELS.keys():
        said = ", ".join(sorted(names)) or "none"
        raise DataError(f"{path}: classes of objects are {said}, not 0 (benign) or 1 (malignant)")
    return _LABELS[max(names)]

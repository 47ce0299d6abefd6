"""Image files of a folder and tables of labels, as several layouts have them."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastht.data.images import DataError
from fastht.data.pixels import SUFFIXES
from fastht.data.tables import guess_separator, read_text

_SUFFIXES = (*SUFFIXES, ".dcm", ".dicom", ".ima")  # what read_image takes

# How files begin that are images whatever they are called: as scanners and DICOM CDs name theirs.
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8")
_DICM = slice(128, 132)


class ImageFolder:
    """The image files of one folder, in natural order: 2.png before 10.png."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = tuple(sorted(_image_files(path), key=lambda file: natural(file.name)))
        self._by_name = {file.name: file for file in self.files}
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for file in self.files:
            self._by_stem[stem_of(file)].append(file)

    def get(self, name: str) -> Path | None:
        """The file of exactly this name."""
        return self._by_name.get(name)

    def find(self, name: str, *stems: str) -> Path | None:
        """The file of this name, else the one whose stem is the first of `stems` that occurs.

        Raises DataError if several files have that stem.
        """
        if exact := self.get(name):
            return exact
        for stem in stems:
            found = self._by_stem.get(stem, [])
            if len(found) > 1:
                names = " and ".join(file.name for file in found)
                raise DataError(f"{self.path}: both {names} fit {name}; remove all but one")
            if found:
                return found[0]
        return None


class Described(NamedTuple):
    """What a row of a table of labels says about an image."""

    label: str | None
    patient: str | None


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that takes runs of digits as numbers."""
    runs = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(run), "") if run.isdecimal() else (-1, run) for run in runs]


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image and is not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in _SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems and editors make for themselves."""
    return name.startswith((".", "~$")) or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def is_image_file(file: Path) -> bool:
    """Whether a file is an image, by its suffix or, where it has none, by how it begins."""
    if is_image_name(file.name):
        return file.is_file()
    # The last part of a DICOM UID looks like a suffix.
    if is_hidden(file.name) or not re.fullmatch(r"(\.\d+)?", file.suffix) or not file.is_file():
        return False
    try:
        with open(file, "rb") as stream:
            head = stream.read(_DICM.stop)
    except OSError:
        return False
    return head[_DICM] == b"DICM" or head.startswith(_BEGINNINGS)


def stem_of(file: Path) -> str:
    """The name of an image file without its suffix, if it has one."""
    return file.stem if file.suffix.lower() in _SUFFIXES else file.name


def has_images(folder: Path) -> bool:
    """Whether an image lies directly in the folder."""
    return next(iter(_image_files(folder)), None) is not None


def _image_files(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return ()
    return (file for file in folder.iterdir() if is_image_file(file))


def read_labels(path: Path) -> dict[str, Described]:
    """Read rows of file name, label and perhaps patient, with or without a header.

    Raises DataError if the table cannot be read, a row is not of that form, or an image has two
    different rows. Names may have folders before them.
    """
    described: dict[str, Described] = {}
    text = read_text(path)
    reader = csv.reader(text.splitlines(), strict=True, delimiter=guess_separator(path, text))
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            where = f"{path}, line {reader.line_num}"
            if not any(row):
                continue
            if reader.line_num == 1 and not is_image_name(row[0]):
                if "label" in row[:1] + row[2:]:
                    raise DataError(f"{where}: the second column has to be the label; reorder them")
                continue
            if not 2 <= len(row) <= 3 or not is_image_name(row[0]):
                raise DataError(f"{where}: not a row of image file, label[, patient]; correct it")
            found = Described(row[1] or None, (row[2] or None) if len(row) == 3 else None)
            row[0] = row[0].replace("\\", "/")
            if described.setdefault(row[0], found) != found:
                raise DataError(f"{where}: {row[0]} has another row before; remove one of the two")
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; correct the quotes") from None
    return described

"""The layout of the breast set BUS-BRA: one table of cases, folds for cross-validation."""

from __future__ import annotations

from pathlib import Path

from fastht.data.cases import Case, Need, Reading, Split
from fastht.data.images import DataError
from fastht.data.layouts.files import ImageFolder
from fastht.data.tables import Rows, read_table

_TABLE, _FOLDS = "bus_data.csv", "5-fold-cv.csv"
_LABELS = ("benign", "malignant")


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (root / _TABLE).is_file() and (root / "Images").is_dir()


def read(root: Path, task: Need, *, fold: int | None = None) -> Reading:
    """Read the cases; the column Case is the patient, of whom there are one or two images.

    fold: which one of 5-fold-cv.csv tests, by its number there; the others train. None leaves
        splits to the command, which keeps patients together.

    Raises DataError if the table or the folds cannot be read.
    """
    reading = Reading()
    table = root / _TABLE
    reading.used.update(map(str, (table, *root.glob("*-fold-cv.csv"))))
    rows = _read(table, ("ID", "Case", "Pathology"))
    split = None if fold is None else _read_fold(root / _FOLDS, fold)
    images, masks = ImageFolder(root / "Images"), ImageFolder(root / "Masks")
    listed = set()
    sides: dict[str, Split] = {}
    for line, row in rows:
        where = f"{table}, line {line}"
        with reading.noting():
            name, patient, label = row["ID"], row["Case"], row["Pathology"].lower()
            listed.add(name)
            if label not in _LABELS:
                known = " nor ".join(_LABELS)
                raise DataError(f"{where}: Pathology {row['Pathology']!r} is neither {known}")
            if not patient:
                raise DataError(f"{where}: no Case, the patient; fill the cell")
            image = images.find(f"{name}.png", name)
            if image is None:
                raise DataError(f"{where}: no image {images.path / name}.png; copy it again")
            mask = masks.find(f"{name.replace('bus_', 'mask_', 1)}.png", name)
            if task == "segment" and mask is None:
                raise DataError(f"{where}: no mask of {name} in {masks.path}; copy it again")
            side = None
            if split is not None:
                if name not in split:
                    raise DataError(f"{root / _FOLDS}: no row for {name}; copy the table again")
                side = split[name]
                if sides.setdefault(patient, side) != side:
                    raise DataError(
                        f"{root / _FOLDS}: Case {patient} is in fold {fold} and in others, so that "
                        "a patient would be on both sides; copy the table again"
                    )
            files = (str(mask),) if mask and task == "segment" else ()
            reading.cases.append(Case(name, str(image), files, label, patient, split=side))
    for image in images.files:
        if image.stem not in listed:
            reading.problems.append(f"{image}: no row of this ID in {table}; add one")
    return reading


def _read_fold(path: Path, fold: int) -> dict[str, Split]:
    """Side of each image by its ID."""
    rows = _read(path, ("ID", "kFold"))
    folds = {row["kFold"] for _, row in rows}
    if str(fold) not in folds:
        raise DataError(f"{path}: no fold {fold}; choose of {', '.join(sorted(folds))}")
    return {row["ID"]: "test" if row["kFold"] == str(fold) else "train" for _, row in rows}


def _read(path: Path, needed: tuple[str, ...]) -> Rows:
    columns, rows = read_table(path)
    if missing := [name for name in needed if name not in columns]:
        what = f"no column {', '.join(missing)}; the columns are {', '.join(columns)}"
        raise DataError(f"{path}: {what}; take the table as its authors publish it")
    return rows

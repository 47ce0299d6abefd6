"""The layout of ROCOv2: radiological figures with captions and concepts, of all modalities."""

from __future__ import annotations

from pathlib import Path

from fastht.data.cases import Case, Need, Reading, Split
from fastht.data.images import DataError
from fastht.data.tables import Rows, read_table

_SIDES: dict[str, Split] = {"train": "train", "valid": "val", "test": "test"}
_MANUAL, _ALL = "_concepts_manual.csv", "_concepts.csv"


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (root / "train_captions.csv").is_file() and (root / "train_images").is_dir()


def read(root: Path, task: Need, *, concept: str | None = None) -> Reading:
    """Read the cases with the official split; there are no patients.

    concept: take only images of this UMLS concept (CUI) by their table of concepts, the manual one
        where there is one; cui_mapping.csv says which is ultrasound's.

    Raises DataError if a table cannot be read, or no image is of the concept.
    """
    if task in ("segment", "classify"):
        what = "ROCOv2 has neither masks nor classes"
        raise DataError(f"{root}: {what}; it is for fastht train and retrieve")
    reading = Reading()
    seen: set[str] = set()
    for name, split in _SIDES.items():
        table = root / f"{name}_captions.csv"
        reading.used.update(map(str, (table, *root.glob(f"{name}_concepts*.csv"))))
        rows = _read(table, ("ID", "Caption"))
        concepts = _concepts(root, name) if concept else {}
        # The archives hold the folder of the split once more.
        folder = root / f"{name}_images"
        folder = folder / name if (folder / name).is_dir() else folder
        for line, row in rows:
            with reading.noting():
                where = f"{table}, line {line}"
                image = folder / f"{row['ID']}.jpg"
                known = concepts.get(row["ID"], set())
                seen |= known
                if concept and concept not in known:
                    reading.left_out[f"without concept {concept}"] += 1
                    reading.used.add(str(image))
                    continue
                if not image.is_file():
                    raise DataError(f"{where}: no image {image}; copy it again")
                caption = row["Caption"]
                reading.cases.append(Case(row["ID"], str(image), caption=caption, split=split))
    if concept and concept not in seen:
        raise DataError(f"{root}: no image of concept {concept}; look it up in cui_mapping.csv")
    return reading


def _concepts(root: Path, name: str) -> dict[str, set[str]]:
    """The concepts of each image."""
    tables = [root / f"{name}{ending}" for ending in (_MANUAL, _ALL)]
    table = next((path for path in tables if path.is_file()), tables[-1])
    return {row["ID"]: set(row["CUIs"].split(";")) for _, row in _read(table, ("ID", "CUIs"))}


def _read(path: Path, needed: tuple[str, ...]) -> Rows:
    columns, rows = read_table(path, ",")
    if missing := [name for name in needed if name not in columns]:
        what = f"no column {', '.join(missing)}; the columns are {', '.join(columns)}"
        raise DataError(f"{path}: {what}; take the table as its authors publish it")
    return rows

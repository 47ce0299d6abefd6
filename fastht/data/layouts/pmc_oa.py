"""The layout of PMC-OA: figures of open-access articles with their captions."""

from __future__ import annotations

from pathlib import Path

from fastht.data.cases import Case, Need, Reading
from fastht.data.documents import read_rows
from fastht.data.images import DataError

_TABLES = ("pmc_oa.jsonl", "pmc_oa_beta.jsonl")


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any((root / table).is_file() for table in _TABLES) and (root / "images").is_dir()


def read(root: Path, task: Need) -> Reading:
    """Read the cases; there are neither splits nor patients.

    The article stands for the patient, since panels of a figure often show one: they stay together
    on a side, but what is counted as patients are articles.

    Raises DataError if the table cannot be read, or there are both tables.
    """
    if task in ("segment", "classify"):
        what = "PMC-OA has neither masks nor classes"
        raise DataError(f"{root}: {what}; it is for fastht train and retrieve")
    tables = [root / table for table in _TABLES if (root / table).is_file()]
    if len(tables) > 1:
        names = " and ".join(table.name for table in tables)
        raise DataError(f"{root}: both {names}; move one of them away")
    reading = Reading()
    reading.used.add(str(tables[0]))
    for where, row in read_rows(tables[0]):
        with reading.noting():
            name = str(row.get("image") or "")
            image = root / "images" / name
            if not name or not image.is_file():
                raise DataError(f"{where}: no image {image if name else 'named'}; copy it again")
            article = str(row.get("pmcid") or name.partition("_")[0])
            caption = str(row.get("caption") or "")
            reading.cases.append(
                Case(Path(name).stem, str(image), patient=article, caption=caption)
            )
    return reading

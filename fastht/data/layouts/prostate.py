"""The layout of the micro-ultrasound prostate set: NIfTI volumes, each slice a case."""

from __future__ import annotations

import re
from pathlib import Path

from fastht.data.cases import Case, Need, Reading, Split
from fastht.data.images import DataError
from fastht.data.layouts.files import natural
from fastht.data.volumes import read_volume, same_place, volume_shape

_SCANS, _MASKS = "micro_ultrasound_scans", "expert_annotations"
_SPLITS: tuple[Split, ...] = ("train", "test")
_NUMBER = re.compile(r"(\d+)\.nii(?:\.gz)?", re.IGNORECASE)


def fits(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any((root / split / _SCANS).is_dir() for split in _SPLITS)


def read(root: Path, task: Need, *, skip_empty: bool = False) -> Reading:
    """Read the cases: the slices of train and test; a volume is a patient.

    A scan and its annotation share the last number of their names, as microUS_train_01.nii.gz and
    expert_annotation_train_01.nii.gz.

    skip_empty: leave out and count the slices in which nothing is marked, which reads all
        annotations.
    """
    reading = Reading()
    for split in _SPLITS:
        with reading.noting():
            scans, masks = (_numbered(root / split / kind) for kind in (_SCANS, _MASKS))
            for number in sorted(masks.keys() - scans.keys()):
                reading.problems.append(f"{masks[number]}: no scan of this number; add it")
            for number in sorted(scans):
                with reading.noting():
                    if task == "segment" and number not in masks:
                        raise DataError(f"{scans[number]}: no annotation in {_MASKS}; add it")
                    mask = masks[number] if task == "segment" else None
                    _read_scan(reading, scans[number], mask, split, skip_empty)
    return reading


def _read_scan(
    reading: Reading, scan: Path, mask: Path | None, split: Split, skip_empty: bool
) -> None:
    """Add the slices of one volume."""
    shape = volume_shape(str(scan))
    if mask is not None:
        same_place(str(mask), str(scan))  # refuses what lies elsewhere
    patient = scan.name.partition(".")[0]
    marked = {*range(shape[0])}
    if mask is not None and skip_empty:
        marked = {*read_volume(str(mask), str(scan)).any(axis=(1, 2)).nonzero()[0].tolist()}
    for index in range(shape[0]):
        if index not in marked:
            reading.left_out["slice without prostate"] += 1
            continue
        masks = (f"{mask}::{index}",) if mask else ()
        name = f"{patient}-{index:03d}"
        reading.cases.append(Case(name, f"{scan}::{index}", masks, patient=patient, split=split))


def _numbered(folder: Path) -> dict[int, Path]:
    """The volumes of a folder by their numbers."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.nii*"), key=lambda path: natural(path.name)):
        if path.name.startswith(".") or not (match := _NUMBER.search(path.name)):
            continue
        first = found.setdefault(int(match[1]), path)
        if first is not path:
            raise DataError(f"{path}: has the same number as {first.name}; rename or remove one")
    return found

"""How far apart the pixels of an image are in the body, where its file says so."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastht.data.cases import Case, is_inside, split_part
from fastht.data.images import DataError
from fastht.data.volumes import is_volume, open_volume

if TYPE_CHECKING:
    from pydicom import Dataset

_AGREE = 0.01  # relative difference up to which two statements are the same
_TO_MM = {"mm": 1.0, "meter": 1e3, "micron": 1e-3}
_CM, _TWO_DIMENSIONAL = 3, 1  # of DICOM's ultrasound regions, PS3.3 C.8.5.5
_TAGS = (
    "SequenceOfUltrasoundRegions",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "NumberOfFrames",
)


@dataclass(frozen=True, slots=True)
class Spacing:
    """Distances between the centres of neighbouring pixels in millimetres.

    row: from one row to the next, vertical; column: from one column to the next, horizontal. The
    order is that of DICOM's Pixel Spacing and of the axes of an array [height, width].
    source: what says so.
    """

    row: float
    column: float
    source: str

    @property
    def mm(self) -> tuple[float, float]:
        """(row, column)."""
        return self.row, self.column

    def agrees(self, other: Spacing) -> bool:
        """Whether both say the same, up to rounding."""
        pairs = zip(self.mm, other.mm, strict=True)
        return all(math.isclose(a, b, rel_tol=_AGREE) for a, b in pairs)

    def __str__(self) -> str:
        return f"{self.row:g} x {self.column:g} mm by {self.source}"


def read_spacing(case: Case) -> Spacing | None:
    """The spacing of a case's image, None where its file does not state it; never guessed.

    - DICOM: the calibration of the two-dimensional ultrasound regions in centimetres, Pixel
      Spacing (also that of functional groups) or, without these, Imager Pixel Spacing, which is
      that at the detector. Pixel Spacing may differ from Imager Pixel Spacing, which it corrects.
    - NIfTI: pixdim, in the header's unit. Without a unit it is millimetres, as is the convention,
      if the header has an affine. Distances of exactly 1 on all axes with the origin at 0 are what
      tools write that know of no spacing, and are taken for none.
    - Other files: none. The resolution of PNG, JPEG and TIFF is that of printers and screens.

    Raises DataError if the file cannot be read, states what cannot be, or contradicts itself:
    statements that differ by more than 1 %, or regions of different scales in one image.
    """
    path, part = split_part(case.image)
    if is_volume(path):
        return _volume_spacing(path)
    if is_inside(path) or not _is_dicom(path):
        return None
    try:
        from pydicom import dcmread

        header = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        stated = [*_regions(header, path), *_measures(header, part, path)]
    except DataError:
        raise
    except Exception as error:  # damaged headers break anything, from struct to ValueError
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: its spacing cannot be read ({what}); export it again") from error
    for other in stated[1:]:
        if not stated[0].agrees(other):
            raise _contradiction(path, stated[0], other)
    if stated:
        return stated[0]
    return _pair(header.get("ImagerPixelSpacing"), "Imager Pixel Spacing", path)


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _regions(header: Dataset, path: str) -> Iterator[Spacing]:
    """The scales of the regions that are images of the body, and not curves or bars."""
    for number, region in enumerate(header.get("SequenceOfUltrasoundRegions") or (), 1):
        units = region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")
        if region.get("RegionSpatialFormat") != _TWO_DIMENSIONAL or units != (_CM, _CM):
            continue
        deltas = (region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX"))
        # Negative where an axis runs against the pixels.
        lengths = [None if delta is None else 10 * abs(delta) for delta in deltas]
        found = _pair(lengths, f"ultrasound region {number}", path)
        assert found is not None  # two lengths were given
        yield found


def _measures(header: Dataset, frame: str | None, path: str) -> Iterator[Spacing]:
    """Pixel Spacing: that of the whole file and that of its functional groups."""
    holders: list[tuple[Any, str]] = [(header, "Pixel Spacing")]
    groups = [*(header.get("SharedFunctionalGroupsSequence") or ())]
    if per_frame := header.get("PerFrameFunctionalGroupsSequence"):
        # Without a number the frame in the middle is read, see read_image.
        frames = int(header.get("NumberOfFrames") or 1)
        groups.append(per_frame[(frames - 1) // 2 if frame is None else int(frame)])
    for group in groups:
        for measures in group.get("PixelMeasuresSequence") or ():
            holders.append((measures, "Pixel Spacing of a functional group"))
    for holder, source in holders:
        if (found := _pair(holder.get("PixelSpacing"), source, path)) is not None:
            yield found


def _pair(values: Any, source: str, path: str) -> Spacing | None:
    """A row and a column distance in millimetres as DICOM has them; None without any."""
    if values is None or values == "":
        return None
    try:
        row, column = (float(value) for value in values)
    except (TypeError, ValueError):
        row = column = math.nan
    if not (0 < row < math.inf and 0 < column < math.inf):
        what = f"{source} is {values}, no two lengths above 0"
        raise DataError(f"{path}: {what}; correct or delete the element")
    return Spacing(row, column, source)


def _volume_spacing(path: str) -> Spacing | None:
    """By NIfTI's pixdim. The first axis runs along rows, so its distance is that of columns."""
    volume = open_volume(path)
    header = volume.header
    oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    unit = header.get_xyzt_units()[0]
    if unit not in _TO_MM and not oriented:
        return None
    # As the shortest decimal that is this float32: 0.1 and not 0.10000000149.
    zooms = [float(str(np.float32(zoom))) for zoom in header.get_zooms()[:3]]
    if not all(0 < zoom < math.inf for zoom in zooms[:2]):
        return None  # 0 stands for what is not known
    origin = volume.affine[:3, 3] if oriented else np.zeros(3)
    if all(zoom == 1 for zoom in zooms) and not origin.any():
        return None
    factor = _TO_MM.get(unit, 1.0)
    stated = "" if unit in _TO_MM else ", unit not stated"
    column, row = (factor * zoom for zoom in zooms[:2])
    found = Spacing(row, column, f"NIfTI pixdim{stated}")
    if oriented:
        column, row = (factor * float(np.linalg.norm(volume.affine[:3, i])) for i in (0, 1))
        if not found.agrees(by_affine := Spacing(row, column, "its affine")):
            raise _contradiction(path, found, by_affine)
    return found


def _contradiction(path: str | os.PathLike[str], one: Spacing, other: Spacing) -> DataError:
    return DataError(
        f"{path}: pixels are {one} and {other}; correct the header, or crop the image to one scale"
    )

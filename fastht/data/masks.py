"""The foreground of a case, from mask files, slices of annotation volumes or outlines."""

from __future__ import annotations

import numpy as np

from fastht.data.annotations import draw_outline, draw_outlines
from fastht.data.cases import Case, read_case_image, split_part
from fastht.data.headers import is_turned
from fastht.data.images import DataError, read_image
from fastht.data.volumes import is_volume, read_slice

_BLACK, _ALIKE = 31, 32  # of 255: what noise makes of black, and of one value


def read_mask(case: Case, size: tuple[int, int] | None = None) -> np.ndarray:
    """The union of a case's masks, uint8 [height, width] of {0, 1}.

    In a file that holds nothing above 1, 1 is foreground; in any other, what is at least half of
    255 in one channel, so that the noise of JPEG and soft edges do no harm. A slice of a volume is
    turned as the scan is, if their headers say how they lie.

    size: width and height of the image; None reads the image to find out.

    Raises DataError if the case has no mask, or one cannot be read, has another size than the
    image, has neither 0/1 nor 0/255 as its values, or has regions of several values.
    """
    if not case.masks:
        raise DataError(f"{case.image}: no mask; add one, all black if there is nothing to mark")
    size = size or read_case_image(case).size
    union = np.zeros(size[::-1], np.uint8)
    image = split_part(case.image)[0]
    for file in case.masks:
        part = _read_part(file, size, image if is_volume(image) else None)
        if part.shape != union.shape:
            found = f"{part.shape[1]} x {part.shape[0]} pixels"
            raise DataError(
                f"{file}: the mask has {found}, the image {case.image} has {size[0]} x {size[1]}; "
                f"export both at the same size{_turned(case.image, part.shape, size)}"
            )
        union |= part
    return union


def _turned(image: str, shape: tuple[int, ...], size: tuple[int, int]) -> str:
    """A word more where EXIF has turned the image alone."""
    if shape != size or not is_turned(image):
        return ""
    return " (EXIF turns the image by 90 degrees: was the mask drawn on it unturned?)"


def _read_part(file: str, size: tuple[int, int], scan: str | None) -> np.ndarray:
    path, part = split_part(file)
    if path.lower().endswith(".json"):
        return draw_outline(path, size)
    if part is None:
        return _binarise(np.asarray(read_image(path)), file)
    if path.lower().endswith(".xml"):
        return draw_outlines(path, part, size)
    return _binarise(read_slice(path, int(part), like=scan)[..., None], file)


def _binarise(colours: np.ndarray, file: str) -> np.ndarray:
    """Values of a mask, [H, W, channels], to {0, 1}."""
    values = colours.max(axis=-1)
    peak = int(values.max())
    if 1 < peak < 128:
        raise DataError(
            f"{file}: the mask's values are 0 to {peak}, neither 0/1 nor 0/255; "
            "write the foreground as 255"
        )
    if peak > 1 and len(regions := _regions(colours)) > 1:
        told = ", ".join(regions)
        raise DataError(
            f"{file}: the mask has regions of several values ({told}); write the foreground as "
            "255 and all else as 0, or a file for each"
        )
    return (values >= (128 if peak > 1 else 1)).astype(np.uint8)


def _regions(colours: np.ndarray) -> list[str]:
    """The different values of regions that are not black.

    A region has a square of 3 x 3 pixels of one value; soft edges and the noise of JPEG have none.
    """
    packed = np.zeros(colours.shape[:2], np.uint32)
    for channel in range(colours.shape[-1]):
        packed = packed << 8 | colours[..., channel]
    if min(packed.shape) < 3 or (packed.min(), packed.max()) == (packed.flat[0],) * 2:
        return [""]
    middle = packed[1:-1, 1:-1]
    height, width = middle.shape
    even = np.ones_like(middle, dtype=bool)
    for down in range(3):
        for right in range(3):
            even &= packed[down : down + height, right : right + width] == middle
    found: list[np.ndarray] = []
    for value in np.unique(middle[even])[::-1]:
        colour = np.array([value >> shift & 255 for shift in (16, 8, 0)], np.int64)
        if colour.max() > _BLACK and all(abs(colour - other).max() > _ALIKE for other in found):
            found.append(colour)
    told = [c[-1:] if colours.shape[-1] == 1 or len(set(c)) == 1 else c for c in found]
    return ["/".join(map(str, colour.tolist())) for colour in told]

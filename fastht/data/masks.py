"""The foreground of a case, from mask files, slices of annotation volumes or outlines."""

from __future__ import annotations

import numpy as np

from fastht.data.annotations import draw_outline, draw_outlines
from fastht.data.cases import Case, read_case_image, split_part
from fastht.data.images import DataError, read_image
from fastht.data.volumes import read_slice


def read_mask(case: Case, size: tuple[int, int] | None = None) -> np.ndarray:
    """The union of a case's masks, uint8 [height, width] of {0, 1}.

    In a file that holds nothing above 1, 1 is foreground; in any other, what is at least half of
    255 in one channel, so that the noise of JPEG and soft edges do no harm.

    size: width and height of the image; None reads the image to find out.

    Raises DataError if the case has no mask, or one cannot be read, has another size than the
    image, or has neither 0/1 nor 0/255 as its values.
    """
    if not case.masks:
        raise DataError(f"{case.image}: no mask; add one, all black if there is nothing to mark")
    size = size or read_case_image(case).size
    union = np.zeros(size[::-1], np.uint8)
    for file in case.masks:
        part = _read_part(file, size)
        if part.shape != union.shape:
            found = f"{part.shape[1]} x {part.shape[0]} pixels"
            raise DataError(
                f"{file}: the mask has {found}, the image {case.image} has {size[0]} x {size[1]}; "
                "export both at the same size"
            )
        union |= part
    return union


def _read_part(file: str, size: tuple[int, int]) -> np.ndarray:
    path, part = split_part(file)
    if path.lower().endswith(".json"):
        return draw_outline(path, size)
    if part is None:
        return _binarise(np.asarray(read_image(path)).max(axis=-1), file)
    if path.lower().endswith(".xml"):
        return draw_outlines(path, part, size)
    return _binarise(read_slice(path, int(part)), file)


def _binarise(values: np.ndarray, file: str) -> np.ndarray:
    """Gray values of a mask to {0, 1}."""
    peak = int(values.max())
    if 1 < peak < 128:
        raise DataError(
            f"{file}: the mask's values are 0 to {peak}, neither 0/1 nor 0/255; "
            "write the foreground as 255"
        )
    return (values >= (128 if peak > 1 else 1)).astype(np.uint8)

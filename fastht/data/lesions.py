"""What masks hold before a model sees them: nothing at all, or lesions too small for its size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from fastht.data.cases import Case, read_case_image, split_part
from fastht.data.images import DataError
from fastht.data.masks import read_mask
from fastht.data.notes import Note, examples, plural
from fastht.data.parquet import is_cell
from fastht.data.resize import Resize, lost_when_small, place
from fastht.data.volumes import is_volume, volume_shape

_READERS = 8  # threads
_ACROSS = 5  # of EXIF's orientations, from which on width and height change places
_ORIENTATION = 0x0112


class _Lesions(NamedTuple):
    empty: bool
    small: bool


def note_lesions(
    cases: Iterable[Case], image_size: int, resize: Resize = "squash"
) -> tuple[Note, ...]:
    """Read all masks; note how many are empty, and how many have lesions that nearly vanish.

    image_size, resize: of the images in the model.

    Masks that cannot be read are left to whoever needs them, who tells what is wrong.
    """
    listed = [case for case in cases if case.masks]
    # Slices of a volume are read in order: two volumes are kept in memory, not more.
    threads = 1 if any(is_volume(split_part(case.image)[0]) for case in listed) else _READERS
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda case: _inspect(case, image_size, resize), listed))
    empty = [case.name for case, lesions in zip(listed, found, strict=True) if lesions.empty]
    small = [case.name for case, lesions in zip(listed, found, strict=True) if lesions.small]
    return tuple(lesion_notes(empty, small, image_size))


def lesion_notes(empty: Sequence[str], small: Sequence[str], image_size: int) -> Iterator[Note]:
    """The notes of images whose masks are empty, and whose lesions fall between the pixels."""
    if empty:
        text = f"{plural(len(empty), 'empty mask')}: {examples(empty)}"
        yield Note("masks_empty", len(empty), text)
    if small:
        what = f"{plural(len(small), 'image')} with lesions that fall between the pixels"
        text = f"{what} at {image_size} x {image_size}: {examples(small)}"
        remedy = "they are kept as a pixel or two; a larger --image-size shows more of them"
        yield Note("lesions_between_pixels", len(small), f"{text}; {remedy}")


def _inspect(case: Case, image_size: int, resize: Resize) -> _Lesions:
    try:
        mask = read_mask(case, _size(case))
    except DataError:
        return _Lesions(empty=False, small=False)
    inner = place(mask.shape, image_size, resize)  # type: ignore[arg-type]
    return _Lesions(not mask.any(), lost_when_small(mask, (inner.width, inner.height)))


def _size(case: Case) -> tuple[int, int]:
    """Width and height of an image as it is read, by its header where that is enough."""
    path, part = split_part(case.image)
    if is_volume(path):
        _, height, width = volume_shape(path)
        return width, height
    if part is None and not is_cell(path):
        try:
            with Image.open(path) as image:
                width, height = image.size
                across = image.getexif().get(_ORIENTATION, 1) >= _ACROSS
                return (height, width) if across else (width, height)
        except OSError:  # DICOM, or whatever reading it will tell
            pass
    return read_case_image(case).size

"""What is kept of an image to know it again: hashes of its bytes and pixels, of its appearance."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from scipy.fft import dct
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from fastht.data.cases import Case, read_case_image, split_part
from fastht.data.embedded import is_embedded, read_embedded
from fastht.data.images import DataError, read_image
from fastht.data.records import Record
from fastht.files import write_atomically

SIDE = 96
"""Height and width of the squares that images are compared at."""

BITS = 256
"""Of a perceptual hash: 16 x 16 frequencies."""

# What a crop may lack at either end of an axis. A hash of 16 frequencies still agrees where a
# window misses the crop by 0.025; so the fine ones reach every crop of up to a tenth at any side.
# Fewer coarse ones, which miss by up to 0.03, tell nearly all pairs apart before.
_FINE = tuple((low, high) for low in (0.0, 0.045, 0.09) for high in (0.0, 0.045, 0.09))
_COARSE = ((0.0, 0.0), *((low, high) for low in (0.03, 0.08) for high in (0.03, 0.08)))
_GRIDS = (_FINE, _COARSE)
WINDOWS = tuple((*rows, *columns) for grid in _GRIDS for rows in grid for columns in grid)
"""Parts that are hashed, the whole first: what each lacks at top, bottom, left and right."""

COARSE = slice(len(_FINE) ** 2, len(WINDOWS))
"""The windows that a pair is compared by at first."""

_FREQUENCIES = 16
_GRID = 4 * _FREQUENCIES  # imagehash's size for a transform of so many frequencies
_FLATTEN = 6.0  # pixels: standard deviation of the surroundings that brightness is relative to
_DARK = 4.0  # gray levels: contrast below which it is noise
_PLAIN = 2.0  # gray levels: standard deviation below which an image has nothing to know it by
_VERSION = 1


@dataclass(frozen=True)
class Fingerprints:
    """What is known of the images of one source, in their order.

    images: their names, as cases and records have them.
    contents: SHA-256 of each file's bytes, [n, 32] uint8; zeros where an image is a part of one.
    pixels: SHA-256 of size and pixels, [n, 32] uint8; zeros for an image that cannot be read.
    hashes: perceptual ones of every window, packed bits [n, len(WINDOWS), BITS / 8] uint8.
    plain: whether an image is of (nearly) one colour, so that its appearance tells nothing, [n].
    squares: the images squeezed into squares, [n, SIDE, SIDE] uint8; None if they are not kept.
    unreadable: what is wrong with the images that cannot be read.
    """

    images: tuple[str, ...]
    contents: np.ndarray
    pixels: np.ndarray
    hashes: np.ndarray
    plain: np.ndarray
    squares: np.ndarray | None = None
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def save(self, path: Path) -> None:
        """Write all but the squares, which show what was imaged, in one step."""
        stream = io.BytesIO()
        np.savez_compressed(
            stream,
            version=_VERSION,
            images=np.array(self.images, dtype=np.str_),
            contents=self.contents,
            pixels=self.pixels,
            hashes=self.hashes,
            plain=self.plain,
        )
        write_atomically(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Fingerprints:
        """Read what `save` wrote. Raises DataError if it cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as kept:
                if int(kept["version"]) != _VERSION:
                    raise DataError(
                        f"{path}: of another version of fastht; train again, or compare the data "
                        "themselves by `fastht data overlap`"
                    )
                names = tuple(map(str, kept["images"]))
                arrays = [kept[name] for name in ("contents", "pixels", "hashes", "plain")]
        except DataError:
            raise
        except Exception as error:  # zip, numpy and the file system each have their own
            what = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}: cannot be read ({what}); copy the run again") from None
        return cls(names, *arrays)


def item_name(item: Case | Record) -> str:
    """The name of the image of a case or record; a frame is named as cases do."""
    frame = getattr(item, "frame", None)
    return item.image if frame is None else f"{item.image}::{frame}"


def fingerprint(
    items: Sequence[Case | Record], *, squares: bool = True, title: str = "hashing images"
) -> Fingerprints:
    """Read all images and keep what tells them; shows its progress.

    squares: keep the pixels at a small size as well, which comparing needs.

    Images that cannot be read match nothing; they are told of in `unreadable`. An image that is
    named several times is read once.
    """
    different = list({item_name(item): item for item in items}.values())
    n = len(different)
    contents, pixels = (np.zeros((n, 32), np.uint8) for _ in range(2))
    hashes = np.zeros((n, len(WINDOWS), BITS // 8), np.uint8)
    plain = np.ones(n, bool)
    small = np.zeros((n, SIDE, SIDE), np.uint8) if squares else None
    unreadable = []
    for i, found in enumerate(
        tqdm(_in_threads(different), desc=title, total=n, unit="image", leave=False)
    ):
        if isinstance(found, DataError):
            unreadable.append(str(found))
            continue
        content, pixels[i], square, hashes[i] = found
        if content is not None:
            contents[i] = content
        plain[i] = square.std() < _PLAIN
        if small is not None:
            small[i] = square
    names = tuple(map(item_name, different))
    return Fingerprints(names, contents, pixels, hashes, plain, small, tuple(unreadable))


def square_of(image: Image.Image) -> np.ndarray:
    """The image in gray, squeezed into a square, [SIDE, SIDE] uint8."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small)


def flatten(squares: np.ndarray) -> np.ndarray:
    """Squares without what images of one scanner have in common: gain, depth, the dark around.

    Each pixel becomes its difference to the mean of its surroundings over their contrast.

    squares: uint8 [..., SIDE, SIDE]; so are the results, float32.
    """
    blur = _surroundings()
    values = squares.astype(np.float32)
    detail = values - _on_both_axes(blur, values)
    contrast = np.sqrt(_on_both_axes(blur, detail * detail))
    return detail / (contrast + np.float32(_DARK))


def window_hashes(squares: np.ndarray, pool: Executor | None = None) -> np.ndarray:
    """Perceptual hashes of all windows of squares, packed bits [n, len(WINDOWS), BITS / 8] uint8.

    The first, of the whole image, is pHash as imagehash computes it. Those of the other windows
    are the same function of a part of the image. Resampling and transform are linear, so that all
    of them come of one matrix product on either side (to rounding of gray levels).

    squares: [n, SIDE, SIDE] uint8. pool: threads that share what is done image by image.
    """
    flat = flatten(squares)
    spectra = [_spectra(flat, grid) for grid in _GRIDS]
    each = map if pool is None else pool.map
    found = list(each(_hash, flat, *spectra))
    return np.stack(found) if found else np.zeros((0, len(WINDOWS), BITS // 8), np.uint8)


def _spectra(flat: np.ndarray, grid: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Low frequencies of the windows of a grid, [n, windows, BITS]."""
    n = len(grid)
    both = _on_both_axes(_transforms(grid), flat)
    apart = both.reshape(len(flat), n, _FREQUENCIES, n, _FREQUENCIES)
    return apart.transpose(0, 1, 3, 2, 4).reshape(len(flat), n * n, BITS)


def _hash(flat: np.ndarray, *spectra: np.ndarray) -> np.ndarray:
    """The hashes of one image, of its flattened square and the frequencies of its windows."""
    values = np.concatenate(spectra)
    middle = np.partition(values, (BITS // 2 - 1, BITS // 2), axis=1)
    bits = values > middle[:, BITS // 2 - 1 : BITS // 2 + 1].mean(axis=1, keepdims=True)
    whole = imagehash.phash(_as_picture(flat), hash_size=_FREQUENCIES).hash.ravel()
    bits[0] = bits[COARSE.start] = whole
    return np.packbits(bits, axis=1)


def _on_both_axes(matrix: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Multiply each square [..., SIDE, SIDE] from both sides: matrix @ square @ matrix.T.

    As two products with all squares: libraries of linear algebra put several threads to each
    product, which for one square wait for one another longer than they compute.
    """
    half = squares.reshape(-1, SIDE) @ matrix.T
    turned = half.reshape(*squares.shape[:-1], len(matrix)).swapaxes(-1, -2)
    whole = np.ascontiguousarray(turned).reshape(-1, SIDE) @ matrix.T
    return whole.reshape(*turned.shape[:-1], len(matrix)).swapaxes(-1, -2)


def _as_picture(flat: np.ndarray) -> Image.Image:
    """Flattened values, mostly within -3 and 3, as the gray picture that imagehash takes."""
    gray = np.rint(128 + 40 * flat).clip(0, 255).astype(np.uint8)
    return Image.fromarray(gray)


@functools.cache
def _surroundings() -> np.ndarray:
    """Gaussian blur along an axis as a matrix, [SIDE, SIDE]: faster than one image at a time."""
    return gaussian_filter1d(np.eye(SIDE, dtype=np.float32), _FLATTEN, axis=0)


@functools.cache
def _transforms(spans: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Resampling of each span of an axis and cosine transform of it, [len(spans) * 16, SIDE]."""
    unit = Image.fromarray(np.eye(SIDE, dtype=np.float32))
    cosines = dct(np.eye(_GRID), axis=0)[:_FREQUENCIES]
    parts = []
    for low, high in spans:
        box = (0, low * SIDE, SIDE, (1 - high) * SIDE)
        weights = np.asarray(unit.resize((SIDE, _GRID), Image.Resampling.LANCZOS, box=box))
        parts.append(cosines @ weights)
    return np.concatenate(parts).astype(np.float32)


_Read = tuple[np.ndarray | None, np.ndarray, np.ndarray]  # hash of bytes, of pixels, the square
_Found = tuple[np.ndarray | None, np.ndarray, np.ndarray, np.ndarray]  # and hashes of windows


def _in_threads(items: Sequence[Case | Record]) -> Iterator[_Found | DataError]:
    """What is found of each item, in order; decoders let other threads run meanwhile."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        step = 256  # so that no more than this waits in memory
        for first in range(0, len(items), step):
            read = list(pool.map(_inspect, items[first : first + step]))
            squares = [found[2] for found in read if not isinstance(found, DataError)]
            hashes = iter(window_hashes(np.stack(squares), pool) if squares else ())
            for found in read:
                yield found if isinstance(found, DataError) else (*found, next(hashes))


def _inspect(item: Case | Record) -> _Read | DataError:
    try:
        content, image = read_item(item)
    except DataError as error:
        return error
    content_hash = None if content is None else _digest(content)
    size = f"{image.width} x {image.height}\n".encode()
    return content_hash, _digest(size + image.tobytes()), square_of(image)


def read_item(item: Case | Record) -> tuple[bytes | None, Image.Image]:
    """The bytes of an image, if it is all that they hold, and the image, mode "RGB".

    Raises DataError, with the name of the file.
    """
    frame = getattr(item, "frame", None)
    if is_embedded(item.image):
        content = read_embedded(item.image)
        whole = content if frame is None else None
        return whole, read_image(content, frame=frame, name=item.image)
    if frame is None and split_part(item.image)[1] is not None:
        assert isinstance(item, Case)
        return None, read_case_image(item)
    try:
        content = Path(item.image).read_bytes()
    except OSError as error:
        raise DataError(
            f"{item.image}: cannot be read ({error.strerror}); check the path"
        ) from None
    whole = content if frame is None else None
    return whole, read_image(content, frame=frame, name=item.image)


def _digest(content: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)

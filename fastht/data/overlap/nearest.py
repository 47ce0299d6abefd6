"""Candidates among two sources of images: those whose perceptual hashes are nearest."""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from fastht.data.overlap.fingerprints import BITS, COARSE

FARTHEST = 72
"""Differing bits of 256 up to which an image is a candidate."""

NEAREST = 8
"""Candidates of an image that are looked at, the nearest: copies are among them."""

_NEAR = BITS - 2 * FARTHEST  # agreement of candidates
_PROMISING = BITS - 2 * 92  # agreement of coarse windows from which the fine ones are looked at
_SPARSE = 0.1  # share of promising pairs up to which looking at each is faster than at all
_PAIRS = 8192  # pairs that are looked at together
_ROWS, _COLUMNS = 1024, 2048  # images that are compared at a time


class Candidates(NamedTuple):
    """Pairs that may show the same, and where: the whole of one is a window of the other.

    whole, part: positions in the two sources, [n]. window: in WINDOWS, of `part`'s image, [n].
    cut: how many images of the first source had more than NEAREST.
    """

    whole: np.ndarray
    part: np.ndarray
    window: np.ndarray
    cut: int


def nearest(
    wholes: np.ndarray, windows: np.ndarray, *, same: bool, title: str = "comparing hashes"
) -> Candidates:
    """For each image its nearest ones of the other source; shows its progress.

    wholes: packed hashes of whole images, [n, BITS / 8] uint8.
    windows: of all windows of the other source, [m, len(WINDOWS), BITS / 8] uint8.
    same: both are of one source: an image is no candidate of its own.

    Every hash meets every other: with bits as 1 and -1, products of matrices give
    BITS - 2 * differing bits, which libraries of linear algebra compute at the machine's peak. All
    pairs meet in the coarse windows, those that are promising in the fine ones.
    """
    n, m = len(wholes), len(windows)
    left = _signs(wholes)
    best = torch.full((n, NEAREST), -float(BITS))
    which = torch.zeros((n, NEAREST), dtype=torch.int64)
    close = torch.zeros(n, dtype=torch.int64)
    columns, rows = range(0, m, _COLUMNS), range(0, n, _ROWS)
    with tqdm(total=len(columns) * len(rows), desc=title, unit="block", leave=False) as progress:
        for start in columns:
            part = windows[start : start + _COLUMNS]
            coarse = [_signs(window) for window in part[:, COARSE].swapaxes(0, 1)]
            for first in rows:
                side = slice(first, first + _ROWS)
                agreement = _best_windows(left[side], coarse)
                agreement = _refined(agreement, left[side], wholes[side], part)
                if same and max(first, start) < min(first + _ROWS, start + _COLUMNS):
                    own = torch.arange(max(first, start), min(first + _ROWS, start + _COLUMNS, n))
                    agreement[own - first, own - start] = -BITS
                close[side] += (agreement >= _NEAR).sum(dim=1)
                kept = agreement.topk(min(NEAREST, agreement.shape[1]), dim=1)
                values = torch.cat([best[side], kept.values], dim=1)
                places = torch.cat([which[side], kept.indices + start], dim=1)
                kept = values.topk(NEAREST, dim=1)
                best[side], which[side] = kept.values, places.gather(1, kept.indices)
                progress.update()
    row, column = (best >= _NEAR).nonzero(as_tuple=True)
    whole, part_of = row.numpy(), which[row, column].numpy()
    window = np.zeros(len(whole), np.int64)
    for start in range(0, len(whole), _PAIRS):
        pairs = slice(start, start + _PAIRS)
        window[pairs] = _differing(wholes[whole[pairs]], windows[part_of[pairs]]).argmin(axis=1)
    return Candidates(whole, part_of, window, int((close > NEAREST).sum()))


def _refined(
    coarse: torch.Tensor, left: torch.Tensor, wholes: np.ndarray, windows: np.ndarray
) -> torch.Tensor:
    """The highest agreement with any window for promising pairs, -BITS for the others."""
    promising = coarse >= _PROMISING
    if promising.sum().item() > _SPARSE * promising.numel():  # images that are much alike
        return _best_windows(left, [_signs(window) for window in windows.swapaxes(0, 1)])
    rows, columns = (places.numpy() for places in promising.nonzero(as_tuple=True))
    best = torch.full_like(coarse, -float(BITS))
    for start in range(0, len(rows), _PAIRS):
        i, j = rows[start : start + _PAIRS], columns[start : start + _PAIRS]
        fewest = _differing(wholes[i], windows[j]).min(axis=1)
        best[i, j] = BITS - 2 * torch.from_numpy(fewest).float()
    return best


def _differing(wholes: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Bits in which hashes [n, bytes] differ from those of windows [n, windows, bytes]."""
    a, b = (np.ascontiguousarray(packed).view(np.uint64) for packed in (wholes, windows))
    return np.bitwise_count(a[:, None] ^ b).sum(axis=2, dtype=np.int32)


def _best_windows(left: torch.Tensor, right: list[torch.Tensor]) -> torch.Tensor:
    """The highest agreement with any window, [rows, columns] float32."""
    best = torch.full((len(left), len(right[0])), -float(BITS), dtype=left.dtype)
    agreement = torch.empty_like(best)
    for window in right:
        torch.mm(left, window.T, out=agreement)
        torch.maximum(best, agreement, out=best)
    return best.float()


def _signs(packed: np.ndarray) -> torch.Tensor:
    """Packed bits [n, BITS / 8] as 1 and -1, [n, BITS]."""
    bits = torch.from_numpy(np.unpackbits(np.ascontiguousarray(packed), axis=1))
    return bits.to(_fastest()).mul_(2).sub_(1)


@functools.cache
def _fastest() -> torch.dtype:
    """The type in which this processor multiplies matrices of signs fastest.

    Whole numbers of up to 256 are exact in bfloat16 too, so that the results are the same. It takes
    half the time where there are instructions for it, and several times as long elsewhere.
    """
    signs = torch.ones(_ROWS, BITS)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = signs.to(dtype)
        for _ in range(2):  # the first prepares kernels
            begun = time.perf_counter()
            matrix @ matrix.T
            seconds[dtype] = time.perf_counter() - begun
    return min(seconds, key=seconds.__getitem__)

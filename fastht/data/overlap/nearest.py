"""Candidates among two sources of images: those whose perceptual hashes are nearest."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from fastht.data.overlap.fingerprints import BITS

FARTHEST = 72
"""Differing bits of 256 up to which an image is a candidate."""

NEAREST = 8
"""Candidates of an image that are looked at, the nearest: copies are among them."""

_NEAR = BITS - 2 * FARTHEST  # agreement of candidates
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
    BITS - 2 * differing bits, which libraries of linear algebra compute at the machine's peak.
    """
    n, m = len(wholes), len(windows)
    left = _signs(wholes)
    best = torch.full((n, NEAREST), -float(BITS))
    which = torch.zeros((n, NEAREST), dtype=torch.int64)
    close = torch.zeros(n, dtype=torch.int64)
    columns, rows = range(0, m, _COLUMNS), range(0, n, _ROWS)
    with tqdm(total=len(columns) * len(rows), desc=title, unit="block", leave=False) as progress:
        for start in columns:
            right = [_signs(w) for w in windows[start : start + _COLUMNS].swapaxes(0, 1)]
            for first in rows:
                side = slice(first, first + _ROWS)
                agreement = _best_windows(left[side], right)
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
    whole, part = row.numpy(), which[row, column].numpy()
    differing = np.bitwise_count(wholes[whole, None] ^ windows[part]).sum(axis=2, dtype=np.int64)
    return Candidates(whole, part, differing.argmin(axis=1), int((close > NEAREST).sum()))


def _best_windows(left: torch.Tensor, right: list[torch.Tensor]) -> torch.Tensor:
    """The highest agreement with any window, [rows, columns]."""
    best = torch.full((len(left), len(right[0])), -float(BITS))
    agreement = torch.empty_like(best)
    for window in right:
        torch.mm(left, window.T, out=agreement)
        torch.maximum(best, agreement, out=best)
    return best


def _signs(packed: np.ndarray) -> torch.Tensor:
    """Packed bits [n, BITS / 8] as 1 and -1, [n, BITS] float32."""
    bits = torch.from_numpy(np.unpackbits(np.ascontiguousarray(packed), axis=1))
    return bits.float().mul_(2).sub_(1)

"""Candidates among sources: the same whatever type their signs are multiplied in."""

import numpy as np
import pytest
import torch

from fastht.data.overlap.fingerprints import BITS, WINDOWS
from fastht.data.overlap.nearest import nearest


def test_bfloat16_and_float32_agree_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    wholes, windows = (
        generator.integers(0, 256, (n, *shape, BITS // 8), dtype=np.uint8)
        for n, shape in ((40, ()), (30, (len(WINDOWS),)))
    )
    windows[:9] = wholes[:9, None]
    windows[9, 5] = ~wholes[9]  # the least agreement that there is
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("fastht.data.overlap.nearest._fastest", lambda dtype=dtype: dtype)
        found.append(nearest(wholes, windows, same=False))
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)
    assert set(zip(found[0].whole, found[0].part, strict=True)) >= {(i, i) for i in range(9)}

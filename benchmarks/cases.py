"""The sizes that are measured, on whatever device is present.

A GPU gets batches that fill it, a CPU those of a workstation. ``TINY`` is what runs where nothing
is measured, so that no benchmark rots (``--benchmark-disable``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = {"cuda": "triton", "cpu": "cpu"}[DEVICE]  # the backend that `auto` prefers there
PASSES = ("forward", "backward", "both")
# What matters most comes first: under a time limit (--seconds) the rest may not be measured.
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float32")}[DEVICE]


@dataclass(frozen=True)
class Shape:
    """One adapter on tokens ``[batch, 1 + side * side, dim]``: a class token and square patches."""

    batch: int
    side: int
    dim: int
    channels: int = 64

    def __str__(self) -> str:
        return "x".join(map(str, (*self.tokens, self.channels)))

    @property
    def grid(self) -> tuple[int, int]:
        return (self.side, self.side)

    @property
    def tokens(self) -> tuple[int, int, int]:
        return (self.batch, 1 + self.side * self.side, self.dim)

    @property
    def rows(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.tokens[1]


TINY = Shape(1, 4, 64, 16)
SHAPES = {
    "cpu": (Shape(8, 14, 768), Shape(1, 14, 768), Shape(8, 24, 1024), Shape(32, 7, 768)),
    "cuda": (Shape(256, 14, 768), Shape(16, 14, 768), Shape(64, 24, 1024), Shape(32, 32, 1152)),
}[DEVICE]
MAIN, SMALL = SHAPES[:2]

SWEEPS = {
    "batch": {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (1, 4, 16, 64, 256, 512)}[DEVICE],
    "side": {"cpu": (4, 7, 14, 24, 32), "cuda": (7, 14, 24, 37)}[DEVICE],
    "dim": (192, 384, 768, 1024, 1280),
    "channels": (16, 32, 64, 128),
}


def sweep(field: str) -> tuple[Shape, ...]:
    """Return the main shape with one of its sizes varied."""
    return tuple(replace(MAIN, **{field: value}) for value in SWEEPS[field])

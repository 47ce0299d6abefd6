"""How fast one adapter can be on a machine: its work against what the machine has shown.

Work is counted by hand, in floating-point operations (:func:`flop`) and in the bytes that no
implementation can do without (:func:`floor_bytes`); the machine's roofs are measured in the same
run (``benchmarks/test_machine.py``): a copy larger than the caches, read and written, and a large
matrix product in the same dtype. No implementation is faster than both roofs allow
(:func:`least_seconds`).

Source: Williams, Waterman, Patterson, "Roofline", CACM 52 (4), 2009.
"""

from __future__ import annotations

from typing import Any

from benchmarks import byte_model
from benchmarks.cases import Shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TAPS = 7 * 7  # the three depthwise convolutions as one


def flop(shape: Shape, part: str) -> int:
    """Return the floating-point operations of a pass: ``"forward"``, ``"backward"`` or ``"both"``.

    Counted: the two products with D-wide activations, the 7x7 depthwise convolution and the 1x1
    convolution; each has two products of the same size in the backward pass. What is left out
    (LayerNorm, GELU, dropout, residual) has no product and is below 3 % at D = 768, C = 64.
    """
    multiply_adds = shape.channels * (2 * shape.dim + TAPS + shape.channels)
    return {"forward": 2, "backward": 4, "both": 6}[part] * shape.rows * multiply_adds


def floor_bytes(shape: Shape, dtype: str, part: str) -> int:
    """Return the bytes that every implementation moves: x in, out out; dout and x in, dx out."""
    sizes = byte_model.Shape(shape.rows, shape.dim, shape.channels, x_bytes=BYTES[dtype])
    forward, backward = byte_model.forward_floor(sizes), byte_model.backward_floor(sizes)
    return {"forward": forward, "backward": backward, "both": forward + backward}[part]


def least_seconds(flop: float, moved: float, flop_per_s: float, bytes_per_s: float) -> float:
    """Return the time below which the roofs let nobody: the slower of computing and moving."""
    return max(flop / flop_per_s, moved / bytes_per_s)


def describe(shape: Shape, dtype: str, part: str) -> dict[str, Any]:
    """Return what a result says of its case, for the report."""
    return {
        "shape": list(shape.tokens),
        "channels": shape.channels,
        "dtype": dtype,
        "pass": part,
        "flop": flop(shape, part),
        "floor_bytes": floor_bytes(shape, dtype, part),
    }

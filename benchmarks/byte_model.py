"""What each launch of the fused adapter has to move: the bytes of the activations, by hand.

Activations are the tensors with a row for each token. A tensor counts once a launch, since the
halo of a convolution and the slices of one group of programs come from the cache. Parameters and
partial sums are left out. Some of the partial sums grow with the batch too: ``point_backward``
leaves ``4 * (1 + C) * C`` bytes a tile of tokens, all of which ``finish`` reads; ``correlate`` and
``gate_backward`` ``200 * C`` bytes an image each. That the correlation reads two maps again, as a
launch of its own, is made up for by its partial sums: inside of ``contract`` they were four times
as large at 197 tokens, and read by every tile.

Verified by :mod:`benchmarks.byte_meter`, which counts the same from what the kernels do in Triton's
interpreter (``tests/test_byte_meter.py``). :mod:`benchmarks.gpu.dram` holds it against the counters
of a GPU's memory, partial sums and all. On an H100 (2026-11-26) they counted 1.01 to 1.21 times
these bytes for the kernels that read or write whole tokens.

Sources: sections 2 and 6 of the design. "Wide" is a row of D features, "narrow" one of C.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes that traffic depends on: tokens of the batch, widths, bytes of a number."""

    tokens: int
    dim: int
    channels: int
    x_bytes: int = 2
    product_bytes: int = 2

    @property
    def wide(self) -> int:
        """Bytes of one D-wide activation."""
        return self.tokens * self.dim * self.x_bytes

    @property
    def narrow(self) -> int:
        """Bytes of one bottleneck map."""
        return self.tokens * self.channels * self.product_bytes

    @property
    def pair(self) -> int:
        """Bytes of two float32 numbers a token."""
        return self.tokens * 8


def forward_floor(shape: Shape) -> int:
    """Bytes that no forward pass can do without: x in, out out."""
    return 2 * shape.wide


def backward_floor(shape: Shape) -> int:
    """Bytes that no backward pass can do without: dout and x in, dx out."""
    return 3 * shape.wide


def forward(shape: Shape, backend: str = "triton") -> dict[str, int]:
    """Bytes of activations that each forward launch moves, by kernel (any channel filter)."""
    return {
        "down": shape.wide + 2 * shape.narrow + shape.pair,  # x | u, u_norm | stats
        "mix_up" if backend == "cuda" else "up": 2 * shape.wide + shape.narrow,  # x, out | u
    }


def backward(shape: Shape, backend: str = "triton", rebuild: bool = False) -> dict[str, int]:
    """Bytes of activations that each backward launch moves, by kernel (any channel filter).

    ``rebuild``: x is made of the output first, which takes one more launch of the forward pass's
    last kernel.
    """
    again = {}
    if rebuild:
        again = {"mix_up" if backend == "cuda" else "up": 2 * shape.wide + shape.narrow}  # out, x
    if backend == "cuda":
        return again | {
            "contract": shape.wide + 3 * shape.narrow,  # dout | u, z, dv
            "mix_back": 3 * shape.narrow + shape.pair,  # dv, u_norm, du | row means
            "expand": 3 * shape.wide + 2 * shape.narrow + 2 * shape.pair,
        }
    return again | {
        "contract": shape.wide + shape.narrow,  # dout | dz
        "point_backward": 4 * shape.narrow,  # dz, u | z, dv
        "correlate": 2 * shape.narrow,  # dv, u
        "mix_backward": 3 * shape.narrow + shape.pair,  # dv, u_norm, du | row means
        "expand": 3 * shape.wide + 2 * shape.narrow + 2 * shape.pair,  # x, dout, dx | du, z
    }


def saved(shape: Shape, rebuild: bool = False) -> int:
    """Bytes a token that stay alive from forward to backward: x, u, u_norm, mean and 1/sigma.

    With ``rebuild`` x does not, but the output, which the next LayerNorm keeps anyway. Pooled sums,
    gate and seed, a few hundred numbers an image, come on top.
    """
    return ((0 if rebuild else shape.wide) + 2 * shape.narrow + shape.pair) // shape.tokens

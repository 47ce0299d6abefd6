"""What each launch of the fused adapter has to move: the bytes of the activations, by hand.

Activations are the tensors with a row for each token. A tensor counts once a launch, since the
halo of a convolution and the slices of one group of programs come from the cache. Parameters are
left out, and partial sums, which grow with the batch too, stand in :func:`partials`. That the
correlation reads two maps again, as a launch of its own, is made up for by its partial sums: inside
of ``contract`` they were four times as large at 197 tokens, and read by every tile.

Verified by :mod:`benchmarks.byte_meter`, which counts the same from what the kernels do in Triton's
interpreter (``tests/test_byte_meter.py``). :mod:`benchmarks.gpu.dram` holds it against the counters
of a GPU's memory, partial sums and all. On an H100 (2026-11-26) they counted 1.01 to 1.21 times
these bytes for the kernels that read or write whole tokens.

Sources: sections 2 and 6 of the design. "Wide" is a row of D features, "narrow" one of C.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


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


def backward(
    shape: Shape, backend: str = "triton", rebuild: bool = False, apart: bool = False
) -> dict[str, int]:
    """Bytes of activations that each backward launch moves, by kernel (any channel filter).

    ``rebuild``: x is made of the output first, which takes one more launch of the forward pass's
    last kernel. ``apart``: Triton's ``expand`` is two launches, as the table of tile sizes has it
    for strict float32.
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
    expand = 3 * shape.wide + 2 * shape.narrow + 2 * shape.pair  # x, dout, dx | du, z
    if apart:  # that of dx has no need of z, that of the sums reads x, dout, du and stats again
        expand += 2 * shape.wide + shape.narrow + shape.pair
    return again | {
        "contract": shape.wide + shape.narrow,  # dout | dz
        "point_backward": 4 * shape.narrow,  # dz, u | z, dv
        "correlate": 2 * shape.narrow,  # dv, u
        "mix_backward": 3 * shape.narrow + shape.pair,  # dv, u_norm, du | row means
        "expand": expand,
    }


@dataclass(frozen=True)
class Grid:
    """The patches of a batch of images, which a full spectral filter transforms."""

    images: int
    height: int
    width: int

    def map(self, shape: Shape) -> int:
        """Bytes of a bottleneck map's patches, without the prefix tokens."""
        return self.images * self.height * self.width * shape.channels * shape.product_bytes

    def spectrum(self, shape: Shape) -> int:
        """Bytes of a map that is transformed along one side: complex float32, half of the other."""
        return self.images * self.height * (self.width // 2 + 1) * shape.channels * 8


def full_forward(shape: Shape, grid: Grid) -> dict[str, int]:
    """The same as :func:`forward` with a full spectral filter (Triton)."""
    found = forward(shape)
    patches, spectrum = grid.map(shape), grid.spectrum(shape)
    found["up"] += patches  # u, of which it adds the skip, and the filtered map
    return found | {"analyse": patches + spectrum, "synthesise": spectrum + patches}


def full_backward(shape: Shape, grid: Grid) -> dict[str, int]:
    """The same as :func:`backward` with a full spectral filter (Triton): both launches run twice.

    First they filter u again, then the gradient of the filtered map, where u is transformed too.
    """
    found = backward(shape)
    patches, spectrum = grid.map(shape), grid.spectrum(shape)
    means = grid.images * grid.height * grid.width * 8
    found["point_backward"] += patches
    # Rows of patches are finished by `synthesise`, which reads dv and u_norm for it.
    found["mix_backward"] -= patches + means
    return found | {
        "analyse": 3 * patches + 2 * spectrum,  # u; du, u
        "synthesise": 2 * spectrum + 4 * patches + means,  # f; dv, u_norm, du | row means
    }


def partials(shape: Shape, images: int, tiles: int, groups: int) -> dict[str, int]:
    """Bytes of partial sums that backward launches write and read, by kernel (Triton).

    Args:
        shape: the sizes.
        images: of the batch.
        tiles: an image, of ``point_backward``.
        groups: of tokens, of ``expand``.
    """
    point = 4 * images * tiles * shape.channels * shape.channels
    bias = 4 * images * tiles * shape.channels
    taps = 4 * images * 49 * shape.channels
    weights = 4 * groups * (3 * shape.channels * shape.dim + shape.dim + shape.channels)
    return {
        "point_backward": point + bias,
        "correlate": taps,
        "gate_backward": bias + 2 * taps,  # about: with a bias and the gate's numbers an image
        "expand": weights,
        "finish": point + bias + taps + weights,
    }


def saved(shape: Shape, rebuild: bool = False) -> int:
    """Bytes a token that stay alive from forward to backward: x, u, u_norm, mean and 1/sigma.

    With ``rebuild`` x does not, but the output, which the next LayerNorm keeps anyway. Pooled sums,
    gate and seed, a few hundred numbers an image, come on top.
    """
    return ((0 if rebuild else shape.wide) + 2 * shape.narrow + shape.pair) // shape.tokens


def table(shape: Shape, grid: Grid, tiles: int, groups: int) -> str:
    """Return what each launch moves, as docs/bytes.md shows it: MB, and the ratio to the floors."""
    lines = ["| | launch | activations MB | partial sums MB |", "|---|---|---|---|"]
    none: dict[str, int] = {}
    sums = partials(shape, grid.images, tiles, groups)
    strict = replace(shape, x_bytes=4, product_bytes=4)
    for title, moved, extra, floor in (
        ("Triton, forward", forward(shape), none, forward_floor(shape)),
        ("Triton, backward", backward(shape), sums, backward_floor(shape)),
        ("Triton, backward, x rebuilt", backward(shape, rebuild=True), none, backward_floor(shape)),
        ("CUDA, forward", forward(shape, "cuda"), none, forward_floor(shape)),
        ("CUDA, backward", backward(shape, "cuda"), none, backward_floor(shape)),
        (
            "CUDA, backward, x rebuilt",
            backward(shape, "cuda", rebuild=True),
            none,
            backward_floor(shape),
        ),
        (
            "Triton, strict float32, backward, x kept",
            backward(strict, apart=True),
            none,
            backward_floor(strict),
        ),
        ("Triton, full filter, forward", full_forward(shape, grid), none, forward_floor(shape)),
        ("Triton, full filter, backward", full_backward(shape, grid), none, backward_floor(shape)),
    ):
        for kernel in [*moved, *(name for name in extra if name not in moved)]:
            summed = f"{extra.get(kernel, 0) / 1e6:.1f}" if extra else "-"
            lines.append(f"| {title} | {kernel} | {moved.get(kernel, 0) / 1e6:.1f} | {summed} |")
        total = sum(moved.values())
        summed = f"{sum(extra.values()) / 1e6:.1f}" if extra else "not counted"
        lines.append(
            f"| **{title}** | floor {floor / 1e6:.1f} | "
            f"**{total / 1e6:.1f}: {total / floor:.2f} of the floor** | {summed} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table of the main shape, with the tiles that are shipped for an H100."""
    grid = Grid(256, 14, 14)
    print(table(Shape(grid.images * 197, 768, 64), grid, tiles=7, groups=22))


if __name__ == "__main__":
    main()

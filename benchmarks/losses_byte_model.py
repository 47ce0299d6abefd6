"""What each launch of the losses' Triton kernels moves, by hand: bytes between programs and L2.

Of the symmetric InfoNCE loss without keys, with B rows and C columns of E features in tiles of
``BM x BN``, forward and then backward in strips of rows. Each tile of pairs reads its rows and
columns whole, so ``sweep`` is what the L2 cache delivers, not what the memory does: programs that
run at the same time share most of it. The other launches stream; in strict float32 there is one
before each sweep, which makes the rounders of rows and columns and the dithers of features. Beside
them stand the bytes that a dense form writes and reads at least, ``dense_floor``.

Verified by :mod:`benchmarks.byte_meter` (``tests/losses/test_triton_bytes.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

SUM_BYTES = 4  # of sums, statistics and gradients


def ceil(a: int, b: int) -> int:
    """Return the quotient, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Shape:
    """The sizes that traffic depends on; ``strip`` is rows of derivatives that are kept at a time.

    ``tile`` is that of both sweeps and ``product`` that of the products: rows and columns.
    ``rounders`` is how many rows' a program makes; 0 where products need none.
    """

    rows: int
    columns: int
    dim: int
    strip: int
    tile: tuple[int, int]
    product: tuple[int, int, int]
    feature_bytes: int = 2
    rounders: int = 0

    @property
    def strips(self) -> list[int]:
        """Rows of each strip."""
        return [min(self.strip, self.rows - i) for i in range(0, self.rows, self.strip)]

    def tiles(self, rows: int) -> tuple[int, int]:
        """Return how many tiles of rows and of columns that many rows have."""
        return ceil(rows, self.tile[0]), ceil(self.columns, self.tile[1])

    def features(self, rows: int) -> dict[str, int]:
        """Return what the tiles of that many rows read of the features."""
        row_tiles, column_tiles = self.tiles(rows)
        tiles = row_tiles * column_tiles
        line = tiles * self.dim * self.feature_bytes
        found = {"rows": line * self.tile[0], "columns": line * self.tile[1]}
        if self.rounders:
            found["row_rounders"] = tiles * self.tile[0] * SUM_BYTES
            found["column_rounders"] = tiles * self.tile[1] * SUM_BYTES
            found["feature_dithers"] = tiles * self.dim * SUM_BYTES
        return found


def rounders(shape: Shape) -> dict[str, int]:
    """Return the bytes of the launch before each sweep: whole features, and what it writes."""
    if not shape.rounders:
        return {}
    rows, columns = (ceil(n, shape.rounders) * shape.rounders for n in (shape.rows, shape.columns))
    line = shape.dim * shape.feature_bytes
    return {
        "rows": rows * line,
        "columns": columns * line,
        "row_rounders": shape.rows * SUM_BYTES,
        "column_rounders": shape.columns * SUM_BYTES,
        "feature_dithers": shape.dim * SUM_BYTES,
    }


def forward(shape: Shape) -> dict[str, int]:
    """Return the bytes of the forward sweep: of each tensor, and what is merged."""
    row_tiles, column_tiles = shape.tiles(shape.rows)
    return {
        **shape.features(shape.rows),
        "row_parts": 2 * column_tiles * shape.rows * SUM_BYTES,
        "column_parts": 2 * row_tiles * shape.columns * SUM_BYTES,
    }


def backward(shape: Shape) -> dict[str, int]:
    """Return the bytes of the backward sweep: of each tensor, over all strips."""
    _, column_tiles = shape.tiles(shape.rows)
    found = {"rows": 0, "columns": 0, "strip": 0, "d_rows": 0, "d_columns": 0}
    for number, rows in enumerate(shape.strips):
        for name, size in shape.features(rows).items():
            found[name] = found.get(name, 0) + size
        row_tiles = shape.tiles(rows)[0]
        # Written whole, to the ends of its tiles.
        pairs = row_tiles * shape.tile[0] * column_tiles * shape.tile[1]
        found["strip"] += pairs * shape.feature_bytes
        for m, k, out in ((rows, shape.columns, "d_rows"), (shape.columns, rows, "d_columns")):
            tiles_m, tiles_n = ceil(m, shape.product[0]), ceil(shape.dim, shape.product[1])
            depth = ceil(k, shape.product[2]) * shape.product[2]
            found["strip"] += tiles_m * shape.product[0] * tiles_n * depth * shape.feature_bytes
            other = "columns" if out == "d_rows" else "rows"
            found[other] += tiles_m * depth * shape.dim * shape.feature_bytes
            again = 2 if out == "d_columns" and number else 1  # it reads what it adds to
            found[out] += again * m * shape.dim * SUM_BYTES
    return found


def workspace(shape: Shape) -> int:
    """Return the bytes that are held beside features and gradients, at most."""
    row_tiles, column_tiles = shape.tiles(shape.rows)
    parts = 2 * (column_tiles * shape.rows + row_tiles * shape.columns) * SUM_BYTES
    strip = max(shape.strips) * shape.columns * shape.feature_bytes
    rounders = (3 * (shape.rows + shape.columns) + shape.dim) * SUM_BYTES if shape.rounders else 0
    return rounders + max(parts, strip + column_tiles * shape.rows * SUM_BYTES)


def dense_floor(shape: Shape) -> int:
    """Return what autograd writes and reads at least of ``[B, C]`` matrices.

    Logits in the features' dtype; two log-softmaxes, in float32 inside, and their gradients: each
    of the four reads one matrix and writes one. The sum of both gradients, and its two products.
    """
    pairs = shape.rows * shape.columns * shape.feature_bytes
    return (1 + 2 * 2 + 2 * 2 + 3 + 2) * pairs

"""Nothing is timed that computes something else: the native backend against the reference.

Coarser than the tests, which hold a backend to twice the error of plain PyTorch: here a mistake in
the build or the call has to show, at the very shape that is timed.
"""

from __future__ import annotations

import functools

from numerics import Draw, run

from benchmarks.cpu.cases import Shape, make_adapter, make_tokens
from fastht import ops, reference

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


class IncorrectError(Exception):
    """What was to be timed computes something else than the reference."""


def check(shape: Shape, dtype: str, backend: str) -> None:
    """Compare ``out - x`` and every gradient, without dropout, with the float64 reference.

    Errors are relative to the largest value. Sums of rounded bfloat16 numbers that cancel are off
    by more than the tolerance in plain PyTorch too; there twice its error is the bound.

    Raises:
        IncorrectError: one of them is off by more.
    """
    x, dout = (make_tokens(shape, dtype, seed) for seed in (3, 4))
    params = {name: p.detach() for name, p in make_adapter(shape, "reference").named_parameters()}
    wide = {name: p.double() for name, p in params.items()}
    options = {"grid_size": shape.grid, "num_prefix_tokens": 1}
    candidate = functools.partial(ops.ht_adapter, backend=backend)
    draw = Draw(
        run(candidate, x, params, dout, **options),
        run(reference.ht_adapter, x, params, dout, **options),
        run(reference.ht_adapter, x.double(), wide, dout.double(), **options),
        x,
        dout,
    )
    for name in draw.exact:
        error, plain = (value / draw.scale(name) for value in draw.errors(name))
        refuse(error, max(TOLERANCE[dtype], 2 * plain), f"{name} of {shape.tokens} {dtype}")


def refuse(error: float, bound: float, what: str) -> None:
    """Raise :class:`IncorrectError` unless ``error`` is at most ``bound``; NaN never is."""
    if not error <= bound:
        raise IncorrectError(f"{what} is off by {error:.3g} of its largest value (bound {bound})")

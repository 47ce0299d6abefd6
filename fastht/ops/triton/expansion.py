"""The launches of the backward pass's last kernel over the tokens: one, or one for dx alone."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from fastht.ops.triton.expand import expand_kernel
from fastht.ops.triton.launch import Folded, Launcher

PROGRAMS = 264  # unless a row says so: about two for each multiprocessor of the largest devices


def expand(
    run: Launcher,
    x: Tensor,
    dout: Tensor,
    du: Tensor,
    z: Tensor,
    stats: Tensor,
    row_means: Tensor,
    du_sums: Tensor,
    folded: Folded,
    dx: Tensor | None,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write dx where it is given, and return the partial sums of the weights' gradients.

    Where a row says ``APART``, these are two launches: x and dout are read twice, but either has
    all the registers. The sums are first, for dx may take the place of x.
    """
    options = run.options("expand")
    programs, apart = options.pop("PROGRAMS", PROGRAMS), options.pop("APART", 0)
    turned = options.pop("TURNED", run.warp_groups and run.padded < 64)
    slices = triton.cdiv(run.dim, options["BD"])
    total = run.batch * run.tokens
    groups, _ = _groups(total, options["BM"], slices, programs)
    kept = groups if weights else 0
    partial = (
        run.new(kept, 3, run.padded, run.dim),
        run.new(kept, run.dim),
        run.new(kept, run.padded),
    )
    target = x if dx is None else dx

    def launch(options: dict[str, Any], programs: int, **flags: Any) -> None:
        slices = triton.cdiv(run.dim, options["BD"])
        groups, per_group = _groups(total, options["BM"], slices, programs)
        run.launch(expand_kernel, slices * groups)(
            x,
            dout,
            du,
            z,
            stats,
            row_means,
            folded.w_down,
            run.params["norm.weight"],
            run.params["gamma"],
            run.params["gammax"],
            target,
            *partial,
            du_sums,
            run.tokens,
            run.dim,
            total,
            per_group,
            slices,
            du_sums.shape[0],
            *x.stride(),
            *dout.stride(),
            *target.stride(),
            BC=run.padded,
            EVEN_D=run.even(options["BD"]),
            FLAT=run.flat(x, dout, target),
            PREFETCH=options["num_stages"],
            PRECISION=run.precision,
            **flags,
            **options,
        )

    if not apart:
        both = {"INPUT": dx is not None, "WEIGHTS": weights}
        launch(options, programs, **both, TURNED=bool(turned))
        return partial
    if weights:
        sums = {"INPUT": False, "WEIGHTS": True}
        launch(options, programs, **sums, TURNED=bool(turned))
    if dx is not None:
        alone = run.options("expand_input")
        programs = alone.pop("PROGRAMS", PROGRAMS)
        flags = {"INPUT": True, "WEIGHTS": False, "TURNED": False}
        launch(alone, programs, **flags)
    return partial


def _groups(total: int, block: int, slices: int, programs: int) -> tuple[int, int]:
    """Return how many groups of token tiles there are, and the tiles of each."""
    tiles = triton.cdiv(total, block)
    per_group = triton.cdiv(tiles, max(1, programs // slices))
    return triton.cdiv(tiles, per_group), per_group

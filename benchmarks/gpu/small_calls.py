"""Phase ``sanitizer``: small forward and backward calls, each checked by the tests' rule.

    python -m benchmarks.gpu.small_calls [CASES]

CASES chooses the cases that have all of these words in their name ("bfloat16 full"). Inputs,
reference and comparison stay on the CPU, so that hardly a kernel but fastht's runs on the device.
Exit status: the number of cases that break the rule.
"""

from __future__ import annotations

import itertools
import os
import sys

import torch
from torch import Tensor

from benchmarks import operators
from benchmarks.cases import DEVICE, Shape
from benchmarks.gpu.common import DRY, mend_interpreter
from fastht import reference
from fastht.ops import ht_adapter

from numerics import Draw, run, violations  # isort: skip  # common says where the tests are

GRIDS = ((4, 5),) if DRY else ((6, 7), (14, 14))
WIDTHS = (32,) if DRY else (192, 768)
CHANNELS = 16 if DRY else 64
BATCH = 2
DRAWS = 1 if DRY else 3


def fused(x: Tensor, params: dict[str, Tensor], **options: object) -> Tensor:
    """Run the fused operator on the device with everything else on the CPU."""
    moved = {name: p.to(DEVICE) for name, p in params.items()}
    return ht_adapter(x.to(DEVICE), moved, backend="triton", **options).cpu()


def parameters(dim: int, grid: tuple[int, int], spectral: str) -> dict[str, Tensor]:
    """Return float32 parameters that bfloat16 can hold exactly, for either filter."""
    adapter = operators.make_adapter(Shape(BATCH, grid[0], dim, CHANNELS), "reference")
    params = {name: p.detach().cpu() for name, p in adapter.named_parameters()}
    if spectral == "full":
        full = 1 + 0.3 * torch.randn(CHANNELS, grid[0], grid[1] // 2 + 1)
        params["spectral_filter"] = full.bfloat16().float()
    return params


def check(dim: int, grid: tuple[int, int], spectral: str, dtype: torch.dtype) -> dict[str, str]:
    """Return what breaks the rule without dropout; with dropout only finiteness can be asked."""
    params = parameters(dim, grid, spectral)
    wide = {name: p.double() for name, p in params.items()}
    options = {"grid_size": grid, "num_prefix_tokens": 1}

    def tokens(number: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(number)
        shape = (BATCH, 1 + grid[0] * grid[1], dim)
        return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]

    def draw(number: int) -> Draw:
        x, dout = tokens(number)
        exact = run(reference.ht_adapter, x.double(), wide, dout.double(), **options)
        plain = run(reference.ht_adapter, x, params, dout, **options)
        return Draw(run(fused, x, params, dout, **options), plain, exact, x, dout)

    broken = violations(draw, DRAWS)
    x, dout = tokens(0)
    dropped = run(fused, x, params, dout, dropout=0.1, **options)
    if not all(value.isfinite().all() for value in dropped.values()):
        broken["with dropout"] = "not finite"
    return broken


def main() -> int:
    """Run the cases and say of each how it went."""
    mend_interpreter()
    wanted = sys.argv[1].split() if len(sys.argv) > 1 else []
    if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1":
        print("every tensor is an allocation of its own")
    failed = 0
    for dtype, spectral, grid, dim in itertools.product(
        (torch.bfloat16, torch.float32), ("channel", "full"), GRIDS, WIDTHS
    ):
        name = f"{str(dtype).removeprefix('torch.')} {spectral} {grid[0]}x{grid[1]} D={dim}"
        if all(word in name.split() for word in wanted):
            broken = check(dim, grid, spectral, dtype)
            failed += bool(broken)
            print(f"case {name}: {f'INCORRECT {broken}' if broken else 'correct'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())

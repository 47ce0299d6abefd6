"""Phase 3: small forward and backward calls for compute-sanitizer, each checked by the rule.

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

from benchmarks.gpu.common import DEVICE, DRY, broken_rule, make_adapter
from fastht.ops import ht_adapter

GRIDS = ((4, 5),) if DRY else ((6, 7), (14, 14))
WIDTHS = (32,) if DRY else (192, 768)
CHANNELS = 16 if DRY else 64
BATCH = 2
DRAWS = 1 if DRY else 3


def fused(x: Tensor, params: dict[str, Tensor], **options: object) -> Tensor:
    """Run the fused operator on the device with everything else on the CPU."""
    moved = {name: p.to(DEVICE) for name, p in params.items()}
    return ht_adapter(x.to(DEVICE), moved, backend="triton", **options).cpu()


def check(dim: int, grid: tuple[int, int], spectral: str, dtype: torch.dtype) -> dict[str, str]:
    """Return what breaks the rule without dropout; with dropout only finiteness can be asked."""
    adapter = make_adapter(dim, CHANNELS, grid, "reference", spectral=spectral).cpu()
    params = {name: p.detach() for name, p in adapter.named_parameters()}
    shape = (BATCH, 1 + grid[0] * grid[1], dim)
    draws = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(DRAWS)]
    options = {"grid_size": grid, "num_prefix_tokens": 1}
    broken = broken_rule(fused, params, draws, **options)
    x, dout = draws[0]
    x.requires_grad_()
    out = fused(x, dict(adapter.named_parameters()), dropout=0.1, **options)
    for value in (out, *torch.autograd.grad(out, (x, *adapter.parameters()), dout)):
        if not value.isfinite().all():
            broken["with dropout"] = "not finite"
    return broken


def main() -> int:
    """Run the cases and say of each how it went."""
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

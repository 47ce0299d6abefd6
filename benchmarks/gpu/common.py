"""What all phases of ``benchmarks/run_gpu.sh`` share: the device, the dry mode, adapters, timing.

In the dry mode (``FASTHT_DRY=1``, set by ``run_gpu.sh --dry``) everything runs once on the CPU,
tiny, in Triton's interpreter. What it writes is marked, for it measures nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))  # the correctness rule and the mended interpreter

DRY = os.environ.get("FASTHT_DRY") == "1"
DRY_NOTE = "dry run, no measurement"
DEVICE = "cpu" if DRY else "cuda"
COMPILE = {"backend": "eager" if DRY else "inductor", "dynamic": False}

if DRY:
    import triton_interpreter

    triton_interpreter.mend()

# After the lines above: Triton and the tests are not found in the right state before them.
from numerics import Draw, run, violations  # noqa: E402

from fastht import HTAdapter, HTConfig, reference  # noqa: E402
from fastht.ops import ht_adapter  # noqa: E402


def make_adapter(
    dim: int,
    channels: int,
    grid: tuple[int, int],
    backend: str,
    *,
    spectral: str = "channel",
    dropout: float = 0.1,
) -> HTAdapter:
    """Return the same adapter in every process: float32 parameters that bf16 can hold exactly.

    The published initialisation leaves the LayerNorm's share at 1e-6, where an error in it would
    not show; here every term counts.
    """
    torch.manual_seed(0)
    config = HTConfig(bottleneck_dim=channels, spectral=spectral, dropout=dropout, init="paper")
    adapter = HTAdapter(dim, config, grid_size=grid, backend=backend)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            if name in ("gamma", "gammax", "norm.weight", "norm.bias", "spectral_filter"):
                p.copy_((name not in ("gamma", "norm.bias")) + 0.3 * torch.randn(p.shape))
            p.copy_(p.bfloat16())
    return adapter.to(DEVICE)


def tokens(batch: int, count: int, dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Return random ``[batch, count, dim]`` tokens on the device, the same in every process."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(batch, count, dim, generator=generator, device=DEVICE).to(dtype)


def broken_rule(
    operation: Callable[..., Tensor],
    params: dict[str, Tensor],
    draws: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: bool = False,
    **options: Any,
) -> dict[str, str]:
    """Return what breaks the tests' correctness rule, of the output and of every gradient.

    The exact values are the reference's in float64; the error of the reference in ``x``'s dtype is
    the yardstick, and under autocast the only one.

    Args:
        operation: is called as ``fastht.reference.ht_adapter``.
        params: the adapter's parameters, of values that all dtypes in use can hold.
        draws: pairs of ``x`` and ``dout``.
        autocast: compare under autocast to bfloat16, as accurate as which the rule then asks for.
        options: of the call.
    """
    wide = {name: p.double() for name, p in params.items()}
    found = []
    for x, dout in draws:
        exact = run(reference.ht_adapter, x.double(), wide, dout.double(), **options)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            plain = run(reference.ht_adapter, x, params, dout, **options)
            candidate = run(operation, x, params, dout, **options)
        found.append(Draw(candidate, plain, exact, x, dout))
    if autocast:
        return violations(found, ceilings=False, precision=torch.bfloat16)
    return violations(found)


def check_fused(
    shape: tuple[int, int, int],
    channels: int,
    grid: tuple[int, int],
    dtype: torch.dtype,
    *,
    autocast: bool = False,
) -> dict[str, str]:
    """Return how the fused operator breaks the rule on ``[B, N, D]`` tokens, without dropout."""
    module = make_adapter(shape[2], channels, grid, "triton")
    params = {name: p.detach() for name, p in module.named_parameters()}
    seeds = (3,) if DRY else (3, 5, 7)
    draws = ((tokens(*shape, dtype, s), tokens(*shape, dtype, s + 1)) for s in seeds)
    fused = functools.partial(ht_adapter, backend="triton")
    # Fills what is allocated with NaN: an element that nobody writes then shows.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        prefix = shape[1] - grid[0] * grid[1]
        return broken_rule(
            fused, params, draws, autocast=autocast, grid_size=grid, num_prefix_tokens=prefix
        )
    finally:
        torch.use_deterministic_algorithms(False)


def synchronize() -> None:
    """Wait for the device."""
    if not DRY:
        torch.cuda.synchronize()


def median_ms(function: Callable[[], Any]) -> float:
    """Return the median time of a call in milliseconds, each on a cold L2 cache."""
    if DRY:
        return elapsed_ms(function, 1)
    import triton.testing

    return triton.testing.do_bench(function, warmup=20, rep=80, return_mode="median")


def elapsed_ms(function: Callable[[], Any], repeats: int) -> float:
    """Return the median over ``repeats`` calls in a row, by the device's clock."""
    if DRY:
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result file, marked if nothing in it was measured."""
    if DRY:
        content = {"note": DRY_NOTE, **content}
    path.write_text(json.dumps(content, indent=1) + "\n")

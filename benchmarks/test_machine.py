"""The machine's roofs, measured in the same run: a large copy and large matrix products."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import DEVICE, DTYPES
from benchmarks.race import Race, clock
from fastht.bench.machine import cache_bytes
from fastht.bench.meter import Contestant

SIDE = {"cpu": 2048, "cuda": 8192}[DEVICE]


@pytest.mark.benchmark(timer=clock)
def test_copy(benchmark: BenchmarkFixture) -> None:
    """Source and target are each at least twice the last-level cache."""
    size = 2**20 if benchmark.disabled else max(2 * cache_bytes(DEVICE), 2**30)
    source = torch.ones(size // 4, device=DEVICE)
    target = torch.zeros_like(source)
    race = Race("machine", {"copy": Contestant(lambda _: target.copy_(source))})
    race.enter(benchmark, "copy", bytes=2 * source.nbytes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(timer=clock)
def test_product(benchmark: BenchmarkFixture, dtype: str) -> None:
    """``[n, n] @ [n, n]``, which stands for the most that the processor computes in a dtype."""
    n = 64 if benchmark.disabled else SIDE
    a, b = (torch.randn(n, n, device=DEVICE).to(getattr(torch, dtype)) for _ in range(2))
    race = Race("machine", {f"product {dtype}": Contestant(lambda _: a @ b)})
    race.enter(benchmark, f"product {dtype}", dtype=dtype, flop=2 * n**3)

"""Memory of one forward and backward pass; the time beside it is that of a cold call."""

from __future__ import annotations

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cpu import cases, gate, memory
from benchmarks.cpu.race import clock, replay

SHAPE = "8x197x768"
PROCESSES = 3


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs"
)
@pytest.mark.parametrize("contestant", cases.BACKENDS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.benchmark(timer=clock)
def test_memory(benchmark: BenchmarkFixture, dtype: str, contestant: str) -> None:
    if reason := cases.unusable(contestant, dtype):
        pytest.skip(reason)
    shape = cases.SHAPES[SHAPE]
    gate.check(shape, dtype, cases.BACKENDS[contestant])
    benchmark.group = f"memory {SHAPE} {dtype} both"
    runs = 1 if benchmark.disabled else PROCESSES
    found = [memory.in_fresh_process(contestant, SHAPE, dtype) for _ in range(runs)]
    median = sorted(found, key=lambda run: run["peak_bytes"])[runs // 2]
    benchmark.extra_info.update(
        shape=shape.tokens,
        dtype=dtype,
        contestant=contestant,
        peak_bytes=median["peak_bytes"],
        saved_bytes=median["saved_bytes"],
        **{"pass": "both"},
    )
    replay(benchmark, [run["seconds"] for run in found])

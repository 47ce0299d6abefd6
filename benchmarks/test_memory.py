"""Memory of one adapter's forward and backward; the time beside it is that of a cold call."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import cases, operators, roofline
from benchmarks.race import clock, replay
from fastht.bench.memory import in_fresh_process, peak_growth, peak_is_measurable
from fastht.bench.meter import Rotation
from fastht.saved_bytes import saved_bytes

PROCESSES = 3


def measure(contestant: str, shape: cases.Shape, dtype: str) -> dict[str, Any]:
    """Run one forward and backward pass, in a process that has run none of that size."""
    operator = operators.make_operator(contestant, shape)
    # A few tokens first: threads, libraries and what they allocate once are not the pass's. What
    # is compiled has to see its own sizes before, and keeps nothing of that size.
    first = shape if contestant == "compile" else replace(shape, batch=1, side=2)
    operators.passes(operator, first, one_set(first, dtype))["both"].once()

    inputs = one_set(shape, dtype)
    passes = operators.passes(operator, shape, inputs)
    start = time.perf_counter()
    peak = None
    if peak_is_measurable(cases.DEVICE):
        peak = peak_growth(passes["both"].once, cases.DEVICE)
    else:
        passes["both"].once()
    seconds = time.perf_counter() - start
    saved = saved_bytes(passes["forward"].once, operator.parameters())
    return {"seconds": seconds, "peak_bytes": peak, "saved_bytes": saved}


def one_set(shape: cases.Shape, dtype: str) -> Rotation[operators.Inputs]:
    x, dout = operators.make_inputs(shape, dtype, 1)
    return Rotation(lambda: (x.requires_grad_(), dout), set_bytes=1, cache_bytes=0)


@pytest.mark.parametrize("contestant", operators.ADAPTERS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.benchmark(timer=clock)
def test_memory(benchmark: BenchmarkFixture, dtype: str, contestant: str) -> None:
    if reason := operators.unusable(contestant, dtype):
        pytest.skip(reason)
    if benchmark.disabled:
        if dtype != cases.DTYPES[0]:
            pytest.skip("one dtype is enough where nothing is measured")
        found = [measure(contestant, cases.TINY, dtype)]
        torch.compiler.reset()
    else:
        if contestant == operators.FUSED:
            operators.check(cases.MAIN, dtype)
        found = [in_fresh_process(measure, contestant, cases.MAIN, dtype) for _ in range(PROCESSES)]
    median = sorted(found, key=lambda run: run["peak_bytes"] or 0)[len(found) // 2]
    shape = cases.TINY if benchmark.disabled else cases.MAIN
    benchmark.group = f"memory {shape} {dtype} both"
    benchmark.extra_info.update(
        roofline.describe(shape, dtype, "both"),
        contestant=contestant,
        peak_bytes=median["peak_bytes"],
        saved_bytes=median["saved_bytes"],
    )
    replay(benchmark, [run["seconds"] for run in found])

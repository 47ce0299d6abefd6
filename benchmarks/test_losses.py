"""Contrastive losses, forward and backward: time in turns, and peak memory in fresh processes."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import losses
from benchmarks.cases import DEVICE
from benchmarks.race import Race, clock, replay
from fastht.bench.memory import in_fresh_process, peak_growth, peak_is_measurable
from fastht.bench.meter import Limits
from fastht.ops import BackendUnavailableError

# A round of the largest case takes minutes on a CPU.
LIMITS = {"cpu": Limits(warm_up=1, min_rounds=5, max_seconds=120.0), "cuda": Limits()}[DEVICE]
PROCESSES = 3


def case_to_run(
    benchmark: BenchmarkFixture, case: losses.Case, dtype: str, name: str
) -> tuple[losses.Case, losses.Loss]:
    """Return the case, tiny where nothing is measured, and the contestant's loss of it."""
    if benchmark.disabled:
        if case.batch != losses.CASES[0].batch or dtype != losses.DTYPES[0]:
            pytest.skip("one size is enough where nothing is measured")
        case = replace(case, batch=losses.TINY, width=32)
    found = losses.find(name, case)
    if isinstance(found, str):
        pytest.skip(found)
    return case, found


@functools.lru_cache(maxsize=1)
def race(case: losses.Case, dtype: str) -> Race:
    try:
        losses.check(case, dtype)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    found = {name: losses.find(name, case) for name in losses.CONTESTANTS}
    runs = {
        name: losses.contestant(loss, case, dtype)
        for name, loss in found.items()
        if not isinstance(loss, str)
    }
    return Race(f"losses {case} {dtype} both", runs, LIMITS)


@pytest.mark.parametrize("contestant", losses.CONTESTANTS)
@pytest.mark.parametrize("dtype", losses.DTYPES)
@pytest.mark.parametrize("case", losses.CASES, ids=str)
@pytest.mark.benchmark(timer=clock)
def test_losses(
    benchmark: BenchmarkFixture, case: losses.Case, dtype: str, contestant: str
) -> None:
    case, _ = case_to_run(benchmark, case, dtype, contestant)
    race(case, dtype).enter(benchmark, contestant, **describe(case, dtype))


def describe(case: losses.Case, dtype: str) -> dict[str, Any]:
    return {"loss": case.loss, "batch": case.batch, "width": case.width, "dtype": dtype}


def measure(contestant: str, case: losses.Case, dtype: str) -> dict[str, Any]:
    """Run one forward and backward pass, in a process that has run none of that size."""
    small = replace(case, batch=losses.TINY)
    run = losses.find(contestant, small)
    assert not isinstance(run, str)
    losses.contestant(run, small, dtype).once()  # what is allocated once is not the pass's

    loss = losses.find(contestant, case)
    assert not isinstance(loss, str)
    images, texts, scale = (x.requires_grad_() for x in losses.make(case, dtype))

    def step() -> Any:
        return losses.gradients(loss, (images, texts, scale))

    start = time.perf_counter()
    peak = peak_growth(step, DEVICE) if peak_is_measurable(DEVICE) else step() and None
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak}


@pytest.mark.parametrize("contestant", losses.CONTESTANTS)
@pytest.mark.parametrize("dtype", losses.DTYPES)
@pytest.mark.parametrize("case", losses.CASES, ids=str)
@pytest.mark.benchmark(timer=clock)
def test_losses_memory(
    benchmark: BenchmarkFixture, case: losses.Case, dtype: str, contestant: str
) -> None:
    """Peak above the features; the time beside it is that of a cold call."""
    case, _ = case_to_run(benchmark, case, dtype, contestant)
    if benchmark.disabled:
        found = [measure(contestant, case, dtype)]
    else:
        repeats = PROCESSES if case.batch <= 4096 else 1
        found = [in_fresh_process(measure, contestant, case, dtype) for _ in range(repeats)]
    median = sorted(found, key=lambda run: run["peak_bytes"] or 0)[len(found) // 2]
    benchmark.group = f"losses memory {case} {dtype} both"
    benchmark.extra_info.update(
        describe(case, dtype), contestant=contestant, peak_bytes=median["peak_bytes"]
    )
    replay(benchmark, [run["seconds"] for run in found])

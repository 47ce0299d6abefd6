"""Forward, backward and both of one adapter on the CPU, in training."""

from __future__ import annotations

import functools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cpu import cases, gate
from benchmarks.cpu.meter import Contestant
from benchmarks.cpu.race import Race, clock

SMALLEST = (next(iter(cases.SHAPES)), cases.DTYPES[0])


@functools.lru_cache(maxsize=1)
def contestants(shape: str, dtype: str) -> dict[str, dict[str, Contestant]]:
    made = cases.contestants(cases.SHAPES[shape], dtype)
    if "cpu" in made:
        gate.check(cases.SHAPES[shape], dtype, "cpu")
    return made


@functools.lru_cache(maxsize=1)
def race(shape: str, dtype: str, part: str) -> Race:
    passes = {name: made[part] for name, made in contestants(shape, dtype).items()}
    return Race(f"adapter {shape} {dtype} {part}", passes)


# The parameter on top varies first: all contestants of a case, then the next case.
@pytest.mark.parametrize("contestant", cases.CONTESTANTS)
@pytest.mark.parametrize("part", cases.PASSES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("shape", cases.SHAPES)
@pytest.mark.benchmark(timer=clock)
def test_adapter(
    benchmark: BenchmarkFixture, shape: str, dtype: str, part: str, contestant: str
) -> None:
    if reason := cases.unusable(contestant, dtype):
        pytest.skip(reason)
    if benchmark.disabled and (shape, dtype) != SMALLEST:
        pytest.skip("the smallest case is enough where nothing is measured")
    measured = race(shape, dtype, part)
    extra = {"shape": cases.SHAPES[shape].tokens, "dtype": dtype, "pass": part}
    if benchmark.enabled:
        seconds = measured.medians[contestant]
        extra["gflop_per_s"] = cases.SHAPES[shape].flop(part) / seconds / 1e9
        if "cpu" in measured.medians:
            extra["ratio_to_cpu"] = seconds / measured.medians["cpu"]
    measured.enter(benchmark, contestant, **extra)

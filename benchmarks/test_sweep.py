"""How the cost of forward and backward grows with each of the sizes, and the dtype."""

from __future__ import annotations

import functools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import cases, operators, roofline
from benchmarks.race import Race, clock
from benchmarks.skips import shape_to_run
from fastht.bench.meter import Limits

CONTESTANTS = (operators.FUSED, "eager", "compile")
LIMITS = Limits(min_seconds=1.5)
POINTS = [(field, shape) for field in cases.SWEEPS for shape in cases.sweep(field)]


@functools.lru_cache(maxsize=1)
def race(shape: cases.Shape, dtype: str) -> Race:
    made = operators.contestants(CONTESTANTS, shape, dtype)
    passes = {name: of_name["both"] for name, of_name in made.items()}
    return Race(f"sweep {shape} {dtype}", passes, LIMITS)


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("field", "shape"), POINTS, ids=str)
@pytest.mark.benchmark(timer=clock)
def test_sweep(
    benchmark: BenchmarkFixture, field: str, shape: cases.Shape, dtype: str, contestant: str
) -> None:
    first = (field, shape, dtype) == (*POINTS[0], cases.DTYPES[0])
    shape = shape_to_run(benchmark, contestant, dtype, shape, first=first)
    measured = race(shape, dtype)
    measured.enter(benchmark, contestant, sweep=field, **roofline.describe(shape, dtype, "both"))

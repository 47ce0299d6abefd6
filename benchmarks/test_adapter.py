"""Forward, backward and both of one adapter, in training."""

from __future__ import annotations

import functools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import cases, operators, roofline
from benchmarks.race import Race, clock
from benchmarks.skips import shape_to_run
from fastht.bench.meter import Contestant


# One case's three races share what the contestants compiled and their inputs.
@functools.lru_cache(maxsize=1)
def contestants(shape: cases.Shape, dtype: str) -> dict[str, dict[str, Contestant]]:
    return operators.contestants(operators.CONTESTANTS, shape, dtype)


@functools.lru_cache(maxsize=1)
def race(shape: cases.Shape, dtype: str, part: str) -> Race:
    passes = {name: made[part] for name, made in contestants(shape, dtype).items()}
    return Race(f"adapter {shape} {dtype} {part}", passes)


# The parameter on top varies first: all contestants of a case, then the next case.
@pytest.mark.parametrize("contestant", operators.CONTESTANTS)
@pytest.mark.parametrize("part", cases.PASSES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
@pytest.mark.benchmark(timer=clock)
def test_adapter(
    benchmark: BenchmarkFixture, shape: cases.Shape, dtype: str, part: str, contestant: str
) -> None:
    shape = shape_to_run(benchmark, contestant, dtype, shape, first=shape == cases.SHAPES[0])
    measured = race(shape, dtype, part)
    measured.enter(benchmark, contestant, **roofline.describe(shape, dtype, part))

"""Forward, backward and both of one adapter, in training."""

from __future__ import annotations

import functools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import cases, operators, roofline
from benchmarks.race import Race, clock
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
    if reason := operators.unusable(contestant, dtype):
        pytest.skip(reason)
    if benchmark.disabled:
        if shape != cases.SHAPES[0]:
            pytest.skip("one shape is enough where nothing is measured")
        shape = cases.TINY
    measured = race(shape, dtype, part)
    measured.enter(benchmark, contestant, **roofline.describe(shape, dtype, part))

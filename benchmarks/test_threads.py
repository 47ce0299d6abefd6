"""One thread against all of them, on a CPU: forward and backward of one adapter."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import cases, operators, roofline
from benchmarks.race import Race, clock
from benchmarks.skips import shape_to_run
from fastht.bench.meter import Contestant

DTYPE = "float32"
CONTESTANTS = (operators.FUSED, "eager")
ALL = torch.get_num_threads()
COUNTS = sorted({1, *(2**i for i in range(1, ALL.bit_length()) if 2**i < ALL), ALL})

pytestmark = [
    pytest.mark.skipif(cases.DEVICE != "cpu", reason="a GPU has no threads of torch"),
    pytest.mark.skipif(ALL == 1, reason="torch has one thread here"),
]


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    yield
    torch.set_num_threads(ALL)


def on_threads(contestant: Contestant, threads: int) -> Contestant:
    def prepare() -> object:
        torch.set_num_threads(threads)
        contestant.once()  # starting and stopping threads is not timed
        return contestant.prepare()

    return Contestant(contestant.run, prepare)


@functools.lru_cache(maxsize=1)
def race(shape: cases.Shape) -> Race:
    made = operators.contestants(CONTESTANTS, shape, DTYPE)
    passes = {
        f"{name} {count}": on_threads(of_name["both"], count)
        for name, of_name in made.items()
        for count in COUNTS
    }
    return Race(f"threads {shape} {DTYPE}", passes)


@pytest.mark.parametrize("threads", COUNTS)
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
@pytest.mark.benchmark(timer=clock)
def test_threads(
    benchmark: BenchmarkFixture, shape: cases.Shape, contestant: str, threads: int
) -> None:
    shape = shape_to_run(benchmark, contestant, DTYPE, shape, first=shape == cases.SHAPES[0])
    measured = race(shape)
    extra = roofline.describe(shape, DTYPE, "both")
    measured.enter(benchmark, f"{contestant} {threads}", threads=threads, **extra)

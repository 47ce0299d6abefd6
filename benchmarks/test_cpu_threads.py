"""One thread against all of them: forward and backward of one adapter."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cpu import cases, gate
from benchmarks.cpu.meter import Contestant
from benchmarks.cpu.race import Race, clock

DTYPE = "float32"


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on_threads(contestant: Contestant, threads: int) -> Contestant:
    def prepare() -> None:
        torch.set_num_threads(threads)
        contestant.once()  # starting and stopping threads is not timed

    return Contestant(contestant.run, prepare)


@functools.lru_cache(maxsize=1)
def race(name_of_shape: str) -> tuple[Race, dict[str, int]]:
    counts = {"one": 1, "all": torch.get_num_threads()}
    shape = cases.SHAPES[name_of_shape]
    made = {}
    for name, backend in cases.BACKENDS.items():
        if cases.unusable(name, DTYPE) is None:
            gate.check(shape, DTYPE, backend)
            adapter = cases.make_adapter(shape, backend)
            both = cases.adapter_passes(shape, DTYPE, adapter, adapter)["both"]
            for threads, count in counts.items():
                made[f"{name} {threads}"] = on_threads(both, count)
    return Race(f"threads {name_of_shape} {DTYPE} both", made), counts


@pytest.mark.parametrize("threads", ["one", "all"])
@pytest.mark.parametrize("contestant", cases.BACKENDS)
@pytest.mark.parametrize("shape", cases.SHAPES)
@pytest.mark.benchmark(timer=clock)
def test_threads(benchmark: BenchmarkFixture, shape: str, contestant: str, threads: str) -> None:
    if reason := cases.unusable(contestant, DTYPE):
        pytest.skip(reason)
    if benchmark.disabled and shape != next(iter(cases.SHAPES)):
        pytest.skip("the smallest case is enough where nothing is measured")
    measured, counts = race(shape)
    if counts["all"] == 1:
        pytest.skip("torch has one thread here")
    extra = {"shape": cases.SHAPES[shape].tokens, "dtype": DTYPE, "pass": "both"}
    extra["threads"] = counts[threads]
    if benchmark.enabled:
        medians = measured.medians
        extra["speedup"] = medians[f"{contestant} one"] / medians[f"{contestant} {threads}"]
    measured.enter(benchmark, f"{contestant} {threads}", **extra)

"""From one alternating measurement to one pytest-benchmark entry for each contestant."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import DEVICE
from fastht.bench.meter import Contestant, Limits, alternate

_now = 0.0


def clock() -> float:
    """Tell pytest-benchmark the time, which passes only while :func:`replay` runs.

    Tests give it as ``@pytest.mark.benchmark(timer=clock)``. pytest-benchmark has one contestant a
    test and would time them one after another; with this clock it is given seconds that were
    measured before, and tables, grouping, JSON and comparisons work as ever.
    """
    return _now


def replay(benchmark: BenchmarkFixture, seconds: list[float]) -> None:
    """Enter measured seconds, one a round."""
    remaining = iter(seconds)

    def step() -> None:
        global _now
        _now += next(remaining)

    benchmark.pedantic(step, rounds=len(seconds))


class Race:
    """Contestants that take turns, timed when the first entry is asked for."""

    def __init__(
        self, group: str, contestants: Mapping[str, Contestant], limits: Limits | None = None
    ) -> None:
        self.group = group
        self.contestants = contestants
        self.limits = limits

    @functools.cached_property
    def seconds(self) -> dict[str, list[float]]:
        """The seconds of each contestant, one a round."""
        return alternate(self.contestants, device=DEVICE, limits=self.limits)

    def enter(self, benchmark: BenchmarkFixture, name: str, **extra_info: Any) -> None:
        """Make one contestant's entry, or run it once where benchmarks are disabled."""
        benchmark.group = self.group
        benchmark.extra_info.update(extra_info, contestant=name)
        if benchmark.disabled:
            benchmark(self.contestants[name].once)
        else:
            replay(benchmark, self.seconds[name])

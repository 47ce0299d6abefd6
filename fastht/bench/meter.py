"""Time several contestants in one run, taking turns, so that a slow minute hits all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

LONGEST_SPIN = 0.05  # seconds
CYCLES_PER_SECOND = 2e9  # GPUs run at less: a spin may be longer than asked for, not shorter


@dataclass(frozen=True)
class Contestant:
    """One of those that take turns.

    Attributes:
        run: what is timed; takes what ``prepare`` returned.
        prepare: is called before each ``run`` and not timed.
    """

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None

    def once(self) -> Any:
        """Prepare and run."""
        return self.run(self.prepare())


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        warm_up: rounds before the clock counts.
        min_rounds: rounds that are timed at least.
        min_seconds: seconds that the timed rounds take at least.
        max_seconds: seconds after which no round begins, whatever the other two say.
    """

    warm_up: int = 3
    min_rounds: int = 15
    min_seconds: float = 3.0
    max_seconds: float = 60.0


class Rotation(Generic[T]):
    """Inputs that take turns, so many that none is still in the last-level cache.

    Args:
        make: makes one set of inputs.
        set_bytes: bytes of a set.
        cache_bytes: size of the cache that they have to outgrow.
    """

    def __init__(self, make: Callable[[], T], set_bytes: int, cache_bytes: int) -> None:
        self.sets = [make() for _ in range(1 + -(-cache_bytes // set_bytes))]
        self._turn = 0

    def next(self) -> T:
        """Return the set whose last turn is longest ago."""
        self._turn = (self._turn + 1) % len(self.sets)
        return self.sets[self._turn]


def alternate(
    contestants: Mapping[str, Contestant], *, device: str = "cpu", limits: Limits | None = None
) -> dict[str, list[float]]:
    """Return the seconds of each contestant's calls, one a round.

    Every round runs each of them once. It begins one contestant further on than the last, and
    after a whole turn the order is reversed, so nobody has a fixed place or predecessor.

    Args:
        contestants: who takes turns, by name.
        device: ``"cpu"``, where a monotonic clock is read, or ``"cuda"``, where the device's own
            events are. There each call waits on the device behind a spin that lasts until the
            host has launched all of it (up to ``LONGEST_SPIN``): a slow host is not taken for a
            slow kernel.
        limits: how long to measure.

    Raises:
        ValueError: there is no contestant.
    """
    if not contestants:
        raise ValueError("there is nothing to time: name at least one contestant")
    limits = Limits() if limits is None else limits
    clock = _CudaClock() if device == "cuda" else _CpuClock()
    names = list(contestants)
    for _ in range(limits.warm_up):
        for name in names:
            clock.warm_up(name, contestants[name])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        rounds, elapsed = 0, 0.0
        while elapsed < limits.max_seconds and (
            rounds < limits.min_rounds or elapsed < limits.min_seconds
        ):
            turns, first = divmod(rounds, len(names))
            order = names[first:] + names[:first]
            for name in order if turns % 2 == 0 else reversed(order):
                seconds[name].append(clock.seconds(name, contestants[name]))
            rounds, elapsed = rounds + 1, time.perf_counter() - start
    finally:
        gc.enable()
    return seconds


class _CpuClock:
    def warm_up(self, name: str, contestant: Contestant) -> None:
        contestant.once()

    def seconds(self, name: str, contestant: Contestant) -> float:
        prepared = contestant.prepare()
        start = time.perf_counter()
        result = contestant.run(prepared)
        end = time.perf_counter()
        del result  # after the clock: what a contestant returns it need not free
        return end - start


class _CudaClock:
    """The device's events, behind a spin as long as the host needs to launch a call."""

    def __init__(self) -> None:
        self._launching: dict[str, float] = {}  # seconds of the host for a call, its least

    def warm_up(self, name: str, contestant: Contestant) -> None:
        prepared = contestant.prepare()
        torch.cuda.synchronize()
        start = time.perf_counter()
        contestant.run(prepared)
        took = time.perf_counter() - start
        # The first call compiles, and a queue that is full makes the host wait: the least counts.
        self._launching[name] = min(took, self._launching.get(name, took))

    def seconds(self, name: str, contestant: Contestant) -> float:
        prepared = contestant.prepare()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        spin = min(LONGEST_SPIN, 2 * self._launching.get(name, LONGEST_SPIN))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(spin * CYCLES_PER_SECOND))
        start.record()
        result = contestant.run(prepared)
        end.record()
        torch.cuda.synchronize()
        del result
        return start.elapsed_time(end) / 1e3

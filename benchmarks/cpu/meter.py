"""Time several contestants in one run, taking turns, so that a slow minute hits all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WARM_UP_ROUNDS = 3
MIN_ROUNDS = 15
MIN_SECONDS = 3.0
MAX_SECONDS = 60.0  # goes before both


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


def alternate(contestants: Mapping[str, Contestant]) -> dict[str, list[float]]:
    """Return the seconds of each contestant's calls, one a round.

    Every round runs each of them once. It begins one contestant further on than the last, and
    after a whole turn the order is reversed, so nobody has a fixed place or predecessor.
    """
    names = list(contestants)
    for _ in range(WARM_UP_ROUNDS):
        for contestant in contestants.values():
            contestant.once()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        rounds, elapsed = 0, 0.0
        while elapsed < MAX_SECONDS and (rounds < MIN_ROUNDS or elapsed < MIN_SECONDS):
            turns, first = divmod(rounds, len(names))
            order = names[first:] + names[:first]
            for name in order if turns % 2 == 0 else reversed(order):
                seconds[name].append(_time(contestants[name]))
            rounds, elapsed = rounds + 1, time.perf_counter() - start
    finally:
        gc.enable()
    return seconds


def _time(contestant: Contestant) -> float:
    prepared = contestant.prepare()
    start = time.perf_counter()
    result = contestant.run(prepared)
    end = time.perf_counter()
    del result  # after the clock: what a contestant returns it need not free
    return end - start

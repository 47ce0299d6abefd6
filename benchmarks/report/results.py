"""What was measured: runs of the suites on one machine, and their entries."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

FUSED = {"cuda": "triton", "cpu": "cpu"}  # device -> the backend that the suites measured there
FUSED_LOSS = {"cuda": "triton", "cpu": "blocked"}  # the same of the losses' suites
_CASE = ("shape", "channels", "dtype", "pass")
_LOSS = ("loss", "batch", "width", "dtype")


@dataclass(frozen=True)
class Suite:
    """What ``extra_info`` has to hold, beside the contestant.

    Attributes:
        case: fields that say what was measured; two entries that agree in them are the same.
        beside: the other fields that a page needs.
    """

    case: tuple[str, ...]
    beside: tuple[str, ...] = ()


SUITES = {
    "test_copy": Suite(("bytes",)),
    "test_product": Suite(("dtype", "flop")),
    "test_adapter": Suite(_CASE, ("flop", "floor_bytes")),
    "test_sweep": Suite(("sweep", *_CASE)),
    "test_threads": Suite((*_CASE, "threads")),
    "test_memory": Suite(_CASE, ("saved_bytes", "peak_bytes")),
    "test_tower": Suite(("model", "batch", "dtype", "pass")),
    "test_training": Suite(
        ("model", "batch", "precision"), ("saved_bytes", "held_bytes", "peak_bytes", "trainable")
    ),
    "test_throughput": Suite(("model", "batch", "precision", "images")),
    "test_export": Suite(("model", "batch", "dtype", "pass"), ("bytes",)),
    "test_losses": Suite(_LOSS),
    "test_losses_memory": Suite(_LOSS, ("peak_bytes",)),
}
LOSSES = ("test_losses", "test_losses_memory")
COLD = ("test_memory", "test_losses_memory")  # their times are of cold calls; no page shows them


@dataclass(frozen=True)
class Entry:
    """One contestant in one case: seconds, and what the suite says of it."""

    name: str
    median: float
    iqr: float
    rounds: int
    info: dict[str, Any]

    @property
    def suite(self) -> str:
        return self.name.partition("[")[0]

    @property
    def contestant(self) -> str:
        return self.info["contestant"]

    @property
    def key(self) -> tuple[Any, ...]:
        """What was measured; the same in every run of the same thing."""
        return self.suite, self.contestant, *(self.field(name) for name in SUITES[self.suite].case)

    def field(self, name: str) -> Any:
        """Return a field of ``info`` such that it can be a key."""
        value = self.info[name]
        return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Run:
    """One run of the suites.

    Attributes:
        source: the file that it was read from, for messages.
        machine: from :func:`fastht.bench.machine.describe`.
        commit: ``id`` and whether it was ``dirty``.
        date: when it ended, in ISO format.
        command: what was called.
        entries: what was measured.
        unknown: entries of suites that no page shows, by suite.
    """

    source: str
    machine: dict[str, Any]
    commit: dict[str, Any]
    date: str
    command: str
    entries: tuple[Entry, ...]
    unknown: Counter[str]


@dataclass(frozen=True)
class Results:
    """Runs on one machine, the oldest first, no two of which measured the same."""

    runs: tuple[Run, ...]

    @functools.cached_property
    def entries(self) -> list[Entry]:
        return [entry for run in self.runs for entry in run.entries]

    @property
    def unknown(self) -> Counter[str]:
        """How many entries no page shows, by suite."""
        return sum((run.unknown for run in self.runs), Counter())

    @property
    def machine(self) -> dict[str, Any]:
        """The machine as the oldest run found it."""
        return self.runs[0].machine

    @property
    def fused(self) -> str:
        """The fused backend's name."""
        return FUSED[self.machine["device"]]

    def fused_in(self, suite: str) -> str:
        """The name that the fused backend has in a suite."""
        return FUSED_LOSS[self.machine["device"]] if suite in LOSSES else self.fused

    def of(self, suite: str) -> list[Entry]:
        """Return the entries of a suite, in the order in which they were measured."""
        return [entry for entry in self.entries if entry.suite == suite]

"""What follows from the entries: groups, the machine's roofs, the main shape, ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.report.results import Entry, Results
from benchmarks.roofline import least_seconds

# As pages list them and pictures draw them; others follow in the order of their measurement.
ORDER = (
    "loading alone", "frozen", "fused", "published", "eager", "compile", "gemms", "full", "lora",
    "lora-compiled", "mona", "ht-reference", "ht-reference-compiled", "ht", "ht-compiled",
    "exported", "aotinductor", "onnxruntime",
    "dense", "open_clip", "chunked", "memeff", "siglip-kernel",
)  # fmt: skip
# field of a sweep -> what it is called, and its value at an entry
SWEEPS = {
    "batch": ("batch", lambda info: info["shape"][0]),
    "side": ("grid side", lambda info: math.isqrt(info["shape"][1] - 1)),
    "dim": ("width D", lambda info: info["shape"][2]),
    "channels": ("channels C", lambda info: info["channels"]),
}

MODEL_CASE = ("model", "batch", "precision")

Group = dict[str, Entry]  # by contestant


def groups(
    results: Results, suite: str, *fields: str, **wanted: Any
) -> dict[tuple[Any, ...], Group]:
    """Group a suite's entries by fields of ``info``, then by contestant.

    The fused backend's own name becomes ``fused``; where the name of a contestant ends in a number
    of threads, that is left out.

    Args:
        results: all of them.
        suite: its test function.
        fields: what to group by.
        wanted: values that entries have to have.
    """
    found: dict[tuple[Any, ...], Group] = {}
    for entry in results.of(suite):
        if all(entry.field(name) == value for name, value in wanted.items()):
            name = entry.contestant.split()[0] if suite == "test_threads" else entry.contestant
            name = "fused" if name == results.fused_in(suite) else name
            found.setdefault(tuple(map(entry.field, fields)), {})[name] = entry
    return {case: {name: group[name] for name in ordered(group)} for case, group in found.items()}


def ordered(names: Iterable[str]) -> list[str]:
    """Return names in ``ORDER``."""
    return sorted(
        dict.fromkeys(names), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)
    )


def contestants(found: dict[tuple[Any, ...], Group]) -> list[str]:
    """Return everybody who is in one of the groups."""
    return ordered(name for group in found.values() for name in group)


def median(group: Group, name: str) -> float | None:
    """Return a contestant's median in seconds, where it has one."""
    return group[name].median if name in group else None


def ratio(a: float | None, b: float | None) -> float | None:
    """Return ``a / b`` where both are known and ``b`` is not 0."""
    return a / b if a is not None and b else None


def main_case(results: Results) -> tuple[tuple[int, int, int], int] | None:
    """Return the shape and channels that the suites vary and look into.

    The memory suite measures that one alone, the adapter suite measures it first
    (``benchmarks.cases.MAIN``).
    """
    for suite in ("test_memory", "test_adapter"):
        if cases := list(groups(results, suite, "shape", "channels")):
            return cases[0]
    return None


def speedups(results: Results) -> dict[tuple[Any, ...], dict[str, dict[int, float]]]:
    """Return how many times as fast as one thread more are: case -> contestant -> threads."""
    found = groups(results, "test_threads", "shape", "channels", "dtype", "threads")
    speedup: dict[tuple[Any, ...], dict[str, dict[int, float]]] = {}
    for key in sorted(found, key=lambda key: key[-1]):
        *case, count = key
        of_case = speedup.setdefault(tuple(case), {})
        one = found.get((*case, 1), {})
        for name, entry in found[key].items():
            if name in one:
                of_case.setdefault(name, {})[count] = one[name].median / entry.median
    return speedup


@dataclass(frozen=True)
class Roofs:
    """What the machine has shown: bytes a second, and flop a second by dtype."""

    bytes_per_s: float | None
    flop_per_s: dict[str, float]

    def least_share(self, entry: Entry) -> float | None:
        """Return which part of an entry's time the roofs explain, where both are known."""
        flop_per_s = self.flop_per_s.get(entry.info["dtype"])
        if self.bytes_per_s is None or flop_per_s is None:
            return None
        flop, moved = entry.info["flop"], entry.info["floor_bytes"]
        return least_seconds(flop, moved, flop_per_s, self.bytes_per_s) / entry.median


def roofs(results: Results) -> Roofs:
    """Return the best that was measured, should a run have more than one copy or product.

    Where narrow products are slower than those in float32, which take the same numbers once they
    are widened, the latter are the roof.
    """
    copies = [entry.info["bytes"] / entry.median for entry in results.of("test_copy")]
    flop_per_s: dict[str, float] = {}
    for entry in results.of("test_product"):
        dtype, rate = entry.info["dtype"], entry.info["flop"] / entry.median
        flop_per_s[dtype] = max(rate, flop_per_s.get(dtype, 0.0))
    wide = flop_per_s.get("float32", 0.0)
    flop_per_s = {dtype: max(rate, wide) for dtype, rate in flop_per_s.items()}
    return Roofs(max(copies, default=None), flop_per_s)

"""The first section: the handful of ratios that matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.report import derive
from benchmarks.report.adapter_sections import RIVALS
from benchmarks.report.derive import Group, median, ratio
from benchmarks.report.results import Results
from benchmarks.report.tables import UNKNOWN, milliseconds, percent, sizes, table, times
from benchmarks.report.tower_sections import of_lora


def summary(results: Results) -> Iterator[str]:
    """Show the ratios that matter: one adapter at the main shape, and a step against LoRA."""
    yield from adapter_summary(results)
    yield from training_summary(results)


def adapter_summary(results: Results) -> Iterator[str]:
    """Show the main shape, a column for each dtype."""
    case = derive.main_case(results)
    if case is None:
        return
    wanted = {"shape": case[0], "channels": case[1]}
    found = derive.groups(results, "test_adapter", "dtype", **wanted, **{"pass": "both"})
    kept = derive.groups(results, "test_memory", "dtype", **wanted)
    dtypes = list(dict.fromkeys([*found, *kept]))
    roofs = derive.roofs(results)

    def row(what: str, value: Callable[[Group], str], groups: dict[tuple, Group]) -> list[str]:
        return [what, *(value(groups.get(dtype, {})) for dtype in dtypes)]

    def over(a: str, b: str) -> list[str]:
        what = f"time, {a} / {b}"
        return row(what, lambda group: times(ratio(median(group, a), median(group, b))), found)

    def share(group: Group) -> str:
        return percent(roofs.least_share(group["fused"]) if "fused" in group else None)

    def kept_over(rival: str, field: str, what: str) -> list[str]:
        def value(group: Group) -> str:
            if not {rival, "fused"} <= group.keys():
                return UNKNOWN
            return times(ratio(group[rival].info[field], group["fused"].info[field]))

        return row(f"{what}, {rival} / fused", value, kept)

    rows = [row("ms, fused", lambda group: milliseconds(group.get("fused")), found)]
    rows += [over(name, "fused") for name in RIVALS]
    rows += [over("fused", "gemms"), row("least time's share, fused", share, found)]
    rows += [kept_over("eager", "saved_bytes", "kept memory")]
    rows += [kept_over("eager", "peak_bytes", "peak memory")]
    rows = [row for row in rows if any(cell != UNKNOWN for cell in row[1:])]
    if rows:
        yield f"Forward and backward of one adapter at {sizes(case[0])} (B, N, D), C = {case[1]}."
        if found:
            yield (
                "What the fused backend is held against is described under One adapter; the least "
                "time is what the machine's roofs allow."
            )
        yield ""
        yield from table(("", *(dtype for (dtype,) in dtypes)), rows)


def training_summary(results: Results) -> Iterator[str]:
    """Show HT over LoRA, plain and compiled each against its like."""
    rows = []
    found = derive.groups(results, "test_training", *derive.MODEL_CASE)
    for case, group in found.items():
        for suffix in ("", "-compiled"):
            ht, lora = group.get(f"ht{suffix}"), group.get(f"lora{suffix}")
            if ht and lora:
                memory = (of_lora(ht, lora, field) for field in ("saved_bytes", "peak_bytes"))
                cells = (ratio(ht.median, lora.median), *memory)
                rows.append((*case, f"ht{suffix} / lora{suffix}", *map(times, cells)))
    if rows:
        yield "A training step:"
        yield ""
        header = ("model", "batch", "precision", "", "time", "kept memory", "peak memory")
        yield from table(header, rows)

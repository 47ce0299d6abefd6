"""The sections about one adapter and the machine's roofs: text and tables, without headings."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.report import derive
from benchmarks.report.derive import Group, median, ratio
from benchmarks.report.results import Results
from benchmarks.report.tables import (
    UNKNOWN,
    flop_rate,
    mebibytes,
    milliseconds,
    number,
    percent,
    sizes,
    table,
    times,
)

# What the fused backend is held against; all of these ratios are above 1 where it is faster.
RIVALS = ("published", "eager", "compile")
CASE = ("shape", "channels", "dtype", "pass")


def roofs(results: Results) -> Iterator[str]:
    """Show what copy and product reached."""
    rows = []
    for entry in results.of("test_copy"):
        size, rate = entry.info["bytes"], entry.info["bytes"] / entry.median
        what = f"copy, {mebibytes(size)} MiB read and written"
        rows.append((what, milliseconds(entry), f"{number(rate / 1e9)} GB/s"))
    for entry in results.of("test_product"):
        dtype, flop = entry.info["dtype"], entry.info["flop"]
        what = f"product, {dtype}, {number(flop / 1e9)} GFLOP"
        rows.append((what, milliseconds(entry), flop_rate(flop / entry.median)))
    if rows:
        yield (
            "What this machine reaches at best: a copy that is larger than its caches, and large "
            "matrix products."
        )
        yield ""
        yield from table(("", "ms", "rate"), rows)


def adapter(results: Results) -> Iterator[str]:
    """Show times and ratios of all, then the fused backend against the roofs."""
    found = derive.groups(results, "test_adapter", *CASE)
    if not found:
        return
    yield (
        "`published`: the reference as it is, with the FFT pair that NextGen-UIA's code runs; "
        "`eager`: plain PyTorch without this pair, which cancels; `compile`: `torch.compile` of "
        "`eager`; `gemms`: the matrix products with the D-wide activations alone. Training mode, "
        "dropout, float32 parameters; gradients of x and of every parameter. Milliseconds. A "
        "backward pass timed alone finds in the cache what its forward pass has left."
    )
    yield ""
    names = derive.contestants(found)
    header = ("B, N, D", "C", "dtype", "pass", *names)
    against = (*(f"{name} / fused" for name in RIVALS), "fused / gemms", "rounds")
    rows = []
    for (shape, channels, dtype, part), group in found.items():
        fused = median(group, "fused")
        row = [sizes(shape), channels, dtype, part]
        row += [milliseconds(group.get(name)) for name in names]
        row += [times(ratio(median(group, name), fused)) for name in RIVALS]
        row += [times(ratio(fused, median(group, "gemms")))]
        rows.append((*row, max(entry.rounds for entry in group.values())))
    yield from table((*header, *against), rows)
    yield from against_roofs(results, found)


def against_roofs(results: Results, found: dict[tuple, Group]) -> Iterator[str]:
    """Show which part of what the machine can do the fused backend reaches."""
    roof = derive.roofs(results)
    rows = []
    for (shape, channels, dtype, part), group in found.items():
        if entry := group.get("fused"):
            bytes_per_s = entry.info["floor_bytes"] / entry.median
            flop_per_s = entry.info["flop"] / entry.median
            row = [sizes(shape), channels, dtype, part, number(bytes_per_s / 1e9)]
            row += [percent(ratio(bytes_per_s, roof.bytes_per_s)), number(flop_per_s / 1e9)]
            rows.append((*row, percent(roof.least_share(entry))))
    if not rows:
        return
    yield (
        "The fused backend against the roofs. GB/s count the bytes that no implementation can do "
        "without (x in, out out; dout and x in, dx out); a kernel moves more. The least time is "
        "the longer of the two that the roofs give, moving these bytes and computing, in float32 "
        "where that is faster; its share is 100 % where nothing is left to gain."
    )
    yield ""
    header = ("B, N, D", "C", "dtype", "pass", "GB/s", "of the copy's", "GFLOP/s")
    yield from table((*header, "least time's share"), rows)


def sweeps(results: Results) -> Iterator[str]:
    """Show a table for each size that is varied."""
    if not results.of("test_sweep"):
        return
    yield "Forward and backward of one adapter, in milliseconds; one size at a time varies."
    yield ""
    for field, (label, value_of) in derive.SWEEPS.items():
        found = derive.groups(results, "test_sweep", "shape", "channels", "dtype", sweep=field)
        if not found:
            continue
        names = derive.contestants(found)
        rivals = [name for name in names if name != "fused"]
        rows = []
        for (shape, channels, dtype), group in found.items():
            value = value_of(next(iter(group.values())).info)
            row = [value, f"{sizes(shape)}, {channels}", dtype]
            row += [milliseconds(group.get(name)) for name in names]
            fused = median(group, "fused")
            rows.append((*row, *(times(ratio(median(group, name), fused)) for name in rivals)))
        against = (f"{name} / fused" for name in rivals)
        yield from table((label, "B, N, D, C", "dtype", *names, *against), rows)


def threads(results: Results) -> Iterator[str]:
    """Show how much faster more threads are than one."""
    found = derive.groups(results, "test_threads", *CASE[:3], "threads")
    if not found:
        return
    yield "Forward and backward of one adapter, in milliseconds."
    yield ""
    names = derive.contestants(found)
    speedups = derive.speedups(results)
    rows = []
    for (*case, count), group in found.items():
        shape, channels, dtype = case
        row = [sizes(shape), channels, dtype, count]
        row += [milliseconds(group.get(name)) for name in names]
        of_case = speedups[shape, channels, dtype]
        rows.append((*row, *(times(of_case.get(name, {}).get(count)) for name in names)))
    over_one = (f"{name}, over one" for name in names)
    yield from table(("B, N, D", "C", "dtype", "threads", *names, *over_one), rows)


def memory(results: Results) -> Iterator[str]:
    """Show the peak and what autograd keeps."""
    found = derive.groups(results, "test_memory", "shape", "channels", "dtype")
    if not found:
        return
    yield (
        "Forward and backward of one adapter, in fresh processes. Peak: by how much memory grows "
        "while they run; kept: what autograd holds for the backward pass, x included."
    )
    yield ""
    rows = []
    for (shape, channels, dtype), group in found.items():
        for name, entry in group.items():
            saved, peak = entry.info["saved_bytes"], entry.info["peak_bytes"]
            row = (sizes(shape), channels, dtype, name, mebibytes(peak), mebibytes(saved))
            rows.append((*row, kept_per_token(shape, saved)))
    header = ("B, N, D", "C", "dtype", "", "peak MiB", "kept MiB", "kept bytes a token")
    yield from table(header, rows)


def kept_per_token(shape: tuple[int, int, int], saved: int | None) -> str:
    """Return the bytes that are kept for each of B x N tokens."""
    return UNKNOWN if saved is None else f"{saved / (shape[0] * shape[1]):.0f}"

"""Pictures with lines. Each function returns a figure, or nothing where there are no results."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from benchmarks.report import derive
from benchmarks.report.results import Entry, Results
from benchmarks.report.style import (
    DTYPE_LINES,
    FAINT,
    INK,
    NORMAL,
    SMALL,
    colour,
    legend,
    new_figure,
    tidy,
)
from benchmarks.report.tables import MIB, flop_rate, number, sizes, times

MARKERS = "osD^vP"
CASE = ("shape", "channels", "dtype")
TITLE = "Forward and backward of one adapter"
Lines = dict[tuple[str, str], list[tuple[int, float]]]  # (contestant, dtype) -> points


def roofline(results: Results) -> Figure | None:
    """Draw what was reached against what copy and product allow.

    ``gemms`` is left out: it does less than the work that is counted.
    """
    roofs = derive.roofs(results)
    found = derive.groups(results, "test_adapter", *CASE, **{"pass": "both"})
    entries = [(n, e) for group in found.values() for n, e in group.items() if n != "gemms"]
    if not entries or roofs.bytes_per_s is None or not roofs.flop_per_s:
        return None
    figure = new_figure(results, f"{TITLE} under the machine's roofs, higher is better", 4.6)
    axes = figure.subplots()
    shapes = dict.fromkeys(shape for shape, *_ in found)
    markers = dict(zip(shapes, itertools.cycle(MARKERS), strict=False))
    for name, entry in entries:
        marker = markers[entry.field("shape")]
        axes.plot(*_place(entry), marker, color=colour(name), markeredgecolor="white")
    _draw_roofs(axes, roofs, [_place(entry)[0] for _, entry in entries])
    for dtype in dict.fromkeys(dtype for *_, dtype in found):
        # A dtype's points stand one above the other: intensity hardly depends on anything else.
        column = [_place(entry) for _, entry in entries if entry.info["dtype"] == dtype]
        _say(axes, dtype, min(column, key=lambda place: place[1]), (0, -7), ha="center", va="top")
    axes.set(xscale="log", yscale="log", ylabel="GFLOP/s")
    axes.set(xlabel="FLOP for each byte that has to be moved")
    axes.margins(y=0.12)
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.grid(color=FAINT, linewidth=0.5)
    tidy(axes)
    axes.legend(
        handles=[
            Line2D([], [], marker=marker, linestyle="", color="white", markeredgecolor=INK,
                   label=sizes(shape))
            for shape, marker in markers.items()
        ],
        loc="lower right", fontsize=SMALL, labelcolor=INK, title="B, N, D", title_fontsize=SMALL,
    )  # fmt: skip
    names = derive.ordered(name for name, _ in entries)
    legend(figure, [Line2D([], [], marker="o", ls="", color=colour(n), label=n) for n in names])
    return figure


def sweeps(results: Results) -> Figure | None:
    """Draw time against each size, both axes logarithmic."""
    found = {
        field: derive.groups(results, "test_sweep", *CASE, sweep=field) for field in derive.SWEEPS
    }
    found = {field: groups for field, groups in found.items() if groups}
    if not found:
        return None
    rows = -(-len(found) // 2)
    figure = new_figure(results, f"{TITLE}, lower is better", 1 + 2.3 * rows)
    places = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes, (field, groups) in zip(places, found.items(), strict=False):
        label, value_of = derive.SWEEPS[field]
        lines: Lines = {}
        for (*_, dtype), group in groups.items():
            for name, entry in group.items():
                point = (value_of(entry.info), 1e3 * entry.median)
                lines.setdefault((name, dtype), []).append(point)
        _draw_lines(axes, lines)
        axes.set(xlabel=label, ylabel="ms")
        tidy(axes)
    for axes in places[len(found) :]:
        axes.set_axis_off()
    names = derive.ordered(name for groups in found.values() for g in groups.values() for name in g)
    _name_lines(figure, names, (dtype for groups in found.values() for *_, dtype in groups))
    return figure


def losses(results: Results) -> Figure | None:
    """Draw time and peak of each loss against its batch, both axes logarithmic."""
    rows: dict[str, dict[str, Lines]] = {}
    for suite, label, value_of in (
        ("test_losses", "ms", lambda entry: 1e3 * entry.median),
        ("test_losses_memory", "peak, MiB", lambda entry: (entry.info["peak_bytes"] or 0) / MIB),
    ):
        for (loss, batch, dtype), group in derive.groups(
            results, suite, "loss", "batch", "dtype"
        ).items():
            for name, entry in group.items():
                if (value := value_of(entry)) > 0:
                    lines = rows.setdefault(label, {}).setdefault(loss, {})
                    lines.setdefault((name, dtype), []).append((batch, value))
    if not rows:
        return None
    kinds = list(dict.fromkeys(loss for row in rows.values() for loss in row))
    title = "Forward and backward of a contrastive loss, lower is better"
    figure = new_figure(results, title, 1 + 2.3 * len(rows))
    grid = figure.subplots(len(rows), len(kinds), squeeze=False)
    for axes_of_row, (label, row) in zip(grid, rows.items(), strict=True):
        for axes, loss in zip(axes_of_row, kinds, strict=True):
            if loss not in row:
                axes.set_axis_off()
                continue
            _draw_lines(axes, row[loss])
            axes.set(title=loss, xlabel="B", ylabel=label)
            tidy(axes)
    found = [key for row in rows.values() for lines in row.values() for key in lines]
    _name_lines(figure, derive.ordered(name for name, _ in found), (dtype for _, dtype in found))
    return figure


def threads(results: Results) -> Figure | None:
    """Draw the speedup over one thread, axes for each shape."""
    found = derive.speedups(results)
    cases = {case: lines for case, lines in found.items() if lines}
    if not cases:
        return None
    figure = new_figure(results, f"{TITLE}: speedup over one thread, higher is better", 3.0)
    (row,) = figure.subplots(1, len(cases), sharey=True, squeeze=False)
    counts = sorted({x for lines in cases.values() for points in lines.values() for x in points})
    for axes, ((shape, _, dtype), lines) in zip(row, cases.items(), strict=True):
        axes.plot(counts, counts, color=FAINT)
        best = max(points[max(points)] for points in lines.values())
        for name, points in lines.items():
            axes.plot(points.keys(), points.values(), color=colour(name), marker="o", markersize=4)
            last = points[max(points)]
            above = "bottom" if last == best else "top"  # so that close ones stay readable
            _say(axes, times(last), (max(points), last), (4, 0), va=above)
        axes.set(title=f"{sizes(shape)}\n{dtype}", xlabel="threads", xticks=counts)
        axes.margins(x=0.25, y=0.1)
        axes.grid(color=FAINT, linewidth=0.5)
        tidy(axes)
    row[0].set_ylabel("times as fast as one", fontsize=NORMAL)
    names = derive.ordered(name for lines in cases.values() for name in lines)
    handles = [Line2D([], [], color=colour(name), marker="o", label=name) for name in names]
    legend(figure, [*handles, Line2D([], [], color=FAINT, label="linear")])
    return figure


def _draw_lines(axes: Axes, lines: Lines) -> None:
    for (name, dtype), points in lines.items():
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, DTYPE_LINES[dtype], color=colour(name), marker="o", markersize=3)
    axes.set(xscale="log", yscale="log")
    _plain_numbers(axes.xaxis, sorted({x for points in lines.values() for x, _ in points}))
    _plain_numbers(axes.yaxis)
    axes.grid(color=FAINT, linewidth=0.5)


def _name_lines(figure: Figure, names: Iterable[str], dtypes: Iterable[str]) -> None:
    handles = [Line2D([], [], color=colour(name), label=name) for name in names]
    handles += [
        Line2D([], [], color=INK, ls=DTYPE_LINES[d], label=d) for d in dict.fromkeys(dtypes)
    ]
    legend(figure, handles)


def _place(entry: Entry) -> tuple[float, float]:
    """Return an entry's intensity and the GFLOP/s that it reached."""
    flop = entry.info["flop"]
    return flop / entry.info["floor_bytes"], flop / entry.median / 1e9


def _draw_roofs(axes: Axes, roofs: derive.Roofs, intensities: list[float]) -> None:
    """Draw the roofs a little farther than there are points and ridges."""
    assert roofs.bytes_per_s is not None
    ridges = [flop_per_s / roofs.bytes_per_s for flop_per_s in roofs.flop_per_s.values()]
    low, high = min(*intensities, *ridges) / 4, 4 * max(*intensities, *ridges)
    for ridge, (dtype, flop_per_s) in zip(ridges, roofs.flop_per_s.items(), strict=True):
        xs = (low, ridge, high)
        ys = [min(x * roofs.bytes_per_s, flop_per_s) / 1e9 for x in xs]
        axes.plot(xs, ys, DTYPE_LINES[dtype], color=INK, linewidth=1.2, zorder=1)
        _say(
            axes, f"product, {dtype}: {flop_rate(flop_per_s)}", (high, ys[-1]), (-3, 4), ha="right"
        )
    at = (1.5 * low, 1.5 * low * roofs.bytes_per_s / 1e9)
    _say(axes, f"copy: {number(roofs.bytes_per_s / 1e9)} GB/s", at, (6, -3), va="top")
    axes.set_xlim(low, high)


def _say(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], **align: Any
) -> None:
    """Write beside a point; the offset is in points of print."""
    axes.annotate(text, at, offset, textcoords="offset points", fontsize=SMALL, color=INK, **align)


def _plain_numbers(axis: Axis, ticks: Sequence[float] | None = None) -> None:
    """Give a logarithmic axis ticks at 1, 2 and 5, or where they are wanted, without exponents."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if ticks is None else FixedLocator(ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())

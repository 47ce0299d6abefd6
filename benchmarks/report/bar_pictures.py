"""Pictures with bars. Each function returns a figure, or nothing where there are no results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import derive
from benchmarks.report.derive import Group
from benchmarks.report.results import Entry, Results
from benchmarks.report.style import INK, NORMAL, SMALL, bar_style, new_figure, tidy
from benchmarks.report.tables import MIB, number, sizes
from benchmarks.report.tower_sections import images_per_s
from benchmarks.roofline import BYTES

# heading of a row -> what stands below each of its axes -> contestant -> value
Rows = dict[str, dict[str, dict[str, float]]]


def adapter(results: Results) -> Figure | None:
    """Draw the time of forward and backward: a row for each dtype, a column for each shape."""
    both = {"pass": "both"}
    found = derive.groups(results, "test_adapter", "shape", "channels", "dtype", **both)
    rows: Rows = {}
    for (shape, channels, dtype), group in found.items():
        label = f"{sizes(shape)}, C = {channels}"
        rows.setdefault(f"{dtype}, ms", {})[label] = _values(
            group, lambda entry: 1e3 * entry.median
        )
    return _draw(results, "Forward and backward of one adapter, lower is better", rows)


def memory(results: Results) -> Figure | None:
    """Draw the bytes that are kept for each token, and how many of them are x itself."""
    found = derive.groups(results, "test_memory", "shape", "channels", "dtype")
    rows: Rows = {}
    for (shape, channels, dtype), group in found.items():
        label = f"{dtype}, bytes a token"
        kept = _values(group, lambda entry: entry.info["saved_bytes"] / _tokens(entry))
        row = rows.setdefault(f"{sizes(shape)}, C = {channels}", {})
        row[label] = {"x itself": shape[2] * BYTES[dtype], **kept}
    title = "Kept from the forward to the backward pass of one adapter, lower is better"
    return _draw(results, title, rows)


def training(results: Results) -> Figure | None:
    """Draw time, kept memory and peak of a step: a row for each case."""
    columns: dict[str, Callable[[Entry], float | None]] = {
        "a step, ms": lambda entry: 1e3 * entry.median,
        "kept for backward, MiB": lambda entry: _mebibytes(entry, "saved_bytes"),
        "peak, MiB": lambda entry: _mebibytes(entry, "peak_bytes"),
    }
    found = derive.groups(results, "test_training", *derive.MODEL_CASE)
    rows = {
        _heading(case): {label: _values(group, value) for label, value in columns.items()}
        for case, group in found.items()
    }
    return _draw(results, "A training step, lower is better", rows)


def throughput(results: Results) -> Figure | None:
    """Draw images a second: a row for each case."""
    found = derive.groups(results, "test_throughput", *derive.MODEL_CASE, "images")
    rows = {
        f"{_heading(case)}, {images} images": {"images/s": _values(group, images_per_s)}
        for (*case, images), group in found.items()
    }
    return _draw(results, "The trainer, higher is better", rows)


def export(results: Results) -> Figure | None:
    """Draw the time of a forward pass and the bytes of each form: a row for each case."""
    columns: dict[str, Callable[[Entry], float | None]] = {
        "forward, ms": lambda entry: 1e3 * entry.median,
        "weights or file, MiB": lambda entry: _mebibytes(entry, "bytes"),
    }
    found = derive.groups(results, "test_export", "model", "batch", "dtype")
    rows = {
        _heading(case): {label: _values(group, value) for label, value in columns.items()}
        for case, group in found.items()
    }
    return _draw(results, "An adapted model and its exported forms, lower is better", rows)


def _values(group: Group, value_of: Callable[[Entry], float | None]) -> dict[str, float]:
    """Return what is known of each contestant."""
    values = {name: value_of(entry) for name, entry in group.items()}
    return {name: value for name, value in values.items() if value is not None}


def _tokens(entry: Entry) -> int:
    batch, tokens, _ = entry.info["shape"]
    return batch * tokens


def _mebibytes(entry: Entry, field: str) -> float | None:
    return None if entry.info[field] is None else entry.info[field] / MIB


def _heading(case: Sequence) -> str:
    model, batch, precision = case
    return f"{model}, batch {batch}, {precision}"


def _draw(results: Results, title: str, rows: Rows) -> Figure | None:
    """Draw axes in rows, each with a scale of its own; empty ones are left out."""
    rows = {
        heading: {label: values for label, values in row.items() if values}
        for heading, row in rows.items()
    }
    if not any(rows.values()):
        return None
    names = {
        heading: derive.ordered(name for values in row.values() for name in values)
        for heading, row in rows.items()
    }
    counts = [len(found) for found in names.values()]
    figure = new_figure(results, title, 0.7 + sum(0.6 + 0.2 * count for count in counts))
    columns = max(map(len, rows.values()))
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=counts)
    for axes_of_row, (heading, row) in zip(grid, rows.items(), strict=True):
        for axes, (label, values) in zip(axes_of_row, row.items(), strict=False):
            _bars(axes, names[heading], values)
            axes.set_xlabel(label, fontsize=NORMAL)
        axes_of_row[0].set_yticks(range(len(names[heading])), names[heading])
        axes_of_row[0].set_title(heading, loc="left", fontsize=NORMAL, color=INK)
        for axes in axes_of_row[len(row) :]:
            axes.set_axis_off()
    return figure


def _bars(axes: Axes, names: list[str], values: dict[str, float]) -> None:
    for place, name in enumerate(names):
        if name in values:
            bar = axes.barh(place, values[name], height=0.8, **bar_style(name))
            axes.bar_label(bar, [number(values[name])], fontsize=SMALL, color=INK, padding=2)
    # Room at the right for the number of the longest bar.
    axes.set(xlim=(0, 1.3 * max(values.values()) or 1), ylim=(len(names) - 0.4, -0.6))
    axes.set(xticks=[], yticks=[])
    tidy(axes)
    axes.spines["bottom"].set_visible(False)

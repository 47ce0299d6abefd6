"""How every picture looks: 1600 dots wide, shown at 800, on white whatever the page's colour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.report.provenance import device
from benchmarks.report.results import Results

WIDTH, DPI = 8.0, 200
INK, FAINT = "#222222", "#D0D0D0"
SMALL, NORMAL, LARGE = 7.5, 8.5, 10.0
# Of Okabe and Ito's colour-blind safe eight, and greys. What computes the same has the same colour.
COLOURS = {
    "fused": "#0072B2",
    "ht": "#0072B2",
    "published": "#D55E00",
    "ht-reference": "#D55E00",
    "eager": "#E69F00",
    "compile": "#009E73",
    "gemms": "#9A9A9A",
    "lora": "#CC79A7",
    "mona": "#56B4E9",
    "full": "#555555",
    "exported": "#56B4E9",
    "aotinductor": "#009E73",
    "onnxruntime": "#E69F00",
    "dense": "#E69F00",
    "open_clip": "#D55E00",
    "chunked": "#009E73",
    "memeff": "#CC79A7",
    "siglip-kernel": "#56B4E9",
}
OTHER = "#B8B8B8"
COMPILED = "-compiled"
DTYPE_LINES = {"float32": "-", "bfloat16": "--", "float16": ":"}


def colour(contestant: str) -> str:
    """Return a contestant's colour; compiled, it keeps its own and is hatched."""
    return COLOURS.get(contestant.removesuffix(COMPILED), OTHER)


def bar_style(contestant: str) -> dict[str, Any]:
    """Return how a contestant's bar is drawn."""
    hatch = "////" if contestant.endswith(COMPILED) else None
    return {"facecolor": colour(contestant), "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def new_figure(results: Results, title: str, height: float) -> Figure:
    """Return an empty figure, headed by its title and the machine."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.05)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n{device(results)}", fontsize=LARGE, color=INK)
    return figure


def tidy(axes: Axes) -> None:
    """Leave the two spines that carry numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(labelsize=SMALL, colors=INK)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set(fontsize=NORMAL, color=INK)


def legend(figure: Figure, handles: Iterable[Any]) -> None:
    """Put one legend for all axes below them."""
    handles = list(handles)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 7),
        frameon=False,
        fontsize=NORMAL,
        labelcolor=INK,
    )

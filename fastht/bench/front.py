"""The front of time against memory: which method is fastest within a budget of kept bytes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastht.bench.command import Row

MIB = 2**20
BLUE, VERMILLION, FAINT = "#0072B2", "#D55E00", "0.35"  # of Okabe and Ito's colour-blind safe ones
SMALL, DPI = 8, 150


@dataclass(frozen=True)
class Best:
    """The fastest of each kind within one budget.

    Attributes:
        budget: bytes that autograd may keep.
        ht, lora: rows of the methods, or ``None`` where none of the kind fits.
    """

    budget: int
    ht: Row | None
    lora: Row | None

    @property
    def share(self) -> float | None:
        """HT's time as a share of LoRA's, round by round; ``None`` where one of them is missing."""
        if self.ht is None or self.lora is None:
            return None
        pairs = zip(self.ht.seconds, self.lora.seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)


def front(rows: Sequence[Row]) -> list[Best]:
    """Return the fastest HT and LoRA for every budget at which one of them changes."""
    measured = [row for row in rows if row.saved_bytes is not None and _kind(row) is not None]
    found: list[Best] = []
    for budget in sorted({row.saved_bytes for row in measured}, reverse=True):  # type: ignore[type-var]
        assert budget is not None
        fitting = [row for row in measured if row.saved_bytes <= budget]  # type: ignore[operator]
        best = {kind: _fastest(fitting, kind) for kind in ("ht", "lora")}
        if not found or (best["ht"], best["lora"]) != (found[-1].ht, found[-1].lora):
            found.append(Best(budget, best["ht"], best["lora"]))
        else:  # the same two fit into less
            found[-1] = Best(budget, best["ht"], best["lora"])
    return found


def front_text(bests: Sequence[Best]) -> str:
    """Return one line a budget, who is faster there and by how much, and what comes of it."""
    lines = []
    for best in bests:
        names = [
            f"{name} {'-' if row is None else f'{row.method} {_ms(row):.0f} ms'}"
            for name, row in (("HT:", best.ht), ("LoRA:", best.lora))
        ]
        if best.share is None:
            verdict = f"{'LoRA' if best.ht is None else 'HT'} alone fits"
        else:
            verdict = f"HT {'is faster' if best.share < 1 else 'is not faster'}: {best.share:.2f}"
        lines.append(f"kept <= {best.budget / MIB:.1f} MiB   {names[0]}   {names[1]}   {verdict}")
    return "\n".join([*lines, _verdict(bests)])


def plot_front(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw time against kept and against peak memory, one mark a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours: Mapping[str, str] = {"ht": BLUE, "lora": VERMILLION}
    figure = Figure(figsize=(9, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    pairs = (("kept for the backward pass", "saved_bytes"), ("peak of a step", "peak_bytes"))
    drawn = [
        (label, field, [row for row in rows if getattr(row, field) is not None and _kind(row)])
        for label, field in pairs
    ]
    drawn = [entry for entry in drawn if entry[2]]
    for place, (label, field, shown) in enumerate(drawn, 1):
        axes = figure.add_subplot(1, len(drawn), place)
        for row in shown:
            compiled = row.method.endswith("-compiled")
            x, y, colour = getattr(row, field) / MIB, _ms(row), colours[_kind(row) or "ht"]
            axes.plot(
                x, y, "s" if compiled else "o", color=colour, markerfacecolor="none"
                if compiled else colour,
            )  # fmt: skip
            # The two of one setting stand close: their names go to two sides.
            axes.annotate(
                row.method.removesuffix("-compiled"), (x, y), fontsize=SMALL, color=FAINT,
                xytext=(4, -10 if _kind(row) == "ht" else 4), textcoords="offset points",
            )  # fmt: skip
        axes.set_xlabel(f"MiB {label}")
        axes.set_ylabel("ms a step (median)")
        # From nothing, with room for the names at the right.
        axes.set_xlim(0, 1.25 * max(getattr(row, field) / MIB for row in shown))
        axes.set_ylim(0, 1.1 * max(map(_ms, shown)))
    figure.suptitle(f"{title}; filled: eager, hollow: torch.compile", fontsize=SMALL)
    figure.savefig(path)


def _verdict(bests: Sequence[Best]) -> str:
    """Say in a sentence within which budgets HT is faster."""
    both = [(best.budget, best.share) for best in bests if best.share is not None]
    slower = [(budget, share) for budget, share in both if not share < 1]
    if not both:
        return "There is no budget that both HT and LoRA fit."
    if not slower:
        text = f"For every budget that both fit HT is faster ({len(both)} on this front)"
    else:
        where = ", ".join(f"{budget / MIB:.1f} MiB ({share:.2f})" for budget, share in slower)
        text = f"HT is faster for {len(both) - len(slower)} of {len(both)} budgets, not for {where}"
    for kind in ("HT", "LoRA"):
        other = "lora" if kind == "HT" else "ht"
        alone = [best.budget for best in bests if getattr(best, other) is None]
        if alone:
            text += f"; {kind} alone fits {alone[0] / MIB:.1f} MiB and less"
    return f"{text}."


def _kind(row: Row) -> str | None:
    name = row.method.partition("-")[0]
    return name if name in ("ht", "lora") and "reference" not in row.method else None


def _fastest(rows: Sequence[Row], kind: str) -> Row | None:
    return min((row for row in rows if _kind(row) == kind), key=_ms, default=None)


def _ms(row: Row) -> float:
    return 1e3 * statistics.median(row.seconds)

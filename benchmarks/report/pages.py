"""The page: where it comes from, a summary, and the sections for which there are results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from benchmarks.report import adapter_sections, losses_sections, provenance, summary, tower_sections
from benchmarks.report.results import COLD, Results
from benchmarks.report.tables import percent

METHOD = (
    "Contestants take turns in one process, once a round. Times are medians over the rounds, with "
    "the interquartile range in brackets. An adapter's inputs rotate through more memory than the "
    "last-level cache holds. The fused backend (`{fused}`) has passed the correctness gate against "
    "the reference at the same shape in the same run; where it does not, the run fails and there "
    "is no row."
)
UNSTEADY = 0.25  # interquartile ranges, in medians, above which an entry is named
NAMED = 5  # at most
Section = Callable[[Results], Iterator[str]]


def page(results: Results, pictures: Collection[str], notes: str = "") -> str:
    """Return the page as Markdown.

    Args:
        results: what was measured.
        pictures: names of the PNGs that lie beside it.
        notes: Markdown of the people who read the numbers.
    """
    lines = [f"# The benchmarks on {provenance.device(results)}", ""]
    lines += [*provenance.machine(results), "", *provenance.runs(results), ""]
    lines += [METHOD.format(fused=results.fused), "", *unsteady(results)]
    for title, section, shown in SECTIONS:
        if found := list(section(results)):
            images = [f"![{title}]({name})" for name in shown if name in pictures]
            lines += [f"## {title}", "", *(line for image in images for line in (image, ""))]
            lines += found
    if notes:
        lines += ["## What limits these numbers", "", notes.strip(), ""]
    return "\n".join(lines)


def unsteady(results: Results) -> Iterator[str]:
    """Name the times that say little because they scatter."""
    shown = [entry for entry in results.entries if entry.suite not in COLD]
    names = [f"`{entry.name}`" for entry in shown if entry.iqr > UNSTEADY * entry.median]
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield (
            f"In {len(names)} of {len(shown)} entries the interquartile range is above "
            f"{percent(UNSTEADY)} of the median: {', '.join(names[:NAMED])}{more}."
        )
        yield ""


SECTIONS: tuple[tuple[str, Section, tuple[str, ...]], ...] = (
    ("Summary", summary.summary, ()),
    ("The machine's roofs", adapter_sections.roofs, ()),
    ("One adapter", adapter_sections.adapter, ("adapter.png", "roofline.png")),
    ("Sweeps", adapter_sections.sweeps, ("sweeps.png",)),
    ("Threads", adapter_sections.threads, ("threads.png",)),
    ("Memory", adapter_sections.memory, ("memory.png",)),
    ("Adapters in a frozen tower", tower_sections.tower, ()),
    ("Training step", tower_sections.training, ("training.png",)),
    ("Throughput of the trainer", tower_sections.throughput, ("throughput.png",)),
    ("Exported models", tower_sections.export, ("export.png",)),
    ("Contrastive losses", losses_sections.losses, ("losses.png",)),
)

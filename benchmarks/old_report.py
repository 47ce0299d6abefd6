"""Render a result of the CPU suite as a Markdown page.

    pytest benchmarks --benchmark-only --benchmark-json results.json
    python -m benchmarks.cpu.report results.json

writes ``benchmarks/results/cpu-<processor>.md`` and prints its path. The page follows from the
file alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.cpu.cases import CONTESTANTS

RESULTS = Path(__file__).resolve().parents[1] / "results"
MIB = 2**20
RATIOS = (("eager", "cpu"), ("compile", "cpu"), ("cpu", "gemms"))

Entry = dict[str, Any]


def page(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the page."""
    machine = results["machine_info"]
    yield f"# The CPU suite on {machine['cpu']}"
    yield ""
    yield from setting(results)
    yield ""
    entries = results["benchmarks"]
    for function, show in (
        ("test_adapter", adapter_table),
        ("test_threads", threads_table),
        ("test_vit", vit_table),
        ("test_memory", memory_table),
    ):
        chosen = [entry for entry in entries if entry["name"].startswith(f"{function}[")]
        if chosen:
            yield from show(chosen)


def setting(results: dict[str, Any]) -> Iterator[str]:
    """Yield on what, with what and how it was measured."""
    machine, commit = results["machine_info"], results["commit_info"]
    at = f" at {commit['id'][:7]}" if "id" in commit else ""
    changed = ", with uncommitted changes" if commit.get("dirty") else ""
    yield f"- {machine['cores']} cores, {machine['threads']} threads, {machine['system']}"
    yield f"- date: {results['datetime'][:10]}"
    yield f"- fastht {machine['fastht']}{at}{changed}"
    yield (
        f"- Python {machine['python']}, torch {machine['torch']} ({machine['torch_capability']}), "
        f"numpy {machine['numpy']}"
    )
    yield f"- backend `cpu`: {machine['backends'].get('cpu', 'not usable here')}"
    yield f"- command: `{results['command']}`"
    yield ""
    yield (
        "Contestants take turns in one process, once a round. Times are medians over the rounds in "
        "milliseconds, with the interquartile range in brackets."
    )


def adapter_table(entries: list[Entry]) -> Iterator[str]:
    """Show the passes of one adapter."""
    yield "## One adapter"
    yield ""
    yield (
        "C = 64, hybrid, channel filter, dropout 0.1, float32 parameters. `gemms`: the products "
        "with the D-wide activations alone (two forward, four backward); GFLOP/s counts these."
    )
    yield ""
    rows = []
    for case, found in by(entries, "shape", "dtype", "pass").items():
        shape, dtype, part = case
        row = [shape, dtype, part, *(time_of(found.get(name)) for name in CONTESTANTS)]
        row += [ratio(found, name, to) for name, to in RATIOS]
        rate = f"{found['cpu']['extra_info']['gflop_per_s']:.0f}" if "cpu" in found else "-"
        rows.append((*row, rate, next(iter(found.values()))["stats"]["rounds"]))
    ratios = (f"{name}/{to}" for name, to in RATIOS)
    header = ("B, N, D", "dtype", "pass", *CONTESTANTS, *ratios, "GFLOP/s of cpu", "rounds")
    yield from table(header, rows)


def threads_table(entries: list[Entry]) -> Iterator[str]:
    """Show one thread against all."""
    yield "## Threads"
    yield ""
    yield f"Forward and backward of one adapter, {entries[0]['extra_info']['dtype']}."
    yield ""
    rows = []
    for entry in entries:
        info = entry["extra_info"]
        name = info["contestant"].split()[0]
        speedup = f"{info['speedup']:.2f}"
        rows.append((text(info["shape"]), name, info["threads"], time_of(entry), speedup))
    yield from table(("B, N, D", "", "threads", "ms", "speedup over one"), rows)


def vit_table(entries: list[Entry]) -> Iterator[str]:
    """Show what adapters add to a frozen tower."""
    info = entries[0]["extra_info"]
    yield f"## {info['model']} with an adapter in every block"
    yield ""
    yield (
        f"Evaluation, no gradients, batch {info['batch']}, {info['dtype']}. The share is the "
        "median over the rounds of what the adapters add to the frozen forward of that round."
    )
    yield ""
    rows = []
    for entry in entries:
        share = entry["extra_info"].get("percent_of_frozen")
        rows.append(
            (
                entry["extra_info"]["contestant"],
                time_of(entry),
                "-" if share is None else f"{share:.1f} %",
                entry["stats"]["rounds"],
            )
        )
    yield from table(("", "ms", "adapters' share", "rounds"), rows)


def memory_table(entries: list[Entry]) -> Iterator[str]:
    """Show the memory of forward and backward."""
    shape = entries[0]["extra_info"]["shape"]
    yield "## Memory"
    yield ""
    yield (
        f"Forward and backward of one adapter at {text(shape)}, each in processes of its own: "
        "growth of the resident memory to its peak (median of the processes), and bytes that "
        "autograd keeps for the backward pass, x included."
    )
    yield ""
    tokens = shape[0] * shape[1]
    rows = []
    for (dtype,), found in by(entries, "dtype").items():
        for name, entry in found.items():
            info = entry["extra_info"]
            peak, saved = info["peak_bytes"], info["saved_bytes"]
            rows.append(
                (dtype, name, f"{peak / MIB:.1f}", f"{saved / MIB:.1f}", f"{saved / tokens:.0f}")
            )
    yield from table(("dtype", "", "peak MiB", "kept MiB", "kept bytes a token"), rows)


def by(entries: Iterable[Entry], *keys: str) -> dict[tuple[str, ...], dict[str, Entry]]:
    """Group entries by fields of their ``extra_info``, then by contestant."""
    groups: dict[tuple[str, ...], dict[str, Entry]] = {}
    for entry in entries:
        info = entry["extra_info"]
        group = groups.setdefault(tuple(text(info[key]) for key in keys), {})
        group[info["contestant"]] = entry
    return groups


def text(value: str | list[int]) -> str:
    """Return a field as the page shows it."""
    return value if isinstance(value, str) else ", ".join(map(str, value))


def time_of(entry: Entry | None) -> str:
    """Return the median and the interquartile range in milliseconds."""
    if entry is None:
        return "-"
    stats = entry["stats"]
    return f"{1e3 * stats['median']:.2f} ({1e3 * stats['iqr']:.2f})"


def ratio(found: dict[str, Entry], name: str, to: str) -> str:
    """Return the ratio of two contestants' medians."""
    if not {name, to} <= found.keys():
        return "-"
    return f"{found[name]['stats']['median'] / found[to]['stats']['median']:.2f}"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yield a Markdown table and an empty line."""
    header = list(header)
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def slug(cpu: str) -> str:
    """Return a processor's name for a file: ``Intel(R) Xeon(R) Gold`` is ``intel-xeon-gold``."""
    plain = re.sub(r"\((R|TM)\)", "", cpu, flags=re.IGNORECASE).lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def main() -> int:
    """Write the page."""
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"cpu-{slug(results['machine_info']['cpu'])}.md"
    out.write_text("\n".join(page(results)), encoding="utf-8")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

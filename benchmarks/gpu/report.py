"""What the phases found, as one Markdown page and one JSON file.

    python -m benchmarks.gpu.report OUT

``run_gpu.sh`` keeps there, in ``phases``, name, exit status, seconds and limit of each phase that
ran, and in ``suites`` what pytest-benchmark wrote. All of that goes into ``OUT/benchmarks.json``,
of which ``benchmarks.report`` makes the tables in ``OUT/report``. The page is printed too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import DRY, DRY_NOTE, ROOT, write_json

TABLES_SECONDS = 40
_TESTS = r"^(FAILED|ERROR) |\d (passed|failed|error)|^no |No module"
_SANITIZER = r"^case .*INCORRECT|SUMMARY|exit status|compute-sanitizer is not|^no time|^\w+Error"
LOGS = {  # phase -> what of its log the page shows
    "compile": r"spills|shared memory of|kernels serve|Error",
    "tests": _TESTS,
    "more-tests": _TESTS,
    "memcheck": _SANITIZER,
    "tune": r" (takes|keeps) |not tried|rows written|^tune: |Error",
    "sanitizer": _SANITIZER,
    "benchmarks": r"^== |^(FAILED|ERROR) |^SKIPPED|\d (passed|failed|skipped|error)|"
    r"is not installed|No module",
}
MOST_LINES = 40


def figure(value: float | None, form: str, unit: float = 1) -> str:
    """Return a measured number in multiples of ``unit`` as text, marked if it is none."""
    if value is None:
        return "-"
    return f"{value / unit:{form}}" + (f" ({DRY_NOTE})" if DRY else "")


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yield a Markdown table and an empty line."""
    header = list(header)
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        cells = [short(str(cell).replace("|", "/")) for cell in row]
        yield f"| {' | '.join(cells)} |"
    yield ""


def short(text: str) -> str:
    """Return the beginning of a long text; the files beside the summary have the rest."""
    return text if len(text) <= 160 else f"{text[:157]}..."


def read_phases(path: Path) -> list[dict[str, Any]]:
    """Return name, outcome and time of each phase that ran."""
    phases = []
    for line in path.read_text().splitlines() if path.exists() else ():
        name, *numbers = line.split()
        status, seconds, limit = map(int, numbers)
        outcome = "passed" if status == 0 else "failed"
        if status == 124 or seconds > limit:
            outcome = "out of time"
        phases.append({"name": name, "outcome": outcome, "seconds": seconds, "limit": limit})
    return phases


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a result file's content, or ``None`` where there is none or only a part of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def last_lines(path: Path, pattern: str) -> list[str]:
    """Return the last lines of a log that match, without what ``=`` and spaces surround them."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    return [line.strip("= ") for line in lines if re.search(pattern, line)][-MOST_LINES:]


def collect(suites: Path, out: Path) -> str | None:
    """Put the suites' results together, have the tables made, and say what became of it."""
    runs = [run for path in sorted(suites.glob("*.json")) if (run := read_json(path))]
    if not runs:
        return None
    results = out / "benchmarks.json"
    results.write_text(json.dumps({"runs": runs}, separators=(",", ":")) + "\n")
    command = (sys.executable, "-m", "benchmarks.report", results, "--out", out / "report")
    try:
        done = subprocess.run(
            (*command, "--replace"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TABLES_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"benchmarks.json has the numbers; no tables within {TABLES_SECONDS} seconds"
    if done.returncode:
        reason = next(iter(done.stdout.strip().splitlines()[-1:]), "no reason given")
        return f"benchmarks.json has the numbers; no tables: {short(reason)}"
    return "tables and pictures: report/README.md"


def launch_tables(found: dict[str, Any]) -> Iterator[str]:
    """Show each kernel's time, what launching costs, and what the counters saw."""
    if "error" in found["gate"]:
        yield f"Nothing was measured: {found['gate']['error']}"
        yield ""
        return
    yield f"One forward and backward with dropout, {found['dtype']}, C = {found['channels']}."
    yield ""
    for name, show in (("profile", kernels), ("graph", graph), ("dram", counters)):
        if part := found.get(name):
            yield from [f"{name}: {part['error']}", ""] if "error" in part else show(found)


def kernels(found: dict[str, Any]) -> Iterator[str]:
    """Show the kernels by torch.profiler."""
    copy = figure(found["profile"]["copy_bytes_per_second"], ".0f", 1e9)
    yield (
        f"Kernels at {found['shape']} by torch.profiler, with the bytes of the byte model, which "
        f"leaves parameters and partial sums out. A large copy moved {copy} GB/s, read and written."
    )
    yield ""
    rows = [
        (
            f"`{row['kernel']}`",
            f"{row['launches']:g}",
            figure(row["micros"], ".1f", row["launches"]),
            figure(row["model_bytes"], ".1f", 1e6),
            figure(row["bytes_per_second"], ".0f", 1e9),
            figure(row["of_copy"], ".2f"),
        )
        for row in found["profile"]["rows"]
    ]
    yield from table(("kernel", "launches", "µs each", "model MB", "GB/s", "of the copy"), rows)


def graph(found: dict[str, Any]) -> Iterator[str]:
    """Show what launching costs."""
    times = (f"{name} {figure(micros, '.1f')} µs" for name, micros in found["graph"].items())
    yield f"Called, and replayed as one CUDA graph, at {found['small_shape']}: {', '.join(times)}."
    yield ""


def counters(found: dict[str, Any]) -> Iterator[str]:
    """Show what Nsight Compute counted."""
    yield (
        f"Bytes at {found['shape']} by Nsight Compute, every launch on empty caches. Written: what "
        "has left the L2 cache when the kernel ends; stored: what entered it. The ratio is of read "
        "and stored bytes to the model's."
    )
    yield ""
    header = ("kernel", "launches", "µs", "model MB", "read MB", "written MB", "stored MB", "ratio")
    megabytes = ("model_bytes", "read_bytes", "written_bytes", "stored_bytes")
    rows = [
        (
            f"`{row['kernel']}`",
            f"{row['launches']:g}",
            figure(row.get("micros"), ".1f"),
            *(figure(row.get(name), ".1f", 1e6) for name in megabytes),
            figure(row["ratio"], ".2f"),
        )
        for row in found["dram"]["rows"]
    ]
    yield from table(header, rows)


def page(phases: list[dict[str, Any]], found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the summary."""
    mark = f": {DRY_NOTE}" if DRY else ""
    yield f"# fastht on a GPU{mark}"
    yield ""
    if environment := found["environment"]:
        machine = environment["machine"]
        packages = machine["packages"]
        yield (
            f"{environment['date']}, {machine['gpu'] or 'no GPU'}, driver "
            f"{machine.get('gpu_details', {}).get('driver_version')}, torch {packages['torch']}, "
            f"triton {packages['triton']}, fastht {machine['fastht']} at {environment['commit']}"
        )
        yield ""
    rows = [[p["name"], p["outcome"], f"{p['seconds']} of {p['limit']}"] for p in phases]
    yield from table(("phase", "outcome", "seconds"), rows)
    for name in LOGS:
        lines = [*found[name], *([found["tables"]] if name == "benchmarks" else [])]
        if lines := [short(line) for line in lines if line]:
            yield f"## {name}"
            yield ""
            yield from (f"- {line}" for line in lines)
            yield ""
    if launches := found["launches"]:
        yield f"## launches{mark}"
        yield ""
        yield from launch_tables(launches)


def main() -> None:
    """Write summary.md and summary.json, and print the page."""
    out = Path(sys.argv[1])
    phases = read_phases(out / "phases")
    found: dict[str, Any] = {
        name: read_json(out / f"{name}.json") for name in ("environment", "launches")
    }
    found |= {name: last_lines(out / f"{name}.log", pattern) for name, pattern in LOGS.items()}
    found["tables"] = collect(out / "suites", out)
    text = "\n".join(page(phases, found))
    (out / "summary.md").write_text(text + "\n")
    write_json(out / "summary.json", {"phases": phases, **found})
    print(text)


if __name__ == "__main__":
    main()

"""Results of the suites: read, checked, put together and stored in short.

A result is the JSON of one run of pytest-benchmark. What is stored beside a page (``dump``) holds
one or more of them, without the single rounds, and is read by the same function.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.report.results import FUSED, SUITES, Entry, Results, Run, Suite
from fastht.bench.machine import differences

SIGNIFICANT = 4  # digits; a page shows three
MACHINE = ("device", "cpu", "cores", "threads", "system", "python", "fastht", "packages")


class ReportError(Exception):
    """Something is wrong with what was given; the message says what."""


def load(paths: Iterable[Path]) -> Results:
    """Read results and put them together.

    Raises:
        ReportError: one cannot be read, two are of different machines, or two hold the same entry.
    """
    runs = [run for path in paths for run in read(path)]
    for other in runs[1:]:
        refuse_other_machine(runs[0], other)
    runs.sort(key=lambda run: run.date)
    seen: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        for entry in run.entries:
            if entry.key in seen:
                first = seen[entry.key].source
                raise ReportError(f"{first} and {run.source} both hold {entry.name}: which counts?")
            seen[entry.key] = run
    return Results(tuple(runs))


def refuse_other_machine(one: Run, other: Run) -> None:
    """Raise :class:`ReportError` where two runs are not of the same machine."""
    if found := differences(one.machine, other.machine):
        what = "; ".join(f"{name}: {a} and {b}" for name, (a, b) in found.items())
        raise ReportError(f"{one.source} and {other.source} are of different machines ({what})")


def read(path: Path) -> list[Run]:
    """Read one file: what pytest-benchmark wrote, or what is stored beside a page.

    Raises:
        ReportError: it is neither.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(f"{path} is no JSON: {error}") from error
    runs = document.get("runs", [document]) if isinstance(document, dict) else []
    if not isinstance(runs, list) or not runs or not all(map(_is_run, runs)):
        raise ReportError(f"{path} is no result of pytest-benchmark")
    return [_run(str(path), run) for run in runs]


def dump(results: Results) -> str:
    """Return the JSON from which the same page is rendered; an entry a line, for readable diffs."""
    return '{"runs": [\n' + ",\n".join(map(_dump_run, results.runs)) + "\n]}\n"


def _dump_run(run: Run) -> str:
    head = {
        "machine_info": run.machine,
        "commit_info": run.commit,
        "datetime": run.date,
        "command": run.command,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    entries = ",\n".join(
        json.dumps(
            {
                "name": entry.name,
                "stats": {"median": entry.median, "iqr": entry.iqr, "rounds": entry.rounds},
                "extra_info": entry.info,
            }
        )
        for entry in run.entries
    )
    return "{" + ",\n".join(lines) + f',\n"benchmarks": [\n{entries}\n]}}'


def _is_run(document: Any) -> bool:
    """Whether this has the shape of what pytest-benchmark writes."""
    found = document.get("benchmarks") if isinstance(document, dict) else None
    return isinstance(found, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in found
    )


def _run(source: str, document: dict[str, Any]) -> Run:
    machine, commit = document.get("machine_info") or {}, document.get("commit_info") or {}
    if missing := [name for name in MACHINE if name not in machine]:
        raise ReportError(
            f"{source} is not of this repository's suites: machine_info lacks {', '.join(missing)}"
        )
    if machine["device"] not in FUSED:
        raise ReportError(f"{source} is of an unknown device, {machine['device']!r}")
    suites = [(entry["name"].partition("[")[0], entry) for entry in document["benchmarks"]]
    entries = tuple(_entry(source, SUITES[suite], e) for suite, e in suites if suite in SUITES)
    if not entries:
        raise ReportError(f"{source} holds nothing to show: no entry of {', '.join(SUITES)}")
    return Run(
        source=source,
        machine=_short(machine),
        commit={"id": commit.get("id", "unknown"), "dirty": bool(commit.get("dirty"))},
        date=str(document.get("datetime", "")),
        command=str(document.get("command", "")),
        entries=entries,
        unknown=Counter(suite for suite, _ in suites if suite not in SUITES),
    )


def _entry(source: str, suite: Suite, document: dict[str, Any]) -> Entry:
    name = document["name"]
    stats, info = document.get("stats") or {}, document.get("extra_info") or {}
    missing = [field for field in ("median", "iqr", "rounds") if field not in stats]
    missing += [f for f in ("contestant", *suite.case, *suite.beside) if f not in info]
    if missing:
        raise ReportError(f"{source}: {name} lacks {', '.join(missing)}")
    median, iqr = stats["median"], stats["iqr"]
    for what, value in (("median", median), ("iqr", iqr)):
        if not (isinstance(value, (int, float)) and 0 <= value < math.inf) or median == 0:
            raise ReportError(f"{source}: the {what} of {name} is {value!r}")
    return Entry(name, _short(median), _short(iqr), stats["rounds"], _short(info))


def _short(value: Any) -> Any:
    """Round every float within ``value``: a page says the same before and after it is stored."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT}g}")
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value

"""What each kernel moves through a GPU's memory, counted by Nsight Compute, against the byte model.

Every launch is counted alone and begins with empty caches, so that all it needs comes from memory,
as in :mod:`benchmarks.byte_model`. Of what it stores, much may still be in the L2 cache when it
ends, and is then not counted as written; so what the multiprocessors store is counted on its way
into that cache as well, and stands for the writes in the ratio. Unlike the model, the counters see
parameters and partial sums.
"""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.common import kernel_name

METRICS = {
    "read_bytes": "dram__bytes_read.sum",
    "written_bytes": "dram__bytes_write.sum",
    "stored_bytes": "lts__t_sectors_srcunit_tex_op_write.sum",
    "micros": "gpu__time_duration.sum",
}
# ncu's units -> bytes and microseconds. Those that --print-units base gives come first; a sector
# is the part of a cache line that is moved.
UNITS = {
    "byte": 1, "sector": 32, "ns": 1e-3, "nsecond": 1e-3,
    "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
    "us": 1, "usecond": 1, "ms": 1e3, "msecond": 1e3,
}  # fmt: skip
KILLED = (124, 137)  # exit statuses of timeout

Counters = dict[str, float]  # of one kernel: "launches" and, where counted, the METRICS


def measure(program: Sequence[str], model: Mapping[str, int], seconds: float) -> dict[str, Any]:
    """Count what the kernels of ``program`` move between cudaProfilerStart and -Stop.

    Args:
        program: a command and its arguments.
        model: kernel -> bytes, for :func:`compare`.
        seconds: after which it is stopped.

    Returns:
        ``{"rows": …}`` of :func:`compare`, or ``{"error": …}`` where there are no counters: ncu is
        missing, may not read them, or has had no time.
    """
    ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if ncu is None:
        return {"error": "ncu (Nsight Compute) is not installed"}
    done = subprocess.run(
        command_line(ncu, program, seconds),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode in KILLED:
        return {"error": f"ncu has not finished in {seconds:.0f} seconds"}
    counted = parse(done.stdout)
    if not any(moved(counters) for counters in counted.values()):
        return {"error": refusal(done.stdout)}
    return {"rows": compare(counted, model)}


def command_line(ncu: str, program: Sequence[str], seconds: float) -> list[str]:
    """Return the call of ncu; ``timeout`` also ends the program under it."""
    options = {
        "--page": "raw",  # a launch a row, a metric a column
        "--print-units": "base",
        "--metrics": ",".join(METRICS.values()),
        "--profile-from-start": "off",
        "--target-processes": "application-only",
        "--cache-control": "all",  # every launch begins with empty caches
        "--clock-control": "none",  # the clocks stay as they are found
    }
    limit = ["timeout", "-k", "5", f"{seconds:.0f}"]
    return [*limit, ncu, "--csv", *(word for pair in options.items() for word in pair), *program]


def parse(output: str) -> dict[str, Counters]:
    """Return the sums over all launches of each kernel, by the name that fastht has for it.

    ncu prints its table among lines that begin with ``==`` and what the program prints; below the
    header stands a row of units. A metric that it cannot count has no number and is left out.

    Raises:
        ValueError: a unit is unknown.
    """
    rows = list(csv.reader(line for line in output.splitlines() if line.startswith('"')))
    start = next((i for i, row in enumerate(rows) if "Kernel Name" in row), len(rows))
    kernels: dict[str, Counters] = {}
    units: dict[str, str] = {}
    for row in rows[start + 1 :]:
        if len(row) != len(rows[start]):
            continue
        cells = dict(zip(rows[start], row, strict=True))
        if not cells["Kernel Name"]:
            units = cells
            continue
        counters = kernels.setdefault(kernel_name(cells["Kernel Name"]), {"launches": 0})
        counters["launches"] += 1
        for name, metric in METRICS.items():
            value = number(cells.get(metric, ""))
            if value is not None:
                if (unit := units.get(metric)) not in UNITS:
                    raise ValueError(f"ncu gives {metric} in {unit!r}")
                counters[name] = counters.get(name, 0) + value * UNITS[unit]
    return kernels


def number(cell: str) -> float | None:
    """Return a number with thousands separators, or ``None`` for ``n/a`` and the like."""
    try:
        value = float(cell.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def refusal(output: str) -> str:
    """Return ncu's own first words on why nothing was counted."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in ("==ERROR== ", "==WARNING== "):
        said = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
        if said:
            break
    words = (said or lines[-1:] or ["nothing"])[0]
    return f"ncu counted nothing; it says: {words.partition('. ')[0][:200]}"


def compare(counted: Mapping[str, Counters], model: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for each kernel, the one that moves most first, and one for their sums.

    ``ratio`` is read from memory and stored into the L2 cache, by the model's bytes of one launch;
    a kernel that the model does not know has none. That of the sums has all kernels above and the
    whole model below.
    """
    rows = [
        {"kernel": kernel, **counters, "model_bytes": model.get(kernel)}
        for kernel, counters in counted.items()
    ]
    rows.sort(key=lambda row: -(moved(row) or 0))
    total: dict[str, Any] = {"kernel": "all", "model_bytes": sum(model.values())}
    for name in ("launches", *METRICS):
        if all(name in row for row in rows):
            total[name] = sum(row[name] for row in rows)
    for row in (*rows, total):
        known = row["model_bytes"] and moved(row)
        row["ratio"] = known and known / row["model_bytes"]
    return [*rows, total]


def moved(row: Mapping[str, Any]) -> float | None:
    """Return the bytes that a kernel reads from memory and stores, if both were counted."""
    if "read_bytes" not in row or "stored_bytes" not in row:
        return None
    return row["read_bytes"] + row["stored_bytes"]

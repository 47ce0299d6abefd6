"""On which machine, when, of what and how results were measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from benchmarks.report.results import Results, Run
from benchmarks.report.tables import number

GIB = 2**30


def device(results: Results) -> str:
    """Return the name of the GPU or the processor, without its marks.

    Processors of one name differ in their instruction sets: torch's is part of it.
    """
    found = results.machine
    name = found.get("gpu") or f"{found['cpu']}, {found['torch_capability']}"
    return re.sub(r"\((R|TM)\)", "", name, flags=re.IGNORECASE)


def slug(results: Results) -> str:
    """Return the device for a folder: ``Intel(R) Xeon(R), AVX512`` is ``cpu-intel-xeon-avx512``."""
    name = re.sub(r"[^a-z0-9]+", "-", device(results).lower()).strip("-")
    return f"{results.machine['device']}-{name}"


def machine(results: Results) -> Iterator[str]:
    """Yield what stays the same from run to run."""
    found = results.machine
    yield f"- processor: {found['cpu']}, {found['cores']} cores, torch uses {found['threads']}"
    details = found.get("gpu_details") or {}
    if details:
        yield (
            f"- GPU: {found['gpu']}, compute capability {details['capability']}, "
            f"{details['multiprocessors']} multiprocessors, {_gib(details['memory_bytes'])}"
        )
    memory = found.get("memory_bytes")
    yield f"- memory: {_gib(memory) if memory else 'unknown'}"
    if cache := found.get("cache_bytes"):
        yield f"- last-level cache: {number(cache / 2**20)} MiB"
    yield f"- system: {found['system']}"


def runs(results: Results) -> Iterator[str]:
    """Yield when, with what and by which command each run was made, and what disturbed it."""
    for place, run in enumerate(results.runs, 1):
        yield f"{place}. {run.date[:10]}, fastht {run.machine['fastht']} {commit(run)}"
        yield f"   - command: `{run.command}`"
        yield f"   - {_versions(run.machine)}"
        backend = run.machine.get("backends", {}).get(results.fused, "not usable here")
        yield f"   - backend `{results.fused}`: {backend}"
        if state := list(_state(run.machine)):
            yield f"   - {', '.join(state)}"
        load, cores = run.machine.get("load"), run.machine["cores"]
        if load is not None and cores and load > cores / 2:
            yield (
                f"   - **The machine was not idle** in the minute before the start: a load of "
                f"{load:.1f} on {cores} cores. Unless that was an earlier run of the suites, times "
                "of this run may be too long."
            )


def commit(run: Run) -> str:
    """Return the commit in short, and whether something was not committed."""
    known = re.fullmatch(r"[0-9a-f]{7,}", run.commit["id"])
    at = f"at {run.commit['id'][:7]}" if known else "at an unknown commit"
    return f"{at} with uncommitted changes" if run.commit["dirty"] else at


def _versions(found: dict[str, Any]) -> str:
    packages = [f"{name} {version}" for name, version in found["packages"].items() if version]
    cuda = [f"CUDA {found['cuda']}"] if found["device"] == "cuda" and found.get("cuda") else []
    return ", ".join([f"Python {found['python']}", *packages, *cuda])


def _state(found: dict[str, Any]) -> Iterator[str]:
    """Yield what changes on its own: load, clocks, temperature."""
    if (load := found.get("load")) is not None:
        yield f"load at the start {load:.2f}"
    if mhz := found.get("cpu_mhz"):
        yield f"processor at {mhz:.0f} MHz"
    if capability := found.get("torch_capability"):
        yield f"torch's CPU kernels for {capability}"
    for field, value in (found.get("gpu_details") or {}).items():
        if field not in ("capability", "multiprocessors", "memory_bytes"):
            yield f"GPU {field.replace('.', ' ').replace('_', ' ')} {value}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"

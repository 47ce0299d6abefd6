"""Fit the machine's parameters to kernels that were timed on GPUs, and show what is left.

    python -m benchmarks.compile_releases --triton 3.6 --module benchmarks.issue_model.fit

``runs.json`` names the measurements (``benchmarks/results``), the rows of the table of tile sizes
that their kernels were compiled with where today's differ, and the kernels that have changed since,
which are shown and not fitted. One run is fitted, the others are held out: another card, other tile
sizes, another backend. The parameters of :data:`START` move from there by Gauss-Newton steps of
``log(modelled / measured)`` in their logarithms; each pays for its way (:data:`STIFFNESS`), as
there are few kernels: one that no kernel feels stays where it was. What is found goes by hand into
:data:`machine.FITTED`, with ``fitted.json`` (``--json``) and the table of ``docs/issue_model.md``
beside it; a test holds the three together.

Nothing here is measured anew: measured microseconds are those of the files, all others modelled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.issue_model.launches import BACKENDS, Shape, works
from benchmarks.issue_model.machine import CARDS, FITTED, Machine, with_parameters
from benchmarks.issue_model.simulate import Work, model

RUNS = Path(__file__).with_name("runs.json")
FOUND = Path(__file__).with_name("fitted.json")
RESULTS = Path(__file__).resolve().parents[1] / "results"
# Published numbers and round ones, from which the search starts.
START: dict[str, float] = {
    "burst": 1.2,
    "l2_bytes": 16.0,
    "conflicts": 1.2,
    "barrier": 22.0,
    "ramp": 2.0e-6,
    "L1": 38.0,
    "L2": 270.0,
    "DRAM": 750.0,
}
BOUNDS = {"burst": (1.0, 2.0), "conflicts": (1.0, 3.0), "l2_bytes": (8.0, 16.0)}
STIFFNESS = 0.02  # of the square of a parameter's logarithm, beside that of a kernel's
STEP = 1.15  # over which slopes are taken


@dataclass(frozen=True)
class Kernel:
    """A kernel's launches of one call: their programs, and what they took on a card."""

    name: str
    card: str
    backend: str
    measured: float  # microseconds
    launches: Sequence[Sequence[Work]]  # of each launch, its roles
    changed: bool = False  # since it was measured

    def modelled(self, machine: Machine) -> float:
        """Return the microseconds of all its launches, modelled."""
        return sum(max(model(work, machine).micros for work in roles) for roles in self.launches)


@dataclass
class Run:
    """One measured run; ``kernels`` gets what was compiled for it."""

    file: str
    card: str
    backend: str
    triton: str
    rows: Mapping[str, Mapping[str, int]]
    changed: Sequence[str]
    use: str
    kernels: list[Kernel] = field(default_factory=list)

    def measured(self) -> dict[str, float]:
        """Return the measured microseconds by kernel, all of its launches together."""
        found = json.loads((RESULTS / self.file).read_text(encoding="utf-8"))
        if "profile" in found:
            rows = [(row["kernel"], row["micros"]) for row in found["profile"]["rows"]]
        else:
            rows = [(row[0].removesuffix(" back"), row[1]) for row in found["rows"]]
        times: dict[str, float] = {}
        for name, micros in rows:
            if "::" not in name:  # PyTorch's own
                times[name] = times.get(name, 0.0) + micros
        return times


def runs() -> list[Run]:
    """Return the runs that there are."""
    return [Run(**run) for run in json.loads(RUNS.read_text(encoding="utf-8"))]


@contextlib.contextmanager
def tiled(rows: Mapping[str, Mapping[str, int]]) -> Iterator[None]:
    """Let some kernels have other tile sizes than the table's."""
    from fastht.ops.triton import configs

    original: Callable[..., dict[str, int]] = configs.options

    def chosen(kernel: str, *wanted: Any) -> dict[str, int]:
        return dict(rows[kernel]) if kernel in rows else original(kernel, *wanted)

    configs.options = chosen
    try:
        yield
    finally:
        configs.options = original


def compiled(run: Run, shape: Shape) -> list[Kernel]:
    """Compile a run's launches and put what was measured beside them."""
    with tiled(run.rows):
        launches = BACKENDS[run.backend](shape, "sm_90")
    by_name: dict[str, list[Sequence[Work]]] = {}
    for launch in launches:
        name = launch.kernel.removeprefix("fastht_")
        by_name.setdefault(name, []).append(works(launch, shape))
    times = run.measured()
    if unknown := by_name.keys() - times.keys():
        raise ValueError(f"{run.file} has no time of {', '.join(sorted(unknown))}")
    return [
        Kernel(name, run.card, run.backend, times[name], found, name in run.changed)
        for name, found in by_name.items()
    ]


def error(kernels: Sequence[Kernel], parameters: Mapping[str, float]) -> torch.Tensor:
    """Return what the fit makes small: how far each kernel is off, and each parameter has come."""
    off = [
        math.log(k.modelled(with_parameters(CARDS[k.card], parameters)) / k.measured)
        for k in kernels
    ]
    moved = [math.sqrt(STIFFNESS) * math.log(parameters[name] / START[name]) for name in START]
    return torch.tensor(off + moved, dtype=torch.float64)


def fit(
    kernels: Sequence[Kernel], rounds: int = 4, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Return the parameters with which the model is nearest to what was measured."""
    best = dict(START)
    left = error(kernels, best)
    for count in range(rounds):
        slopes = []
        for name in START:
            # Towards the inside, where a parameter is at its upper bound.
            step = STEP if best[name] * STEP <= _bounds(name)[1] else 1 / STEP
            there = error(kernels, best | {name: best[name] * step})
            slopes.append((there - left) / math.log(step))
        way = torch.linalg.lstsq(torch.stack(slopes, dim=1), -left[:, None]).solution[:, 0]
        for shorter in (1.0, 0.4, 0.1):
            tried = {
                name: min(_bounds(name)[1], max(_bounds(name)[0], value * math.exp(shorter * go)))
                for (name, value), go in zip(best.items(), way.tolist(), strict=True)
            }
            if (found := error(kernels, tried)).square().sum() < left.square().sum():
                break
        else:
            break
        best, left = tried, found
        shown = {name: float(f"{value:.3g}") for name, value in best.items()}
        say(f"round {count + 1}: {float(left.square().sum()):.4f} {shown}")
    return {name: float(f"{value:.3g}") for name, value in best.items()}


def _bounds(name: str) -> tuple[float, float]:
    low, high = BOUNDS.get(name, (0.25, 4.0))
    return (low, high) if name in BOUNDS else (low * START[name], high * START[name])


def residuals(found: Sequence[Run], parameters: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return measured and modelled microseconds of every kernel."""
    return [
        {
            "card": run.card,
            "backend": run.backend,
            "kernel": kernel.name,
            "use": "changed since" if kernel.changed else run.use,
            "measured_us": round(kernel.measured, 1),
            "start_us": round(kernel.modelled(with_parameters(CARDS[run.card], START)), 1),
            "modelled_us": round(kernel.modelled(with_parameters(CARDS[run.card], parameters)), 1),
        }
        for run in found
        for kernel in run.kernels
    ]


def spread(rows: Sequence[Mapping[str, Any]], what: str, use: str) -> float:
    """Return the typical factor between a column and what was measured, of the rows of a use."""
    logs = [math.log(row[what] / row["measured_us"]) for row in rows if row["use"] == use]
    return math.exp(math.sqrt(sum(x * x for x in logs) / len(logs))) if logs else float("nan")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the residuals as the page shows them."""
    lines = [
        "| card | backend | kernel | measured µs | modelled µs | modelled / measured | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["modelled_us"] / row["measured_us"]
        lines.append(
            "| {card} | {backend} | {kernel} | {measured_us} | {modelled_us} | ".format(**row)
            + f"{ratio:.2f} | {row['use']} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Fit, print the parameters and the residuals, and leave them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, nargs="+", default=list(BACKENDS))
    parser.add_argument("--keep", action="store_true", help="today's parameters, none fitted")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write parameters and residuals there")
    arguments = parser.parse_args()
    found = [run for run in runs() if run.backend in arguments.backend]
    release = _release()
    for run in found:
        if run.triton not in ("", release):
            parser.error(f"{run.file} was compiled by Triton {run.triton}, here is {release}")
        run.kernels = compiled(run, Shape())
    chosen = [k for run in found if run.use == "fit" for k in run.kernels if not k.changed]
    parameters = dict(FITTED) if arguments.keep else fit(chosen, arguments.rounds)
    rows = residuals(found, parameters)
    print(table(rows))
    for use in ("fit", "held out"):
        print(f"{use}: a typical factor of {spread(rows, 'modelled_us', use):.2f}, with the start's"
              f" parameters {spread(rows, 'start_us', use):.2f}")  # fmt: skip
    print(json.dumps(parameters))
    if arguments.json:
        text = json.dumps({"parameters": parameters, "kernels": rows}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


def _release() -> str:
    from fastht.ops.triton import configs

    return configs.release()


if __name__ == "__main__":
    sys.exit(main())

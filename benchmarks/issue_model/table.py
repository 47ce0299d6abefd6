"""All launches of a call, modelled, and the floor of bytes beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import byte_model
from benchmarks.issue_model.launches import BACKENDS, Launch, Shape, works
from benchmarks.issue_model.machine import MACHINES, Machine
from benchmarks.issue_model.simulate import Modelled, model

DTYPE_BYTES = {"16": (2, 2), "32>16": (4, 2), "tf32": (4, 4), "32": (4, 4)}  # of x, of products


@dataclass
class Row:
    """One launch and what it takes, modelled."""

    launch: Launch
    modelled: Modelled

    @property
    def warps(self) -> int:
        """Warps that a multiprocessor holds at once."""
        return self.modelled.resident * self.launch.warps


def rows(
    shape: Shape, arch: str, backend: str, only: str = "", machine: Machine | None = None
) -> list[Row]:
    """Compile a call's launches and model each, on a machine of ``arch`` where one is given."""
    machine = machine or MACHINES[arch]
    return [
        Row(launch, max((model(w, machine) for w in works(launch, shape)), key=_micros))
        for launch in BACKENDS[backend](shape, arch, only)
    ]


def _micros(modelled: Modelled) -> float:
    return modelled.micros


def sizes(shape: Shape) -> byte_model.Shape:
    """Return the shape as the byte model takes it."""
    return byte_model.Shape(
        shape.batch * shape.tokens, shape.dim, shape.channels, *DTYPE_BYTES[shape.numbers]
    )


def summary(shape: Shape, found: Sequence[Row], machine: Machine) -> dict[str, Any]:
    """Return the modelled microseconds of both passes, their floors, and those of each launch."""
    result: dict[str, Any] = {
        "modelled": True, "shape": str(shape), "machine": machine.name, "x_rebuilt": shape.rebuilds,
    }  # fmt: skip
    for phase, floor in (
        ("forward", byte_model.forward_floor(sizes(shape))),
        ("backward", byte_model.backward_floor(sizes(shape))),
    ):
        here = [row for row in found if row.launch.phase == phase]
        gaps = 1e6 * machine.gap * len(here)
        floor_us = 1e6 * floor / machine.bandwidth
        total = sum(row.modelled.micros for row in here) + gaps
        result |= {
            f"{phase}_us": round(total, 1),
            f"{phase}_floor_us": round(floor_us, 3),
            f"{phase}_of_floor": round(floor_us / total, 3) if total else None,
            f"{phase}_launches": len(here),
        }
    result["kernels"] = [
        {
            "kernel": row.launch.kernel,
            "phase": row.launch.phase,
            "us": round(row.modelled.micros, 1),
            "issue_us": round(row.modelled.issue_micros, 1),
            "registers": row.launch.registers,
            "warps_an_sm": row.warps,
        }
        for row in found
    ]
    return result


FORM = "{:22} {:>12} {:>9} {:>10} {:>9} {:>7} {:>7} {:>9} {:>8} {:>8}"


def _compiler(found: Sequence[Row]) -> str:
    if any(row.launch.counted for row in found):
        from fastht.ops.cuda import nvrtc

        return "NVRTC {}.{}".format(*nvrtc.load().version)
    import triton

    return f"Triton {triton.__version__}"


def text(shape: Shape, found: Sequence[Row], machine: Machine) -> str:
    """Return the table for people."""
    lines = [
        f"MODELLED, not measured: {shape}, {shape.numbers}, hybrid with dropout, "
        f"x {'rebuilt from the output' if shape.rebuilds else 'kept'}, {machine.name} "
        f"({machine.multiprocessors} multiprocessors, {machine.clock / 1e9:.2f} GHz, "
        f"{machine.bandwidth / 1e12:.1f} TB/s), {_compiler(found)}",
        FORM.format(
            "launch", "programs", "registers", "warps/SM", "DRAM MB", "issue", "ALU", "LSU",
            "IPC", "us",
        ),
    ]  # fmt: skip
    totals = summary(shape, found, machine)
    for phase in ("forward", "backward"):
        for row in found:
            if row.launch.phase != phase:
                continue
            m = row.modelled
            lines.append(
                FORM.format(
                    row.launch.kernel, f"{row.launch.programs}x{row.launch.warps}",
                    row.launch.registers, row.warps, f"{m.memory_bytes / 1e6:.0f}",
                    *(f"{t:.0f}" for t in (m.issue_micros, m.pipe_micros.get("ALU", 0),
                                           m.pipe_micros.get("LSU", 0))),
                    f"{m.issued_a_cycle:.2f}", f"{m.micros:.1f}",
                )
            )  # fmt: skip
        lines.append(
            f"{phase}: {totals[f'{phase}_us']} us modelled in {totals[f'{phase}_launches']} "
            f"launches, gaps in; floor {totals[f'{phase}_floor_us']} us, of which it reaches "
            f"{totals[f'{phase}_of_floor']}"
        )
    guessed = [
        f"{row.launch.kernel} {row.modelled.guessed}" for row in found if row.modelled.guessed
    ]
    if guessed:
        lines.append(f"loops whose turns are not known, played once: {', '.join(guessed)}")
    return "\n".join(lines)

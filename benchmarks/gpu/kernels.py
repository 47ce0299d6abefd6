"""Phase 4: the fused operator against the reference, eager and compiled by torch.compile.

    python -m benchmarks.gpu.kernels --out kernels.json --seconds 120

Times are medians of ``triton.testing.do_bench`` (cold L2), and medians over rounds in which the
contestants take turns. Each contestant has a process of its own. Before any timing the fused
operator is held to the tests' correctness rule at the same width and grid; where it breaks it, the
row says so and there is no speedup. Exit status: 0, or 1 where a fused row is missing or incorrect.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.gpu.common import (
    COMPILE,
    DEVICE,
    DRY,
    check_fused,
    make_adapter,
    median_ms,
    synchronize,
    tokens,
    write_json,
)
from benchmarks.gpu.workers import Reply, Worker, failure

CONTESTANTS = ("fused", "eager", "compiled")
ROUNDS = 1 if DRY else 3
CHANNELS = 16 if DRY else 64
# batch, grid, features a token; one class token each
SHAPES = (
    ((2, (4, 5), 32),)
    if DRY
    else (
        (256, (14, 14), 768),
        (64, (24, 24), 1024),
        (32, (32, 32), 1152),
        (16, (14, 14), 768),
    )
)
GRAPH_SHAPE = len(SHAPES) - 1  # small enough that launches, not bytes, would set its time
FLOOR_BYTES = {"forward": 4, "backward": 6, "both": 10}  # a feature: x, out / dout, x, dx; 16 bits
COPY_BYTES = 2**20 if DRY else 2**31  # read and as many written


class Contestant:
    """One implementation, in its own process.

    Args:
        name: one of ``CONTESTANTS``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.backend = "triton" if name == "fused" else "reference"
        self.ready: dict[int, tuple[Any, list[Tensor], Tensor]] = {}

    def prepare(self, index: int, deadline: float) -> Reply:
        """Make the adapter and inputs of a shape, compile, run once, check.

        Past ``deadline`` (``time.monotonic()``) nothing is begun.
        """
        if time.monotonic() > deadline:
            return {"error": "no time left to prepare it"}
        start = time.monotonic()
        batch, grid, dim = SHAPES[index]
        module = make_adapter(dim, CHANNELS, grid, self.backend)
        shape = (batch, 1 + grid[0] * grid[1], dim)
        x, dout = (tokens(*shape, torch.bfloat16, seed) for seed in (1, 2))
        x.requires_grad_()
        call = torch.compile(module, **COMPILE) if self.name == "compiled" else module
        leaves = [x, *module.parameters()]
        broken = self._check(index) if self.name == "fused" else {}
        self.ready[index] = (lambda: call(x, grid), leaves, dout)
        broken |= self._check_dropout(index, module)
        synchronize()
        if broken:
            del self.ready[index]  # a wrong result has no time
            return {"error": f"incorrect: {', '.join(broken)}", "details": broken}
        return {"seconds": time.monotonic() - start}

    def measure(self, index: int) -> Reply:
        """Return the times of a shape in milliseconds."""
        if index not in self.ready:
            return {"error": "not prepared"}
        call, leaves, dout = self.ready[index]
        out = call()
        return {
            "forward": median_ms(call),
            "backward": median_ms(
                lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)
            ),
            "both": median_ms(lambda: torch.autograd.grad(call(), leaves, dout)),
        }

    def graph(self, index: int) -> Reply:
        """Return the time of replaying forward and backward as one CUDA graph, in milliseconds."""
        if index not in self.ready:
            return {"error": "not prepared"}
        call, leaves, dout = self.ready[index]
        if DRY:
            return {"both": median_ms(lambda: torch.autograd.grad(call(), leaves, dout))}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                torch.autograd.grad(call(), leaves, dout)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            gradients = torch.autograd.grad(call(), leaves, dout)
        graph.replay()
        if not all(g.isfinite().all() for g in gradients):
            return {"error": "the replayed gradients are not finite"}
        return {"both": median_ms(graph.replay)}

    def profile(self, index: int) -> Reply:
        """Return what one forward and backward launches: kernel, launches, microseconds each."""
        if index not in self.ready:
            return {"error": "not prepared"}
        call, leaves, dout = self.ready[index]
        calls = 1 if DRY else 10
        activity = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activity.CPU if DRY else activity.CUDA]) as profile:
            for _ in range(calls):
                torch.autograd.grad(call(), leaves, dout)
            synchronize()
        rows = []
        for event in profile.key_averages():
            if DRY and "fastht::" not in event.key:
                continue  # there are no kernels
            total = event.self_cpu_time_total if DRY else event.self_device_time_total
            if total > 0:
                launches = event.count / calls
                rows.append([event.key[:80], launches, total / event.count])
        rows.sort(key=lambda row: -row[1] * row[2])
        return {"kernels": rows}

    def copy_bandwidth(self) -> Reply:
        """Return what a large copy on the device moves, in bytes a second, read and written."""
        source = torch.randn(COPY_BYTES // 4, device=DEVICE)
        target = torch.empty_like(source)
        ms = median_ms(lambda: target.copy_(source))
        return {"bytes_per_second": 2 * COPY_BYTES / ms * 1e3}

    def _check(self, index: int) -> dict[str, str]:
        """Hold the operator to the rule, without dropout, on a quarter of the batch."""
        batch, grid, dim = SHAPES[index]
        shape = (max(2, batch // 4), 1 + grid[0] * grid[1], dim)
        return check_fused(shape, CHANNELS, grid, torch.bfloat16)

    def _check_dropout(self, index: int, module: torch.nn.Module) -> dict[str, str]:
        """Ask of what is timed that dropout changes the update by about as much as it should.

        Dropping a tenth of the activations moves their sum by sqrt(0.1 / 0.9), a third of it.
        """
        call, leaves, dout = self.ready[index]
        out = call()
        broken = {}
        if not all(g.isfinite().all() for g in torch.autograd.grad(out, leaves, dout)):
            broken["gradients with dropout"] = "not finite"
        with torch.no_grad():
            plain = module.eval()(leaves[0], SHAPES[index][1])
            module.train()
            update = (plain - leaves[0]).float()
            noise = ((out - plain).float().norm() / update.norm()).item()
        if not 0.1 < noise < 0.5:
            broken["dropout"] = f"changes the update by {noise:.3g} of its norm"
        return broken


def make_contestant(name: str) -> Contestant:
    """Make a contestant in its process."""
    torch._functorch.config.donated_buffer = False  # backward is timed on a retained graph
    return Contestant(name)


def measure(workers: dict[str, Worker], end: float, out: Path) -> dict[str, Any]:
    """Prepare and measure everything; ``out`` is written after each round."""
    preparing_ends = time.monotonic() + 0.75 * (end - time.monotonic())
    prepared: dict[str, list[Reply]] = {}
    for name, worker in workers.items():
        for index in range(len(SHAPES)):
            worker.send("prepare", index, preparing_ends - 20)
        if DRY:  # one process at work at a time
            prepared[name] = [worker.receive(preparing_ends) for _ in SHAPES]
    for name, worker in workers.items():
        if not DRY:
            prepared[name] = [worker.receive(preparing_ends) for _ in SHAPES]

    rounds: list[dict[str, list[Reply]]] = [{name: [] for name in workers} for _ in SHAPES]
    copies: list[Reply] = []
    found: dict[str, Any] = {}
    for _ in range(ROUNDS):
        copies.append(workers["eager"].ask(end, "copy_bandwidth"))
        for index in range(len(SHAPES)):
            for name, worker in workers.items():
                rounds[index][name].append(worker.ask(end, "measure", index))
        found = {
            "rounds": len(copies),
            "channels": CHANNELS,
            "dtype": "bfloat16 tokens, float32 parameters, dropout 0.1",
            "copy": copies,
            "shapes": [
                {
                    "shape": shape,
                    "prepared": {name: prepared[name][index] for name in workers},
                    "times": rounds[index],
                }
                for index, shape in enumerate(SHAPES)
            ],
        }
        found["rows"] = summarise(found)
        write_json(out, found)
    found["graph"] = {name: w.ask(end, "graph", GRAPH_SHAPE) for name, w in workers.items()}
    write_json(out, found)
    found["profile"] = workers["fused"].ask(end, "profile", 0)
    write_json(out, found)
    return found


def summarise(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each shape and contestant, of medians over the rounds."""
    copies = [c["bytes_per_second"] for c in found["copy"] if "error" not in c]
    copy = statistics.median(copies) if copies else None
    rows = []
    for entry in found["shapes"]:
        batch, grid, dim = entry["shape"]
        features = batch * (1 + grid[0] * grid[1]) * dim
        of_shape: dict[str, dict[str, Any]] = {}
        for name, times in entry["times"].items():
            row: dict[str, Any] = {"shape": [batch, 1 + grid[0] * grid[1], dim], "name": name}
            error = failure(entry["prepared"][name], times)
            times = [t for t in times if "error" not in t]
            if error:
                row["error"] = error
            else:
                for part, floor in FLOOR_BYTES.items():
                    values = [t[part] for t in times]
                    seconds = statistics.median(values) / 1e3
                    row[part] = {
                        "ms": 1e3 * seconds,
                        "range_ms": [min(values), max(values)],
                        "floor_gb_per_s": floor * features / seconds / 1e9,
                        "fraction": copy and floor * features / seconds / copy,
                    }
            of_shape[name] = row
        fused = of_shape["fused"]
        for name in ("eager", "compiled"):
            if "error" not in fused and "error" not in of_shape[name]:
                fused[f"speedup_over_{name}"] = {
                    part: of_shape[name][part]["ms"] / fused[part]["ms"] for part in FLOOR_BYTES
                }
        rows += of_shape.values()
    return rows


def main() -> int:
    """Measure within the given time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="end by then")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    workers = {name: Worker(make_contestant, name) for name in CONTESTANTS}
    try:
        found = measure(workers, end, arguments.out)
    finally:
        for worker in workers.values():
            worker.close()
    problems = [row for row in found["rows"] if row["name"] == "fused" and "error" in row]
    for row in problems:
        print(row["shape"], row["error"])
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

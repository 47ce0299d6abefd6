"""The native CUDA kernels on a GPU: compiled, compared with the simulator, timed beside Triton's.

    python -m benchmarks.gpu.cuda_check --out FILE.json [--seconds S] [--parts bits times ...]

In this order, until the time is over: kernels compiled by NVRTC and `bits` of small calls against
the simulator's, which needs g++, or are in the file that --simulated names; `times` of forward and
backward in turns with Triton's; the time of each of the `kernels`, beside that of an earlier run;
`ncu` on the two that are furthest behind it; compute-sanitizer's `tools` on the small calls. Each
part's result is written when it is there. Exit status: 0, or 1 where bits differ by more than a
rounding or a tool finds something. FASTHT_DRY=1 does on a CPU what can be done there: the calls run
twice in the simulator.

    FASTHT_DRY=1 python -m benchmarks.gpu.cuda_check --parts simulate --simulated FILE

writes the simulator's results for a GPU of the class of an H100.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import operators
from benchmarks.cases import Shape
from benchmarks.gpu.common import DRY, write_json
from fastht.ops.call import Call
from fastht.ops.cuda import adapter, missing, simulated
from fastht.ops.custom_op import parameter_names

DEVICE = "cpu" if DRY else "cuda"
NUMBERS = {
    "bf16": (torch.bfloat16, torch.bfloat16, False),
    "fp16": (torch.float16, torch.float16, False),
    "32>bf16": (torch.float32, torch.bfloat16, False),
    "tf32": (torch.float32, torch.float32, True),
    "32": (torch.float32, torch.float32, False),
}
STEP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 1e-5}
SHAPES = ((2, 64, 3, 5), (2, 192, 14, 14), (1, 768, 14, 14), (1, 100, 9, 23))  # B, D, H, W
TIMED = ((256, 768, 14, 14), (64, 1024, 24, 24), (32, 1152, 32, 32))
# Microseconds at the first of TIMED that an H200 took on 2026-11-26.
EARLIER = {"down": 84, "mix_up": 82, "contract": 124, "mix_back": 25, "expand": 128}
PARTS = ("bits", "times", "kernels", "ncu", "tools")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def make(batch: int, dim: int, height: int, width: int, numbers: str) -> tuple[Any, ...]:
    """Return x, dout, parameters, seed and options of a call, on the CPU."""
    dtype, products, tf32 = NUMBERS[numbers]
    torch.manual_seed(0)
    module = operators.make_adapter(Shape(batch, height, dim, 64), "reference")
    named = dict(module.named_parameters())
    params = {name: named[name].detach().cpu().clone() for name in parameter_names(True, True)}
    tokens = 1 + height * width
    x, dout = (torch.randn(batch, tokens, dim).to(dtype) for _ in range(2))
    call = Call((height, width), 1, True, True, 0.1, 1e-5, products, tf32)
    return x, dout, params, torch.tensor([7]), call


def results(device: str, *given: Any) -> dict[str, Tensor]:
    """Run a call forward and backward on a device; return what came of it, on the CPU."""
    x, dout, params, seed, call = given
    x, dout, seed = x.to(device), dout.to(device), seed.to(device)
    params = {name: p.to(device) for name, p in params.items()}
    out, *saved = adapter.forward(x, params, seed, call, True)
    dx, grads = adapter.backward(dout, x, params, seed, saved, call, True, True)
    named = {"out": out, "dx": dx, **grads}
    return {name: t.cpu() for name, t in named.items() if t is not None}


def simulate(file: Path) -> None:
    """Write what the simulator makes of the small calls, with what they were given."""
    made = {}
    for numbers, shape in itertools.product(NUMBERS, SHAPES):
        given = make(*shape, numbers)
        made[numbers, shape] = given[:4], results("cpu", *given)
    torch.save(made, file)


def compare_bits(simulated: Path | None) -> list[dict[str, Any]]:
    """Return for each small call which results differ from the simulator's, and by how much."""
    rows = []
    shapes = SHAPES[:1] if DRY else SHAPES
    kept = {} if simulated is None else torch.load(simulated, weights_only=True)
    for numbers, shape in itertools.product(list(NUMBERS)[: 1 if DRY else None], shapes):
        given = make(*shape, numbers)
        if kept:
            inputs, theirs = kept[numbers, shape]
            given = *inputs, given[4]
        else:
            theirs = results("cpu", *given)
        ours = results(DEVICE, *given)
        differing = {}
        for name, one in ours.items():
            other = theirs[name]
            if not torch.equal(one, other):
                share = (one != other).double().mean().item()
                error = (one.double() - other.double()).abs().max() / other.double().abs().max()
                differing[name] = {"share": share, "relative": error.item()}
        step = STEP[NUMBERS[numbers][1]]
        wrong = [n for n, d in differing.items() if not d["relative"] <= step]
        rows.append({"numbers": numbers, "shape": shape, "differing": differing, "wrong": wrong})
        print(numbers, shape, differing or "all bits equal", "WRONG" if wrong else "", flush=True)
    return rows


def run_tools(seconds: float) -> dict[str, str]:
    """Run compute-sanitizer's tools on the small calls."""
    tool_path = shutil.which("compute-sanitizer", path="/usr/local/cuda/bin") or shutil.which(
        "compute-sanitizer"
    )
    if tool_path is None:
        return {"note": "compute-sanitizer is not installed: nothing was checked by it"}
    found, end = {}, time.monotonic() + seconds
    for tool in TOOLS:
        left = end - time.monotonic()
        if left < 10:
            found[tool] = "no time left"
            continue
        command = [tool_path, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        command += [sys.executable, "-m", "benchmarks.gpu.cuda_check", "--parts", "calls"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
            found[tool] = "clean" if done.returncode == 0 else done.stdout[-3000:]
        except subprocess.TimeoutExpired:
            found[tool] = "no time left"
        print("==", tool, found[tool], flush=True)
    return found


def in_turns(functions: dict[str, Callable[[], Any]], rounds: int = 20) -> dict[str, float]:
    """Return each function's least time in microseconds, measured one after the other in turns."""
    least = dict.fromkeys(functions, float("inf"))
    for turn, (name, function) in itertools.product(range(rounds), functions.items()):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        if turn > 1:  # the first compile and fill caches
            least[name] = min(least[name], start.elapsed_time(end) * 1e3)
    return least


def time_against_triton(shape: tuple[int, int, int, int]) -> dict[str, float]:
    """Return times of forward and backward of both backends, bfloat16, in microseconds."""
    from fastht.ops.triton import adapter as triton

    x, dout, params, seed, call = make(*shape, "bf16")
    x, dout, seed = x.cuda(), dout.cuda(), seed.cuda()
    params = {name: p.cuda() for name, p in params.items()}
    functions: dict[str, Callable[[], Any]] = {}
    for name, backend in (("triton", triton), ("cuda", adapter)):
        _, *saved = backend.forward(x, params, seed, call, True)
        functions[f"{name} forward"] = lambda b=backend: b.forward(x, params, seed, call, True)
        functions[f"{name} backward"] = lambda b=backend, s=saved: b.backward(
            dout, x, params, seed, s, call, True, True
        )
    return in_turns(functions)


def time_kernels(shape: tuple[int, int, int, int]) -> dict[str, float]:
    """Return the time of each kernel of a call, in microseconds: the least of ten calls."""
    from torch.profiler import ProfilerActivity, profile

    given = make(*shape, "bf16")
    results("cuda", *given)
    order = launched(given)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(10):
            results("cuda", *given)
    events = sorted(
        (e for e in seen.events() if e.name.startswith("fastht_")),
        key=lambda e: e.time_range.start,
    )
    least: dict[str, float] = {}
    for i, event in enumerate(events):
        name = order[i % len(order)]
        least[name] = min(least.get(name, float("inf")), event.device_time)
    return least


def launched(given: tuple[Any, ...]) -> list[str]:
    """Return the names of a call's kernels in the order of their launches."""
    names: list[str] = []
    x, _, params, _, call = given
    for needs in (None, (True, True)):
        configuration = adapter.configuration_of(x, (x,), params, call, call.dropout)
        plan, wanted = adapter.plan_of(configuration, simulated.DEVICE, needs)
        adapter.dry_run(
            plan, configuration, needs, lambda kernel, *_, w=wanted: names.append(w[kernel].name)
        )
    return names


def profile_worst(times: Any, seconds: float) -> dict[str, str]:
    """Run ncu on the two kernels that are furthest behind the earlier run."""
    if not isinstance(times, dict):
        return {"note": "the kernels have not been timed: nothing was profiled"}
    ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if ncu is None:
        return {"note": "ncu is not installed: nothing was profiled"}
    worst = sorted((t / EARLIER[n], n) for n, t in times.items() if n in EARLIER)[-2:]
    said = {}
    for _, name in worst:
        command = [ncu, "--set", "full", "--kernel-name", f"fastht_{name}", "--launch-count", "1"]
        command += [sys.executable, "-m", "benchmarks.gpu.cuda_check", "--parts", "call"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds / 2)
            said[name] = done.stdout[-20000:]
        except subprocess.TimeoutExpired:
            said[name] = "no time left"
    return said


def main() -> int:
    """Run the parts in their order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--simulated", type=Path, help="a file with the simulator's results")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=(*PARTS, "simulate", "call", "calls"),
        default=["bits"] if DRY else list(PARTS),
        help="simulate writes --simulated; call and calls run the main and the small calls alone",
    )
    arguments = parser.parse_args()
    if (problem := missing()) is not None and not DRY:
        print(f"the CUDA kernels cannot run: {problem}", file=sys.stderr)
        return 1
    end = time.monotonic() + arguments.seconds
    if not DRY:
        p = torch.cuda.get_device_properties(0)
        # The simulator takes the same plan as this GPU.
        simulated.DEVICE = (
            p.shared_memory_per_block_optin,
            p.shared_memory_per_multiprocessor,
            p.multi_processor_count,
        )
    if "simulate" in arguments.parts:
        simulate(arguments.simulated)
    if "call" in arguments.parts:
        results(DEVICE, *make(*TIMED[0], "bf16"))
    if "calls" in arguments.parts:
        for numbers, shape in itertools.product(NUMBERS, SHAPES):
            results(DEVICE, *make(*shape, numbers))
    content: dict[str, Any] = {}
    parts: dict[str, Callable[[], Any]] = {
        "bits": lambda: compare_bits(arguments.simulated),
        "times": lambda: {str(shape): time_against_triton(shape) for shape in TIMED},
        "kernels": lambda: time_kernels(TIMED[0]),
        "ncu": lambda: profile_worst(content.get("kernels"), end - time.monotonic()),
        "tools": lambda: run_tools(end - time.monotonic()),
    }
    for part in PARTS:
        if part not in arguments.parts:
            continue
        if time.monotonic() > end:
            content[part] = "no time left"
            continue
        content[part] = parts[part]()
        if part in ("times", "kernels"):
            print(part, "in microseconds:", content[part], flush=True)
        if arguments.out is not None:
            write_json(arguments.out, {**content, "kernels, on an H200, 2026-11-26": EARLIER})
    return int(is_wrong(content))


def is_wrong(content: dict[str, Any]) -> bool:
    """Whether bits differ by more than a rounding, or a tool found something or is not there.

    A part that was not reached in time is a sentence, and nothing wrong.
    """
    bits, tools = content.get("bits"), content.get("tools")
    found = isinstance(bits, list) and any(row["wrong"] for row in bits)
    told = tools.values() if isinstance(tools, dict) else ()
    return found or any(said not in ("clean", "no time left") for said in told)


if __name__ == "__main__":
    sys.exit(main())

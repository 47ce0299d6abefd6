"""Time configurations of the native CUDA kernels beside the plan's own, in one process.

    python -m benchmarks.gpu.cuda_tuning [--out FILE.json] [--shape B D H W]

Each candidate runs in its place in a whole call. It must give what the plan's own choice gives, to
a rounding: the largest difference, relative to the largest number, is in the last column.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.common import write_json
from benchmarks.gpu.cuda_check import make
from fastht.ops.cuda import adapter, kernels, native
from fastht.ops.cuda.sources import Kernel

CANDIDATES: tuple[tuple[str, dict[str, int]], ...] = (
    ("down", {"down_warps": 7, "down_stages": 3, "down_blocks": 2}),
    ("down", {"down_warps": 7, "down_stages": 2, "down_blocks": 2}),
    ("down", {"down_warps": 8, "down_stages": 3, "down_blocks": 2}),
    ("down", {"down_warps": 6, "down_stages": 3, "down_blocks": 2}),
    ("down", {"down_warps": 5, "down_stages": 2, "down_blocks": 3}),
    ("down", {"down_warps": 4, "down_stages": 2, "down_blocks": 4}),
    ("down", {"down_warps": 4, "down_stages": 3, "down_blocks": 3}),
    ("down", {"down_warps": 13, "down_stages": 3, "down_blocks": 1}),
    ("down", {"down_warps": 13, "down_stages": 4, "down_blocks": 1}),
    ("mix_up", {"mix_up_warps": 8, "mix_up_stages": 3, "mix_up_blocks": 2}),
    ("mix_up", {"mix_up_warps": 8, "mix_up_stages": 2, "mix_up_blocks": 2}),
    ("mix_up", {"mix_up_warps": 8, "mix_up_stages": 4, "mix_up_blocks": 2}),
    ("mix_up", {"mix_up_warps": 7, "mix_up_stages": 3, "mix_up_blocks": 2}),
    ("mix_up", {"mix_up_warps": 4, "mix_up_stages": 2, "mix_up_blocks": 4}),
    ("mix_up", {"mix_up_warps": 4, "mix_up_stages": 3, "mix_up_blocks": 4}),
    ("mix_up", {"mix_up_warps": 14, "mix_up_stages": 3, "mix_up_blocks": 1}),
    ("expand", {"expand_warps": 8, "expand_tokens": 64, "expand_blocks": 2}),
    ("expand", {"expand_warps": 8, "expand_tokens": 32, "expand_blocks": 2}),
    ("expand", {"expand_warps": 4, "expand_tokens": 64, "expand_blocks": 2}),
    ("expand", {"expand_warps": 4, "expand_tokens": 32, "expand_blocks": 2}),
    ("expand", {"expand_warps": 4, "expand_tokens": 32, "expand_blocks": 3}),
)
FORWARD = ("down", "mix_up")
OWN_PLAN = adapter.plan_of


def tune(tuning: dict[str, int]) -> None:
    """Make the adapter plan with a tuning from now on."""

    def plan_of(
        configuration: adapter.Configuration, device: Any, needs: tuple[bool, bool] | None
    ) -> tuple[Any, list[Kernel]]:
        problem, limits = configuration.problem(), native.Device(*device)
        if needs is None:
            plan = native.ForwardPlan(problem, limits, tuning=tuning)
        else:
            plan = native.BackwardPlan(problem, limits, *needs, tuning=tuning)
        return plan, [Kernel(function, source) for function, source, _ in plan.kernels]

    adapter.plan_of = plan_of
    adapter.forget()


def compile_all(given: tuple[Any, ...]) -> None:
    """Compile the kernels of all candidates at once."""
    x, _, params, _, call = given
    p = torch.cuda.get_device_properties(0)
    limits = (
        p.shared_memory_per_block_optin,
        p.shared_memory_per_multiprocessor,
        p.multi_processor_count,
    )
    configuration = adapter.configuration_of(x, (x,), params, call, call.dropout)
    wanted = []
    for _, tuning in CANDIDATES:
        tune(tuning)
        for needs in (None, (True, True)):
            wanted += adapter.plan_of(configuration, limits, needs)[1]
    kernels.images(wanted, kernels.architecture((p.major, p.minor)))


def run(given: tuple[Any, ...]) -> dict[str, Tensor]:
    """Run a call forward and backward on tensors of the GPU."""
    x, dout, params, seed, call = given
    out, *saved = adapter.forward(x, params, seed, call, True)
    dx, grads = adapter.backward(dout, x, params, seed, saved, call, True, True)
    assert dx is not None
    return {"out": out, "u": saved[0], "dx": dx, **grads}


def time_kernels(given: tuple[Any, ...], calls: int = 12) -> dict[str, list[float]]:
    """Return each kernel's times in microseconds."""
    from torch.profiler import ProfilerActivity, profile

    run(given)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            run(given)
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {}
    for event in sorted(seen.events(), key=lambda e: e.time_range.start):
        if event.name.startswith("fastht_"):
            times.setdefault(event.name.removeprefix("fastht_"), []).append(event.device_time)
    fold = times.pop("fold")
    return {"fold": fold[::2], "fold back": fold[1::2], **times}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shape", type=int, nargs=4, default=(256, 768, 14, 14))
    arguments = parser.parse_args()
    start = time.monotonic()
    x, dout, params, seed, call = make(*arguments.shape, "bf16")
    given = x.cuda(), dout.cuda(), {n: p.cuda() for n, p in params.items()}, seed.cuda(), call
    compile_all(given)
    print(f"compiled after {time.monotonic() - start:.0f} s", flush=True)
    tune({})
    theirs, rows = run(given), []
    for name, tuning in (("all", {}), *CANDIDATES):
        try:
            tune(tuning)
            ours = run(given)
            differences = {}
            for n, t in ours.items():
                if not torch.equal(t, theirs[n]):
                    exact = theirs[n].float()
                    error = (t.float() - exact).abs().max() / exact.abs().max()
                    differences[n] = error.item()
            worst = max(differences.items(), key=lambda item: item[1], default=("bits equal", 0.0))
            times = time_kernels(given)
        except Exception as error:  # one bad candidate must not cost the others
            print(name, tuning, "FAILED", error, flush=True)
            continue
        shown = list(times) if name == "all" else [name]
        for kernel in shown:
            least, middle = min(times[kernel]), statistics.median(times[kernel])
            rows.append([kernel, tuning, least, middle, *worst])
            print(
                f"{kernel:10} {least:8.1f} us least {middle:8.1f} median "
                f"{' '.join(f'{k}={v}' for k, v in tuning.items()):50} {worst[0]} {worst[1]:.1e}",
                flush=True,
            )
        if arguments.out:
            write_json(arguments.out, {"rows": rows})
    print(f"done after {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

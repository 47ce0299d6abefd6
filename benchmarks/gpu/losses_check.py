"""Phase ``losses``: the contrastive losses' Triton kernels, right or wrong, and how fast.

    python -m benchmarks.gpu.losses_check --out losses.json --seconds 90

First every form of loss and width of numbers against float64, by the adapter's rule of correctness
(at most twice the error of plain PyTorch in that width), and the same bits again; cases run in
processes of their own, all at once, which leave their kernels in Triton's cache. Then forward and
backward of the symmetric loss at three batch sizes, in turns with dense PyTorch and, where it is
installed, open_clip's; the peak memory of each above its inputs; the time of each kernel; and with
--variants other tile sizes than those of the table; with --right nothing is timed, which is the
phase ``losses-right``. What was not reached in time is named. Exit status: 0, or 1 where something
is wrong. FASTHT_DRY=1 does on a CPU what can be done there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.common import DRY, ROOT, mend_interpreter, write_json
from fastht.bench.meter import Contestant, Limits, alternate
from fastht.losses import clip_loss, siglip_loss
from fastht.losses import triton as fused
from fastht.losses.sweeps import BOTH, Coefficients, Form, Operands
from fastht.losses.triton import configs, sweeps

DEVICE = "cpu" if DRY else "cuda"
DTYPES = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
}
CASES = tuple(
    f"{form}:{numbers}"
    for form, numbers in (
        # Float32 first: it is what was wrong when these kernels were last on a GPU.
        *itertools.product(("clip", "siglip", "clip keys", "semantic"), ("fp32",)),
        *itertools.product(("clip", "siglip", "clip keys", "semantic"), ("bf16",)),
        *(("shares", "bf16"), ("clip", "fp16"), ("clip", "tf32")),
    )
)
SHAPE = (40, 70, 32) if DRY else (777, 1000, 512)  # rows, columns, features
REPEATS = 2 if DRY else 50
BATCHES = (64,) if DRY else (16384, 4096, 1024)
DIM = 32 if DRY else 512
LIMITS = (
    Limits(warm_up=0, min_rounds=1, min_seconds=0)
    if DRY
    else Limits(warm_up=2, min_rounds=7, min_seconds=0.2, max_seconds=2)
)
# Tile sizes that are tried in place of the table's, for bfloat16: what is changed, in which kernel.
VARIANTS: tuple[tuple[str, dict[str, int]], ...] = (
    ("sweep", {"num_stages": 4}),
    ("sweep", {"BM": 64, "num_stages": 4}),
    ("sweep", {"BM": 64, "num_warps": 4}),
    ("product", {"num_stages": 4}),
    ("product", {"BN": 256}),
    ("product", {"BM": 256}),
)


def check(case: str) -> dict[str, Any]:
    """Hold one form and width to the rule of correctness, and to equal bits."""
    import loss_sweeps  # of the tests
    import numerics

    name, numbers = case.split(":")
    dtype, torch.backends.cuda.matmul.allow_tf32 = DTYPES[numbers]
    form = loss_sweeps.FORMS[name]

    def draw(seed: int) -> numerics.Draw:
        operands = loss_sweeps.make(*SHAPE, dtype, offset=30, seed=seed, device=DEVICE)
        given = loss_sweeps.coefficients(form, operands, seed)
        wide = loss_sweeps.widened(operands), loss_sweeps.widened(given)
        results = [
            loss_sweeps.named(form, forward(form, o), backward(form, o, g))
            for forward, backward, o, g in (
                (fused.forward, fused.backward, operands, given),
                (loss_sweeps.plain_forward, loss_sweeps.plain_backward, operands, given),
                (loss_sweeps.sweeps.forward, loss_sweeps.sweeps.backward, *wide),
            )
        ]
        return numerics.Draw(*results, operands.rows, operands.rows)

    draws = {0: draw(0)}
    worst: dict[str, float] = {}
    for quantity in draws[0].exact:
        error, plain = draws[0].errors(quantity)
        bound = 2 * plain + 2 * torch.finfo(dtype).eps * draws[0].scale(quantity)
        worst[quantity] = error / bound
    broken = numerics.violations(
        lambda i: draws.get(i) or draws.setdefault(i, draw(i)), 1 if DRY else 3, ceilings=False
    )
    operands = loss_sweeps.make(*SHAPE, dtype, offset=30, device=DEVICE)
    given = loss_sweeps.coefficients(form, operands)
    differs: set[str] = set()
    first: dict[str, Tensor] = {}
    for _ in range(REPEATS):
        made = fused.forward(form, operands), fused.backward(form, operands, given)
        again = loss_sweeps.named(form, *made)
        first = first or again
        differs |= {name for name, value in again.items() if not torch.equal(value, first[name])}
    return {"case": case, "of_bound": worst, "broken": broken, "differs": sorted(differs)}


def clip_step(rows: Tensor, columns: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Return the symmetric InfoNCE loss of a square batch and its gradients, by the kernels."""
    form, operands = Form(softmax=BOTH), Operands(rows, columns, scale)
    found = fused.forward(form, operands)
    shift, others, own, dot = torch.stack([found.softmax_rows, found.softmax_columns], 1)
    total = others + own
    loss = (shift + total.log() - scale * dot).mean()
    weight, empty = 0.5 / total, scale.new_empty(0)
    k = torch.stack([shift, weight, torch.zeros_like(shift)])
    made = fused.backward(
        form,
        operands,
        Coefficients(
            scale.new_full((), 1 / len(rows)), k[:, 0].contiguous(), k[:, 1].contiguous(),
            -(others * weight).sum(0), empty, empty, empty, empty,
        ),
    )  # fmt: skip
    return loss, *(g.to(rows.dtype) for g in made if g is not None)


def by_autograd(loss_of: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a step that takes a loss's gradients by autograd."""

    def step(rows: Tensor, columns: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in (rows, columns, scale)]
        loss = loss_of(*leaves)
        return loss, *torch.autograd.grad(loss, leaves)

    return step


def dense_clip(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss as open_clip writes it."""
    logits = scale.to(rows.dtype) * rows @ columns.T
    labels = torch.arange(len(rows), device=rows.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def dense_siglip(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Return the sigmoid loss as open_clip writes it."""
    logits = scale.to(rows.dtype) * rows @ columns.T - 10
    labels = 2 * torch.eye(len(rows), device=rows.device, dtype=rows.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(rows)


def steps(loss: str) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """Return who takes turns."""
    if loss == "siglip":
        return {
            "fused": by_autograd(lambda *x: siglip_loss(*x, -10.0, backend="triton")),
            "dense": by_autograd(dense_siglip),
        }
    found = {
        "fused": by_autograd(lambda *x: clip_loss(*x, backend="triton")),
        "its sweeps": clip_step,
        "dense": by_autograd(dense_clip),
    }
    with contextlib.suppress(ImportError):
        from open_clip import ClipLoss

        module = ClipLoss()
        found["open_clip"] = by_autograd(lambda a, b, s: module(a, b, s.to(a.dtype)))
    return found


def inputs(batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return features whose own pairs are alike, and a scale, as late in a training."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    a = torch.randn(batch, DIM, device=DEVICE, generator=generator)
    b = a + 2 * torch.randn(batch, DIM, device=DEVICE, generator=generator)
    a, b = (F.normalize(t, dim=1).to(dtype) for t in (a, b))
    return a, b, torch.tensor(50.0, device=DEVICE)


def compare(loss: str, batch: int, numbers: str) -> dict[str, Any]:
    """Return milliseconds and peak bytes of each contestant's forward and backward."""
    dtype, torch.backends.cuda.matmul.allow_tf32 = DTYPES[numbers]
    given = inputs(batch, dtype)
    contestants, peaks, losses = {}, {}, {}
    for name, step in steps(loss).items():
        contestants[name] = Contestant(lambda _, step=step: step(*given))
        losses[name] = step(*given)[0].item()
        if not DRY:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step(*given)
            peaks[name] = torch.cuda.max_memory_allocated() - before
    times = alternate(contestants, device=DEVICE, limits=LIMITS)
    milliseconds = {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    return {
        "loss": loss, "batch": batch, "numbers": numbers,
        "ms": milliseconds, "peak": peaks, "value": losses,
    }  # fmt: skip


def kernels(batch: int, numbers: str, calls: int = 3) -> dict[str, float]:
    """Return the microseconds of each kernel in one forward and backward."""
    dtype, torch.backends.cuda.matmul.allow_tf32 = DTYPES[numbers]
    given = inputs(batch, dtype)
    clip_step(*given)
    if DRY:
        return {}
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        for _ in range(calls):
            clip_step(*given)
        torch.cuda.synchronize()
    return {
        event.key: event.self_device_time_total / calls
        for event in recorded.key_averages()
        if event.self_device_time_total > 0 and event.key.endswith("_kernel")
    }


@contextlib.contextmanager
def changed(kernel: str, changes: dict[str, int]) -> Iterator[None]:
    """Take other tile sizes for one kernel."""
    original, edge = configs.options, sweeps.EDGE

    def options(name: str, *rest: Any) -> dict[str, Any]:
        chosen = original(name, *rest)
        return {**chosen, **changes} if name == kernel else chosen

    configs.options = options
    sweeps.EDGE = max(edge, *changes.values())  # what tiles reach into is allocated
    try:
        yield
    finally:
        configs.options, sweeps.EDGE = original, edge


def try_variant(index: int, batch: int) -> dict[str, Any]:
    """Return the times of the kernels with other tile sizes."""
    kernel, changes = VARIANTS[index]
    with changed(kernel, changes):
        return {"kernel": kernel, "changes": changes, "us": kernels(batch, "bf16")}


@contextlib.contextmanager
def short_strips() -> Iterator[None]:
    """Make a small call launch all that a large one does."""
    original = sweeps.STRIP_ROWS, sweeps.STRIP_BYTES
    sweeps.STRIP_ROWS, sweeps.STRIP_BYTES = 256, 1
    try:
        yield
    finally:
        sweeps.STRIP_ROWS, sweeps.STRIP_BYTES = original


def in_processes(arguments: list[list[str]], seconds: float) -> Iterator[tuple[list[str], Any]]:
    """Run this module once for each list of arguments, all at once; yield what each printed last.

    A process that fails gives its last words as a string.
    """
    running = []
    for words in arguments:
        command = [sys.executable, "-m", "benchmarks.gpu.losses_check", *words]
        running.append(
            (words, subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True))
        )
    end = time.monotonic() + seconds
    for words, process in running:
        try:
            out, errors = process.communicate(timeout=max(0.1, end - time.monotonic()))
            yield (
                words,
                json.loads(out.splitlines()[-1])
                if process.returncode == 0
                else (errors.strip()[-1500:]),
            )
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            yield words, "no time left"


def measure(out: Path | None, seconds: float, variants: bool, right_only: bool = False) -> int:
    """Run all parts in their order, or the first alone; return the exit status."""
    end = time.monotonic() + seconds
    content: dict[str, Any] = {"cases": [], "times": [], "kernels": {}, "variants": []}
    cases = [["--case", case] for case in (CASES[:1] if DRY else CASES)]
    tried = range(len(VARIANTS)) if variants else ()
    warm = [["--warm", what] for what in ("bf16", "fp32", *map(str, tried))]
    failed = False
    alone = DRY or right_only
    for words, found in in_processes(
        cases if alone else [*warm, *cases], seconds if right_only else seconds / 2
    ):
        good = isinstance(found, dict)
        if words[0] == "--warm":
            if not good:
                print("not compiled:", words[1], found.splitlines()[-1][:300])
            continue
        if good:
            wrong = bool(found["broken"] or found["differs"])
            worst = max(found["of_bound"].items(), key=lambda item: item[1])
            print(f"{words[1]:16} worst {worst[1]:.2f} of bound ({worst[0]})", end=" ")
            print(f"WRONG {found['broken']} {found['differs']}" if wrong else "right, same bits")
        else:
            wrong = True
            print(f"{words[1]:16} FAILED {found}")
        failed |= wrong
        content["cases"].append(found if good else {"case": words[1], "error": found})
        if out is not None:  # what is cut short leaves what it has
            write_json(out, content)
    if right_only:
        return int(failed)
    compared = [
        *itertools.product(("clip",), BATCHES, ("bf16", "fp32")),
        ("siglip", BATCHES[0], "bf16"),
    ]
    for loss, batch, numbers in compared:
        if time.monotonic() > end - 3:
            print(f"no time left for batch {batch} in {numbers}")
            continue
        row = compare(loss, batch, numbers)
        content["times"].append(row)
        ms = "  ".join(f"{name} {t:.3f} ms" for name, t in row["ms"].items())
        peak = "  ".join(f"{name} {b / 2**20:.0f}" for name, b in row["peak"].items())
        values = "  ".join(f"{name} {value:.5f}" for name, value in row["value"].items())
        print(f"{loss:6} B {batch:6} {numbers}: {ms}", flush=True)
        print(f"   peak MiB above the inputs: {peak}  loss: {values}", flush=True)
    for numbers in ("bf16", "fp32"):
        content["kernels"][numbers] = kernels(BATCHES[0], numbers)
        print(numbers, "µs:", {k: round(t) for k, t in content["kernels"][numbers].items()})
    for i in tried:
        if time.monotonic() > end - 2:
            print(f"no time left for {len(tried) - i} variants")
            break
        try:
            found = try_variant(i, BATCHES[0])
        except Exception as error:  # one that does not fit the chip
            found = {"variant": VARIANTS[i], "error": str(error).strip()[:300]}
        content["variants"].append(found)
        print("variant", found, flush=True)
    if out is not None:
        write_json(out, content)
    return int(failed)


def main() -> int:
    """Measure, or do one of the parts in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--right", action="store_true", help="hold to the rule, time nothing")
    parser.add_argument("--variants", action="store_true", help="try other tile sizes too")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--warm", help="only compile, for numbers or a variant")
    arguments = parser.parse_args()
    if DRY:
        os.environ["TRITON_INTERPRET"] = "1"
    mend_interpreter()
    if arguments.case:
        print(json.dumps(check(arguments.case)))
        return 0
    if arguments.warm is not None:
        with short_strips():
            if arguments.warm in DTYPES:
                print(json.dumps(kernels(1024, arguments.warm, calls=1)))
            else:
                print(json.dumps(try_variant(int(arguments.warm), 1024)))
        return 0
    return measure(arguments.out, arguments.seconds, arguments.variants, arguments.right)


if __name__ == "__main__":
    sys.exit(main())

"""Phase 5: one training step of ViT-B/16 with HT adapters, against LoRA and the frozen base.

    python -m benchmarks.gpu.training --out training.json --seconds 140

timm's ``vit_base_patch16_224`` at 224 px, random weights, under ``torch.autocast`` to bfloat16.
The frozen base is kept in float32, as it is loaded, or in bfloat16; what trains is float32. A step
is forward, cross-entropy of the frozen head's logits against random labels, backward, fused AdamW,
``zero_grad``. HT: the default hybrid in every block, C = 64, dropout 0.1. LoRA: peft, r = 16 on qkv
and proj of every block, no dropout. Exit status: 0, or 1 where a row of the fused backend is
missing or incorrect.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import fastht
from benchmarks.gpu.common import (
    COMPILE,
    DEVICE,
    DRY,
    check_fused,
    elapsed_ms,
    synchronize,
    write_json,
)
from benchmarks.gpu.workers import Reply, Worker, failure

BATCH = 2 if DRY else 256
ROUNDS, STEPS = (1, 1) if DRY else (3, 8)
MODEL = "a tiny ViT" if DRY else "timm vit_base_patch16_224 at 224 px"
CHECKED = ((2, 5, 32), 16, (2, 2)) if DRY else ((32, 197, 768), 64, (14, 14))  # shape, C, grid


@dataclass(frozen=True)
class Setup:
    """One contestant.

    Attributes:
        name: what the report calls it.
        method: ``"base"``, ``"reference"`` or ``"triton"`` (HT by that backend), or ``"lora"``.
        compiled: whether the whole model goes through ``torch.compile``.
        base: dtype of the frozen weights.
    """

    name: str
    method: str
    compiled: bool = False
    base: str = "float32"


_SETUPS = (
    Setup("frozen base, forward alone", "base"),
    Setup("HT eager", "reference"),
    Setup("HT fused", "triton"),
    Setup("LoRA r=16", "lora"),
    Setup("HT eager, compiled", "reference", compiled=True),
    Setup("HT fused, compiled", "triton", compiled=True),
    Setup("LoRA r=16, compiled", "lora", compiled=True),
    Setup("HT eager, bf16 base", "reference", base="bfloat16"),
    Setup("HT fused, bf16 base", "triton", base="bfloat16"),
    Setup("LoRA r=16, bf16 base", "lora", base="bfloat16"),
)
SETUPS = _SETUPS[:6] if DRY else _SETUPS  # the rest shares their code


def make_model(setup: Setup) -> torch.nn.Module:
    """Return the model, the same weights in every process that asks for the same method."""
    import timm

    torch.manual_seed(0)
    if DRY:
        small = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
        model = timm.models.vision_transformer.VisionTransformer(**small, num_classes=10)
    else:
        model = timm.create_model("vit_base_patch16_224", pretrained=False)
    model = model.to(DEVICE, getattr(torch, setup.base))
    if setup.method == "base":
        return model.requires_grad_(False)
    if setup.method == "lora":
        from peft import LoraConfig, get_peft_model

        # as a pattern: "proj" alone would take the patch embedding's projection as well
        targets = r".*\.attn\.(qkv|proj)"
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=targets))
    # The published initialisation: identity starts with weights of zero, on which hardware can be
    # faster.
    config = fastht.HTConfig(init="paper", bottleneck_dim=16 if DRY else 64)
    return fastht.patch(model, config, backend=setup.method)


class Trainer:
    """One contestant in its own process."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def prepare(self) -> Reply:
        """Check the operator, make the model, compile, take two steps."""
        start = time.monotonic()
        if self.setup.method == "triton":
            dtype = getattr(torch, self.setup.base)  # the tokens have the dtype of the base
            if broken := check_fused(*CHECKED, dtype, autocast=True):
                return {"error": f"incorrect: {', '.join(broken)}", "details": broken}
        model = make_model(self.setup).train()
        generator = torch.Generator(DEVICE).manual_seed(1)
        side, classes = (16, 10) if DRY else (224, 1000)
        self.images = torch.randn(BATCH, 3, side, side, generator=generator, device=DEVICE)
        self.labels = torch.randint(classes, (BATCH,), generator=generator, device=DEVICE)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = None
        if self.trained:
            self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        self.model = torch.compile(model, **COMPILE) if self.setup.compiled else model
        self.step()
        self.step()
        synchronize()
        self._release()
        trainable = sum(p.numel() for p in self.trained)
        return {"trainable": trainable, "seconds": time.monotonic() - start}

    def step(self) -> None:
        """Take one training step; the frozen base only runs forward."""
        with torch.set_grad_enabled(bool(self.trained)), torch.autocast(DEVICE, torch.bfloat16):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        if self.optimizer is not None:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def measure(self) -> Reply:
        """Return milliseconds a step and the most memory that tensors took at one time."""
        if not hasattr(self, "model"):
            return {"error": "not prepared"}
        for _ in range(0 if DRY else 2):  # takes back the memory that _release gave away
            self.step()
        synchronize()
        if not DRY:
            torch.cuda.reset_peak_memory_stats()
        reply: Reply = {"ms": elapsed_ms(self.step, STEPS)}
        reply["peak_bytes"] = None if DRY else torch.cuda.max_memory_allocated()
        self._release()
        return reply

    def _release(self) -> None:
        """Give unused memory to the other contestants."""
        if not DRY:
            torch.cuda.empty_cache()


def prepare(workers: dict[Setup, Worker], deadline: float) -> dict[Setup, Reply]:
    """Prepare all contestants: the compiling ones together, the others one by one meanwhile.

    One by one, for several models' activations at once may not fit.
    """
    for setup, worker in workers.items():
        if setup.compiled and not DRY:
            worker.send("prepare")
    replies = {}
    for setup, worker in workers.items():
        if DRY or not setup.compiled:
            replies[setup] = worker.ask(deadline, "prepare")
    for setup, worker in workers.items():
        if setup not in replies:
            replies[setup] = worker.receive(deadline)
    return replies


def summarise(prepared: dict[Setup, Reply], rounds: dict[Setup, list[Reply]]) -> list[Reply]:
    """Return one row for each contestant, of medians over the rounds."""
    rows = []
    for setup in SETUPS:
        first = prepared[setup]
        row: dict[str, Any] = asdict(setup)
        rows.append(row)
        if error := failure(first, rounds[setup]):
            row["error"] = error
            continue
        measured = [reply for reply in rounds[setup] if "error" not in reply]
        times = [reply["ms"] for reply in measured]
        row |= {
            "trainable": first["trainable"],
            "ms": statistics.median(times),
            "range_ms": [min(times), max(times)],
            "peak_bytes": None if DRY else max(reply["peak_bytes"] for reply in measured),
        }
    return rows


def main() -> int:
    """Measure within the given time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="end by then")
    arguments = parser.parse_args()
    start = time.monotonic()
    end = start + arguments.seconds
    workers = {setup: Worker(Trainer, setup) for setup in SETUPS}
    rounds: dict[Setup, list[Reply]] = {setup: [] for setup in SETUPS}
    rows: list[Reply] = []
    try:
        prepared = prepare(workers, start + 0.75 * arguments.seconds)
        for setup, reply in prepared.items():
            if "error" in reply:
                workers[setup].close()  # and with it the memory that it holds
        for _ in range(ROUNDS):
            for setup, worker in workers.items():
                rounds[setup].append(worker.ask(end, "measure"))
            rows = summarise(prepared, rounds)
            about: dict[str, Any] = {
                "model": MODEL,
                "batch": BATCH,
                "rounds": len(rounds[SETUPS[0]]),
                "autocast": "bfloat16",
            }
            seconds = {setup.name: reply.get("seconds") for setup, reply in prepared.items()}
            write_json(arguments.out, {**about, "rows": rows, "seconds_to_prepare": seconds})
    finally:
        for worker in workers.values():
            worker.close()
    problems = [row for row in rows if row["method"] == "triton" and "error" in row]
    for row in problems:
        print(row["name"], row["error"])
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

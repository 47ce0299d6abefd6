"""A training step of whole towers by every method; ``fastht bench`` is its short form.

One step is forward, loss, backward and fused AdamW; see ``fastht/bench/step.py``. The methods of a
case take turns. What matters most comes first, as in ``benchmarks/cases.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import DEVICE
from benchmarks.race import Race, clock
from fastht.bench.lineup import Case, LeftOut, line_up, peak_bytes
from fastht.bench.machine import multiplies_bf16
from fastht.bench.meter import Limits
from fastht.bench.methods import METHODS
from fastht.bench.step import Step
from fastht.bench.towers import TINY, ModelSpec

pytest.importorskip("timm")

EAGER = tuple(name for name, method in METHODS.items() if not method.compiled)
# What is computed again is compiled in `fastht bench --front` alone: that takes minutes.
COMPILED = tuple(name for name, m in METHODS.items() if m.compiled and m.recompute == "none")
ALL = (*EAGER, *COMPILED)
ADAPTING = tuple(name for name in EAGER if name != "full")

BASE, LARGE, SIGLIP = (
    ModelSpec("timm", name)
    for name in (
        "vit_base_patch16_224",
        "vit_large_patch14_clip_224",
        "vit_base_patch16_siglip_224",
    )
)
# Its attention is nn.MultiheadAttention, unlike that of timm's.
NATIVE = ModelSpec("open_clip", "ViT-B-16")
CASES = {
    "cpu": {
        Case(BASE, 8, "fp32"): ALL,
        Case(BASE, 8, "bf16"): ALL,
        Case(NATIVE, 8, "bf16"): ALL,
        Case(LARGE, 4, "bf16"): ALL,
        Case(SIGLIP, 8, "bf16"): ALL,
    },
    "cuda": {
        Case(BASE, 256, "bf16", "cuda"): ALL,
        Case(NATIVE, 256, "bf16", "cuda"): ALL,
        Case(LARGE, 64, "bf16", "cuda"): ALL,
        Case(SIGLIP, 256, "bf16", "cuda"): ALL,
        Case(BASE, 256, "bf16-base", "cuda"): ADAPTING,
    },
}[DEVICE]
LIMITS = {
    "cpu": Limits(warm_up=1, min_rounds=5, min_seconds=0.0, max_seconds=240.0),
    "cuda": Limits(warm_up=2, min_rounds=20, min_seconds=0.0, max_seconds=60.0),
}[DEVICE]
# Where nothing is measured. One block is enough to compile.
ONE_BLOCK = ModelSpec("timm", TINY.name, TINY.image_size, (*TINY.arguments, ("depth", 1)))


@dataclass(frozen=True)
class Entered:
    """A case whose methods are ready to take turns."""

    race: Race
    steps: dict[str, Step]
    left_out: dict[str, LeftOut]


_entered: dict[Case, Entered] = {}


def entered(case: Case, methods: tuple[str, ...]) -> Entered:
    """Return a case ready; the models of the case before are gone by then."""
    if case not in _entered:
        _entered.clear()
        steps, left_out = line_up(case, methods)
        contestants = {name: step.contestant for name, step in steps.items()}
        _entered[case] = Entered(Race(f"training {case}", contestants, LIMITS), steps, left_out)
    return _entered[case]


@pytest.mark.parametrize(
    ("case", "contestant"),
    # All contestants of a case, then the next case.
    [
        pytest.param(case, name, id=f"{case}-{name}".replace(" ", "-"))
        for case, methods in CASES.items()
        for name in methods
    ],
)
@pytest.mark.benchmark(timer=clock)
def test_training(benchmark: BenchmarkFixture, case: Case, contestant: str) -> None:
    methods = CASES[case]
    if benchmark.disabled:
        if case != next(iter(CASES)):
            pytest.skip("one case is enough where nothing is measured")
        methods = COMPILED if contestant in COMPILED else EAGER
        case = Case(ONE_BLOCK if contestant in COMPILED else TINY, 2, "bf16", DEVICE)
    elif case.precision != "fp32" and not multiplies_bf16(DEVICE):
        pytest.skip("PyTorch has no fast matrix products in bfloat16 on this processor")
    found = entered(case, methods)
    if (reason := found.left_out.get(contestant)) is not None:
        (pytest.fail if reason.incorrect else pytest.skip)(reason.reason)
    step = found.steps[contestant]
    found.race.enter(
        benchmark,
        contestant,
        model=str(case.model),
        batch=case.batch,
        precision=case.precision,
        trainable=step.trainable,
        saved_bytes=step.saved_bytes(),
        held_bytes=step.held_bytes(),
        peak_bytes=None if benchmark.disabled else peak_bytes(case, contestant, step),
        backend=step.backend,
        detail=METHODS[contestant].detail,
    )

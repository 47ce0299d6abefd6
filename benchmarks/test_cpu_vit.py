"""What the adapters add to a frozen ViT-B/16 in evaluation."""

from __future__ import annotations

import functools
import statistics

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastht
from benchmarks.cpu import cases, gate
from benchmarks.cpu.meter import Contestant
from benchmarks.cpu.race import Race, clock

open_clip = pytest.importorskip("open_clip")

MODEL = "ViT-B-16"
BATCH = 8
DTYPE = "float32"


@functools.lru_cache(maxsize=1)
def race() -> Race:
    """One tower with random weights; the contestants differ in what its adapters run on."""
    torch.manual_seed(0)
    tower = open_clip.create_model(MODEL).visual.eval()
    fastht.patch(tower, fastht.HTConfig(init="paper"), backend="reference")
    images = torch.randn(BATCH, 3, 224, 224)

    @torch.no_grad()
    def frozen(_: None) -> Tensor:
        with fastht.disable_adapter(tower):
            return tower(images)

    @torch.no_grad()
    def adapted(_: None) -> Tensor:
        return tower(images)

    def choose(backend: str) -> None:
        for adapter in fastht.adapters(tower).values():
            adapter.backend = backend

    made = {"frozen": Contestant(frozen)}
    for name, backend in cases.BACKENDS.items():
        if cases.unusable(name, DTYPE) is None:
            made[name] = Contestant(adapted, functools.partial(choose, backend))
    if "cpu" in made:
        exact = made["eager"].once()
        error = ((made["cpu"].once() - exact).abs().max() / exact.abs().max()).item()
        gate.refuse(error, gate.TOLERANCE[DTYPE], f"the output of {MODEL}")
    return Race(f"{MODEL} batch {BATCH} {DTYPE} forward", made)


@pytest.mark.parametrize("contestant", ["frozen", *cases.BACKENDS])
@pytest.mark.benchmark(timer=clock)
def test_vit(benchmark: BenchmarkFixture, contestant: str) -> None:
    if reason := cases.unusable(contestant, DTYPE):
        pytest.skip(reason)
    measured = race()
    extra = {"model": MODEL, "batch": BATCH, "dtype": DTYPE, "pass": "forward"}
    if benchmark.enabled and contestant != "frozen":
        # Round by round: what the adapters add is less than the machine drifts in a minute.
        rounds = zip(measured.seconds[contestant], measured.seconds["frozen"], strict=True)
        extra["percent_of_frozen"] = 100 * statistics.median(a / b - 1 for a, b in rounds)
    measured.enter(benchmark, contestant, **extra)

"""What the adapters add to a frozen ViT-B/16 in evaluation."""

from __future__ import annotations

import functools
import statistics

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastht
from benchmarks import cases, operators
from benchmarks.race import Race, clock
from fastht.bench import gate
from fastht.bench.meter import Contestant

timm = pytest.importorskip("timm")

MODEL = "vit_base_patch16_224"
BATCH = {"cpu": 8, "cuda": 256}[cases.DEVICE]
BACKENDS = {operators.FUSED: operators.FUSED, "published": "reference"}
DTYPES = {"cpu": ("float32",), "cuda": cases.DTYPES}[cases.DEVICE]


@functools.lru_cache(maxsize=1)
def race(model: str, batch: int, dtype: str) -> Race:
    """One tower with random weights; the contestants differ in what its adapters run on."""
    torch.manual_seed(0)
    small = {"depth": 1, "img_size": 32} if batch == 1 else {}
    tower = timm.create_model(model, num_classes=0, **small).eval()
    tower = tower.to(cases.DEVICE, getattr(torch, dtype))
    fastht.patch(tower, fastht.HTConfig(init="paper"), backend="reference")
    side = tower.patch_embed.img_size[0]
    images = torch.randn(batch, 3, side, side).to(cases.DEVICE, getattr(torch, dtype))

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
    for name, backend in BACKENDS.items():
        if operators.unusable(name, dtype) is None:
            made[name] = Contestant(adapted, functools.partial(choose, backend))
    if operators.FUSED in made:
        exact = made["published"].once().float()
        error = (made[operators.FUSED].once().float() - exact).abs().max() / exact.abs().max()
        tolerance = gate.TOLERANCE[getattr(torch, dtype)]
        gate.refuse(error.item(), tolerance, f"the output of {model}")
    return Race(f"{model} batch {batch} {dtype} forward", made)


@pytest.mark.parametrize("contestant", ["frozen", *BACKENDS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(timer=clock)
def test_tower(benchmark: BenchmarkFixture, dtype: str, contestant: str) -> None:
    if reason := operators.unusable(contestant, dtype):
        pytest.skip(reason)
    batch = 1 if benchmark.disabled else BATCH
    measured = race(MODEL, batch, dtype)
    extra = {"model": MODEL, "batch": batch, "dtype": dtype, "pass": "forward"}
    if benchmark.enabled and contestant != "frozen":
        # Round by round: what the adapters add is less than the machine drifts in a minute.
        rounds = zip(measured.seconds[contestant], measured.seconds["frozen"], strict=True)
        extra["percent_of_frozen"] = 100 * statistics.median(a / b - 1 for a, b in rounds)
    measured.enter(benchmark, contestant, **extra)

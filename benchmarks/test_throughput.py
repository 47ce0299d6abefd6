"""Images a second through the real trainer: reading, resizing, training, writing its state.

One epoch of contrastive fine-tuning on the embedded sample, by
``fastht.tasks.training.trainer.Trainer`` with two worker processes, against the loader alone.
Captions are random features: the text tower is frozen and its features are read from a cache in
real runs too. Nothing is evaluated.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import fastht
from benchmarks import operators
from benchmarks.cases import DEVICE, Shape
from benchmarks.race import Race, clock
from fastht.bench.meter import Contestant, Limits

open_clip = pytest.importorskip("open_clip")
accelerate = pytest.importorskip("accelerate")

from fastht.data import ImageTextDataset, load_records  # noqa: E402  # these need the packages above
from fastht.tasks.image_text.contrastive import ContrastiveModule  # noqa: E402
from fastht.tasks.models.build import TINY_MODEL, model_source  # noqa: E402
from fastht.tasks.training.loading import make_loader  # noqa: E402
from fastht.tasks.training.trainer import Trainer, TrainerConfig  # noqa: E402

LOADING = "loading alone"
BACKENDS = {operators.FUSED: operators.FUSED, "published": "reference"}
CONTESTANTS = (LOADING, *BACKENDS)
LIMITS = Limits(warm_up=1, min_rounds=5, min_seconds=0, max_seconds=240)
MIXED_PRECISION = {"cpu": "no", "cuda": "bf16"}[DEVICE]
WORKERS = 2


@dataclass(frozen=True)
class Case:
    """A model of open_clip with random weights, images a step and an epoch, its adapters' shape."""

    model: str
    images: int
    shape: Shape

    def __str__(self) -> str:
        return f"{self.model}-{self.shape.batch}"


CASES = {
    "cpu": (
        Case(TINY_MODEL, 320, Shape(32, 7, 192)),
        Case("ViT-B-16", 32, Shape(8, 14, 768)),
    ),
    "cuda": (Case("ViT-B-16", 2560, Shape(256, 14, 768)),),
}[DEVICE]
SMOKE = Case(TINY_MODEL, 4, Shape(2, 7, 192))


class SampleTask:
    """The contrastive task without evaluation. See :class:`fastht.tasks.training.trainer.Task`."""

    monitor = "val_loss"
    larger_is_better = False

    def __init__(self, module: ContrastiveModule, train_data: ImageTextDataset) -> None:
        self.module = module
        self.train_data = train_data

    def evaluate(self) -> dict[str, float]:
        return {self.monitor: 0.0}

    def save_best(self) -> None:
        pass

    def files(self, batch: Any) -> list[str]:
        return [self.train_data.file(int(i)) for i in batch["index"]]


@functools.lru_cache(maxsize=1)
def race(case: Case) -> Race:
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(
        model_source(case.model), load_weights=False, pretrained_text=False
    )
    fastht.patch(model, fastht.HTConfig(init="paper"), backend="reference").to(DEVICE)
    records = load_records("sample").records
    records = list(itertools.islice(itertools.cycle(records), case.images))
    data = ImageTextDataset(records, transform)
    folder = tempfile.TemporaryDirectory()  # lives as long as the functions below
    runs = itertools.count()

    def load(_: None) -> None:
        loader = make_loader(data, workers=WORKERS, batch_size=case.shape.batch)
        assert sum(len(batch["index"]) for batch in loader) == case.images

    def new_trainer(backend: str) -> Callable[[], Trainer]:
        def prepare() -> Trainer:
            for adapter in fastht.adapters(model).values():
                adapter.backend = backend
            return make_trainer(model, data, case, Path(folder.name, str(next(runs))))

        return prepare

    made = {LOADING: Contestant(load)}
    for name, backend in BACKENDS.items():
        if operators.unusable(name, "float32") is None:
            made[name] = Contestant(lambda trainer: trainer.fit(), new_trainer(backend))
    if operators.FUSED in made:
        operators.check(case.shape, "bfloat16" if MIXED_PRECISION == "bf16" else "float32")
    return Race(f"trainer {case}", made, LIMITS)


def make_trainer(model: torch.nn.Module, data: ImageTextDataset, case: Case, out: Path) -> Trainer:
    """Return a trainer for one epoch, in a folder of its own."""
    accelerator = accelerate.Accelerator(mixed_precision=MIXED_PRECISION, cpu=DEVICE == "cpu")
    config = TrainerConfig(epochs=1, batch_size=case.shape.batch, workers=WORKERS)
    captions = torch.nn.functional.normalize(
        torch.randn(len(data), model.visual.output_dim), dim=-1
    )
    module = ContrastiveModule(model, captions, accelerator)
    out.mkdir()
    return Trainer(accelerator, config, SampleTask(module, data), out, {})


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.benchmark(timer=clock)
def test_throughput(benchmark: BenchmarkFixture, case: Case, contestant: str) -> None:
    if contestant in BACKENDS and (reason := operators.unusable(contestant, "float32")):
        pytest.skip(reason)
    if benchmark.disabled:
        if case != CASES[0]:
            pytest.skip("one case is enough where nothing is measured")
        case = SMOKE
    measured = race(case)
    measured.enter(
        benchmark,
        contestant,
        model=case.model,
        batch=case.shape.batch,
        images=case.images,
        precision="bf16" if MIXED_PRECISION == "bf16" else "fp32",
    )

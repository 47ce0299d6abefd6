"""What an exported ViT-B/16 takes on a CPU beside the patched model, and the files' sizes."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import fastht
from benchmarks.race import Race, clock
from fastht.bench import gate
from fastht.bench.meter import Contestant, Limits

timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

MODEL = "vit_base_patch16_224"
BATCHES = (1, 8)
BACKENDS = {"ht": "auto", "ht-reference": "reference"}  # of the patched model itself
COMPILED = "aotinductor"
CONTESTANTS = (*BACKENDS, "exported", COMPILED, "onnxruntime")
LIMITS = Limits(warm_up=2, min_rounds=9, min_seconds=3.0, max_seconds=90.0)


@dataclass(frozen=True)
class Forms:
    """One adapted tower with random weights, as it is and out of files.

    Attributes:
        tower: the patched model.
        runs: what makes features of images, by contestant.
        sizes: bytes of the weights, or of the file that is run.
    """

    tower: nn.Module
    runs: dict[str, Callable[[Tensor], Tensor]]
    sizes: dict[str, int]


@functools.lru_cache(maxsize=1)
def forms(small: bool) -> Forms:
    """Export once for all batches. The small ones are of one block, and none is compiled."""
    torch.manual_seed(0)
    options = {"depth": 1, "img_size": 32} if small else {}
    tower = timm.create_model(MODEL, num_classes=0, **options).eval()
    fastht.patch(tower, fastht.HTConfig(init="paper"))
    held = sum(t.numel() * t.element_size() for t in tower.state_dict().values())
    found = Forms(tower, dict.fromkeys(BACKENDS, tower), dict.fromkeys(BACKENDS, held))
    with tempfile.TemporaryDirectory(prefix="fastht-export-") as place:
        folder = Path(place)
        for name, file in (("exported", "m.pt2"), ("onnxruntime", "m.onnx")):
            made = fastht.export(tower, folder / file, "onnx" if name == "onnxruntime" else "torch")
            found.sizes[name] = made.size_bytes
            found.runs[name] = functools.partial(_output, fastht.load_exported(made.path))
        if not small:
            package = folder / "compiled.pt2"
            program = torch.export.load(folder / "m.pt2")
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
            found.sizes[COMPILED] = package.stat().st_size
            compiled = torch._inductor.aoti_load_package(str(package))
            found.runs[COMPILED] = lambda images: compiled(images)["output"]
    return found


@functools.lru_cache(maxsize=1)
def race(batch: int, small: bool) -> Race:
    """Return contestants that have been held against the tower in plain PyTorch."""
    found = forms(small)
    images = torch.randn(batch, 3, *found.tower.patch_embed.img_size)

    def choose(backend: str) -> None:
        for adapter in fastht.adapters(found.tower).values():
            adapter.backend = backend

    @torch.no_grad()
    def run(name: str, _: None) -> Tensor:
        return found.runs[name](images)

    made = {
        name: Contestant(
            functools.partial(run, name), functools.partial(choose, BACKENDS.get(name, "auto"))
        )
        for name in found.runs
    }
    exact = made["ht-reference"].once()
    for name in made.keys() - {"ht-reference"}:
        error = (made[name].once() - exact).abs().max() / exact.abs().max()
        gate.refuse(error.item(), gate.TOLERANCE[torch.float32], f"{name} of {MODEL}")
    return Race(f"export {MODEL} batch {batch} float32 CPU", made, LIMITS)


def _output(file: fastht.exporting.ExportedModel, images: Tensor) -> Tensor:
    return file(image=images)["output"]


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.benchmark(timer=clock)
def test_export(benchmark: BenchmarkFixture, batch: int, contestant: str) -> None:
    if benchmark.disabled and (contestant == COMPILED or batch != BATCHES[0]):
        pytest.skip("measured alone: it compiles for minutes, or the same again")
    measured = race(batch, benchmark.disabled)
    measured.enter(
        benchmark,
        contestant,
        model=MODEL,
        batch=batch,
        dtype="float32",
        bytes=forms(benchmark.disabled).sizes[contestant],
        **{"pass": "forward"},
    )

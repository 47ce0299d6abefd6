"""What an exported ViT-B/16 takes on a CPU beside the eager model, and how large the files are."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastht
from benchmarks.race import Race, clock
from fastht.bench import gate
from fastht.bench.meter import Contestant

timm = pytest.importorskip("timm")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

MODEL = "vit_base_patch16_224"
BATCHES = (1, 8)
CONTESTANTS = ("eager", "reference", "torch", "aotinductor", "onnx")


@functools.lru_cache(maxsize=1)
def race(batch: int, small: bool) -> tuple[Race, dict[str, int]]:
    """One adapted tower with random weights, as it is and out of files; and the files' bytes.

    "eager" runs the adapters by the backend that ``auto`` takes, "reference" in plain PyTorch.
    AOTInductor compiles for minutes and is left out of the small race.
    """
    torch.manual_seed(0)
    options = {"depth": 1, "img_size": 32} if small else {}
    tower = timm.create_model(MODEL, num_classes=0, **options).eval()
    fastht.patch(tower, fastht.HTConfig(init="paper"))
    images = torch.randn(batch, 3, *tower.patch_embed.img_size)
    folder = Path(tempfile.mkdtemp(prefix="fastht-export-"))
    runs: dict[str, Callable[[], Tensor]] = {"eager": lambda: tower(images)}
    runs["reference"] = runs["eager"]
    sizes = {"eager": sum(p.numel() * p.element_size() for p in tower.parameters())}
    for form, name in (("torch", "m.pt2"), ("onnx", "m.onnx")):
        sizes[form] = fastht.export(tower, folder / name, form).size_bytes
        runs[form] = functools.partial(_output, fastht.load_exported(folder / name), images)
    if not small:
        package = folder / "compiled.pt2"
        program = torch.export.load(folder / "m.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        sizes["aotinductor"] = package.stat().st_size
        compiled = torch._inductor.aoti_load_package(str(package))
        runs["aotinductor"] = lambda: compiled(images)["output"]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

    def choose(backend: str) -> None:
        for adapter in fastht.adapters(tower).values():
            adapter.backend = backend

    @torch.no_grad()
    def run(name: str, _: None) -> Tensor:
        return runs[name]()

    backends = {"eager": "auto", "reference": "reference"}
    made = {
        name: Contestant(
            functools.partial(run, name),
            functools.partial(choose, backends.get(name, "auto")),
        )
        for name in runs
    }
    exact = made["reference"].once()
    for name in runs.keys() - {"reference"}:
        error = (made[name].once() - exact).abs().max() / exact.abs().max()
        gate.refuse(error.item(), gate.TOLERANCE[torch.float32], f"{name} of {MODEL}")
    return Race(f"export {MODEL} batch {batch} float32 CPU", made), sizes


def _output(file: fastht.exporting.ExportedModel, images: Tensor) -> Tensor:
    return file(image=images)["output"]


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.benchmark(timer=clock)
def test_export(benchmark: BenchmarkFixture, batch: int, contestant: str) -> None:
    if benchmark.disabled and (contestant == "aotinductor" or batch != BATCHES[0]):
        pytest.skip("measured alone: it compiles for minutes, or the same again")
    measured, sizes = race(batch, benchmark.disabled)
    extra = {"model": MODEL, "batch": batch, "dtype": "float32", "pass": "forward"}
    measured.enter(benchmark, contestant, **extra, bytes=sizes.get(contestant, sizes["eager"]))

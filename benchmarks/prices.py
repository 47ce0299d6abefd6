"""What each way to recompute costs and saves, in products and in bytes: counted, not timed.

Models run on fake tensors, which have sizes and no memory: seconds, and the same on any machine.
Bytes are those that autograd keeps of forward passes on two small batches, in bfloat16 (autocast,
the frozen base in bfloat16 too). Products are those of a whole step, forward and backward, as torch
counts them; those of the adapters in plain PyTorch, 3 to 4 %, are among them.

    python -m benchmarks.prices [--models vit_base_patch16_224 ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fastht
from fastht.backbones import find_backbone
from fastht.bench.memory import saved_bytes
from fastht.bench.towers import ModelSpec, features, image_size
from fastht.budget import MIB, Cost, count_costs
from fastht.recompute import RECOMPUTE, reinstall

MODELS = (
    ModelSpec("timm", "vit_base_patch16_224"),
    ModelSpec("open_clip", "ViT-B-16"),
    ModelSpec("open_clip", "ViT-L-14"),
    ModelSpec("open_clip", "ViT-B-16-SigLIP"),
)


@dataclass(frozen=True)
class Price:
    """What one setting costs in one model.

    Attributes:
        kept: bytes an image, kept for the backward pass.
        rebuilt: bytes an image, of the one block that is computed again at a time.
        operations: floating-point operations of the products of a step, an image.
    """

    kept: float
    rebuilt: float
    operations: int


def prices(spec: ModelSpec) -> dict[str, Price]:
    """Return the prices of a model with HT adapters in all blocks, by setting."""
    costs, operations = count_bytes(spec), count_operations(spec)
    return {
        name: Price(float(cost.kept[1]), float(cost.rebuilt[1]), operations[name])
        for name, cost in costs.items()
    }


def count_bytes(spec: ModelSpec) -> dict[str, Cost]:
    """Return what a step keeps, by setting; the backend is the native one for CPUs."""
    mode = FakeTensorMode()
    model, size = _build(spec, "cpu", mode, base=torch.bfloat16)
    with mode:

        def kept(batch: int) -> int:
            images = torch.zeros(batch, 3, *size)
            with torch.autocast("cpu", torch.bfloat16):
                return saved_bytes(
                    lambda: features(model, images).float().sum(),
                    [*model.parameters(), *model.buffers(), images],
                )

        return count_costs(find_backbone(model).blocks, kept, held=0)


def count_operations(spec: ModelSpec) -> dict[str, int]:
    """Return the floating-point operations of a step on one image, by setting."""
    found = {}
    mode = FakeTensorMode()
    model, size = _build(spec, "reference", mode, base=torch.float32)
    with mode:
        for recompute in RECOMPUTE:
            reinstall(find_backbone(model).blocks, recompute)
            with FlopCounterMode(display=False) as counter:
                features(model, torch.zeros(1, 3, *size)).sum().backward()
            found[recompute] = counter.get_total_flops()
    return found


def _build(
    spec: ModelSpec, backend: str, mode: FakeTensorMode, base: torch.dtype
) -> tuple[nn.Module, tuple[int, int]]:
    """Return a model of fake tensors with HT adapters in all blocks, and its image size."""
    model = fastht.patch(spec.build(), backend=backend).train()
    size = image_size(model)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(base)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
            module.register_parameter(name, fake)
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, mode.from_tensor(buffer))
    return model, size


def table(specs: Sequence[ModelSpec]) -> str:
    """Return the prices as a Markdown table."""
    lines = [
        "| model | recompute | kept, MiB an image | rebuilt at a time "
        "| GFLOP of products an image | more |",
        "|---|---|---|---|---|---|",
    ]
    for spec in specs:
        found = prices(spec)
        first = found["none"]
        for name, price in found.items():
            more = 100 * (price.operations / first.operations - 1)
            less = 100 * price.kept / first.kept
            lines.append(
                f"| {spec} | `{name}` | {price.kept / MIB:.1f} ({less:.0f} %) "
                f"| {price.rebuilt / MIB:.1f} | {price.operations / 1e9:.1f} | +{more:.1f} % |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    names = [spec.name for spec in MODELS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    chosen = parser.parse_args().models
    print(table([spec for spec in MODELS if spec.name in chosen]))


if __name__ == "__main__":
    main()

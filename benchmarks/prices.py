"""What each way to recompute costs and saves, in products and in bytes: counted, not timed.

Bytes are those that autograd keeps of real forward passes on two small batches, in bfloat16
(autocast, the frozen base in bfloat16 too): the same on any machine. Products are those of a whole
step on the meta device, forward and backward, as torch counts them, the adapters' own (0.4 %)
among them: they depend on shapes alone. ViT-L/14 takes minutes on a processor without fast
products in bfloat16.

    python -m benchmarks.prices [--models vit_base_patch16_224 ...]
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

import fastht
from fastht.backbones import find_backbone
from fastht.bench.lineup import Case, make_images, make_step
from fastht.bench.towers import ModelSpec, features, image_size
from fastht.budget import COUNTED_BATCHES, MIB, Cost, count_costs
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


def count_bytes(spec: ModelSpec, method: str = "ht") -> dict[str, Cost]:
    """Return what a step keeps, by setting."""
    case = Case(spec, max(COUNTED_BATCHES), "bf16-base")
    step = make_step(case, method, functools.partial(make_images, case, 1))
    images = step.images.sets[0]
    each = images.nbytes // len(images)

    def kept(batch: int) -> int:
        return step.kept_bytes(batch) - batch * each

    return count_costs(find_backbone(step.model).blocks, kept, step.predicted_held_bytes())


def count_operations(spec: ModelSpec) -> dict[str, int]:
    """Return the floating-point operations of a step on one image, by setting."""
    model = spec.build()
    size = image_size(model)
    model = fastht.patch(model.to("meta"), backend="reference").train()
    found = {}
    for recompute in RECOMPUTE:
        reinstall(find_backbone(model).blocks, recompute)
        with FlopCounterMode(display=False) as counter:
            features(model, torch.zeros(1, 3, *size, device="meta")).sum().backward()
        found[recompute] = counter.get_total_flops()
    return found


def table(specs: Sequence[ModelSpec]) -> str:
    """Return the prices as a Markdown table."""
    lines = [
        "| model | recompute | kept, MiB an image | and rebuilt at a time | GFLOP of products | |",
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

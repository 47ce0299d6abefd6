"""What each way to recompute costs and saves, in products and in bytes: counted, not timed.

Models run on fake tensors, which have sizes and no memory: seconds, and the same on any machine.
Bytes are those that autograd keeps of forward passes on two small batches, in bfloat16 (autocast,
the frozen base in bfloat16 too). Products are those of a whole step, forward and backward, as torch
counts them; those of the adapters in plain PyTorch, 3 to 4 %, are among them.

A second table holds HT to what LoRA keeps, and tells the fewest MLPs for a share of that.

    python -m benchmarks.prices [--models vit_base_patch16_224 ...]
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fastht
from fastht.backbones import find_backbone
from fastht.bench.methods import LORA_RANK
from fastht.bench.towers import ModelSpec, features, image_size
from fastht.budget import MIB, Cost, count_costs
from fastht.lora import add_lora
from fastht.recompute import RECOMPUTE, reinstall
from fastht.saved_bytes import saved_bytes

MODELS = (
    ModelSpec("timm", "vit_base_patch16_224"),
    ModelSpec("open_clip", "ViT-B-16"),
    ModelSpec("open_clip", "ViT-L-14"),
    ModelSpec("open_clip", "ViT-B-16-SigLIP"),
)
SHARE = 0.87  # of what LoRA keeps


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


@dataclass(frozen=True)
class Share:
    """What HT keeps beside LoRA in streams of bfloat16.

    Attributes:
        lora: bytes an image that LoRA keeps.
        ht: parts of that which HT keeps, by setting.
        fewest: the setting of the fewest MLPs computed again with which HT keeps at most ``SHARE``
            of it; ``"none"`` where it keeps no more in any case.
        more: operations of the products of HT's step that ``fewest`` adds, in parts of them.
    """

    lora: float
    ht: dict[str, float]
    fewest: str
    more: float


def prices(spec: ModelSpec) -> dict[str, Price]:
    """Return the prices of a model with HT adapters in all blocks, by setting."""
    costs = _ht_bytes(spec, "auto")
    operations = count_operations(spec, RECOMPUTE)
    return {
        name: Price(float(costs[name].kept[1]), float(costs[name].rebuilt[1]), operations[name])
        for name in RECOMPUTE
    }


def beside_lora(spec: ModelSpec, keep: str, share: float = SHARE) -> Share:
    """Return what HT keeps beside LoRA, and how it comes to a share of that.

    Args:
        spec: the model.
        keep: what adapters keep, as :func:`fastht.patch` takes it.
        share: of LoRA's bytes.
    """
    ht = _ht_bytes(spec, keep)
    lora = _lora_bytes(spec)
    parts = {name: float(cost.kept[1]) / lora for name, cost in ht.items()}
    fewest = next(name for name, part in parts.items() if part <= share)
    operations = count_operations(spec, ("none", fewest))
    return Share(lora, parts, fewest, operations[fewest] / operations["none"] - 1)


@functools.cache
def _ht_bytes(spec: ModelSpec, keep: str) -> dict[str, Cost]:
    return count_bytes(spec, functools.partial(fastht.patch, backend="cpu", keep=keep))


@functools.cache
def _lora_bytes(spec: ModelSpec) -> float:
    """Return the bytes an image that LoRA keeps."""
    prepare = functools.partial(add_lora, rank=LORA_RANK, zeros=False)
    return float(count_bytes(spec, prepare)["none"].kept[1])


def count_bytes(spec: ModelSpec, prepare: Callable[[nn.Module], object]) -> dict[str, Cost]:
    """Return what a step keeps of what ``prepare`` makes of a model, by setting."""
    mode = FakeTensorMode()
    model, size = _build(spec, prepare, mode, base=torch.bfloat16)
    with mode:

        def kept(batch: int) -> int:
            images = torch.zeros(batch, 3, *size)
            with torch.autocast("cpu", torch.bfloat16):
                return saved_bytes(
                    lambda: features(model, images).float().sum(),
                    [*model.parameters(), *model.buffers(), images],
                )

        return count_costs(find_backbone(model).blocks, kept, held=0)


def count_operations(spec: ModelSpec, settings: Sequence[str]) -> dict[str, int]:
    """Return the floating-point operations of a step with HT on one image, by setting."""
    found = {}
    mode = FakeTensorMode()
    prepare = functools.partial(fastht.patch, backend="reference")
    model, size = _build(spec, prepare, mode, base=torch.float32)
    with mode:
        for recompute in settings:
            reinstall(find_backbone(model).blocks, recompute)
            with FlopCounterMode(display=False) as counter:
                features(model, torch.zeros(1, 3, *size)).sum().backward()
            found[recompute] = counter.get_total_flops()
    return found


def _build(
    spec: ModelSpec,
    prepare: Callable[[nn.Module], object],
    mode: FakeTensorMode,
    base: torch.dtype,
) -> tuple[nn.Module, tuple[int, int]]:
    """Return a prepared model of fake tensors, and its image size."""
    model = spec.build()
    prepare(model)
    model.train()
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


def shares_table(specs: Sequence[ModelSpec]) -> str:
    """Return what HT keeps beside LoRA as a Markdown table."""
    lines = [
        "| model | LoRA keeps, MiB an image | `keep` | HT, of that: `none` | `mlp` | `block` "
        f"| fewest for {SHARE} | of LoRA's | more products |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for spec, keep in itertools.product(specs, ("auto", "output")):
        found = beside_lora(spec, keep)
        parts = [f"{found.ht[name]:.3f}" for name in (*RECOMPUTE, found.fewest)]
        lines.append(
            f"| {spec} | {found.lora / MIB:.1f} | `{keep}` | {' | '.join(parts[:-1])} "
            f"| `{found.fewest}` | {parts[-1]} | +{100 * found.more:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    names = [spec.name for spec in MODELS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    chosen = parser.parse_args().models
    specs = [spec for spec in MODELS if spec.name in chosen]
    print(f"{table(specs)}\n\n{shares_table(specs)}")


if __name__ == "__main__":
    main()

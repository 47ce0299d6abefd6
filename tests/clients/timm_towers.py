"""Which models of timm patch: each built without memory, and a tower of each kind tried.

    python tests/clients/timm_towers.py             all of timm's modules
    python tests/clients/timm_towers.py eva deit    some of them

All are of two blocks where they can be had so. Of each class that patches, the smallest one is made
for real: with fresh adapters it has to be bitwise the base, with trained ones to differ, to give
every adapter's parameters a gradient, and to have its patches where the adapters take them to be;
otherwise the status is 1.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field

import timm
import torch
from token_places import misplaced
from torch import Tensor, nn

import fastht
from fastht.backbones import find_backbone


@dataclass
class Module:
    """What became of the models of one of timm's modules.

    Attributes:
        patched: the names of those that patch, by their class.
        refused: how many do not, by the words of the refusal.
        tried: what the smallest of each class showed.
        right: whether that is as it should be.
    """

    patched: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    tried: list[str] = field(default_factory=list)
    right: bool = True


def _words(error: Exception) -> str:
    return str(error).partition("; fastht patches")[0]


def _small(name: str) -> nn.Module:
    """Make a model of two blocks, where its function takes their number."""
    try:
        return timm.create_model(name, depth=2, num_classes=0)
    except (TypeError, ValueError, AssertionError):  # or has settings of each of more blocks
        return timm.create_model(name, num_classes=0)


def look(module: str) -> Module:
    """Build the models of a module without memory, and look for their tower."""
    found = Module()
    for name in timm.list_models(module=module):
        with torch.device("meta"):
            model = _small(name)
        try:
            find_backbone(model)
        except fastht.UnsupportedModelError as error:
            found.refused[_words(error)] += 1
        else:
            size = sum(p.numel() for p in model.parameters())
            found.patched.setdefault(type(model).__name__, []).append((size, name))
    return found


def attempt(name: str) -> tuple[str, bool]:
    """Patch a model and run it; return what it showed, and whether that is right."""
    torch.manual_seed(0)
    model = _small(name).eval().requires_grad_(False)
    size = timm.data.resolve_model_data_config(model)["input_size"]
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = model.forward_features(image)
        fastht.patch(model)
        same = torch.equal(model.forward_features(image), base)
        for parameter in fastht.adapter_parameters(model):
            nn.init.normal_(parameter, std=0.3)
        moved = not torch.equal(model.forward_features(image), base)
    astray = misplaced(model, size[1:], model.forward_features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _weighed(model.forward_features(image)).backward()
    own = fastht.adapter_parameters(model)
    reached = sum(p.grad is not None and bool(p.grad.any()) for p in own)
    parts = [
        "bitwise the base" if same else "NOT THE BASE",
        f"{reached} of {len(own)} gradients",
        *([] if moved else ["NO EFFECT"]),
        *([] if astray is None else [astray]),
    ]
    return f"{name}: {', '.join(parts)}", same and moved and reached == len(own) and astray is None


def _weighed(output: Tensor) -> Tensor:
    """Weigh every feature differently: a plain sum can be constant after a LayerNorm."""
    generator = torch.Generator().manual_seed(3)
    return (output * torch.randn(output.shape, generator=generator)).sum()


def examine(module: str) -> Module:
    """Look at the models of a module, and try one of each class that patches."""
    found = look(module)
    for models in found.patched.values():
        said, right = attempt(min(models)[1])
        found.tried.append(said)
        found.right &= right
    return found


def main() -> int:
    """Look at every module."""
    parser = argparse.ArgumentParser(description="which models of timm patch")
    parser.add_argument("modules", nargs="*", help="some of them; default: all")
    arguments = parser.parse_args()
    found: dict[str, Module] = {}
    for name in arguments.modules or timm.list_modules():
        if not timm.list_models(module=name):
            continue
        module = found[name] = examine(name)
        count = sum(map(len, module.patched.values()))
        print(f"{name}: {count} patched, {sum(module.refused.values())} refused", flush=True)
        for line in (*module.tried, *(f"{n} refused: {w}" for w, n in module.refused.items())):
            print(f"  {line}", flush=True)
    wrong = [name for name, module in found.items() if not module.right]
    print("wrong:", ", ".join(wrong) or "none")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""LoRA on the attention of a vision tower, and of the text tower beside it.

Linear projections get peft's. An ``nn.MultiheadAttention`` does not call its projections as layers;
for it peft 0.21 adds the output projection's update twice, and moves the frozen weights by rounding
as it merges and unmerges. There the weights are parametrized instead.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastht.backbones import find_backbone

# What attention layers call their linear projections: of queries, keys and values, and of the
# output.
_INPUTS = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_OUTPUTS = ("proj", "out_proj")
_WHOLE = nn.MultiheadAttention


_SCALE = 2  # as in the published HT code


class NoLoraError(ValueError):
    """LoRA cannot be put into this model here; the message says why."""


class LowRankUpdate(nn.Module):
    """Parametrize a weight W ``[out, in]`` as W + 2 B A, with B ``[out, r]`` and A ``[r, in]``.

    Args:
        weight: W.
        rank: r.
        zeros: whether B starts at zero.
    """

    def __init__(self, weight: Tensor, rank: int, zeros: bool) -> None:
        super().__init__()
        out, inside = weight.shape
        self.enabled = True
        self.lora_A = nn.Parameter(weight.new_empty(rank, inside))
        self.lora_B = nn.Parameter(weight.new_zeros(out, rank))
        for factor in (self.lora_A,) if zeros else (self.lora_A, self.lora_B):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))  # as nn.Linear and peft

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight, or W itself where LoRA is disabled."""
        return weight + _SCALE * (self.lora_B @ self.lora_A) if self.enabled else weight


def add_lora(
    model: nn.Module,
    rank: int = 16,
    *,
    layers: Sequence[int] | None = None,
    text: bool = False,
    zeros: bool = True,
) -> None:
    """Freeze a model and put LoRA (Hu et al. 2021) on its attention projections, in place.

    The update is scaled by 2, as in the published HT code (alpha = 2 rank).

    Args:
        model: any model with one vision transformer inside.
        rank: r of the two factors.
        layers: indices of the vision blocks; ``None`` takes every block.
        text: adapt the attention outside the vision tower too.
        zeros: let one factor start at zero, so that the model starts as its base; otherwise both
            are random, as training makes them.

    Raises:
        NoLoraError: peft is needed and not installed, or no attention was found.
        UnsupportedModelError: there is no vision transformer in the model.
    """
    root = model if text else find_backbone(model).tower
    targets = lora_targets(model, layers, text=text)
    whole = {name: m for name in targets if isinstance(m := root.get_submodule(name), _WHOLE)}
    linear = [name for name in targets if name not in whole]
    if linear:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise NoLoraError(f"LoRA needs peft: pip install 'peft>=0.15' ({error})") from error
    model.requires_grad_(False)
    if linear:
        config = LoraConfig(
            r=rank, lora_alpha=_SCALE * rank, target_modules=linear, init_lora_weights=zeros
        )
        inject_adapter_in_model(config, root)
    for attention in whole.values():
        for module, name in ((attention, "in_proj_weight"), (attention.out_proj, "weight")):
            update = LowRankUpdate(getattr(module, name), rank, zeros)
            parametrize.register_parametrization(module, name, update)


@contextmanager
def disable_lora(model: nn.Module) -> Iterator[None]:
    """Run the model without its LoRA inside the context: bitwise the frozen base."""
    updates = [module for module in model.modules() if isinstance(module, LowRankUpdate)]
    peft: Any = sys.modules.get("peft.tuners.tuners_utils")  # not imported: none of its layers
    layers: list[Any] = []
    if peft is not None:
        layers = [module for module in model.modules() if isinstance(module, peft.BaseTunerLayer)]
    for update in updates:
        update.enabled = False
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for update in updates:
            update.enabled = True
        for layer in layers:
            layer.enable_adapters(True)


def merge_lora(model: nn.Module) -> None:
    """Add LoRA's updates to the weights that they are of and take LoRA out, in place.

    What is left is the model as it was built, without anything of LoRA, that computes the same but
    for one rounding of each weight.
    """
    for module in list(model.modules()):
        for name, held in list(getattr(module, "parametrizations", {}).items()):
            if any(isinstance(update, LowRankUpdate) for update in held):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    peft: Any = sys.modules.get("peft.tuners.tuners_utils")  # not imported: none of its layers
    if peft is None:
        return
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, peft.BaseTunerLayer):
                layer.merge()
                setattr(module, name, layer.get_base_layer())
        if hasattr(module, "peft_config"):
            del module.peft_config


def lora_targets(
    model: nn.Module, layers: Sequence[int] | None = None, *, text: bool = False
) -> list[str]:
    """Return the attention projections of vision blocks, as names within the tower.

    An ``nn.MultiheadAttention`` is a target as a whole, with both of its projections.

    Args:
        model: any model with one vision transformer inside.
        layers: indices of the blocks; ``None`` takes every block.
        text: add the projections outside the vision tower; the names are then within ``model``.

    Raises:
        NoLoraError: a block, or the rest of the model, has none.
    """
    backbone = find_backbone(model)
    names = {module: name for name, module in (model if text else backbone.tower).named_modules()}
    targets = []
    for index in range(len(backbone.blocks)) if layers is None else layers:
        block = backbone.blocks[index]
        found = [names[part] for module in block.modules() for part in _projections(module)]
        if not found:
            held = ", ".join(
                f"{name}={type(part).__name__}" for name, part in block.named_children()
            )
            raise NoLoraError(
                f"found no attention projections for LoRA in block {index} of "
                f"{type(backbone.tower).__name__}, a {type(block).__name__} with {held}"
            )
        targets += found
    if text:
        inside = set(backbone.tower.modules())
        rest = [module for module in model.modules() if module not in inside]
        found = [names[part] for module in rest for part in _projections(module)]
        if not found:
            raise NoLoraError(f"found no attention outside the vision tower of {type(model)}")
        targets += found
    return targets


def _projections(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what LoRA adapts of an attention layer; nothing of any other module."""
    if isinstance(module, _WHOLE):
        yield module
        return
    linear = {name: part for name, part in module.named_children() if isinstance(part, nn.Linear)}
    inputs = next((names for names in _INPUTS if linear.keys() >= set(names)), None)
    if inputs is not None:
        yield from (linear[name] for name in inputs)
        # BERT keeps the output's projection elsewhere.
        yield from (linear[name] for name in _OUTPUTS if name in linear)

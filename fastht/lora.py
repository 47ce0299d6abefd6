"""LoRA by peft on the attention of a vision tower, and of the text tower beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from fastht.backbones import find_backbone

# What attention layers call their linear projections: of queries, keys and values, and of the
# output.
_INPUTS = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_OUTPUTS = ("proj", "out_proj")


class NoLoraError(ValueError):
    """LoRA cannot be put into this model here; the message says why."""


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
        NoLoraError: peft is not installed, or no attention was found.
        UnsupportedModelError: there is no vision transformer in the model.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise NoLoraError(f"LoRA needs peft: pip install 'peft>=0.15' ({error})") from error
    root = model if text else find_backbone(model).tower
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=lora_targets(model, layers, text=text),
        init_lora_weights=zeros,
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, root)


def lora_targets(
    model: nn.Module, layers: Sequence[int] | None = None, *, text: bool = False
) -> list[str]:
    """Return the attention projections of vision blocks, as names within the tower.

    An ``nn.MultiheadAttention`` is a target as a whole: it does not call its projections as
    layers, and peft adapts both of them with it.

    Args:
        model: any model with one vision transformer inside.
        layers: indices of the blocks; ``None`` takes every block.
        text: add the projections outside the vision tower; the names are then within ``model``.

    Raises:
        NoLoraError: a block, or the rest of the model, has none that peft can adapt.
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
    if isinstance(module, nn.MultiheadAttention):
        yield module
        return
    linear = {name: part for name, part in module.named_children() if isinstance(part, nn.Linear)}
    inputs = next((names for names in _INPUTS if linear.keys() >= set(names)), None)
    if inputs is not None:
        yield from (linear[name] for name in inputs)
        # BERT keeps the output's projection elsewhere.
        yield from (linear[name] for name in _OUTPUTS if name in linear)

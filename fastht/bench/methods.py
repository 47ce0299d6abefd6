"""The ways to train a vision tower that ``fastht bench`` compares."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from fastht.backbones import find_backbone
from fastht.config import HTConfig
from fastht.patch import patch

# The published initialisation: "identity" would start with an up-projection of zeros, on which
# hardware can be faster than on anything that training makes of them.
PAPER = HTConfig(init="paper")
LORA_RANK = 16

# What attention layers call their linear projections: of queries, keys and values, and of the
# output.
_INPUTS = (("qkv",), ("q_proj", "k_proj", "v_proj"))
_OUTPUTS = ("proj", "out_proj")


class UnusableError(ValueError):
    """A method cannot train this model here; the message says why."""


@dataclass(frozen=True)
class Method:
    """One way to train a vision tower.

    Attributes:
        name: what the command line and tables call it.
        detail: one line for people.
        prepare: takes a freshly built model that :func:`fastht.patch` could take, and what its
            adapters are to be made of. Changes it in place so that exactly what this method trains
            has ``requires_grad``; raises :class:`UnusableError` where it cannot.
        compiled: whether the model then goes through ``torch.compile``.
        fused: whether the adapters run on the backend that ``auto`` picks, so that what they
            compute has to be checked.
    """

    name: str
    detail: str
    prepare: Callable[[nn.Module, HTConfig], None]
    compiled: bool = False
    fused: bool = False


def _frozen(model: nn.Module, config: HTConfig) -> None:
    model.requires_grad_(False)


def _full(model: nn.Module, config: HTConfig) -> None:
    model.requires_grad_(False)
    find_backbone(model).tower.requires_grad_(True)


def _mona(model: nn.Module, config: HTConfig) -> None:
    patch(model, replace(config, variant="baseline"), backend="reference")


def _ht(model: nn.Module, config: HTConfig, backend: str) -> None:
    patch(model, config, backend=backend)


def _lora(model: nn.Module, config: HTConfig) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UnusableError(f"needs peft: pip install 'fastht[bench]' ({error})") from error
    tower = find_backbone(model).tower
    lora = LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_RANK,
        target_modules=lora_targets(model),
        init_lora_weights=False,  # no factor of zeros here either
    )
    model.requires_grad_(False)
    inject_adapter_in_model(lora, tower)


def lora_targets(model: nn.Module) -> list[str]:
    """Return the attention projections of every vision block, as names within the tower.

    An ``nn.MultiheadAttention`` is a target as a whole: it does not call its projections as
    layers, and peft adapts both of them with it.

    Raises:
        UnusableError: a block has none that peft can adapt.
    """
    backbone = find_backbone(model)
    names = {module: name for name, module in backbone.tower.named_modules()}
    targets = []
    for index, block in enumerate(backbone.blocks):
        found = [names[part] for module in block.modules() for part in _projections(module)]
        if not found:
            held = ", ".join(
                f"{name}={type(part).__name__}" for name, part in block.named_children()
            )
            raise UnusableError(
                f"found no attention projections for LoRA in block {index} of "
                f"{type(backbone.tower).__name__}, a {type(block).__name__} with {held}"
            )
        targets += found
    return targets


def remark(model: nn.Module) -> str | None:
    """Return what has to be known about a prepared model to read its times, if anything."""
    wrapped = (getattr(module, "base_layer", None) for module in model.modules())
    if any(isinstance(layer, nn.MultiheadAttention) for layer in wrapped):
        return (
            "this tower has nn.MultiheadAttention, into whose weights peft merges LoRA before each "
            "forward pass, so that each backward pass forms gradients of whole weights; in towers "
            "with linear projections, such as timm's, it costs less"
        )
    return None


def _projections(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what LoRA adapts of an attention layer; nothing of any other module."""
    if isinstance(module, nn.MultiheadAttention):
        yield module
        return
    linear = {name: part for name, part in module.named_children() if isinstance(part, nn.Linear)}
    inputs = next((names for names in _INPUTS if linear.keys() >= set(names)), None)
    output = next((name for name in _OUTPUTS if name in linear), None)
    if inputs is not None and output is not None:
        yield from (linear[name] for name in (*inputs, output))


_LORA = f"LoRA by peft, r = {LORA_RANK}, on all attention projections"
_REFERENCE = "HT adapters in plain PyTorch, with the FFT pair, as published"
_FUSED = "HT adapters by fastht"
_ht_reference = functools.partial(_ht, backend="reference")
_ht_auto = functools.partial(_ht, backend="auto")

METHODS = {
    method.name: method
    for method in (
        Method("frozen", "nothing trains: the forward pass alone", _frozen),
        Method("full", "full fine-tuning of the tower", _full),
        Method("lora", _LORA, _lora),
        Method("lora-compiled", f"{_LORA}, torch.compile", _lora, compiled=True),
        Method("mona", "Mona adapters in plain PyTorch", _mona),
        Method("ht-reference", _REFERENCE, _ht_reference),
        Method(
            "ht-reference-compiled", f"{_REFERENCE}, torch.compile", _ht_reference, compiled=True
        ),
        Method("ht", _FUSED, _ht_auto, fused=True),
        Method("ht-compiled", f"{_FUSED}, torch.compile", _ht_auto, compiled=True, fused=True),
    )
}

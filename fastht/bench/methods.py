"""The ways to train a vision tower that ``fastht bench`` compares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.utils import parametrize

from fastht.backbones import find_backbone
from fastht.config import HTConfig
from fastht.lora import NoLoraError, add_lora
from fastht.patch import patch

# The published initialisation: "identity" would start with an up-projection of zeros, on which
# hardware can be faster than on anything that training makes of them.
PAPER = HTConfig(init="paper")
LORA_RANK = 16


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
        # Random factors: no zeros here either.
        add_lora(model, LORA_RANK, zeros=False)
    except NoLoraError as error:
        raise UnusableError(str(error)) from error


def remark(model: nn.Module) -> str | None:
    """Return what has to be known about a prepared model to read its times, if anything."""
    attention = (m for m in model.modules() if isinstance(m, nn.MultiheadAttention))
    if any(parametrize.is_parametrized(module) for module in attention):
        return (
            "this tower has nn.MultiheadAttention, to whose weights LoRA's update is added before "
            "each forward pass, so that each backward pass forms gradients of whole weights; in "
            "towers with linear projections, such as timm's, it costs less"
        )
    return None


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

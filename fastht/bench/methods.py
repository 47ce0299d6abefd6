"""The ways to train a vision tower that ``fastht bench`` compares."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from fastht.backbones import find_backbone
from fastht.config import HTConfig
from fastht.lora import NoLoraError, add_lora
from fastht.patch import patch
from fastht.recompute import parse_recompute, reinstall

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
        prepare: takes a freshly built model that :func:`fastht.patch` could take, what its
            adapters are to be made of, and which tokens they keep, as ``patch`` takes it. Changes
            the model in place so that exactly what this method trains has ``requires_grad``;
            raises :class:`UnusableError` where it cannot.
        compiled: whether the model then goes through ``torch.compile``.
        fused: whether the adapters run on the backend that ``auto`` picks, so that what they
            compute has to be checked.
        recompute: what the backward pass computes again, as :func:`fastht.patch` takes it, or
            ``"library"``: the library's own gradient checkpointing.
    """

    name: str
    detail: str
    prepare: Callable[[nn.Module, HTConfig, str], None]
    compiled: bool = False
    fused: bool = False
    recompute: str = "none"


def _frozen(model: nn.Module, config: HTConfig, keep: str) -> None:
    model.requires_grad_(False)


def _full(model: nn.Module, config: HTConfig, keep: str) -> None:
    model.requires_grad_(False)
    find_backbone(model).tower.requires_grad_(True)


def _mona(model: nn.Module, config: HTConfig, keep: str) -> None:
    patch(model, replace(config, variant="baseline"), backend="reference", keep=keep)


def _ht(
    model: nn.Module, config: HTConfig, keep: str, backend: str, recompute: str = "none"
) -> None:
    if recompute == _LIBRARY:
        _checkpoint(model)
        recompute = "none"
    patch(model, config, backend=backend, keep=keep, recompute=recompute)


def _lora(model: nn.Module, config: HTConfig, keep: str, recompute: str = "none") -> None:
    try:
        # Random factors: no zeros here either.
        add_lora(model, LORA_RANK, zeros=False)
    except NoLoraError as error:
        raise UnusableError(str(error)) from error
    reinstall(find_backbone(model).blocks, recompute)


def _checkpoint(model: nn.Module) -> None:
    """Switch the library's own gradient checkpointing on."""
    switch: Any = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise UnusableError(f"{type(model).__name__} has no gradient checkpointing of its own")
    switch(True)


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
_AGAIN = {
    "mlp": "the MLPs' activations computed again",
    "block": "blocks computed again but for their adapters",
}
_LIBRARY = "library"
_OF_BLOCKS = re.compile(r"(ht|lora)-((?:mlp|block):[1-9][0-9]*)(-compiled)?")
_ht_reference = functools.partial(_ht, backend="reference")
_ht_auto = functools.partial(_ht, backend="auto")


def _both(
    name: str,
    detail: str,
    prepare: Callable[..., None],
    *,
    fused: bool = False,
    recompute: str = "none",
) -> list[Method]:
    """Return a method that computes activations again, and the same through ``torch.compile``."""
    if recompute == _LIBRARY:
        name, detail = f"{name}-checkpointed", f"{detail}, the library's own gradient checkpointing"
    elif recompute != "none":
        what, number = parse_recompute(recompute)
        where = "" if number is None else f", in {number} blocks alone"
        name, detail = f"{name}-{recompute}", f"{detail}, {_AGAIN[what]}{where}"
    if recompute != "none":
        prepare = functools.partial(prepare, recompute=recompute)
    return [
        Method(
            name + ("-compiled" if compiled else ""),
            detail + (", torch.compile" if compiled else ""),
            prepare,
            compiled,
            fused,
            recompute,
        )
        for compiled in (False, True)
    ]


METHODS = {
    method.name: method
    for method in (
        Method("frozen", "nothing trains: the forward pass alone", _frozen),
        Method("full", "full fine-tuning of the tower", _full),
        *_both("lora", _LORA, _lora),
        Method("mona", "Mona adapters in plain PyTorch", _mona),
        *_both("ht-reference", _REFERENCE, _ht_reference),
        *_both("ht", _FUSED, _ht_auto, fused=True),
        *_both("lora", _LORA, _lora, recompute="mlp"),
        *_both("lora", _LORA, _lora, recompute="block"),
        *_both("ht", _FUSED, _ht_auto, fused=True, recompute="mlp"),
        *_both("ht", _FUSED, _ht_auto, fused=True, recompute="block"),
        _both("ht", _FUSED, _ht_auto, fused=True, recompute=_LIBRARY)[0],
    )
}


def find_method(name: str) -> Method:
    """Return the method of a name: of ``METHODS``, or as ``"ht-mlp:6"``, of six blocks.

    Raises:
        ValueError: there is none.
    """
    if name in METHODS:
        return METHODS[name]
    found = _OF_BLOCKS.fullmatch(name)
    if found is None:
        raise ValueError(
            f"there is no method {name!r}; choose of {', '.join(METHODS)}, or one such as "
            "ht-mlp:6, lora-block:6-compiled, which computes again in six blocks alone"
        )
    kind, recompute, compiled = found.groups()
    if kind == "ht":
        both = _both("ht", _FUSED, _ht_auto, fused=True, recompute=recompute)
    else:
        both = _both("lora", _LORA, _lora, recompute=recompute)
    return both[compiled is not None]


def front_names(depth: int) -> list[str]:
    """Return the methods of the front of time against memory, for a tower of so many blocks.

    HT and LoRA, each with every way to recompute, in all blocks and in a quarter or half of them,
    and HT under the library's own checkpointing; compiled, which takes its time for each, in all
    blocks.
    """
    quarter, half = max(1, depth // 4), max(1, depth // 2)
    eager = ("", f"-mlp:{quarter}", f"-mlp:{half}", "-mlp", f"-block:{half}", "-block")
    names = [f"{kind}{again}" for kind in ("lora", "ht") for again in eager]
    names.append("ht-checkpointed")  # keeps no more than LoRA's least
    again = ("", "-mlp", "-block")
    names += [f"{kind}{which}-compiled" for kind in ("lora", "ht") for which in again]
    return list(dict.fromkeys(names))

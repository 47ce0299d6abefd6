"""The ways to adapt a vision tower that tasks compare, by one name each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fastht.checkpoint import load_adapter
from fastht.config import HTConfig, Spectral, Variant
from fastht.lora import add_lora
from fastht.patch import adapters, patch


@dataclass(frozen=True)
class Method:
    """One way to adapt a tower under a head.

    Attributes:
        name: what the command line and tables call it.
        detail: one line for people.
        variant: which HT operator follows each block; ``None`` is without.
        spectral: its filter.
        lora: whether LoRA is on the attention.
    """

    name: str
    detail: str
    variant: Variant | None = None
    spectral: Spectral = "channel"
    lora: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("frozen", "the frozen tower; the head alone trains"),
        Method("lora", "LoRA on all attention projections", lora=True),
        Method("mona", "Mona: neither spectral filter nor noise gate", "baseline"),
        Method("ht-noise", "HT with the noise gate alone", "noise_aware"),
        Method("ht-filter", "HT with the spectral filter alone", "freq_enhanced"),
        Method("ht", "HT, all of it", "hybrid"),
        Method("ht-full", "HT with a filter value a channel and frequency", "hybrid", "full"),
    )
}


@dataclass(frozen=True)
class AdapterSettings:
    """What a method puts into a tower, apart from its kind.

    Attributes:
        bottleneck_dim: channels of an HT adapter's bottleneck.
        dropout: in an HT adapter's bottleneck.
        lora_rank: r of LoRA.
        backend: implementation of the HT adapter; see `fastht doctor`.
    """

    bottleneck_dim: int = 64
    dropout: float = 0.1
    lora_rank: int = 16
    backend: str = "auto"


def apply_method(
    model: nn.Module,
    method: Method,
    layers: Sequence[int],
    settings: AdapterSettings,
    adapter: Path | None = None,
) -> None:
    """Freeze a model and adapt the given blocks in place, so that it starts as its base.

    Args:
        model: any model with one vision transformer inside.
        method: how.
        layers: indices of the blocks that run.
        settings: sizes and backend.
        adapter: folder of a saved HT adapter to start from, e.g. of ``fastht train``; it decides
            the bottleneck and has to have the method's operator.

    Raises:
        NoLoraError: LoRA cannot be put into this model.
        CheckpointError: the saved adapter cannot be read or does not fit.
        ValueError: the method takes no adapter to start from, or another one.
    """
    model.requires_grad_(False)
    if method.lora:
        add_lora(model, settings.lora_rank, layers=layers)
    if method.variant is None:
        if adapter is not None:
            raise ValueError(f"method {method.name} takes no --start: it has no HT adapters")
        return
    if adapter is None:
        config = HTConfig(
            variant=method.variant,
            spectral=method.spectral,
            bottleneck_dim=settings.bottleneck_dim,
            dropout=settings.dropout,
            layers=tuple(layers),
        )
        patch(model, config, backend=settings.backend)
        return
    load_adapter(model, adapter, backend=settings.backend)
    found = adapters(model)
    config = next(iter(found.values())).config
    if config.variant != method.variant or (
        config.has_filter and config.spectral != method.spectral
    ):
        raise ValueError(
            f"{adapter} holds adapters of variant={config.variant!r}, spectral="
            f"{config.spectral!r}; method {method.name} is variant={method.variant!r}, spectral="
            f"{method.spectral!r}"
        )
    for index, module in found.items():
        # No gradient reaches what does not run; an optimizer's weight decay would.
        module.requires_grad_(index in layers)

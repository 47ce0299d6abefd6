"""What adapts a CLIP-like model: put in, and kept in a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from torch import nn

from fastht.checkpoint import load_adapter, save_adapter
from fastht.config import HTConfig
from fastht.lora import add_lora, disable_lora
from fastht.patch import disable_adapter, patch
from fastht.tasks.image_text.towers import OwnWeights, Towers
from fastht.tasks.images.supervised import load_trained, save_trained
from fastht.tasks.models.dual import DualEncoder
from fastht.tasks.training.run_files import ADAPTER_NAME, LORA_NAME, TOWERS_NAME

Method = Literal["ht", "lora", "lora-text", "none"]


def adapt(
    model: nn.Module, method: Method, *, config: HTConfig, lora_rank: int, backend: str
) -> None:
    """Freeze a model and put in what a method trains, so that it starts as its base, in place.

    Args:
        model: an open_clip model.
        method: HT adapters, LoRA in the vision tower, LoRA in both towers, or nothing.
        config: of HT adapters.
        lora_rank: r of LoRA.
        backend: of HT adapters.

    Raises:
        NoLoraError: LoRA cannot be put into this model.
        UnsupportedModelError: the model has no vision transformer.
        ValueError: there is no such backend.
    """
    if method == "ht":
        patch(model, config, backend=backend)
    elif method == "none":
        model.requires_grad_(False)
    else:
        add_lora(model, lora_rank, text=method == "lora-text")


def own_weights(model: nn.Module, method: Method, towers: Towers) -> OwnWeights | None:
    """Let the weights of an adapted model itself train that are to; ``None``: none are.

    The heads of a dual encoder always are, as they start from random weights.

    Raises:
        ValueError: heads are to train that the model has not.
    """
    heads = method == "none" or (isinstance(model, DualEncoder) and model.has_heads)
    if not heads and towers == "none":
        return None
    return OwnWeights(model, towers, heads=heads)


@contextmanager
def as_base(model: nn.Module, method: Method, own: OwnWeights | None = None) -> Iterator[None]:
    """Run the model as its base inside the context, bitwise.

    Args:
        model: an adapted one.
        method: whose additions do nothing meanwhile.
        own: weights of the model itself that are those of the base meanwhile, of which a copy has
            been kept; ``None``: they are so anyhow.
    """
    with ExitStack() as stack:
        if method == "ht":
            stack.enter_context(disable_adapter(model))
        elif method != "none":
            stack.enter_context(disable_lora(model))
        if own is not None:
            stack.enter_context(own.as_base())
        yield


def weights_path(run: Path, method: Method) -> Path:
    """Return where a run keeps its best weights.

    That is a folder of HT adapters or a file of LoRA's, and of nothing put in the file of the
    model's own weights, which is beside those where towers train.
    """
    return run / {"ht": ADAPTER_NAME, "none": TOWERS_NAME}.get(method, LORA_NAME)


def save_weights(
    model: nn.Module, method: Method, run: Path, base_model: str, own: OwnWeights | None = None
) -> None:
    """Write what trains into a run's folder: the method's weights and the model's own."""
    path = weights_path(run, method)
    if own is not None:
        own.save(run)
    if method == "ht":
        # The adapter's readers compare its base with theirs, by a fingerprint, and by this name.
        changed = "" if own is None else f" with {TOWERS_NAME} of {run.name}"
        save_adapter(model, path, base_model=base_model + changed)
    elif method != "none":
        save_trained(model, path, () if own is None else own.tensors().keys())


def load_weights(
    model: nn.Module, method: Method, run: Path, own: OwnWeights | None = None
) -> None:
    """Load what :func:`save_weights` wrote into a model that is adapted alike.

    Raises:
        CheckpointError: the HT adapter cannot be read or does not fit.
        ResumeError: LoRA's file, or that of the model's own weights, cannot be read or does not
            fit.
    """
    path = weights_path(run, method)
    if own is not None:
        own.load(run)  # first: the adapter is of this base
    if method == "ht":
        load_adapter(model, path)
    elif method != "none":
        load_trained(model, path, () if own is None else own.tensors().keys())

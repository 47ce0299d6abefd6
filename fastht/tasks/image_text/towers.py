"""A model's own weights in training: whole towers, or the projections at their ends alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastht.files import write_atomically
from fastht.tasks.training.optimization import ParameterGroup
from fastht.tasks.training.run_files import TOWERS_NAME
from fastht.tasks.training.state import ResumeError

Towers = Literal["none", "image", "text", "both"]

# Where open_clip's models keep what projects a tower's features: parameters or modules.
_HEADS = {
    "image": (
        "visual.proj",
        "visual.head",
        "visual.trunk.head",
        "visual.trunk.fc",
        "visual.attnpool.c_proj",
    ),
    "text": ("text_projection", "text.text_projection", "text.proj", "text.head"),
}
_SCALES = ("logit_scale", "logit_bias")


class OwnWeights:
    """The weights of a model itself that train, beside those that a method puts into it.

    Making one lets them have gradients. The model has to be as :func:`~.adapted.adapt` leaves it,
    so that what has gradients already is the method's.

    Args:
        model: an open_clip model.
        towers: those that train as a whole.
        heads: train the projections of both towers, the scale and the bias of the logits.

    Raises:
        ValueError: a head is to train that the model has not.
    """

    def __init__(self, model: nn.Module, towers: Towers, heads: bool) -> None:
        self.model = model
        self.towers = towers
        own = {n: p for n, p in model.named_parameters() if not p.requires_grad}
        whole = ("image", "text") if towers == "both" else (towers,)
        self._heads = [n for n in own if heads and _is_head(n)]
        if heads:
            _check_heads(model, self._heads, whole)
        self._towers = [
            n for n in own if _tower(n) in whole and n not in self._heads and n not in _SCALES
        ]
        for name in (*self._towers, *self._heads):
            own[name].requires_grad_(True)
        # Running statistics move with the parameters of their norms, and stay with frozen ones.
        self._statistics = [
            f"{name}.{buffer}"
            for name, part in model.named_modules()
            if isinstance(part, _BatchNorm) and any(p.requires_grad for p in part.parameters())
            for buffer, _ in part.named_buffers(recurse=False)
        ]
        self._base: dict[str, Tensor] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return what training changes by name, sharing its memory."""
        state = self.model.state_dict()
        return {n: state[n] for n in (*self._towers, *self._heads, *self._statistics)}

    def groups(self, lr_scale: float, decay_all: bool = False) -> list[ParameterGroup]:
        """Return how all that trains is to be optimised, in groups that partition it.

        Weights of towers learn at ``lr_scale`` of the learning rate, all else at all of it. Norms,
        biases and other vectors and scalars of the model itself do not decay.

        Args:
            lr_scale: of towers.
            decay_all: let all decay that trains, scale of the logits included.
        """
        towers, heads = {*self._towers}, {*self._heads}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                own = name in towers or name in heads
                decays = decay_all or not own or parameter.ndim > 1
                kind = (lr_scale if name in towers else 1.0, decays)
                groups.setdefault(kind, []).append(parameter)
        # The first group's learning rate is what is logged: that of the run.
        ordered = sorted(groups.items(), key=lambda item: -item[0][0])
        return [ParameterGroup(p, scale, decays) for (scale, decays), p in ordered]

    def describe(self) -> str:
        """Say in a line what of the model itself trains."""
        parts = []
        if self._towers:
            count = sum(self.model.get_parameter(n).numel() for n in self._towers)
            what = "both towers" if self.towers == "both" else f"the {self.towers} tower"
            parts.append(f"{what}, {count:,} parameters")
        if self._heads:
            parts.append(", ".join(self._heads))
        return f"Of the model itself trains: {'; '.join(parts)}."

    def save(self, run: Path) -> None:
        """Write what trains into a run's folder, in one step."""
        content = {name: t.detach().cpu().contiguous() for name, t in self.tensors().items()}
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / TOWERS_NAME, to_safetensors(content))

    def load(self, run: Path) -> None:
        """Put what :meth:`save` wrote into the model; all or nothing.

        Raises:
            ResumeError: the file is not there, damaged, or of another model or choice of towers.
        """
        path = run / TOWERS_NAME
        try:
            state = from_safetensors(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise ResumeError(f"{path} cannot be read: {error}") from error
        targets = self.tensors()
        wrong = sorted(targets.keys() ^ state.keys())
        wrong += [n for n, t in targets.items() if n in state and t.shape != state[n].shape]
        if wrong:
            raise ResumeError(
                f"{path} is of another model, or of other towers: {', '.join(wrong[:3])}, ... "
                "differ; give the model that the run trained"
            )
        _put(targets, state)

    def keep_base(self) -> None:
        """Keep a copy of the weights as they are, on the CPU, for :meth:`as_base`."""
        self._base = {name: t.detach().cpu().clone() for name, t in self.tensors().items()}

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Exchange the weights for those of :meth:`keep_base` inside the context, bit for bit.

        There is one copy at all times: that of the weights which the model has not at the moment.
        """
        if self._base is None:
            raise RuntimeError("keep_base() has not been called; call it before weights change")
        _exchange(self.tensors(), self._base)
        try:
            yield
        finally:
            _exchange(self.tensors(), self._base)


def text_trains(method: str | None, towers: str, *, dual: bool = False) -> bool:
    """Return whether what is kept of texts changes in training, so that none can be kept.

    That is their embeddings; of a dual encoder, whose heads train anyhow, what its tower pools.
    """
    return method == "lora-text" or towers in ("text", "both") or (method == "none" and not dual)


@torch.no_grad()
def _put(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, tensor in targets.items():
        tensor.copy_(state[name])


@torch.no_grad()
def _exchange(targets: Mapping[str, Tensor], held: dict[str, Tensor]) -> None:
    for name, tensor in targets.items():
        now = tensor.detach().cpu().clone()
        tensor.copy_(held[name])
        held[name] = now


def _tower(name: str) -> str:
    return "image" if name.startswith("visual.") else "text"


def _is_head(name: str) -> bool:
    return name in _SCALES or any(_of(name, side) for side in _HEADS)


def _of(name: str, side: str) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in _HEADS[side])


def _check_heads(model: nn.Module, heads: list[str], whole: tuple[str, ...]) -> None:
    for side in _HEADS:
        if side not in whole and not any(_of(name, side) for name in heads):
            other: Any = getattr(model, "visual", model) if side == "image" else model
            raise ValueError(
                f"the {side} tower of {type(other).__name__} ends without a projection of its own, "
                f"so that --method none has nothing to train there: add --train-towers {side}, or "
                "take another --method"
            )

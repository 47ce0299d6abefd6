"""The checkpoint of Ultrasound-CLIP: a CLIP model inside another one, beside a graph network."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

BASE = "base_clip."
_EXAMPLES = 5


def released_state(file: Path) -> dict[str, Tensor] | None:
    """Return the weights of a file if they are of this kind, else ``None``.

    Nothing but tensors is unpickled. A prefix ``module.`` of distributed training is taken off.

    Args:
        file: of any weights; those of other kinds are for others to read.
    """
    if not zipfile.is_zipfile(file):  # as torch.save writes them
        return None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        return None
    named = {
        str(name).removeprefix("module."): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    return named if any(name.startswith(BASE) for name in named) else None


def load_released(model: nn.Module, state: dict[str, Tensor], file: Path) -> str:
    """Load the CLIP model of such weights into a model of its kind; all or nothing.

    Args:
        model: of open_clip.
        state: as :func:`released_state` returns it.
        file: that they are from, for messages.

    Returns:
        What was loaded and what was left over, in a paragraph.

    Raises:
        ValueError: a weight is missing or of another shape, so that it is another model's.
    """
    own = model.state_dict()
    inside = {n.removeprefix(BASE): t for n, t in state.items() if n.startswith(BASE)}
    problems = [f"it lacks {name}" for name in own if name not in inside]
    problems += [
        f"{name} is {tuple(inside[name].shape)}, and {tuple(own[name].shape)} in the model"
        for name in own
        if name in inside and inside[name].shape != own[name].shape
    ]
    if problems:
        more = f", and {len(problems) - _EXAMPLES} more" if len(problems) > _EXAMPLES else ""
        raise ValueError(
            f"{file} holds another model than {type(model).__name__}: "
            f"{'; '.join(problems[:_EXAMPLES])}{more}; give that model by --model"
        )
    model.load_state_dict({name: inside[name] for name in own})
    left = [n for n in state if n.removeprefix(BASE) not in own or not n.startswith(BASE)]
    kinds = sorted({name.split(".")[0] for name in left})
    said = f"{len(left)} left over ({', '.join(kinds)})" if left else "none left over"
    return (
        f"{file}: a checkpoint of Ultrasound-CLIP; {len(own)} weights loaded, {said}. "
        "--tag-graph published takes up its graph network."
    )

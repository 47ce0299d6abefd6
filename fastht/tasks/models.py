"""Models of open_clip by name, with their weights or random ones."""

from __future__ import annotations

import importlib.resources
from typing import Any

import open_clip
import torch
from torch import nn

# A CLIP of a few million parameters; its architecture comes with fastht, its weights are random.
TINY_MODEL = "fastht-tiny"


def build_clip(name: str, pretrained: str) -> tuple[nn.Module, Any]:
    """Return a model of open_clip in float32 on the CPU, and its image transform.

    Args:
        name: open_clip's name, ``hf-hub:ORG/REPO``, ``local-dir:FOLDER``, or ``TINY_MODEL``.
        pretrained: open_clip's tag or the file of the weights; ``"none"`` draws random ones, the
            same each time.

    Raises:
        ValueError: open_clip has no such model or cannot get its weights.
    """
    source = model_source(name)
    if ":" not in source and source not in open_clip.list_models():
        raise ValueError(
            f"open_clip has no model {name!r}; open_clip.list_models() names those it has, "
            f"{TINY_MODEL!r} is fastht's own for trying things out, and hf-hub:ORG/REPO or "
            "local-dir:FOLDER take others"
        )
    try:
        if pretrained == "none":
            # The base is drawn from a seed of its own: it does not change with the run's.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model, _, transform = open_clip.create_model_and_transforms(
                    source, load_weights=False, pretrained_text=False
                )
        else:
            model, transform = open_clip.create_model_from_pretrained(source, pretrained)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(
            f"cannot build {source} with pretrained={pretrained!r}: {error}\n"
            "Give the file of the weights (--pretrained FILE), or --pretrained none to start "
            "from random ones"
        ) from error
    return model, transform


def model_source(name: str) -> str:
    """Return what open_clip calls a model: itself, but for fastht's own tiny one."""
    if name != TINY_MODEL:
        return name
    return f"local-dir:{importlib.resources.files('fastht.data') / 'tiny_clip'}"

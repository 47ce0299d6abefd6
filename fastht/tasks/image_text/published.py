"""The published recipes of EchoCare-CLIP (arXiv 2605.02126), as its authors' code sets them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastht.tasks.image_text.train_arguments import Recipe, TrainArguments
from fastht.tasks.models.echocare import ECHOCARE

_PREFIX = "echocare-clip-"
_TEXTS = {
    "clip": "hf:openai/clip-vit-base-patch32",
    "bert": "hf:emilyalsentzer/Bio_ClinicalBERT",
}
_TOWERS = {"heads": "none", "image": "image", "text": "text", "full": "both"}
_SETTINGS: dict[str, Any] = {
    "head": "mlp-256",
    "method": "none",
    "tower_lr_scale": 1.0,
    "decay_all": True,
    "flip": True,
    "crop_margin": 0.125,
    "loss": "clip",
    "positives": "none",
    "spread_captions": False,
}
_TRAINER: dict[str, Any] = {
    "epochs": 20,
    "batch_size": 128,
    "accumulate": 1,
    "lr": 1e-4,
    "lr_min": 0.0,
    "lr_schedule": "epochs",
    "weight_decay": 1e-4,
    "beta1": 0.9,
    "beta2": 0.999,
    "clip_grad_norm": 0.0,
    "precision": "fp32",
    "patience": 0,
    "warmup_steps": 0,
}
_LIKE = (
    "As published: the last, incomplete batch of an epoch is left out, and the weights of the "
    "lowest held-out loss are kept. Not known, and taken to be PyTorch's: the betas of AdamW. "
    "Other than published: patients do not cross sides, where images did; images of evaluation are "
    "resized to the model's size, where they were resized and cut."
)


def published(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return what a recipe sets of a training and of its trainer; ``None``: it is none of these."""
    parts = recipe.removeprefix(_PREFIX).split("-") if recipe.startswith(_PREFIX) else []
    if len(parts) != 2 or parts[0] not in _TEXTS or parts[1] not in _TOWERS:
        return None
    text, towers = parts
    settings = _SETTINGS | {"text": _TEXTS[text], "train_towers": _TOWERS[towers]}
    return settings, dict(_TRAINER)


def with_recipe(arguments: TrainArguments, recipe: Recipe) -> TrainArguments:
    """Return arguments with what a published recipe sets, and all else as it was."""
    found = published(recipe)
    if found is None:
        return arguments
    settings, trainer = found
    return replace(
        arguments, **settings, recipe=recipe, trainer=replace(arguments.trainer, **trainer)
    )


def describe_recipe(arguments: TrainArguments) -> str:
    """Say what a published recipe sets, and what of it the arguments have changed; or nothing."""
    found = published(arguments.recipe)
    if found is None:
        return ""
    settings, trainer = found
    held = [(arguments, settings), (arguments.trainer, trainer)]
    wanted = {name: value for _, part in held for name, value in part.items()}
    given = {name: getattr(owner, name) for owner, part in held for name in part}
    changed = [
        f"--{name.replace('_', '-')} {given[name]} (published: {value})"
        for name, value in wanted.items()
        if given[name] != value
    ]
    lines = [
        f"Recipe {arguments.recipe} (arXiv 2605.02126): "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in wanted.items())
        + "."
    ]
    if changed:
        lines.append(f"CHANGED by options: {', '.join(changed)}.")
    if not arguments.model.startswith(ECHOCARE):
        lines.append(
            f"The image tower is {arguments.model}; the published one is EchoCare's "
            f"(--model {ECHOCARE}FILE)."
        )
    return "\n".join([*lines, _LIKE])

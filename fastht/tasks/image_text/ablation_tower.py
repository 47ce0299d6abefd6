"""A small image tower that has learnt something, for comparisons where no pretrained one is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from fastht.files import make_directory, write_atomically
from fastht.tasks.image_text.train import train
from fastht.tasks.image_text.train_arguments import TrainArguments
from fastht.tasks.models.encoders import NO_HEAD, OWN
from fastht.tasks.results.finished_runs import RESULTS_NAME
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.run_files import TOWERS_NAME
from fastht.tasks.training.trainer import STATE_NAME

_CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 64,
            "layers": 3,
            "width": 64,
            "head_width": 32,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 64,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {},
}
_TRAINER = TrainerConfig(epochs=8, batch_size=16, lr=1e-3, patience=0, workers=0)
_WEIGHTS = "open_clip_model.safetensors"  # as open_clip looks for them


def with_tower(arguments: TrainArguments, data: Path, folder: Path) -> TrainArguments:
    """Return a training that begins with a tower which has learnt from the same patients.

    The tower is that of a small CLIP model, which is trained whole from random weights, once for
    each seed. Of the patients that the training holds out it holds out the same: they choose its
    best epoch, and nothing else.

    Args:
        arguments: of the training.
        data: the pairs that the tower learns from, of the training's images.
        folder: for the towers of all seeds.

    Raises:
        As :func:`train`.
    """
    seed = arguments.trainer.seed
    run, tower = folder / f"run-{seed}", folder / f"seed-{seed}"
    for path in (folder / "random", tower):
        make_directory(path)
        write_atomically(path / "open_clip_config.json", json.dumps(_CONFIG).encode())
    if not (run / RESULTS_NAME).exists():
        print(f"\n== an image tower to begin with, seed {seed} ==")
        train(
            replace(
                arguments,
                data=str(data),
                model=f"local-dir:{folder / 'random'}",
                pretrained="none",
                text=OWN,
                head=NO_HEAD,
                method="none",
                train_towers="both",
                tower_lr_scale=1.0,
                decay_all=False,
                positives="caption",
                flip=True,
                trainer=replace(_TRAINER, seed=seed),
                out=run,
                resume=(run / STATE_NAME).exists(),
            )
        )
    # All of the model trained, so that this is all of its weights.
    shutil.copyfile(run / TOWERS_NAME, tower / _WEIGHTS)
    return replace(arguments, model=f"local-dir:{tower}", pretrained="sample")

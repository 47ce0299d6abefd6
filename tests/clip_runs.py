"""Runs of ``fastht train`` on the tests' pairs, made in a second, for tests of what reads them."""

import pytest
from accelerate.state import AcceleratorState

from fastht.tasks.image_text.train import TrainArguments, train
from fastht.tasks.training.config import TrainerConfig


def train_pairs(pairs, model, out, **changes):
    """Train on 30 of the 40 pairs; return the results."""
    arguments = {
        "data": str(pairs),
        "model": model,
        "pretrained": "none",
        "val_fraction": 0.265,  # 10 of the 40
        "trainer": TrainerConfig(epochs=6, batch_size=10, lr=1e-2, workers=0),
        "out": out,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTHT_CACHE", str(out.with_name("cache")))
        results = train(TrainArguments(**arguments | changes))
    AcceleratorState._reset_state(reset_partial_state=True)
    return results

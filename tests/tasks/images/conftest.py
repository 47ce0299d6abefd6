"""An experiment of a second, and finished ones to read and to copy."""

import contextlib
import io
import shutil

import pytest


def experiment(table, tiny_model, out):
    pytest.importorskip("monai")
    pytest.importorskip("torchmetrics")
    from fastht.tasks.images.experiment import ExperimentArguments
    from fastht.tasks.models.methods import AdapterSettings
    from fastht.tasks.training.config import TrainerConfig

    return ExperimentArguments(
        data=str(table),
        model=tiny_model,
        pretrained="none",
        blocks=(0, 1),
        width=16,
        image_size=32,
        methods=("ht",),
        settings=AdapterSettings(bottleneck_dim=8, lora_rank=2),
        trainer=TrainerConfig(epochs=4, batch_size=8, lr=1e-2, patience=0, workers=0),
        out=out,
    )


@pytest.fixture
def arguments(table, tiny_model, tmp_path):
    return experiment(table, tiny_model, tmp_path / "runs")


@pytest.fixture(scope="module")
def finished(table, tiny_model, tmp_path_factory):
    """Return a function that gives a task's experiment to a folder, and returns what it printed.

    It trains once for all tests that ask for nothing special.
    """
    done = {}

    def give(task, folder):
        if task not in done:
            chosen = experiment(table, tiny_model, tmp_path_factory.mktemp(task) / "runs")
            from fastht.tasks.images.commands import train

            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert train(task, chosen) == 0
            done[task] = chosen.out, printed.getvalue()
        kept, printed = done[task]
        shutil.copytree(kept, folder)
        return printed

    return give

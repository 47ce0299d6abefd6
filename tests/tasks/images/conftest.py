"""An experiment of a second."""

import pytest


@pytest.fixture
def arguments(table, tiny_model, tmp_path):
    pytest.importorskip("monai")
    pytest.importorskip("torchmetrics")
    from fastht.tasks.images.experiment import ExperimentArguments
    from fastht.tasks.models.methods import AdapterSettings
    from fastht.tasks.training.trainer import TrainerConfig

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
        out=tmp_path / "runs",
    )


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Draw a run's pictures with fewer pixels: their own tests are in tests/tasks/results."""
    pytest.importorskip("matplotlib")
    from fastht.tasks.results import class_pictures, figure_style, overlays, pictures

    for module in (class_pictures, figure_style, overlays, pictures):
        monkeypatch.setattr(module, "DPI", 30)

"""A head learns the sample's masks and classes through the trainer, and is scored right."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_towers import tiny_tower

import fastht

pytest.importorskip("monai")
pytest.importorskip("torchmetrics")

from fastht.data import load_cases, split_cases
from fastht.data.task_dataset import TaskDataset
from fastht.tasks.images.goals import ClassificationGoal, SegmentationGoal
from fastht.tasks.images.supervised import SupervisedTask, predict
from fastht.tasks.models.features import BlockFeatures
from fastht.tasks.models.heads import Classifier, Segmenter
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.trainer import Trainer

SIZE = 32
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture(scope="module")
def cases():
    return split_cases(load_cases("sample"))


def dataset(cases, side, count, **options):
    return TaskDataset(cases.side(side)[:count], SIZE, with_masks=True, **NORMAL, **options)


def segmenter(**patch):
    tower = tiny_tower(depth=2, dim=16, grid=(SIZE // 2, SIZE // 2))
    if patch:
        fastht.patch(tower, fastht.HTConfig(bottleneck_dim=8, **patch), backend="reference")
    else:
        tower.requires_grad_(False)
    torch.manual_seed(0)
    return Segmenter(BlockFeatures(tower, blocks=(0, 1)), width=16)


def task_of(model, cases, tmp_path, goal=None):
    return SupervisedTask(
        model,
        goal or SegmentationGoal(),
        dataset(cases, "train", 32),
        dataset(cases, "val", 12),
        Accelerator(cpu=True),
        batch_size=8,
        workers=0,
        best_path=tmp_path / "best.safetensors",
    )


def test_training_improves_the_dice_and_leaves_the_base_alone(cases, tmp_path):
    model = segmenter(init="identity")
    task = task_of(model, cases, tmp_path)
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = task.evaluate()
    config = TrainerConfig(epochs=10, batch_size=8, lr=1e-2, workers=0)
    progress = Trainer(task.accelerator, config, task, tmp_path, {}).fit()
    after = task.evaluate()
    assert progress.best == max(row["val_dice"] for row in progress.history)
    assert after["val_dice"] > before["val_dice"] + 0.05
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in base.items())
    kept = load_file(tmp_path / "best.safetensors")
    assert any(".ht." in name for name in kept)
    assert not base.keys() & kept.keys()


def test_scores_are_in_the_order_of_the_data_and_do_not_depend_on_batches(cases):
    model = segmenter().eval()
    data = dataset(cases, "val", 10)
    accelerator = Accelerator(cpu=True)
    seen = []

    class Watching(SegmentationGoal):
        def judge(self, logits, batch):
            seen.append(batch)
            return super().judge(logits, batch)

    judged = predict(model, Watching(), data, accelerator, 3, 0)
    one_by_one = predict(model, SegmentationGoal(), data, accelerator, 1, 0)
    assert judged["true_pixels"] == [int(data[i]["mask"].sum()) for i in range(10)]
    assert judged["dice"] == pytest.approx(one_by_one["dice"])
    assert torch.cat([batch["index"] for batch in seen]).tolist() == list(range(10))
    assert not model.training


def test_augmentations_differ_by_epoch(cases, tmp_path):
    seen = []

    class Watch:
        def __call__(self, image, mask):
            seen.append(torch.rand(()).item())
            return image, mask

    task = task_of(segmenter(), cases, tmp_path)
    task.train_data = dataset(cases, "train", 8, augment=Watch())
    config = TrainerConfig(epochs=2, batch_size=8, workers=0)
    Trainer(task.accelerator, config, task, tmp_path, {}).fit()
    assert len(set(seen)) == 16


def test_classes_are_learnt(cases, tmp_path):
    tower = tiny_tower(depth=2, dim=16, grid=(SIZE // 2, SIZE // 2)).requires_grad_(False)
    torch.manual_seed(0)
    model = Classifier(BlockFeatures(tower, blocks=(1,)), len(cases.classes), width=16)
    task = task_of(model, cases, tmp_path, ClassificationGoal())
    for name, side, count in (("train_data", "train", 24), ("val_data", "val", 12)):
        chosen = cases.side(side)[:count]
        setattr(task, name, TaskDataset(chosen, SIZE, classes=cases.classes, **NORMAL))
    config = TrainerConfig(epochs=8, batch_size=8, lr=1e-2, workers=0)
    history = Trainer(task.accelerator, config, task, tmp_path, {}).fit().history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert 0 <= history[-1]["val_accuracy"] <= 1

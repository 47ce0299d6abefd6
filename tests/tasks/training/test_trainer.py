"""The training loop on a task small enough to see through."""

import csv
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from fastht.tasks.training import trainer as trainer_module
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import NonFiniteLossError, Trainer


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.layer = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch):
        prediction = self.layer(self.dropout(self.frozen(batch["x"])))
        return ((prediction[:, 0] - batch["y"]) ** 2).mean()


class ToyTask:
    """A regression; ``val`` replaces what evaluation measures, epoch by epoch."""

    monitor = "val_loss"
    larger_is_better = False

    def __init__(self, val=None, poison=None):
        self.module = Regression()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(24, 4, generator=generator)
        if poison is not None:
            x[poison] = float("nan")
        y = x.sum(dim=1)
        self.train_data = [
            {"x": a, "y": b, "index": i} for i, (a, b) in enumerate(zip(x, y, strict=True))
        ]
        self.val = val
        self.evaluated = 0
        self.saved = []

    def evaluate(self):
        self.evaluated += 1
        if self.val is not None:
            return {"val_loss": self.val[self.evaluated - 1]}
        with torch.no_grad():
            return {"val_loss": self.module.layer.weight.sum().item()}

    def save_best(self):
        self.saved.append(self.evaluated)

    def files(self, batch):
        return [f"image-{int(i)}.png" for i in batch["index"]]


def trainer(task, out, resume=False, signature=None, **options):
    config = TrainerConfig(**({"epochs": 3, "batch_size": 4, "lr": 0.05, "workers": 0} | options))
    torch.manual_seed(5)
    return Trainer(Accelerator(cpu=True), config, task, out, signature or {"data": "toy"}, resume)


def weights(task):
    return [p.detach().clone() for p in task.module.parameters()]


def test_it_learns_and_trains_nothing_frozen(tmp_path):
    task = ToyTask()
    task.module.dropout.p = 0.0
    frozen = task.module.frozen.weight.clone()
    progress = trainer(task, tmp_path, epochs=12, lr=0.3).fit()
    losses = [row["train_loss"] for row in progress.history]
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(task.module.frozen.weight, frozen)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [float(row["train_loss"]) for row in rows] == losses
    assert progress.step == 12 * 6
    assert progress.history[-1]["lr"] == pytest.approx(1e-8)


def test_running_statistics_move_where_they_train_and_stay_where_they_are_frozen(tmp_path):
    task = ToyTask()
    task.module.frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    task.module.layer = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    task.evaluate = lambda: {"val_loss": 1.0}
    trainer(task, tmp_path, epochs=1).fit()
    frozen, trained = task.module.frozen[1], task.module.layer[0]
    assert torch.equal(frozen.running_mean, torch.zeros(4))
    assert torch.equal(frozen.running_var, torch.ones(4))
    assert bool(trained.running_mean.any())


class Killed(BaseException):
    """Stands for the end of the process, which no handler of the trainer sees."""


class KilledTask(ToyTask):
    def __init__(self, at):
        super().__init__()
        self.remaining = at
        forward = self.module.forward

        def dying(batch):
            if self.remaining == 0:
                raise Killed
            self.remaining -= 1
            return forward(batch)

        self.module.forward = dying


@pytest.mark.parametrize("at", [1, 6, 9, 17])
@pytest.mark.parametrize("options", [{}, {"checkpoint_steps": 2}, {"accumulate": 4}])
def test_a_killed_run_resumes_to_the_bits_of_an_uninterrupted_one(tmp_path, at, options):
    options |= {"checkpoint_steps": 1} if at == 1 else {}
    whole = ToyTask()
    expected = trainer(whole, tmp_path / "whole", **options).fit()
    with pytest.raises(Killed):
        trainer(KilledTask(at), tmp_path / "killed", **options).fit()
    task = ToyTask()
    torch.manual_seed(99)  # the state, not the start, decides
    if not (tmp_path / "killed" / "state.pt").exists():
        with pytest.raises(ResumeError, match="cannot be read"):
            trainer(task, tmp_path / "killed", resume=True, **options)
        return
    progress = trainer(task, tmp_path / "killed", resume=True, **options).fit()
    for a, b in zip(weights(task), weights(whole), strict=True):
        assert torch.equal(a, b)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in progress.history]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in expected.history]


def test_accumulated_batches_make_the_step_of_the_joint_one(tmp_path):
    class Plain(ToyTask):
        def __init__(self):
            super().__init__()
            self.module.dropout.p = 0.0

    joint, parts = Plain(), Plain()
    trainer(joint, tmp_path / "a", batch_size=8, epochs=1).fit()
    trainer(parts, tmp_path / "b", batch_size=4, accumulate=2, epochs=1).fit()
    for a, b in zip(weights(joint), weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_gradient(tmp_path):
    def norms(limit):
        task, gradients = ToyTask(), []
        task.module.layer.weight.register_post_accumulate_grad_hook(
            lambda p: gradients.append(p.grad)  # the tensor itself, which is clipped in place
        )
        trainer(task, tmp_path / str(limit), epochs=1, clip_grad_norm=limit).fit()
        return [g.norm().item() for g in gradients]

    assert max(norms(0.0)) > 0.5
    assert max(norms(0.01)) <= 0.01 * (1 + 1e-5)


def test_a_loss_that_is_not_finite_stops_and_names_the_files(tmp_path):
    task = ToyTask(poison=13)
    with pytest.raises(NonFiniteLossError, match=r"image-13\.png") as caught:
        trainer(task, tmp_path).fit()
    assert "loss is nan" in str(caught.value)
    assert all(bool(p.isfinite().all()) for p in task.module.parameters())


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    task = ToyTask()
    task.module.layer.weight.register_hook(lambda g: g * float("inf"))
    before = weights(task)
    with pytest.raises(NonFiniteLossError, match=r"gradient's norm is .* batch 1\."):
        trainer(task, tmp_path).fit()
    for a, b in zip(weights(task), before, strict=True):
        assert torch.equal(a, b)


def test_a_measure_that_is_not_finite_is_never_the_best(tmp_path):
    task = ToyTask(val=[math.nan, 2.0, -math.inf, 1.0, math.nan])
    progress = trainer(task, tmp_path, epochs=5).fit()
    assert task.saved == [2, 4]
    assert (progress.best, progress.best_epoch) == (1.0, 4)


def test_larger_is_better_where_the_task_says_so(tmp_path):
    task = ToyTask(val=[1.0, 3.0, 2.0])
    task.larger_is_better = True
    assert trainer(task, tmp_path).fit().best_epoch == 2


def test_early_stopping_counts_epochs_without_improvement(tmp_path):
    task = ToyTask(val=[3.0, 2.0, 2.5, 2.4, 1.0])
    progress = trainer(task, tmp_path, epochs=5, patience=2).fit()
    assert progress.epoch == 4
    assert progress.best_epoch == 2


def test_a_finished_run_resumes_to_its_end(tmp_path):
    trainer(ToyTask(), tmp_path).fit()
    task = ToyTask()
    assert trainer(task, tmp_path, resume=True).fit().epoch == 3
    assert task.evaluated == 0


def test_resuming_with_other_settings_is_refused(tmp_path):
    trainer(ToyTask(), tmp_path).fit()
    with pytest.raises(ResumeError, match="data was 'toy' and is 'other' now"):
        trainer(ToyTask(), tmp_path, resume=True, signature={"data": "other"})


def test_a_damaged_state_is_refused(tmp_path):
    trainer(ToyTask(), tmp_path).fit()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(ResumeError, match="cannot be read"):
        trainer(ToyTask(), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch_size", 0), ("lr", float("nan")), ("workers", -1), ("lr", -1.0)],
)
def test_bad_setting_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        TrainerConfig(**{field: value})


def test_a_resumed_history_takes_scores_that_older_versions_did_not_have():
    table = trainer_module._table([{"epoch": 1.0}, {"epoch": 2.0, "val_ece": 0.5}])
    assert table.decode().split() == ["epoch,val_ece", "1.0,", "2.0,0.5"]


def test_accelerates_variables_do_not_change_gradients(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    AcceleratorState._reset_state(True)  # the first one in a process decides
    accelerator = trainer_module.make_accelerator(TrainerConfig())
    layer = accelerator.prepare(nn.Linear(2, 1).to(accelerator.device))
    assert type(layer) is nn.Linear
    accelerator.backward(layer(torch.ones(1, 2, device=accelerator.device)).sum())
    assert torch.equal(layer.weight.grad.cpu(), torch.ones(1, 2))
    assert Accelerator(cpu=accelerator.device.type == "cpu").gradient_accumulation_steps == 4


def test_a_configuration_that_shards_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"ACCELERATE_USE_FSDP is set.*data parallelism alone"):
        trainer_module.make_accelerator(TrainerConfig())

"""Lightning on patched models: fit, checkpoints, resume, averages. It needs lightning 2.6.1.

pip install lightning==2.6.1 && pytest tests/clients/test_lightning.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from vits import VITS, loss

import fastht

lightning = pytest.importorskip("lightning", minversion="2.6")

VIT = VITS["registers"]
STEPS, BATCH, LR, DECAY = 4, 2, 1e-2, 0.5


def build() -> nn.Module:
    torch.manual_seed(0)
    return fastht.patch(VIT.build(), fastht.HTConfig(dropout=0.0))


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = build()
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        value = loss(self.model(batch))
        self.seen.append(value.item())
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(fastht.adapter_parameters(self.model), lr=LR)


def batches() -> list[Tensor]:
    """Return those of two equal epochs: within one, Lightning resumes at the first batch again."""
    return [VIT.image(batch=BATCH, seed=seed) for seed in range(STEPS // 2)] * 2


def fit(
    out: Path, *callbacks: Any, steps: int = STEPS, resume: Path | None = None, **own: Any
) -> Module:
    module = Module()
    data = torch.utils.data.DataLoader(batches()[: STEPS // 2], batch_size=None)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=2 * steps // STEPS, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
        callbacks=list(callbacks), enable_checkpointing=False, **own,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume)
    trainer.save_checkpoint(out / f"{steps}.ckpt")
    return module


def plain(autocast: bool = False, each: Callable[[nn.Module], Any] | None = None) -> nn.Module:
    """Train the same in a loop of one's own."""
    model = build().train()
    optimizer = torch.optim.AdamW(fastht.adapter_parameters(model), lr=LR)
    for batch in batches():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(model(batch))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if each is not None:
            each(model)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = state(one), state(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_fit_is_a_plain_loop_and_resumes(tmp_path: Path) -> None:
    whole = fit(tmp_path)
    assert same(whole.model, plain())
    base = {name: t for name, t in state(build()).items() if ".ht." not in name}
    assert all(torch.equal(state(whole.model)[name], t) for name, t in base.items())
    assert not same(whole.model, build())

    half = fit(tmp_path, steps=STEPS // 2)
    assert not same(half.model, whole.model)
    resumed = fit(tmp_path, resume=tmp_path / f"{STEPS // 2}.ckpt")
    assert resumed.seen == whole.seen[STEPS // 2 :]
    assert same(resumed.model, whole.model)
    loaded = Module.load_from_checkpoint(tmp_path / f"{STEPS}.ckpt")
    assert same(loaded.model, whole.model)

    fastht.save_adapter(loaded.model, tmp_path / "adapter")
    assert same(fastht.load_adapter(VIT.build(), tmp_path / "adapter"), whole.model)


def test_mixed_precision_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    module = fit(tmp_path, precision="bf16-mixed")
    assert same(module.model, plain(autocast=True))
    assert not same(module.model, plain())


class Average(lightning.Callback):
    """An average of weights that is kept beside the model."""

    def __init__(self, make: Callable[[nn.Module], nn.Module], update: str) -> None:
        self.make, self.update = make, update

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.average = self.make(module.model)

    def on_train_batch_end(self, trainer: Any, module: Any, *arguments: Any) -> None:
        getattr(self.average, self.update)(module.model)


def torchs(model: nn.Module) -> nn.Module:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))


def timms(model: nn.Module) -> nn.Module:
    return pytest.importorskip("timm.utils").ModelEmaV3(model, decay=DECAY, use_warmup=False)


@pytest.mark.parametrize(("make", "update"), [(torchs, "update_parameters"), (timms, "update")])
def test_an_average_in_a_callback(make: Any, update: str, tmp_path: Path) -> None:
    callback = Average(make, update)
    trained = fit(tmp_path, callback).model
    expected = make(build())
    plain(each=lambda model: getattr(expected, update)(model))
    assert same(callback.average.module, expected.module)
    assert not same(callback.average.module, trained)
    fastht.save_adapter(callback.average, tmp_path / "average")
    loaded = fastht.load_adapter(VIT.build(), tmp_path / "average")
    assert same(loaded, expected.module)


def test_lightnings_own_average_ends_in_the_model(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module = fit(tmp_path, EMAWeightAveraging(decay=DECAY))
    average = torchs(build())
    plain(each=average.update_parameters)
    own, expected = state(module.model), state(average.module)
    # Lightning begins its average with the first step's weights or the ones before, by its release.
    assert own.keys() == expected.keys()
    assert not same(module.model, plain())
    base = build()
    assert all(torch.equal(own[n], t) for n, t in state(base).items() if ".ht." not in n)
    assert not same(module.model, base)
    fastht.save_adapter(module.model, tmp_path / "average")
    assert same(fastht.load_adapter(VIT.build(), tmp_path / "average"), module.model)


def test_a_copy_of_the_module_is_its_own(tmp_path: Path) -> None:
    module = Module()
    other = copy.deepcopy(module)
    nn.init.ones_(fastht.adapters(other.model)[0].up.weight)
    assert not same(module.model, other.model)

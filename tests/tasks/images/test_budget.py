"""A memory budget of segmentation and classification."""

import dataclasses
import json

import pytest
import torch

from fastht.budget import BudgetError
from fastht.saved_bytes import saved_bytes
from fastht.tasks.images import run as module
from fastht.tasks.images.commands import train
from fastht.tasks.results.finished_runs import RESULTS_NAME
from fastht.tasks.training import fit_memory


def asked(arguments, **changes):
    trainer = dataclasses.replace(arguments.trainer, epochs=1, **changes)
    return dataclasses.replace(arguments, trainer=trainer)


@pytest.fixture
def seen(monkeypatch):
    """Tasks that were fitted."""
    found = []
    fit = module.fit_memory

    def watched(accelerator, config, task, tower, **options):
        found.append(task)
        return fit(accelerator, config, task, tower, **options)

    monkeypatch.setattr(module, "fit_memory", watched)
    return found


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_the_largest_batch_is_the_training_data_and_the_prediction_holds(task, arguments, seen):
    arguments = asked(arguments, memory_budget=1e5, largest_batch=True)
    train(task, arguments)
    results = json.loads((arguments.out / "ht" / "seed-0" / RESULTS_NAME).read_text())
    memory = results["memory"]
    assert (memory["batch"], memory["recompute"]) == (results["train_images"], "none")
    (fitted,) = seen
    data = [fitted.train_data[i] for i in range(memory["batch"])]
    batch = torch.utils.data.default_collate(data)
    parameters = [*fitted.module.parameters()]
    tensors = [t for t in batch.values() if isinstance(t, torch.Tensor)]
    alive = [*parameters, *fitted.module.buffers(), *tensors]

    def held(count):
        part = {name: value[:count] for name, value in batch.items()}
        kept = saved_bytes(lambda: fitted.module.train()(part), alive)
        trained = sum(p.nbytes for p in parameters if p.requires_grad)
        base = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive[:-1]}
        base = sum(base.values()) - sum(t.nbytes for t in tensors[:-1])
        return base + 3 * trained + kept + sum(v[:count].nbytes for v in tensors)

    assert memory["predicted_bytes"] == pytest.approx(held(memory["batch"]), rel=0.02)
    # Negative control: a step of fewer images is told apart.
    assert memory["predicted_bytes"] != pytest.approx(held(memory["batch"] * 3 // 4), rel=0.02)


def test_a_finished_run_is_known_again_and_nothing_fits_a_tiny_budget(
    arguments, seen, monkeypatch, capsys
):
    arguments = dataclasses.replace(asked(arguments, memory_budget=1e5), methods=("frozen", "ht"))
    train("classify", arguments)
    out = capsys.readouterr().out
    assert out.count("Chosen for 100000 MiB: none, batch 8") == 2
    monkeypatch.setattr(fit_memory, "count_costs", None)  # nothing is counted again
    train("classify", dataclasses.replace(arguments, resume=True))
    monkeypatch.undo()
    small = dataclasses.replace(asked(arguments, memory_budget=0.1), out=arguments.out / "small")
    with pytest.raises(BudgetError, match=r"0\.1 MiB fits no step on 8 images: the least is"):
        train("classify", small)

"""A memory budget of a training: what is chosen, that it holds, and that a run keeps it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from fastht.budget import MIB, BudgetError
from fastht.patch import patch_record, set_recompute
from fastht.saved_bytes import saved_bytes
from fastht.tasks.image_text.train import TrainArguments, train
from fastht.tasks.training import fit_memory as module
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """An open_clip model of several blocks, one of which is rebuilt at a time."""
    folder = tmp_path_factory.mktemp("deep")
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 5, "width": 32, "head_width": 16, "patch_size": 4}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


def training(pairs, deep_model, out):
    return TrainArguments(
        data=str(pairs),
        model=deep_model,
        pretrained="none",
        val_fraction=0.265,  # 10 of the 40
        trainer=TrainerConfig(epochs=1, batch_size=10, lr=1e-2, workers=0),
        out=out,
    )


@pytest.fixture
def arguments(pairs, deep_model, tmp_path):
    return training(pairs, deep_model, tmp_path / "run")


def with_budget(arguments, mib, **changes):
    out = changes.pop("out", arguments.out)
    resume = changes.pop("resume", False)
    trainer = dataclasses.replace(arguments.trainer, memory_budget=mib, **changes)
    return dataclasses.replace(arguments, trainer=trainer, out=out, resume=resume)


@pytest.fixture(scope="module")
def costs(pairs, deep_model, tmp_path_factory):
    """What the settings hold at the batch of the arguments, in MiB."""
    arguments = training(pairs, deep_model, tmp_path_factory.mktemp("free") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTHT_CACHE", str(arguments.out.with_name("cache")))
        memory = train(with_budget(arguments, 1e6))["memory"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert (memory["recompute"], memory["batch"]) == ("none", 10)
    return {name: size / MIB for name, size in memory["counted"].items()}


def test_the_cheapest_setting_that_fits_is_chosen_and_nothing_else_changes(
    arguments, costs, capsys
):
    assert costs["none"] > costs["mlp"] > costs["block"]
    weights = {}
    # Of five blocks the first keeps nothing, and what the last one spares is needed at once.
    for whole, setting in (("none", "none"), ("mlp", "mlp:3"), ("block", "block:3")):
        budget = costs[whole] + 1e-3
        chosen = with_budget(arguments, budget, out=arguments.out / whole)
        results = train(chosen)
        assert results["memory"]["recompute"] == setting
        assert results["memory"]["batch"] == 10
        kept = json.loads((chosen.out / "arguments.json").read_text())["memory"]
        assert kept == results["memory"]
        assert f"Chosen for {budget:g} MiB: {setting}, batch 10" in capsys.readouterr().out
        weights[setting] = (chosen.out / "adapter" / "adapter_model.safetensors").read_bytes()
    plain = dataclasses.replace(arguments, out=arguments.out / "plain")
    assert "memory" not in train(plain)
    weights["plain"] = (plain.out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert len(set(weights.values())) == 1  # counting draws no random numbers, and learns nothing


def test_a_step_of_the_largest_batch_holds_what_was_predicted(arguments, costs, monkeypatch):
    seen = {}
    fit = module.fit_memory

    def watched(accelerator, config, task, tower, **options):
        found = fit(accelerator, config, task, tower, **options)
        seen.update(task=task, tower=tower, accelerator=accelerator)
        return found

    monkeypatch.setattr("fastht.tasks.image_text.train.fit_memory", watched)
    budget = (costs["block"] + costs["none"]) / 2
    results = train(with_budget(arguments, budget, largest_batch=True))
    memory, task = results["memory"], seen["task"]
    assert 10 < memory["batch"] <= 30
    assert patch_record(seen["tower"]).recompute == memory["recompute"]

    images = [task.train_data[i % 30] for i in range(memory["batch"])]
    batch = torch.utils.data.default_collate(images)
    tensors = [*task.module.parameters(), *task.module.buffers(), task.module.texts]

    def real(count):
        part = {name: value[:count] for name, value in batch.items()}
        trained = [p for p in task.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        kept = saved_bytes(lambda: task.module.train()(part), [*tensors, batch["image"]])
        task.module(part).backward()
        optimizer.step()
        states = [t for s in optimizer.state.values() for t in s.values()]
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        held = sum(held.values()) + sum(t.nbytes for t in states)
        held += sum(p.grad.nbytes for p in trained)
        optimizer.zero_grad()
        return held + kept + batch["image"][:count].nbytes + batch["index"][:count].nbytes

    def step(count):
        """What autograd keeps, and of what is computed again a block's share."""
        kept = real(count)
        set_recompute(seen["tower"], "none")
        all_kept = real(count)
        set_recompute(seen["tower"], memory["recompute"])
        # Unless it is that of the last of four blocks, there is room for it by then.
        return kept + (all_kept - kept) / 4 * (memory["recompute"] in ("mlp", "block"))

    predicted = memory["predicted_bytes"]
    assert predicted == pytest.approx(step(memory["batch"]), rel=0.02)
    assert predicted <= budget * MIB
    # It is the largest: one image more does not fit.
    assert memory["batch"] == 30 or step(memory["batch"] + 1) > budget * MIB * 0.98
    # Negative control: a batch that is a tenth smaller is not within the tolerance.
    assert predicted != pytest.approx(step(memory["batch"] * 9 // 10), rel=0.02)


def test_a_budget_that_nothing_fits_names_the_least(arguments, costs):
    with pytest.raises(BudgetError) as caught:
        train(with_budget(arguments, 0.05))
    found = re.search(
        r"on 10 images: the least is ([\d.]+) MiB, with recompute='block:3'; one of 1",
        str(caught.value),
    )
    # Without the last block, which would keep its state of random numbers and spare nothing.
    least = costs["block"] - torch.get_rng_state().nbytes / MIB
    assert least <= float(found[1]) <= least + 0.1
    assert train(with_budget(arguments, float(found[1])))["memory"]["recompute"] == "block:3"


def test_a_budget_that_fails_leaves_no_run(arguments):
    with pytest.raises(BudgetError, match=r"0\.05 MiB fits no step on 10 images"):
        train(with_budget(arguments, 0.05))
    assert not (arguments.out / "arguments.json").exists()


def test_a_resumed_run_keeps_its_choice(arguments, costs, monkeypatch):
    first = with_budget(arguments, costs["mlp"] + 1e-3)
    memory = train(first)["memory"]
    monkeypatch.setattr(module, "count_costs", None)  # nothing is counted again
    again = dataclasses.replace(first, resume=True)
    assert train(again)["memory"] == memory
    with pytest.raises(ResumeError, match="memory_budget was"):
        train(with_budget(arguments, 1e6, resume=True, out=first.out))


def test_a_setting_by_hand_changes_no_bit_and_is_recorded(arguments, monkeypatch):
    seen = []
    fit = module.fit_memory

    def watched(accelerator, config, task, tower, **options):
        found = fit(accelerator, config, task, tower, **options)
        seen.append(patch_record(tower).recompute)
        return found

    monkeypatch.setattr("fastht.tasks.image_text.train.fit_memory", watched)
    weights = {}
    for setting in ("none", "mlp:2"):
        trainer = dataclasses.replace(arguments.trainer, recompute=setting)
        chosen = dataclasses.replace(arguments, trainer=trainer, out=arguments.out / setting)
        results = train(chosen)
        kept = json.loads((chosen.out / "arguments.json").read_text())
        assert kept["trainer"]["recompute"] == setting
        for record in (results, kept):
            assert record.get("recompute") == (None if setting == "none" else setting)
        weights[setting] = (chosen.out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert len(set(weights.values())) == 1
    # It changes no result, so a run goes on with it, or with another one.
    again = dataclasses.replace(chosen, resume=True)
    assert train(again)["recompute"] == "mlp:2"
    trainer = dataclasses.replace(again.trainer, recompute="block")
    assert train(dataclasses.replace(again, trainer=trainer))["recompute"] == "block"
    assert seen == ["none", "mlp:2", "mlp:2", "block"]


def test_a_model_without_a_tower_computes_nothing_again():
    with pytest.raises(ValueError, match=r"--recompute mlp: this model has no vision transformer"):
        module.fit_memory(None, TrainerConfig(recompute="mlp"), None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recompute": "all"}, "recompute is 'all'; choose one of"),
        ({"recompute": "mlp", "memory_budget": 1.0}, "--recompute mlp is given too"),
        ({"memory_budget": 0.0}, r"memory_budget is 0\.0; it must be a number of MiB above 0"),
        ({"memory_budget": float("nan")}, "memory_budget is nan"),
        ({"largest_batch": True}, "largest_batch needs a budget"),
    ],
)
def test_what_cannot_be_a_budget(options, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)


@pytest.mark.slow
def test_two_processes_take_the_choice_of_the_first(tmp_path):
    """Each counts its own share of the batch, and the second one holds more than the first."""
    worker = Path(__file__).parents[2] / "budget_worker.py"
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(tmp_path), str(rank)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        told = process.communicate(timeout=300)[0]
        assert process.returncode == 0, told
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first["free"]["batch"], first["free"]["batch_size"]) == (4, 8)
    assert first["free"] == second["free"]
    for name in ("tight", "largest"):
        assert first[name] == second[name]
        assert first[name]["set"] == first[name]["recompute"] == "none"
    assert first["largest"]["batch_size"] == 2 * first["largest"]["batch"] == 12  # all there are
    for found in (first, second):  # each names what it counted itself
        assert "fits no step on 4 images" in found["nothing"]["error"]
    # Negative control: by its own count the second one would compute again.
    assert first["alone"] == first["tight"]
    assert second["alone"]["recompute"] != "none"

"""`fastht bench --memory-budget`: what is chosen for each method, held to steps that are taken."""

import functools
import json

import pytest

from fastht.bench.fitting import fit
from fastht.bench.lineup import Case, make_images, make_step
from fastht.bench.towers import ModelSpec
from fastht.budget import MIB, BudgetError
from fastht.cli import main

pytest.importorskip("peft")

DEEP = ModelSpec(
    "timm",
    "vit_tiny_patch16_224",
    32,
    (("patch_size", 4), ("embed_dim", 64), ("depth", 6), ("num_heads", 2)),
)
CASE = Case(DEEP, 8, "fp32")


def taken(name, batch):
    """Bytes after a real step: what is held, gradients and kept activations."""
    case = Case(DEEP, batch, "fp32")
    step = make_step(case, name, functools.partial(make_images, case, 1))
    images = step.images.sets[0]
    step.contestant.once()
    step._loss(images).backward()
    gradients = sum(p.grad.nbytes for p in step.model.parameters() if p.grad is not None)
    step.model.zero_grad()
    return step.held_bytes() + gradients + step.saved_bytes() + images.nbytes


def rebuilt(kind, setting, batch):
    recorded = 6 if kind == "lora" else 5  # nothing trains before the first block's adapter
    return (taken(kind, batch) - taken(f"{kind}-{setting}", batch)) / recorded


@pytest.mark.parametrize("kind", ["ht", "lora"])
def test_predictions_are_what_steps_hold(kind):
    choice = fit(CASE, [kind], 1e6, 13).choices[kind]
    assert choice.counted["none"] > choice.counted["mlp"] > choice.counted["block"]
    for setting, predicted in choice.counted.items():
        name = kind if setting == "none" else f"{kind}-{setting}"
        again = 0 if setting == "none" else rebuilt(kind, setting, 13)
        assert predicted == pytest.approx(taken(name, 13) + again, rel=0.02)
        # Negative control: what a step of a tenth less holds is told apart.
        fewer = 0 if setting == "none" else rebuilt(kind, setting, 11)
        assert predicted != pytest.approx(taken(name, 11) + fewer, rel=0.02)


def test_with_a_batch_the_fewest_blocks_that_fit():
    counted = fit(CASE, ["ht"], 1e6, 8).choices["ht"].counted
    assert set(counted) == {"none", "mlp", "block"}
    # The last block's part is needed when the backward pass begins: without it is as little.
    names = {"none": "ht", "mlp": "ht-mlp:4", "block": "ht-block:4"}
    between = (counted["none"] + counted["mlp"]) / 2  # of four blocks two
    for size, name in [*((counted[s], n) for s, n in names.items()), (between, "ht-mlp:2")]:
        fitted = fit(CASE, ["ht"], (size + 1) / MIB, 8)
        assert (fitted.names, fitted.case.batch) == ([name], 8)
        setting = name.removeprefix("ht-").replace("ht", "none")
        assert f"Chosen for {(size + 1) / MIB:g} MiB: {setting}, batch 8" in fitted.describe()
    with pytest.raises(
        BudgetError, match=r"^ht: .* on 8 images.*recompute='block:4'; one of 1 would"
    ):
        fit(CASE, ["ht"], counted["block"] / MIB * 0.99, 8)


def test_methods_of_some_blocks_keep_their_setting_compiled_or_not():
    fitted = fit(CASE, ["ht-mlp:3", "lora-block:2-compiled", "ht-compiled"], 1e6, 8)
    assert fitted.names == ["ht-mlp:3", "lora-block:2-compiled", "ht-compiled"]
    assert set(fitted.choices["ht-mlp:3"].counted) == {"mlp:3"}
    size = fitted.choices["ht-compiled"].counted["none"]
    tight = fit(CASE, ["ht-mlp:3", "ht-mlp:99", "ht-compiled"], (size - 1) / MIB, 8)
    # What the tower has not the blocks for is told of by the line-up.
    assert tight.names == ["ht-mlp:3", "ht-mlp:1-compiled", "ht-mlp:99"]


def test_without_a_batch_the_largest_that_all_fit():
    fitted = fit(CASE, ["lora-compiled", "ht", "ht-mlp"], 8, None)
    batch = fitted.case.batch
    assert all(choice.predicted_bytes <= 8 * MIB for choice in fitted.choices.values())
    more = fit(CASE, ["lora-compiled", "ht", "ht-mlp"], 8, batch + 1)
    assert more.left_out  # one of them does not fit any more
    assert "lora-compiled" in fitted.choices
    assert set(fitted.choices["ht-mlp"].counted) == {"mlp"}


def test_the_command_compares_what_was_chosen(tmp_path, capsys):
    target = tmp_path / "results.json"
    quick = ("bench", "--model", "fastht-tiny", "--rounds", "2", "--device", "cpu", "--no-memory")
    options = ("--methods", "ht", "--batch-size", "2", "--json", str(target))
    assert main([*quick, *options, "--memory-budget", "1000"]) == 0
    assert "ht: Memory of a step on 2 images (counted)" in capsys.readouterr().out
    found = json.loads(target.read_text())["memory"]["ht"]
    assert (found["recompute"], found["batch"], found["budget_mib"]) == ("none", 2, 1000)
    assert main([*quick, "--memory-budget", "1", "--methods", "ht"]) == 1
    assert "a memory budget of 1 MiB fits no step" in capsys.readouterr().err
    assert main([*quick, "--memory-budget", "-1"]) == 1
    assert "a number of MiB above 0" in capsys.readouterr().err

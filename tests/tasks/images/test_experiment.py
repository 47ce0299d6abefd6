"""Options of experiments, and the models and data that they make."""

import dataclasses
import json

import pytest
import torch

import fastht

pytest.importorskip("monai")
pytest.importorskip("torchmetrics")

from fastht.data import CaseSet, DataError
from fastht.data.cases import SPLITS
from fastht.tasks.images.experiment import (
    ExperimentArguments,
    build_model,
    check_methods,
    for_sample,
    load_split,
    make_dataset,
)
from fastht.tasks.images.run import Run
from fastht.tasks.models.methods import METHODS, AdapterSettings
from fastht.tasks.training.config import TrainerConfig

HT = [name for name, method in METHODS.items() if method.variant is not None]


@pytest.fixture
def arguments(tiny_model, tmp_path):
    return ExperimentArguments(
        model=tiny_model,
        pretrained="none",
        blocks=(0,),
        width=16,
        image_size=32,
        settings=AdapterSettings(bottleneck_dim=8, lora_rank=2),
        out=tmp_path / "runs",
    )


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_paper_recipe_is_the_default():
    arguments = ExperimentArguments()
    config = arguments.trainer
    assert (config.epochs, config.batch_size, config.lr, config.lr_min) == (200, 32, 1e-4, 1e-8)
    assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.95, 0.01)
    assert (arguments.image_size, arguments.width) == (224, 512)
    assert arguments.blocks_of("ht") == arguments.blocks_of("unet") == (3, 6, 9)
    assert arguments.augment


@pytest.mark.parametrize(
    ("model", "blocks"),
    [("ViT-L-14", (6, 12, 18)), ("fastht-tiny", (1, 3, 4)), ("timm:test_vit", (1, 3, 4))],
)
def test_blocks_follow_the_depth(arguments, model, blocks):
    asked = dataclasses.replace(arguments, model=model, blocks=None, image_size=160)
    assert asked.blocks_of("frozen") == blocks
    if model != "ViT-L-14":
        assert build_model(asked, "segment", "frozen", 2).module.features.blocks == blocks
    assert ExperimentArguments.from_plain(json.loads(json.dumps(asked.plain()))) == asked


def test_options_survive_json(arguments, tmp_path):
    changed = dataclasses.replace(
        arguments, start=tmp_path, methods=("lora", "ht"), trainer=TrainerConfig(epochs=3)
    )
    again = ExperimentArguments.from_plain(json.loads(json.dumps(changed.plain())))
    assert again == changed


@pytest.mark.parametrize("task", ["segment", "classify"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_its_head_and_what_it_adds_and_nothing_else(arguments, task, name):
    model = build_model(arguments, task, name, 3).module
    image = torch.rand(2, 3, 32, 32)
    shape = (2, 2, 32, 32) if task == "segment" else (2, 3)
    logits = model(image)
    assert logits.shape == shape
    logits.square().sum().backward()
    names = trained(model)
    outside = {n for n in names if not n.startswith("features.")}
    assert outside == {n for n, _ in model.named_parameters() if not n.startswith("features.")}
    added = names - outside
    assert bool(added) == (name != "frozen")
    mark = "lora_" if name == "lora" else ".ht."
    assert all(mark in n for n in added)
    # Block 1 does not run, so nothing there may train.
    assert all(p.grad is not None for n, p in model.named_parameters() if n in names)
    assert not [n for n in added if "resblocks.1" in n]


@pytest.mark.parametrize("name", HT)
def test_ht_methods_are_the_operators_that_their_names_say(arguments, name):
    tower = build_model(arguments, "segment", name, 2).module.features.model
    (adapter,) = fastht.adapters(tower).values()
    expected = {
        "mona": ("baseline", "channel"),
        "ht-noise": ("noise_aware", "channel"),
        "ht-filter": ("freq_enhanced", "channel"),
        "ht": ("hybrid", "channel"),
        "ht-full": ("hybrid", "full"),
    }
    assert (adapter.config.variant, adapter.config.spectral) == expected[name]
    assert adapter.config.bottleneck_dim == 8


def test_every_method_starts_from_the_same_predictions(arguments):
    torch.manual_seed(1)
    image = torch.rand(2, 3, 32, 32)
    outputs = []
    for name in METHODS:
        torch.manual_seed(0)
        model = build_model(arguments, "segment", name, 2).module.eval()
        # The methods draw different numbers of weights before the head.
        torch.manual_seed(0)
        for part in (model.fusion, model.head):
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            outputs.append(model(image))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-5, atol=1e-5)


def test_a_saved_adapter_is_the_start(arguments, tmp_path):
    source = build_model(arguments, "segment", "ht", 2).module.features.model
    with torch.no_grad():
        for parameter in fastht.adapter_parameters(source):
            parameter.fill_(0.125)
    fastht.save_adapter(source, tmp_path / "adapter")
    started = dataclasses.replace(arguments, start=tmp_path / "adapter")
    tower = build_model(started, "segment", "ht", 2).module.features.model
    assert all(bool((p == 0.125).all()) for p in fastht.adapter_parameters(tower))
    with pytest.raises(ValueError, match="holds adapters of variant='hybrid'"):
        build_model(started, "segment", "mona", 2)
    with pytest.raises(ValueError, match="method lora takes no --start"):
        build_model(started, "segment", "lora", 2)


def test_blocks_that_do_not_run_are_not_trained_from_a_saved_adapter(arguments, tmp_path):
    whole = dataclasses.replace(arguments, blocks=(0, 1))
    source = build_model(whole, "segment", "ht", 2).module.features.model
    fastht.save_adapter(source, tmp_path / "adapter")
    started = dataclasses.replace(arguments, start=tmp_path / "adapter")
    model = build_model(started, "segment", "ht", 2).module
    assert not [name for name in trained(model) if "resblocks.1" in name]
    assert [name for name in trained(model) if "resblocks.0.ht" in name]


def test_the_sides_keep_patients_together_and_follow_the_seed(arguments):
    cases = load_split(arguments, "segment")
    patients = [{case.patient for case in cases.side(side)} for side in ("train", "val", "test")]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    counts = [len(cases.side(side)) for side in ("train", "val", "test")]
    assert counts == [224, 32, 64]
    other = dataclasses.replace(arguments, trainer=TrainerConfig(seed=1))
    assert load_split(other, "segment").side("test") != cases.side("test")


def test_training_data_alone_is_augmented(arguments):
    cases = load_split(arguments, "segment")
    vision = build_model(arguments, "segment", "frozen", 2)
    make = {"seed": 3, "training": True}
    side = cases.side("train")[:12]
    plain = make_dataset(arguments, "segment", side, vision, cases.classes)
    augmented = make_dataset(arguments, "segment", side, vision, cases.classes, **make)
    off = dataclasses.replace(arguments, augment=False)
    same = make_dataset(off, "segment", side, vision, cases.classes, **make)
    changed = [not torch.equal(plain[i]["image"], augmented[i]["image"]) for i in range(12)]
    assert 0 < sum(changed) < 12
    assert all(torch.equal(plain[i]["image"], same[i]["image"]) for i in range(12))


def test_the_sample_has_defaults_of_its_own():
    defaults = for_sample(ExperimentArguments(), "runs/x")
    assert defaults.pretrained == "none"
    assert defaults.data == "sample"
    check_methods(defaults.methods, "segment")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ()}, "methods is"),
        ({"methods": ("ht", "ht")}, "each once"),
        ({"blocks": (1, 1)}, "each once"),
        ({"repeats": 0}, "repeats is 0"),
        ({"val_fraction": 0.0}, "above 0"),
        ({"test_fraction": 0.95}, "nothing to train on"),
    ],
)
def test_a_bad_option_is_named(arguments, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(arguments, **change)


def test_unknown_methods_blocks_and_data_are_named(arguments):
    with pytest.raises(ValueError, match=r"no method 'warp' to segment; choose of frozen, lora"):
        check_methods(["ht", "warp"], "segment")
    with pytest.raises(ValueError, match="no method 'unet' to classify"):
        check_methods(["unet"], "classify")
    with pytest.raises(ValueError, match=r"no block 9; its 2 blocks are 0 to 1; .*--blocks"):
        build_model(dataclasses.replace(arguments, blocks=(0, 9)), "segment", "ht", 2)
    with pytest.raises(DataError, match="no-such"):
        load_split(dataclasses.replace(arguments, data="no-such"), "segment")


@pytest.mark.parametrize("blocks", [(0, 1), None])
def test_a_run_describes_its_blocks_as_states_of_older_versions_do(arguments, blocks):
    """As a tuple: a state that was saved before can be resumed only if nothing differs."""
    asked = dataclasses.replace(arguments, blocks=blocks)
    described = Run(asked, "segment", "ht", 100.0, 0).describe(CaseSet((), "sets/BUSI", "busi"))
    assert described["options"]["blocks"] == (0, 1)


def test_the_sample_has_sides_of_its_own_with_default_shares_and_seed():
    own = load_split(ExperimentArguments(data="sample"), "segment")
    assert [len(own.side(side)) for side in SPLITS] == [224, 32, 64]
    seeded = dataclasses.replace(ExperimentArguments(data="sample"), trainer=TrainerConfig(seed=1))
    assert load_split(seeded, "segment").side("test") != own.side("test")
    shares = ExperimentArguments(data="sample", test_fraction=0.5)
    assert 120 < len(load_split(shares, "segment").side("test")) < 200

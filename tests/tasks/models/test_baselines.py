"""Baselines: what they return, what of them trains, and what stays as it was."""

import sys
from urllib.error import URLError

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

pytest.importorskip("monai")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")

import transformers
from open_clip import SimpleTokenizer

from fastht.data import load_cases, split_cases
from fastht.data.task_dataset import TaskDataset
from fastht.tasks.images.goals import ClassificationGoal, SegmentationGoal
from fastht.tasks.images.supervised import SupervisedTask
from fastht.tasks.models import baselines
from fastht.tasks.models.baselines import BASELINES, BaselineSettings, build_baseline
from fastht.tasks.models.build import TINY_MODEL, build_clip
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.trainer import Trainer

SIZE = 32
GOALS = {"segment": SegmentationGoal, "classify": ClassificationGoal}
# Name, task, image size; 30 is a multiple of no tower's patches.
CASES = [
    ("unet", "segment", SIZE),
    ("resnet18", "classify", SIZE),
    ("dinov2", "segment", 30),
    ("dinov2", "classify", 28),
    ("clipseg", "segment", 48),
    ("clipseg", "segment", 30),
    ("linear-probe", "classify", SIZE),
    ("full", "classify", SIZE),
]
# Where the parameters are that train, for those baselines of which not all do.
TRAINED = {
    "dinov2": ("fusion.", "head."),
    "clipseg": ("model.decoder.",),
    "linear-probe": ("linear.",),
}


def small_clipseg():
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    return transformers.CLIPSegConfig(
        text_config=text | {"num_attention_heads": 2},
        vision_config=vision | {"num_attention_heads": 2, "image_size": 48, "patch_size": 16},
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        use_complex_transposed_convolution=True,
    )


@pytest.fixture(autouse=True)
def small(request, monkeypatch):
    """Make CLIPSeg small: 150 million parameters take seconds to draw."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(baselines, "_clipseg_config", small_clipseg)


def build(name, task, **options):
    default = {
        "classes": 3,
        "image_size": SIZE,
        "width": 16,
        "blocks": (0, 1),
        "model": TINY_MODEL,
        "pretrained": "none",
        "prompt": "a lesion",
    }
    torch.manual_seed(0)
    return build_baseline(name, BaselineSettings(task=task, **(default | options)))


def pixels(size=SIZE, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def truth(task, size):
    if task == "classify":
        return {"label": torch.tensor([0, 2])}
    mask = torch.zeros(2, size, size, dtype=torch.int64)
    mask[:, 5:20, 8:16] = 1
    return {"mask": mask}


@pytest.mark.parametrize(("name", "task", "size"), CASES)
def test_logits_and_what_trains(name, task, size):
    vision = build(name, task, image_size=size)
    assert len(vision.mean) == len(vision.std) == 3
    logits = vision.module.train()(pixels(size))
    assert logits.shape == ((2, 2, size, size) if task == "segment" else (2, 3))
    GOALS[task]().loss(logits, truth(task, size)).backward()
    parameters = dict(vision.module.named_parameters())
    trained = {n for n in parameters if n.startswith(TRAINED.get(name, ""))}
    assert {n for n, p in parameters.items() if p.requires_grad} == trained
    assert {n for n, p in parameters.items() if p.grad is not None} == trained
    assert (len(trained) < len(parameters)) == (name in TRAINED)


@pytest.mark.parametrize(("name", "task", "size"), CASES)
def test_steps_change_what_trains_and_nothing_else(name, task, size):
    model = build(name, task, image_size=size).module.train()
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for step in range(2):
        GOALS[task]().loss(model(pixels(size) + step), truth(task, size)).backward()
        optimizer.step()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    if name == "resnet18":
        trained |= {n for n, _ in model.named_buffers()}
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == trained


@pytest.mark.parametrize(
    ("name", "task", "lr"), [("unet", "segment", 2e-3), ("resnet18", "classify", 5e-4)]
)
def test_training_lowers_the_loss(name, task, lr, tmp_path):
    cases = split_cases(load_cases("sample"))
    vision = build(name, task, classes=len(cases.classes))
    chosen = {"classes": cases.classes} if task == "classify" else {"with_masks": True}
    data = {
        side: TaskDataset(
            cases.side(side)[:count], SIZE, mean=vision.mean, std=vision.std, **chosen
        )
        for side, count in (("train", 16), ("val", 4))
    }
    trained = SupervisedTask(
        vision.module,
        GOALS[task](),
        data["train"],
        data["val"],
        Accelerator(cpu=True),
        batch_size=4,
        workers=0,
        best_path=tmp_path / "best.safetensors",
    )
    started = {n: tensor.clone() for n, tensor in vision.module.state_dict().items()}
    config = TrainerConfig(epochs=3, batch_size=4, lr=lr, workers=0)
    history = Trainer(trained.accelerator, config, trained, tmp_path, {}).fit().history
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    kept = load_file(tmp_path / "best.safetensors")
    assert kept.keys() == started.keys()  # all of it trains, and running statistics are kept
    running = [n for n in kept if n.endswith(("running_mean", "running_var"))]
    assert bool(running) == (name == "resnet18")
    assert not any(torch.equal(kept[n], started[n]) for n in running)


@pytest.mark.parametrize(("name", "task", "size"), CASES)
def test_random_weights_depend_on_the_seed_alone(name, task, size):
    first, again = (build(name, task, image_size=size).module for _ in range(2))
    torch.manual_seed(7)
    other = BASELINES[name].build(
        BaselineSettings(task, 3, size, 16, (0, 1), TINY_MODEL, "none", "a lesion")
    )
    same, differing = again.state_dict(), other.module.state_dict()
    moved = {n for n, t in first.state_dict().items() if not torch.equal(t, differing[n])}
    assert all(torch.equal(t, same[n]) for n, t in first.state_dict().items())
    if name == "clipseg":
        assert not moved  # all of it is the base
    else:
        trains = {n for n, p in first.named_parameters() if p.requires_grad}
        assert moved
        assert moved <= trains


def test_dinov2_takes_its_own_weights(monkeypatch):
    asked = []

    def build_vision(*arguments):
        asked.append(arguments)
        raise ValueError("not here")

    monkeypatch.setattr(baselines, "build_vision", build_vision)
    for pretrained in ("openai", "none"):
        with pytest.raises(ValueError, match="not here"):
            build("dinov2", "segment", image_size=100, pretrained=pretrained)
    name = "timm:vit_small_patch14_dinov2"
    assert asked == [(name, "timm", 112), (name, "none", 112)]


def test_a_linear_probe_reads_what_encode_image_gives():
    probe = build("linear-probe", "classify").module
    model, _ = build_clip(TINY_MODEL, "none", SIZE)
    with torch.no_grad():
        expected = probe.linear(model.eval().encode_image(pixels()))
        torch.testing.assert_close(probe(pixels()), expected)


def test_resnet18_starts_from_imagenet(monkeypatch):
    from torchvision.models import ResNet18_Weights, resnet18

    given = {n: torch.full_like(t, 0.25) for n, t in resnet18().state_dict().items()}
    asked = []

    def get_state_dict(self, *args, **kwargs):
        asked.append(self)
        return given

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", get_state_dict)
    model = build("resnet18", "classify", pretrained="openai").module
    assert asked == [ResNet18_Weights.IMAGENET1K_V1]
    found = model.state_dict()
    assert found["fc.weight"].shape == (3, 512)
    assert all(torch.equal(t, given[n]) for n, t in found.items() if not n.startswith("fc."))
    build("resnet18", "classify")
    assert len(asked) == 1


def test_weights_that_cannot_be_had_say_what_to_do(monkeypatch, tmp_path):
    from torchvision.models import ResNet18_Weights

    def offline(self, *args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    monkeypatch.setattr(baselines, "CLIPSEG", str(tmp_path / "nowhere"))
    for name, task, reason in (("resnet18", "classify", "no network"), ("clipseg", "segment", "")):
        with pytest.raises(ValueError, match=rf"(?s){reason}.*--pretrained none"):
            build(name, task, pretrained="openai")


def test_clipseg_with_its_weights_answers_as_transformers_does(monkeypatch, tmp_path):
    torch.manual_seed(5)
    original = transformers.CLIPSegForImageSegmentation(small_clipseg()).eval()
    original.save_pretrained(tmp_path / "weights")
    monkeypatch.setattr(baselines, "CLIPSEG", str(tmp_path / "weights"))
    model = build("clipseg", "segment", pretrained="openai", prompt="A dark Cyst").module.eval()
    tokens = SimpleTokenizer()(["a dark cyst"]).expand(2, -1)
    for size in (48, 64):  # of its positions, and of more
        with torch.no_grad():
            expected = original(input_ids=tokens, pixel_values=pixels(size)).logits
            found = model(pixels(size))
        torch.testing.assert_close(found.softmax(dim=1)[:, 1], expected.sigmoid())
        difference = found[:, 1] - found[:, 0]
        torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-4)


def test_the_prompt_changes_what_clipseg_finds_and_is_kept():
    cyst, mass = (
        build("clipseg", "segment", prompt=prompt).module for prompt in ("a cyst", "a solid mass")
    )
    assert cyst.state_dict()["condition"].shape == (1, 16)
    assert not torch.equal(cyst.condition, mass.condition)
    with torch.no_grad():
        assert not torch.allclose(cyst(pixels()), mass(pixels()), rtol=1e-4)
    assert not any("text_model" in name for name in cyst.state_dict())


def test_a_prompt_that_is_too_long_is_refused():
    build("clipseg", "segment", prompt="mass " * 75)
    with pytest.raises(ValueError, match="78 tokens and clipseg reads 77"):
        build("clipseg", "segment", prompt="mass " * 76)


@pytest.mark.parametrize("size", [16, 40])
def test_unet_refuses_sizes_that_it_cannot_halve(size):
    with pytest.raises(ValueError, match=f"{size} pixels.*multiple of 16"):
        build("unet", "segment", image_size=size)


@pytest.mark.parametrize(
    ("name", "task", "choices"),
    [
        ("resnet", "classify", "resnet18, dinov2, linear-probe, full"),
        ("resnet18", "segment", "unet, dinov2, clipseg"),
    ],
)
def test_a_baseline_that_there_is_not_is_refused(name, task, choices):
    with pytest.raises(ValueError, match=f"no baseline '{name}' to {task}; choose of {choices}$"):
        build(name, task)


@pytest.mark.parametrize(
    ("name", "task", "library"),
    [
        ("unet", "segment", "monai.networks.nets"),
        ("resnet18", "classify", "torchvision.models"),
        ("dinov2", "segment", "timm"),
        ("clipseg", "segment", "transformers"),
    ],
)
def test_a_missing_library_is_named(name, task, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"{name} needs {library.split('.')[0]}.*(?s:.*)tasks\]"):
        build(name, task)


@pytest.mark.slow
def test_the_real_clipseg():
    size = sum(
        p.numel()
        for p in transformers.CLIPSegForImageSegmentation(baselines._clipseg_config()).parameters()
    )
    assert round(size / 1e3) == 150_748  # as the published one
    model = build("clipseg", "segment", image_size=100).module
    logits = model(pixels(100, count=1))
    assert logits.shape == (1, 2, 100, 100)
    assert logits.isfinite().all()

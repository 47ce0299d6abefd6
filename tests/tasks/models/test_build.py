"""Vision towers by name: their weights are read from files, their sizes and seeds are right."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastht.backbones import find_backbone
from fastht.tasks.models.build import TINY_MODEL, build_clip, build_vision
from fastht.tasks.models.features import BlockFeatures

TINY_TIMM = "timm:vit_tiny_patch16_224"


def folder_of(path, vision):
    """Describe an open_clip model with a small text tower, as local-dir: takes it."""
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{path}"


@pytest.fixture
def native(tmp_path):
    """A model with open_clip's own tower, for images of 32 pixels."""
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    return folder_of(tmp_path / "native", vision)


@pytest.fixture
def trunk(tmp_path):
    """A model with a tower of timm, for images of 224 pixels."""
    vision = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 224,
    }
    return folder_of(tmp_path / "trunk", vision)


def randomised(model):
    """Return a model's weights drawn anew, so that they are not those it is built with."""
    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }


def assert_same_weights(module, expected, prefix=""):
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[prefix + name]), name


def pixels(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def check_runs_at(vision, size, patch):
    grid = (size // patch, size // patch)
    assert find_backbone(vision.module).grid_size == grid
    (features,) = BlockFeatures(vision.module.eval(), (1,))(pixels(size))
    assert features.shape[2:] == grid
    assert features.isfinite().all()


def test_timm_towers_are_built_for_the_images():
    vision = build_vision(TINY_TIMM, "none", 48)
    check_runs_at(vision, 48, 16)
    assert tuple(vision.mean) == (0.5, 0.5, 0.5)  # as timm says of this model
    assert not any(name.startswith("head.") for name, _ in vision.module.named_parameters())


def test_open_clip_towers_are_built_for_the_images(native, trunk):
    vision = build_vision(native, "none", 48)
    check_runs_at(vision, 48, 8)
    assert tuple(vision.mean) == (0.1, 0.2, 0.3)
    check_runs_at(build_vision(trunk, "none", 64), 64, 16)
    check_runs_at(build_vision(TINY_MODEL, "none", 32), 32, 16)


def test_random_weights_are_the_same_each_time_and_draw_nothing(native):
    for name in (native, TINY_TIMM):
        torch.manual_seed(1)
        first = build_vision(name, "none", 32).module.state_dict()
        drawn = torch.rand(())
        torch.manual_seed(2)
        assert_same_weights(build_vision(name, "none", 32).module, first)
        torch.manual_seed(1)
        assert torch.rand(()) == drawn


def test_the_vision_tower_is_read_and_a_foreign_text_tower_is_not(native, tmp_path):
    model, _ = build_clip(native, "none")
    weights = randomised(model.visual)
    foreign = {"text_encoder.embeddings.weight": torch.ones(5, 7), "logit_scale": torch.ones(())}
    state = foreign | {f"visual.{name}": tensor for name, tensor in weights.items()}
    files = (tmp_path / "plain.pt", tmp_path / "trained.pt", tmp_path / "plain.safetensors")
    torch.save(state, files[0])
    training = {"epoch": 3, "state_dict": {f"module.{name}": t for name, t in state.items()}}
    torch.save(training, files[1])
    save_file(state, files[2])
    for file in files:
        assert_same_weights(build_vision(native, str(file), 32).module, weights)


def test_positions_in_a_file_are_resized_to_the_images(native, trunk, tmp_path):
    for name, own, size, patch in ((native, 32, 48, 8), (trunk, 224, 64, 16)):
        model, _ = build_clip(name, "none")
        weights = randomised(model.visual)
        file = tmp_path / "weights.pt"
        torch.save({f"visual.{name}": tensor for name, tensor in weights.items()}, file)
        assert_same_weights(build_vision(name, str(file), own).module, weights)
        vision = build_vision(name, str(file), size)
        check_runs_at(vision, size, patch)
        resized = [
            name
            for name, tensor in vision.module.state_dict().items()
            if not torch.equal(tensor, weights[name])
        ]
        assert resized == [name for name in weights if "pos" in name and "embed" in name]


def test_a_timm_file_is_read_with_a_classifier_or_without(tmp_path):
    tower = build_vision(TINY_TIMM, "none", 224).module
    weights = randomised(tower)
    file = tmp_path / "weights.pt"
    torch.save({"model": weights | {"head.weight": torch.ones(3, 192)}}, file)
    assert_same_weights(build_vision(TINY_TIMM, str(file), 224).module, weights)
    torch.save(weights, file)
    smaller = build_vision(TINY_TIMM, str(file), 32)
    check_runs_at(smaller, 32, 16)
    norm = "blocks.3.norm1.weight"
    assert torch.equal(smaller.module.state_dict()[norm], weights[norm])


@pytest.mark.parametrize("tower", ["native", "timm"])
@pytest.mark.parametrize("damage", ["lacks", "mismatches", "empty", "other", "list"])
def test_a_file_that_does_not_fit_is_named(tower, damage, native, tmp_path):
    name, prefix = (native, "visual.") if tower == "native" else (TINY_TIMM, "")
    weights = build_vision(name, "none", 32).module.state_dict()
    state = {f"{prefix}{key}": tensor.clone() for key, tensor in weights.items()}
    victim = next(key for key in state if key.endswith(".bias"))
    if damage == "lacks":
        del state[victim]
    elif damage == "mismatches":
        state[victim] = torch.zeros(7)
    elif damage == "other":
        state = {"conv.weight": torch.ones(2)}
    file = tmp_path / "weights.pt"
    torch.save({"empty": {}, "list": [1, 2]}.get(damage, state), file)
    with pytest.raises(ValueError, match=r"weights\.pt does not hold") as caught:
        build_vision(name, str(file), 32)
    if damage in ("lacks", "mismatches"):
        assert victim.removeprefix(prefix) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", [TINY_MODEL, TINY_TIMM])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x02}q\x00."])
def test_garbage_is_named(name, ending, content, tmp_path):
    file = tmp_path / f"weights.{ending}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\.{ending} does not hold"):
        build_vision(name, str(file), 32)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-nowhere", "none", "open_clip has no model 'ViT-nowhere'"),
        ("ViT-B-16", "no-such-tag", "--pretrained none"),
        ("timm:vit_nowhere", "none", r"vit_nowhere.*\n.*list_models"),
        (TINY_TIMM, "no-such-tag", "choose timm"),
        ("timm:resnet18", "none", "timm cannot build resnet18"),  # has no size to be built for
    ],
)
def test_what_there_is_not_is_named(name, pretrained, message):
    assert not Path(pretrained).exists()
    with pytest.raises(ValueError, match=message):
        build_vision(name, pretrained, 32)

"""EchoCare's encoder, by a miniature of it: MONAI's Swin read strictly from a bare state dict."""

import pytest
import torch
from clip_runs import train_pairs

from fastht.tasks.images.experiment import ExperimentArguments, build_model
from fastht.tasks.models import echocare
from fastht.tasks.models.build import build_vision
from fastht.tasks.models.echocare import EchoCareEncoder, build_echocare, echocare_transform
from fastht.tasks.models.encoders import EncoderNames, build_encoder
from fastht.tasks.training.config import TrainerConfig

pytest.importorskip("monai")
pytest.importorskip("einops")

SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": (4, 4)}


def test_it_is_built_as_published(monkeypatch):
    seen = {}

    class Swin(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()
            seen.update(options)
            self.num_features = 1024

    monkeypatch.setattr("monai.networks.nets.swin_unetr.SwinTransformer", Swin)
    assert EchoCareEncoder().output_dim == 2048
    assert (seen["embed_dim"], seen["depths"], seen["num_heads"]) == (
        128, (2, 2, 18, 2), (4, 8, 16, 32),
    )  # fmt: skip
    assert (seen["window_size"], seen["patch_size"], seen["in_chans"]) == ((8, 8), (2, 2), 3)
    assert (seen["mlp_ratio"], seen["qkv_bias"], seen["use_v2"]) == (4.0, True, True)
    transform = echocare_transform()
    assert transform.crop == (256, 256)
    assert transform.mean == (0.1909, 0.1927, 0.1964)
    assert transform.std == (0.2000, 0.2014, 0.2043)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The miniature's weights as they are handed out, and 64 pixels in place of 256."""
    monkeypatch.setattr(echocare, "_ARCHITECTURE", SMALL)
    monkeypatch.setattr(echocare, "IMAGE_SIZE", 64)
    torch.manual_seed(0)
    state = EchoCareEncoder().swin.state_dict()
    torch.save(state | {"mask_token": torch.zeros(1, 1, 8)}, tmp_path / "encoder.pth")
    return tmp_path / "encoder.pth"


@torch.no_grad()
def test_it_is_read_whole_and_pools_the_last_map(file):
    encoder = build_echocare(f"echocare:{file}").eval()
    state = torch.load(file, weights_only=True)
    assert all(torch.equal(t, state[n]) for n, t in encoder.swin.state_dict().items())
    images = torch.randn(2, 3, 64, 64)
    last = encoder.swin(images)[-1]
    assert last.shape == (2, 128, 2, 2)
    assert encoder.output_dim == 128
    torch.testing.assert_close(encoder(images), last.mean(dim=(2, 3)))
    # MONAI normalises the map over channels, which has no weights.
    torch.testing.assert_close(last.mean(dim=1), torch.zeros(2, 2, 2), atol=1e-5, rtol=0)


def test_other_files_are_one_error(file):
    state = torch.load(file, weights_only=True)
    for changed, said in (
        ({n: t for n, t in state.items() if "patch_embed" not in n}, "it lacks patch_embed"),
        (state | {"more": torch.ones(1)}, "more is none of the encoder's"),
        (state | {"patch_embed.proj.bias": torch.ones(3)}, r"is \(3,\), not \(8,\)"),
    ):
        torch.save(changed, file)
        with pytest.raises(ValueError, match=f"does not hold EchoCare's encoder: .*{said}"):
            build_echocare(f"echocare:{file}")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        build_echocare(f"echocare:{file}.none")


def test_it_trains_frozen_and_whole_and_takes_no_adapters(file, pairs, tmp_path):
    name = f"echocare:{file}"
    options = {"text": "tiny-bert", "head": "mlp-8"}
    for method in ("ht", "lora", "lora-text"):
        with pytest.raises(
            ValueError, match=r"takes neither HT adapters nor LoRA: .*--method none"
        ):
            train_pairs(pairs, name, tmp_path / "none", method=method, **options)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="no text tower of its own: give one by --text"):
        build_encoder(EncoderNames(name, "none", head="mlp-8"))
    short = TrainerConfig(epochs=2, batch_size=10, lr=1e-2, workers=0)
    for towers in ("none", "image"):
        results = train_pairs(
            pairs, name, tmp_path / towers,
            method="none", train_towers=towers, trainer=short, **options,
        )  # fmt: skip
        assert results["after"]["val_loss"] < results["before"]["val_loss"]
    assert results["model"] == f"{name} + tiny-bert + mlp-8"


def test_it_is_a_tower_of_linear_probes(file):
    vision = build_vision(f"echocare:{file}", "none", 64)
    assert vision.mean == echocare.MEAN
    arguments = ExperimentArguments(model=f"echocare:{file}", pretrained="none", image_size=64)
    probe = build_model(arguments, "classify", "linear-probe", 3).module
    assert probe(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    with pytest.raises(ValueError, match="found no vision transformer"):
        build_model(arguments, "classify", "ht", 3)

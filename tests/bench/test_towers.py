"""Building towers by description, and asking any of them for features."""

import pickle

import pytest
import torch
from vits import VITS

from fastht.backbones import UnsupportedModelError, find_backbone
from fastht.bench.towers import TINY, ModelSpec, features, image_size
from fastht.tasks.models.build import TINY_MODEL, model_source

OPEN_CLIP = ModelSpec("open_clip", model_source(TINY_MODEL))


@pytest.mark.parametrize("vit", VITS)
def test_features_are_one_vector_an_image(vit):
    model, image = VITS[vit].build(), VITS[vit].image(2, VITS[vit].built_grid)
    with torch.no_grad():
        found, expected = features(model, image), VITS[vit].features(model, image)
    assert found.ndim == 2
    torch.testing.assert_close(found, expected[0] if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize("spec", [TINY, OPEN_CLIP], ids=["timm", "open_clip"])
def test_a_description_gives_the_same_tower_every_time(spec):
    before = torch.random.get_rng_state()
    one, other = spec.build(), pickle.loads(pickle.dumps(spec)).build()
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    size = image_size(one)
    assert features(one, torch.zeros(2, 3, *size)).shape[0] == 2


def test_open_clips_models_come_without_their_text_tower():
    assert not [name for name, _ in OPEN_CLIP.build().named_parameters() if "text" in name]


@pytest.mark.parametrize("spec", [TINY, OPEN_CLIP], ids=["timm", "open_clip"])
def test_another_image_size_is_built_in(spec):
    built = ModelSpec(spec.library, spec.name, 64, spec.arguments).build()
    assert image_size(built) == (64, 64)
    assert find_backbone(built).grid_size != find_backbone(spec.build()).grid_size
    assert str(ModelSpec(spec.library, "name", 64)) == "name at 64 px"


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_an_unknown_model_is_named(library):
    with pytest.raises(ValueError, match=f"{library} cannot build no_such_model"):
        ModelSpec(library, "no_such_model").build()


def test_a_model_without_a_vit_is_refused():
    with pytest.raises(UnsupportedModelError, match="ResNet"):
        ModelSpec("timm", "test_resnet").build()

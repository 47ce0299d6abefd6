"""The transform of images: what torchvision makes of them, without torchvision."""

import pickle

import fresh
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.transforms import CenterCrop, InterpolationMode, RandomHorizontalFlip, Resize

from fastht.data import ImageTextDataset, load_records
from fastht.data.preprocess import Preprocess
from fastht.tasks.models.build import TINY_MODEL, _light, build_clip

SHAPES = [(90, 140), (140, 90), (112, 112), (112, 300), (5, 300), (113, 112), (300, 301)]


def _with(steps):
    """open_clip's transform with other steps of torchvision."""
    made = open_clip.image_transform(112, is_train=False, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    kept = [step for step in made.transforms if type(step).__name__ not in ("Resize", "CenterCrop")]
    made.transforms = [*steps, *kept]
    return made


@pytest.mark.parametrize(
    "steps",
    [
        [Resize(112, InterpolationMode.BICUBIC), CenterCrop(112)],
        [Resize(112, InterpolationMode.BILINEAR), CenterCrop((128, 96))],
        [Resize((112, 80), InterpolationMode.BICUBIC)],
        [Resize([112], InterpolationMode.NEAREST), CenterCrop((130, 112))],
    ],
)
def test_transforms_are_those_of_torchvision_bit_for_bit(steps):
    theirs = _with(steps)
    ours = _light(theirs)
    assert isinstance(ours, Preprocess)
    for height, width in SHAPES:
        noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        found, expected = ours(image), theirs(image)
        assert torch.equal(found, expected)
        assert found.dtype == torch.float32
        assert found.is_contiguous() == expected.is_contiguous()


def test_other_transforms_stay_as_they_are():
    flipped = _with([Resize(112), RandomHorizontalFlip(1.0), CenterCrop(112)])
    assert not isinstance(_light(flipped), Preprocess)
    noise = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    assert torch.equal(_light(flipped)(image), flipped(image))
    limited = _with([Resize(112, max_size=120), CenterCrop(112)])
    assert not isinstance(_light(limited), Preprocess)
    assert torch.equal(_light(limited)(image), limited(image))


def test_a_spawned_worker_imports_neither_open_clip_nor_torchvision():
    """What it unpickles is a data set of the transform; each would take as long as PyTorch."""
    _, transform = build_clip(TINY_MODEL, "none")
    data = Subset(ImageTextDataset(load_records("sample").records, transform), [0, 1])
    code = (
        "import pickle, sys; data = pickle.load(sys.stdin.buffer); data[0]; "
        "print(*sorted({'open_clip', 'torchvision', 'timm', 'torch'} & sys.modules.keys()))"
    )
    found = fresh.run(code, stdin=pickle.dumps(data))
    assert found.stdout.split() == ["torch"], found.stderr

"""What baselines wrap around towers: images that patches do not cover, and frozen statistics."""

import torch
import torch.nn.functional as F
from tiny_towers import tiny_tower
from torch import nn

from fastht.tasks.models.baseline_models import LinearProbe, TiledFeatures, fit_to_patches
from fastht.tasks.models.features import BlockFeatures


def images(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_small_images_are_enlarged_for_the_tower_alone():
    tower = tiny_tower(grid=(4, 4))  # patches of 2 pixels
    small = images(7)
    larger = F.interpolate(small, (8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(fit_to_patches(small, 2), larger)
    assert fit_to_patches(larger, 2) is larger
    features, plain = TiledFeatures(tower, (0, 1), 2), BlockFeatures(tower, (0, 1))
    for found, expected in zip(features(small), plain(larger), strict=True):
        assert found.shape[2:] == (4, 4)
        assert torch.equal(found, expected)


def test_a_probed_tower_keeps_its_running_statistics():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    tower = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    probe = LinearProbe(tower, 2, 8).train()
    assert probe.linear.training
    assert not norm.training
    probe(5 + images(8))
    assert torch.equal(norm.running_mean, torch.zeros(4))

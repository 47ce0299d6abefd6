"""Heads: the cheap order of the segmentation head equals the published one."""

import pytest
import torch
import torch.nn.functional as F
from tiny_towers import tiny_tower

from fastht.tasks.models.features import BlockFeatures
from fastht.tasks.models.heads import (
    ClassificationHead,
    Classifier,
    FeatureFusion,
    SegmentationHead,
    Segmenter,
)


@pytest.mark.parametrize(("grid", "size"), [((14, 14), (224, 224)), ((3, 5), (50, 41))])
def test_convolution_and_interpolation_commute(grid, size):
    torch.manual_seed(0)
    head = SegmentationHead(512, 2).double()
    features = torch.randn(2, 512, *grid, dtype=torch.float64)
    large = F.interpolate(features, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(features, size), head.conv(large), rtol=1e-12, atol=1e-12)
    # The comparison can fail: another interpolation is not the same.
    other = F.interpolate(features, size, mode="nearest")
    assert not torch.allclose(head(features, size), head.conv(other), atol=1e-3)


def test_fusion_sums_the_levels_each_by_its_own_layers():
    torch.manual_seed(0)
    fusion = FeatureFusion(8, levels=3, width=16)
    maps = [torch.randn(2, 8, 4, 5) for _ in range(3)]
    expected = 0
    for features, reduce, block in zip(maps, fusion.reduces, fusion.blocks, strict=True):
        tokens = features.flatten(2).transpose(1, 2)
        expected = expected + block(reduce(tokens)).transpose(1, 2).unflatten(2, (4, 5))
    torch.testing.assert_close(fusion(maps), expected)
    with pytest.raises(ValueError, match="zip"):
        fusion(maps[:2])


def test_classification_head_averages_over_the_map():
    torch.manual_seed(0)
    head = ClassificationHead(16, 3).eval()
    features = torch.randn(2, 16, 4, 5)
    torch.testing.assert_close(head(features), head.layers(features.flatten(2).mean(2)))
    head.train()
    assert not torch.equal(head(features), head(features))  # dropout is between the two layers


def test_models_return_logits_of_the_images_size():
    features = BlockFeatures(tiny_tower(depth=4), blocks=(0, 3))
    pixels = torch.randn(2, 3, 6, 8)
    assert Segmenter(features, width=16)(pixels).shape == (2, 2, 6, 8)
    assert Classifier(features, 3, width=16)(pixels).shape == (2, 3)

"""Heads on the features of several blocks (arXiv 2506.08849, section III-B)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastht.tasks.models.features import BlockFeatures


class FeatureFusion(nn.Module):
    """Project each level's features, refine them in a block of its own, and sum the levels.

    Args:
        dim: features of each level, D.
        levels: how many there are.
        width: features of the sum; the paper's is 512.
    """

    def __init__(self, dim: int, levels: int, width: int = 512) -> None:
        super().__init__()
        self.width = width
        self.reduces = nn.ModuleList(nn.Linear(dim, width) for _ in range(levels))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
            )
            for _ in range(levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return ``[B, width, H, W]`` from one ``[B, D, H, W]`` a level, shallow ones first."""
        total: Tensor | None = None
        levels = zip(maps, self.reduces, self.blocks, strict=True)
        for features, reduce, block in reversed(list(levels)):
            level = block(reduce(features.movedim(1, -1)))
            total = level if total is None else total + level
        assert total is not None  # there is at least one level
        return total.movedim(-1, 1)


class SegmentationHead(nn.Module):
    """Classify each patch, then enlarge the logits to the image.

    A 1x1 convolution and bilinear interpolation are both linear and act on different axes, and the
    interpolation's weights sum to 1, so that their order changes rounding alone. This one
    interpolates as many maps as there are classes, where the published code interpolates 512.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits ``[B, classes, *size]`` from ``[B, width, H, W]``."""
        return F.interpolate(self.conv(features), size, mode="bilinear", align_corners=False)


class ClassificationHead(nn.Module):
    """Average the features over the image; two linear layers with ReLU and dropout between.

    Args:
        width: features, of the hidden layer too.
        classes: how many there are.
        dropout: probability of zeroing a hidden feature.
    """

    def __init__(self, width: int, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, classes)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` from ``[B, width, H, W]``."""
        return self.layers(features.mean(dim=(2, 3)))


class Segmenter(nn.Module):
    """A vision tower with a segmentation head.

    Args:
        features: the tower.
        classes: 2 for a lesion and the rest.
        width: features of the head.
    """

    def __init__(self, features: BlockFeatures, classes: int = 2, width: int = 512) -> None:
        super().__init__()
        self.features = features
        self.fusion = FeatureFusion(features.dim, len(features.blocks), width)
        self.head = SegmentationHead(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, classes, height, width]`` of ``[B, 3, height, width]`` images."""
        size = (images.shape[-2], images.shape[-1])
        return self.head(self.fusion(self.features(images)), size)


class Classifier(nn.Module):
    """A vision tower with a classification head.

    Args:
        features: the tower.
        classes: how many there are.
        width: features of the head.
    """

    def __init__(self, features: BlockFeatures, classes: int, width: int = 512) -> None:
        super().__init__()
        self.features = features
        self.fusion = FeatureFusion(features.dim, len(features.blocks), width)
        self.head = ClassificationHead(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of ``[B, 3, height, width]`` images."""
        return self.head(self.fusion(self.features(images)))

"""The adapter of NextGen-UIA, transcribed: their parameter names, their arithmetic.

Source: github.com/jinggqu/NextGen-UIA, src/adapters/mona.py. Written independently of fastht, from
convolution layers and an FFT, so that it can stand as a second opinion. Their dropout is fixed at
0.1 and their modules take ``[N, B, D]``; here the one is an argument and the other ``[B, N, D]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANTS = ("hybrid", "noise_aware", "freq_enhanced", "baseline")
HOSTS = {
    "open_clip": "visual.transformer.resblocks.{}.mona.clip_mona.",
    "timm": "visual.trunk.blocks.{}.mona.clip_mona.",
    "openai": "visual.transformer.resblocks.{}.mona.",
}


class PublishedConv(nn.Module):
    """What happens to the bottleneck's channel maps ``[B, C, H, W]``."""

    def __init__(self, channels: int, variant: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.conv2 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv3 = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.projector = nn.Conv2d(channels, channels, 1)
        if variant in ("hybrid", "freq_enhanced"):
            self.freq_filter = nn.Parameter(torch.ones(channels))
        if variant in ("hybrid", "noise_aware"):
            self.noise_estimator = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(channels, channels // 4, 1),
                nn.ReLU(),
                nn.Conv2d(channels // 4, 3, 1),
                nn.Softmax(dim=1),
            )

    def forward(self, maps: Tensor) -> Tensor:
        filtered = maps
        if hasattr(self, "freq_filter"):
            spectrum = torch.fft.rfft2(maps, dim=(2, 3)) * self.freq_filter[None, :, None, None]
            filtered = torch.fft.irfft2(spectrum, s=maps.shape[2:], dim=(2, 3))
        outputs = [conv(filtered) for conv in (self.conv1, self.conv2, self.conv3)]
        if hasattr(self, "noise_estimator"):
            weights = self.noise_estimator(filtered)
            mixed = sum(output * weights[:, i : i + 1] for i, output in enumerate(outputs))
        else:
            mixed = sum(outputs) / 3.0
        mixed = mixed + maps
        return mixed + self.projector(mixed)


class PublishedMona(nn.Module):
    """One published adapter, of any of their four variants.

    Args:
        dim: features a token.
        bottleneck_dim: channels of the bottleneck.
        variant: one of ``VARIANTS``.
        dropout: theirs is 0.1.
    """

    def __init__(
        self, dim: int, bottleneck_dim: int = 64, variant: str = "hybrid", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; choose one of {VARIANTS}")
        self.project1 = nn.Linear(dim, bottleneck_dim)
        self.project2 = nn.Linear(bottleneck_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.adapter_conv = PublishedConv(bottleneck_dim, variant)
        self.norm = nn.LayerNorm(dim)
        self.gamma = nn.Parameter(torch.ones(dim) * 1e-6)
        self.gammax = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, hw_shapes: tuple[int, int]) -> Tensor:
        """Add the adapter's update to ``x: [B, 1 + H * W, D]``, whose first token is the class."""
        down = self.project1(self.norm(x) * self.gamma + x * self.gammax)
        class_token, patches = down[:, :1], down[:, 1:]
        maps = patches.unflatten(1, hw_shapes).permute(0, 3, 1, 2)
        patches = self.adapter_conv(maps).permute(0, 2, 3, 1).flatten(1, 2)
        hidden = F.gelu(torch.cat([class_token, patches], dim=1))
        return x + self.project2(self.dropout(hidden))


def published_file(
    adapters: list[PublishedMona], host: str = "open_clip", prefix: str = ""
) -> dict[str, Tensor]:
    """Name the adapters of blocks 0, 1, ... as their fine-tuning saves them for one host."""
    return {
        prefix + HOSTS[host].format(index) + name: parameter.data
        for index, adapter in enumerate(adapters)
        for name, parameter in adapter.named_parameters()
    }

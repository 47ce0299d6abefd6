"""A vision transformer small enough to build in a millisecond, and what a test asks of a model."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


class TinyBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(dim)
        self.mlp = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln(x))


class TinyTower(nn.Module):
    """Laid out like open_clip's VisionTransformer: class token first, batch first."""

    def __init__(self, dim: int = 12, depth: int = 2, grid: tuple[int, int] = (3, 4)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, dim, kernel_size=2, stride=2, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(dim))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(TinyBlock(dim) for _ in range(depth))
        self.transformer.batch_first = True
        self.grid_size = grid

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        for block in self.transformer.resblocks:
            x = block(x)
        return x


def tiny_tower(seed: int = 0, **kwargs: Any) -> TinyTower:
    """Build a tower in evaluation mode; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyTower(**kwargs).eval()


def images(grid: tuple[int, int] = (3, 4), dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (2, 3, 2 * grid[0], 2 * grid[1])
    return torch.randn(shape, generator=generator).to(dtype)


def randomize(parameters: Any, seed: int = 1) -> None:
    """Give parameters values that training could have: none left at its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise.to(parameter.dtype))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Describe all that a failing call must leave as it was, down to the bytes."""
    tensors = {
        name: (
            id(tensor),
            tensor.dtype,
            tensor.requires_grad,
            None
            if tensor.is_meta
            else hashlib.sha256(
                tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            ).hexdigest(),
        )
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    modules = {
        name: (id(module), module.training, tuple(module._forward_hooks), tuple(module.__dict__))
        for name, module in model.named_modules()
    }
    return {"tensors": tensors, "modules": modules}

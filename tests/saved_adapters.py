"""Small adapters outside a model, and whether two are equal."""

from __future__ import annotations

from typing import Any

import torch

from fastht import HTAdapter, HTConfig
from fastht.saved import SavedAdapter


def make(seed: int = 0, config: HTConfig | None = None) -> SavedAdapter:
    """Make an adapter for a tower of 2 blocks of 8 features."""
    config = config or HTConfig(bottleneck_dim=4)
    grid = (3, 4) if config.has_filter and config.spectral == "full" else None
    base = {
        "dim": 8,
        "depth": 2,
        "grid_size": [3, 4],
        "num_prefix_tokens": 1,
        "name": "tiny",
        "fingerprint": [0.5, -0.25],
    }
    one = HTAdapter(8, config, grid_size=grid, device="meta")
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"blocks.{index}.{name}": torch.randn(p.shape, generator=generator)
        for index in config.layer_indices(2)
        for name, p in one.named_parameters()
    }
    return SavedAdapter(config, base, weights, grid)


def same(a: SavedAdapter, b: Any) -> bool:
    """Whether two adapters are equal, bit by bit."""
    return (
        (a.config, dict(a.base), a.filter_grid_size) == (b.config, dict(b.base), b.filter_grid_size)
        and a.weights.keys() == b.weights.keys()
        and all(
            t.dtype == b.weights[name].dtype and torch.equal(t, b.weights[name])
            for name, t in a.weights.items()
        )
    )

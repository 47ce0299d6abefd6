"""What the CPU suite times: one adapter at four shapes, and who computes it.

- ``cpu``: the native backend
- ``eager``: the reference
- ``compile``: the reference under ``torch.compile(fullgraph=True)``
- ``gemms``: the matrix products with the D-wide activations alone, two forward and four backward,
  as ``torch.mm``; what an adapter whose every other step is free would take
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu.meter import Contestant
from fastht import HTAdapter, HTConfig
from fastht.ops import BackendUnavailableError, resolve_backend

BACKENDS = {"cpu": "cpu", "eager": "reference"}
CONTESTANTS = (*BACKENDS, "compile", "gemms")
DTYPES = ("float32", "bfloat16")
PASSES = ("forward", "backward", "both")
CHANNELS = 64
DROPOUT = 0.1


@dataclass(frozen=True)
class Shape:
    """Tokens ``[batch, 1 + side * side, dim]``: a class token and a square grid of patches."""

    batch: int
    side: int
    dim: int

    @property
    def grid(self) -> tuple[int, int]:
        return (self.side, self.side)

    @property
    def tokens(self) -> tuple[int, int, int]:
        return (self.batch, 1 + self.side * self.side, self.dim)

    def flop(self, part: str) -> int:
        """Return what the products with D-wide activations compute; nothing else grows with D."""
        products = {"forward": 2, "backward": 4, "both": 6}[part]
        return products * 2 * self.batch * self.tokens[1] * self.dim * CHANNELS


SHAPES = {
    "x".join(map(str, shape.tokens)): shape
    for shape in (Shape(1, 14, 768), Shape(8, 14, 768), Shape(8, 24, 1024), Shape(32, 7, 768))
}


def unusable(contestant: str, dtype: str) -> str | None:
    """Return why a contestant cannot run here on tokens of ``dtype``, or ``None``."""
    try:
        resolve_backend(BACKENDS.get(contestant, "reference"), "cpu", getattr(torch, dtype))
    except (ValueError, BackendUnavailableError) as error:
        return str(error)
    return None


def make_adapter(shape: Shape, backend: str) -> HTAdapter:
    """Return the same adapter every time: float32 parameters that bfloat16 can hold exactly.

    The published initialisation leaves the LayerNorm's share at 1e-6, where an error in it would
    not show; here every term counts.
    """
    torch.manual_seed(0)
    config = HTConfig(bottleneck_dim=CHANNELS, dropout=DROPOUT, init="paper")
    adapter = HTAdapter(shape.dim, config, backend=backend)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            if name in ("gamma", "gammax", "norm.weight", "norm.bias", "spectral_filter"):
                p.copy_((name not in ("gamma", "norm.bias")) + 0.3 * torch.randn(p.shape))
            p.copy_(p.bfloat16())
    return adapter


def make_tokens(shape: Shape, dtype: str, seed: int) -> Tensor:
    """Return random ``[B, N, D]`` tokens, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape.tokens, generator=generator).to(getattr(torch, dtype))


def contestants(shape: Shape, dtype: str) -> dict[str, dict[str, Contestant]]:
    """Return who can run here, by name and pass, in training mode and on the same inputs."""
    torch.compiler.reset()  # each case compiles for its own sizes and none counts as a recompile
    made = {}
    for name in CONTESTANTS:
        if unusable(name, dtype) is not None:
            continue
        if name == "gemms":
            made[name] = gemms(shape, dtype)
            continue
        adapter = make_adapter(shape, BACKENDS.get(name, "reference"))
        call = torch.compile(adapter, fullgraph=True) if name == "compile" else adapter
        made[name] = adapter_passes(shape, dtype, adapter, call)
    return made


def adapter_passes(
    shape: Shape, dtype: str, adapter: HTAdapter, call: Callable[..., Tensor]
) -> dict[str, Contestant]:
    """Return the three passes of an adapter; ``call`` is it, or what was compiled from it.

    Gradients, of x and of every parameter, are returned and nowhere accumulated, so none is left
    over from another round.
    """
    x, dout = make_tokens(shape, dtype, 1).requires_grad_(), make_tokens(shape, dtype, 2)
    leaves = (x, *adapter.parameters())

    def forward(_: None = None) -> Tensor:
        return call(x, shape.grid)

    def backward(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, leaves, dout)

    def both(_: None) -> tuple[Tensor, tuple[Tensor, ...]]:
        out = forward()
        return out, backward(out)  # in a tower the next block keeps it, so nobody frees it here

    return {
        "forward": Contestant(forward),
        "backward": Contestant(backward, prepare=forward),
        "both": Contestant(both),
    }


def gemms(shape: Shape, dtype: str) -> dict[str, Contestant]:
    """Return the products of the three passes as ``torch.mm`` of the same sizes and strides."""
    rows = shape.batch * shape.tokens[1]

    def random(*size: int) -> Tensor:
        return torch.randn(size).to(getattr(torch, dtype))

    x, h, dout = (random(rows, shape.dim) for _ in range(3))
    z, du = (random(rows, CHANNELS) for _ in range(2))
    down, up = random(CHANNELS, shape.dim), random(shape.dim, CHANNELS)

    def forward(_: Any = None) -> list[Tensor]:
        return [x @ down.T, z @ up.T]

    def backward(_: Any = None) -> list[Tensor]:
        return [dout @ up, dout.T @ z, du @ down, du.T @ h]

    return {
        "forward": Contestant(forward),
        "backward": Contestant(backward),
        "both": Contestant(lambda _: forward() + backward()),
    }

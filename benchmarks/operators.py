"""Who computes one adapter in the suites.

- the fused backend, by its own name: ``triton`` on a GPU, ``cpu`` on a CPU
- ``published``: the reference as it is, with the FFT pair that NextGen-UIA's code runs
- ``eager``: plain PyTorch of someone who saw that this pair cancels
- ``compile``: ``torch.compile(fullgraph=True)`` of ``eager``
- ``gemms``: the matrix products with the D-wide activations alone, two forward and four backward,
  as ``torch.mm``; what an adapter whose every other step is free would take

All of them train the same weights with dropout on the same inputs, which rotate past the last-level
cache. Gradients, of x and of every parameter, are returned and nowhere accumulated. A backward pass
timed alone finds what its forward pass just left in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import DEVICE, FUSED, Shape
from fastht import HTAdapter, HTConfig, ops, reference
from fastht.bench import gate
from fastht.bench.machine import cache_bytes
from fastht.bench.meter import Contestant, Rotation
from fastht.ops import BackendUnavailableError, resolve_backend

ADAPTERS = (FUSED, "published", "eager", "compile")
CONTESTANTS = (*ADAPTERS, "gemms")
DROPOUT = 0.1

Inputs = tuple[Tensor, Tensor]


def unusable(contestant: str, dtype: str) -> str | None:
    """Return why a contestant cannot run here on tokens of ``dtype``, or ``None``."""
    backend = FUSED if contestant == FUSED else "reference"
    try:
        resolve_backend(backend, DEVICE, getattr(torch, dtype))
    except (ValueError, BackendUnavailableError) as error:
        return str(error)
    return None


def make_adapter(shape: Shape, backend: str) -> HTAdapter:
    """Return the same adapter every time: float32 parameters that bfloat16 can hold exactly.

    The published initialisation leaves the LayerNorm's share at 1e-6, where an error in it would
    not show; here every term counts. The noise gate's hidden units stay off ReLU's kink.
    """
    torch.manual_seed(0)
    config = HTConfig(bottleneck_dim=shape.channels, dropout=DROPOUT, init="paper")
    adapter = HTAdapter(shape.dim, config, backend=backend)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            if name in ("gamma", "gammax", "norm.weight", "norm.bias", "spectral_filter"):
                p.copy_((name not in ("gamma", "norm.bias")) + 0.3 * torch.randn(p.shape))
            if name == "noise_gate.0.bias":
                p.copy_(gate.off_the_kink(p))
            p.copy_(p.bfloat16())
    return adapter.to(DEVICE)


def make_inputs(shape: Shape, dtype: str, seed: int) -> Inputs:
    """Return random tokens and a gradient of the output, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape.tokens, generator=generator) for _ in range(2))
    x, dout = (t.to(DEVICE, getattr(torch, dtype)) for t in made)
    return x, dout


def rotation(shape: Shape, dtype: str) -> Rotation[Inputs]:
    """Return sets of inputs in memory of their own, with gradients asked of x."""
    x, dout = make_inputs(shape, dtype, 1)

    def copies() -> Inputs:
        return x.clone().requires_grad_(), dout.clone()

    return Rotation(copies, 2 * x.nbytes, cache_bytes(DEVICE))


class PlainAdapter(nn.Module):
    """The reference without the FFT pair, which cancels for one filter value a channel.

    The filter is folded into the convolutions and the gate, as the fused kernels do.
    """

    def __init__(self, adapter: HTAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Apply the adapter to ``[B, N, D]`` tokens with one class token."""
        params = dict(self.adapter.named_parameters())
        scale = params.pop("spectral_filter")
        for k in reference.KERNEL_SIZES:
            params[f"conv{k}.weight"] = params[f"conv{k}.weight"] * scale[:, None, None, None]
        params["noise_gate.0.weight"] = params["noise_gate.0.weight"] * scale
        dropout = self.adapter.config.dropout if self.training else 0.0
        return reference.ht_adapter(
            x, params, grid_size=grid_size, num_prefix_tokens=1, dropout=dropout
        )


def make_operator(name: str, shape: Shape) -> nn.Module:
    """Return one of ``ADAPTERS`` as a module called with tokens and grid."""
    adapter = make_adapter(shape, FUSED if name == FUSED else "reference")
    if name in (FUSED, "published"):
        return adapter
    plain = PlainAdapter(adapter)
    return plain if name == "eager" else torch.compile(plain, fullgraph=True, dynamic=False)


def passes(operator: nn.Module, shape: Shape, inputs: Rotation[Inputs]) -> dict[str, Contestant]:
    """Return the three passes of an adapter."""
    parameters = tuple(operator.parameters())

    def forward(chosen: Inputs) -> Tensor:
        return operator(chosen[0], shape.grid)

    def forward_first() -> tuple[Inputs, Tensor]:
        chosen = inputs.next()
        return chosen, forward(chosen)

    def backward(prepared: tuple[Inputs, Tensor]) -> tuple[Tensor, ...]:
        (x, dout), out = prepared
        return torch.autograd.grad(out, (x, *parameters), dout)

    def both(chosen: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        out = forward(chosen)
        return out, backward((chosen, out))  # in a tower the next block keeps out: none frees it

    return {
        "forward": Contestant(forward, inputs.next),
        "backward": Contestant(backward, forward_first),
        "both": Contestant(both, inputs.next),
    }


def gemms(shape: Shape, dtype: str, inputs: Rotation[Inputs]) -> dict[str, Contestant]:
    """Return the products of the three passes as ``torch.mm`` of the same sizes and strides."""

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=DEVICE).to(getattr(torch, dtype))

    z, du = (random(shape.rows, shape.channels) for _ in range(2))
    down, up = random(shape.channels, shape.dim), random(shape.dim, shape.channels)

    def forward(chosen: Inputs) -> list[Tensor]:
        x = chosen[0].flatten(0, 1)
        return [x @ down.T, z @ up.T]

    def backward(chosen: Inputs) -> list[Tensor]:
        x, dout = (t.flatten(0, 1) for t in chosen)
        return [dout @ up, dout.T @ z, du @ down, du.T @ x]

    def without_gradients(run: Any) -> Contestant:
        return Contestant(torch.no_grad()(run), inputs.next)

    return {
        "forward": without_gradients(forward),
        "backward": without_gradients(backward),
        "both": without_gradients(lambda chosen: forward(chosen) + backward(chosen)),
    }


def contestants(
    names: tuple[str, ...], shape: Shape, dtype: str
) -> dict[str, dict[str, Contestant]]:
    """Return who can run here, by name and pass; the fused one has passed the gate."""
    torch.compiler.reset()  # each case compiles for its own sizes and none counts as a recompile
    inputs = rotation(shape, dtype)
    made = {}
    for name in names:
        if unusable(name, dtype) is not None:
            continue
        if name == FUSED:
            check(shape, dtype)
        if name == "gemms":
            made[name] = gemms(shape, dtype, inputs)
        else:
            made[name] = passes(make_operator(name, shape), shape, inputs)
    return made


def check(shape: Shape, dtype: str, backend: str = FUSED) -> float:
    """Hold a fused backend to the gate at a shape.

    Returns:
        The largest error, in parts of its bound.

    Raises:
        IncorrectError: it computes something else than the reference.
    """
    adapter = make_adapter(shape, backend)
    params = {name: p.detach() for name, p in adapter.named_parameters()}

    def fused(x: Tensor, leaves: Mapping[str, Tensor], **options: Any) -> Tensor:
        return ops.ht_adapter(x, leaves, backend=backend, **options)

    x, dout = make_inputs(shape, dtype, 3)
    worst = gate.check(fused, x, dout, params, grid_size=shape.grid, num_prefix_tokens=1)
    gate.check_dropout(
        lambda: adapter.train()(x, shape.grid), lambda: adapter.eval()(x, shape.grid), x
    )
    return worst

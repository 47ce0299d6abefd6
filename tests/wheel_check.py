"""Shows that an installed fastht works: run by cibuildwheel for each wheel, and by hand.

Needs no more than the package and its dependencies. Exits with an error unless the native kernels
are there, a model is patched, and a training step with them gives what plain PyTorch gives.
"""

import sys
from pathlib import Path

import torch
from tiny_towers import images, tiny_tower  # beside this script

import fastht


def step(backend: str) -> list[torch.Tensor]:
    """Return loss and gradients of one training step of a patched tower."""
    model = tiny_tower(seed=0)
    config = fastht.HTConfig(init="paper", dropout=0.0, bottleneck_dim=16)
    torch.manual_seed(1)
    fastht.patch(model, config, backend=backend)
    loss = model(images()).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in fastht.adapter_parameters(model))]


def main() -> None:
    """Check the package and say what was found."""
    home = Path(fastht.__file__).parent
    if home.parent == Path(__file__).resolve().parent.parent:
        sys.exit(f"this is the checkout's fastht, not an installed one: {home}")
    status = fastht.backends()["cpu"]
    if not status.usable:
        sys.exit(f"the wheel has no native kernels: {status.detail}")
    for fused, plain in zip(step("cpu"), step("reference"), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)
    print(f"fastht {fastht.__version__} of {home}: patched and trained a step with {status.detail}")


if __name__ == "__main__":
    main()

"""Images that are like their texts, by what makes them so; the KL term of each is small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from loss_cases import DEVICE
from torch import Tensor
from torch.nn import functional as F

from fastht.losses import SoftLabels, SoftTargets, soft_label_loss

SIZE, WIDTH, KINDS = 48, 32, 12
Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]  # images, texts, factors, keys
Normal = Callable[..., Tensor]
Make = Callable[[Normal, torch.Generator], Pairs]


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def certain(normal: Normal, generator: torch.Generator) -> Pairs:
    """One pair leads in each row; others have tags that are alike, or all but so."""
    images = unit(normal(SIZE, WIDTH))
    kind = F.one_hot(torch.randint(KINDS, (SIZE,), generator=generator), KINDS).double()
    similarity = 0.6 + 0.2 * torch.rand(KINDS, KINDS, generator=generator, dtype=torch.float64)
    return images, unit(images + 0.1 * normal(SIZE, WIDTH)), kind @ similarity, kind, None


def apart(constant: float, noise: float) -> Make:
    """Targets are the cosines and a constant, but for some noise: no distance between softmaxes."""

    def make(normal: Normal, generator: torch.Generator) -> Pairs:
        images, other = unit(normal(SIZE, WIDTH)), normal(SIZE, WIDTH)
        other = unit(other - (other * images).sum(1, keepdim=True) * images)
        own = 1 - constant  # so that the own pair's target of 1 is its cosine and the constant too
        texts = own * images + (1 - own**2) ** 0.5 * other
        one = images.new_ones(SIZE, 1)
        q = torch.cat([images, constant * one], dim=1)
        return (
            images,
            texts,
            q,
            torch.cat([unit(texts + noise * normal(SIZE, WIDTH)), one], 1),
            None,
        )

    return make


def captions(normal: Normal, generator: torch.Generator) -> Pairs:
    """Several share a caption, and their pairs lead together."""
    keys = torch.randint(SIZE // 4, (SIZE,), generator=generator)
    caption = unit(normal(SIZE // 4, WIDTH))[keys]
    images, texts = (unit(caption + 1e-4 * normal(SIZE, WIDTH)) for _ in "12")
    return images, texts, unit(images + 1e-2 * normal(SIZE, WIDTH)), texts, keys


# Name -> how pairs are made, temperature, and between what the divergence lies.
CASES: dict[str, tuple[Make, float, float, float]] = {
    "certain": (certain, 0.02, 1e-3, 3e-2),
    "apart 1e-1": (apart(0.5, 0.1), 0.04, 1e-2, 1.0),
    "apart 1e-4": (apart(0.9, 1e-3), 0.07, 1e-5, 1e-3),
    "apart 1e-9": (apart(0.5, 1e-5), 0.07, 1e-10, 1e-8),
    "warm": (apart(0.9, 1e-3), 1.0, 1e-8, 1e-6),
    "captions": (captions, 0.1, 1e-7, 1e-4),
}


def pairs(case: str, seed: int, dtype: torch.dtype = torch.float32) -> Pairs:
    """Return pairs of a case, the same numbers in every dtype that holds float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    *tensors, keys = CASES[case][0](normal, generator)
    tensors = [x.float().to(DEVICE, dtype) for x in tensors]
    return *tensors, None if keys is None else keys.to(DEVICE)


def value(case: str, given: Pairs, backend: str, **options: object) -> dict[str, Tensor]:
    """Return the loss and the gradients of the features, in float64."""
    images, texts = (x.clone().requires_grad_() for x in given[:2])
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    targets = SoftTargets.from_factors(*(x.to(wide) for x in given[2:4]))
    labels = SoftLabels(kl=1.0, mse=0.0, temperature=CASES[case][1])
    loss = soft_label_loss(
        images, texts, targets, labels, keys=given[4], backend=backend, **options
    )
    loss.backward()
    found = {"loss": loss.detach(), "d images": images.grad, "d texts": texts.grad}
    return {name: x.double() for name, x in found.items()}

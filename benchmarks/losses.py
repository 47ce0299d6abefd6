"""Who computes a contrastive loss in the suite, forward and backward.

- the fused backend, by its own name: ``triton`` on a GPU, ``blocked`` on a CPU
- ``dense``: plain PyTorch of someone who makes the logits once and reads them both ways
- ``open_clip``: its module; ``chunked``: its SigLIP by chunks of rows, in releases that have it
- ``memeff``, ``siglip-kernel``: public fused kernels for GPUs, where they are installed

Gradients of images, texts and the scale; memeff's temperature is a constant. Features have length 1
and texts are halfway to their images, at the scale of an untrained model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import DEVICE
from fastht.bench.gate import TOLERANCE, refuse
from fastht.bench.machine import cache_bytes
from fastht.bench.meter import Contestant, Rotation
from fastht.losses import SoftLabels, SoftTargets, clip_loss, siglip_loss, soft_label_loss

FUSED = {"cuda": "triton", "cpu": "blocked"}[DEVICE]
DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}[DEVICE]
CONTESTANTS = (FUSED, "dense", "open_clip", "chunked", "memeff", "siglip-kernel")
SCALE, BIAS = {"clip": 14.3, "siglip": 10.0}, -10.0
_EXACT = 4096  # rows up to which the gate's dense form is in float64: beyond, time and memory
_CHUNK = 1024

Leaves = tuple[Tensor, Tensor, Tensor]  # images, texts, scale
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One loss of B images and B texts, ``[batch, width]`` each."""

    loss: str
    batch: int
    width: int = 512

    def __str__(self) -> str:
        return f"{self.loss}-{self.batch}x{self.width}"


TINY = 40  # of a batch where nothing is measured
CASES = tuple(Case(loss, n) for n in (1024, 4096, 16384) for loss in ("clip", "siglip", "soft"))


def make(case: Case, dtype: str) -> Leaves:
    """Return the same features every time."""
    g = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(case.batch, case.width, generator=g) for _ in range(2))
    images, noise = F.normalize(images, dim=1), F.normalize(noise, dim=1)
    texts = F.normalize(images + noise, dim=1)
    images, texts = (x.to(DEVICE, getattr(torch, dtype)) for x in (images, texts))
    return images, texts, torch.tensor(SCALE.get(case.loss, 1.0), device=DEVICE)


def soft_targets(case: Case) -> SoftTargets:
    """Return targets from three tags a sample, of nine dimensions with 93 tags in all."""
    g = torch.Generator().manual_seed(1)
    tags = torch.randint(93, (case.batch, 3), generator=g)
    return SoftTargets.from_tags(
        tags.to(DEVICE), torch.eye(93, device=DEVICE), [i % 9 for i in range(93)]
    )


def dense(case: Case) -> Loss:
    """Return the loss as plain PyTorch writes it."""

    def clip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        logits = scale.to(images.dtype) * (images @ texts.T)
        labels = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def siglip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        logits = scale.to(images.dtype) * (images @ texts.T) + BIAS
        signs = 2 * torch.eye(len(images), dtype=images.dtype, device=images.device) - 1
        return -F.logsigmoid(signs * logits).sum() / len(images)

    def soft(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        return soft_label_loss(images, texts, targets, backend="reference")

    targets = soft_targets(case) if case.loss == "soft" else None
    return {"clip": clip, "siglip": siglip, "soft": soft}[case.loss]


def fused(case: Case) -> Loss:
    """Return the loss of the fused backend."""
    if case.loss == "clip":
        return lambda images, texts, scale: clip_loss(images, texts, scale, backend=FUSED)
    if case.loss == "siglip":
        return lambda images, texts, scale: siglip_loss(images, texts, scale, BIAS, backend=FUSED)
    targets, labels = soft_targets(case), SoftLabels()
    return lambda images, texts, _: soft_label_loss(images, texts, targets, labels, backend=FUSED)


def _open_clip(case: Case) -> Loss | str:
    from open_clip import loss as module

    if case.loss == "clip":
        return module.ClipLoss()
    if case.loss == "siglip":
        loss = module.SigLipLoss()
        return lambda images, texts, scale: loss(images, texts, scale, BIAS)
    return "open_clip has no soft labels"


def _chunked(case: Case) -> Loss | str:
    from open_clip import loss as module

    if case.loss != "siglip":
        return "open_clip has chunks for SigLIP alone"
    if "chunk_size" not in inspect.signature(module.SigLipLoss).parameters:
        return "this release of open_clip has no chunked SigLIP"
    loss = module.SigLipLoss(chunk_size=_CHUNK)
    return lambda images, texts, scale: loss(images, texts, scale, BIAS)


def _memeff(case: Case) -> Loss | str:
    if case.loss != "clip" or DEVICE != "cuda":
        return "memeff has hard labels for a softmax, on CUDA alone"
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(
        temperature=1 / SCALE["clip"], normalized_inputs=True, stable=False
    )
    return lambda images, texts, _: loss(images, texts)


def _siglip_kernel(case: Case) -> Loss | str:
    if case.loss != "siglip" or DEVICE != "cuda":
        return "siglip-kernel is SigLIP on CUDA alone"
    from siglip_kernel import fused_siglip_loss

    bias = torch.tensor(BIAS, device=DEVICE)
    return lambda images, texts, scale: fused_siglip_loss(images, texts, scale.log(), bias)


def find(name: str, case: Case) -> Loss | str:
    """Return a contestant's loss, or why it has none of that case here."""
    makers: dict[str, Callable[[Case], Loss | str]] = {
        FUSED: fused,
        "dense": dense,
        "open_clip": _open_clip,
        "chunked": _chunked,
        "memeff": _memeff,
        "siglip-kernel": _siglip_kernel,
    }
    try:
        return makers[name](case)
    except ImportError as error:
        return f"{error.name} is not installed"


def gradients(loss: Loss, leaves: Leaves) -> tuple[Tensor, ...]:
    """Return the loss and the gradients that it has."""
    value = loss(*leaves)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), *(x for x in found if x is not None)


def contestant(loss: Loss, case: Case, dtype: str) -> Contestant:
    """Return forward and backward on features that rotate past the last-level cache."""
    made = make(case, dtype)

    def copies() -> Leaves:
        images, texts, scale = (x.clone().requires_grad_() for x in made)
        return images, texts, scale

    sets = Rotation(copies, 2 * made[0].nbytes, cache_bytes(DEVICE))
    return Contestant(lambda chosen: gradients(loss, chosen), sets.next)


def check(case: Case, dtype: str) -> None:
    """Hold the fused backend to the dense form at a case.

    Raises:
        IncorrectError: it computes something else.
    """
    made = make(case, dtype)
    wide = torch.float64 if case.batch <= _EXACT else torch.float32

    def leaves(to: torch.dtype | None = None) -> Any:
        return tuple((x if to is None else x.to(to)).clone().requires_grad_() for x in made)

    exact = gradients(dense(case), leaves(wide))
    plain = gradients(dense(case), leaves())
    found = gradients(fused(case), leaves())
    for name, a, p, x in zip(
        ("loss", "d images", "d texts", "d scale"), found, plain, exact, strict=False
    ):
        size = x.abs().max().item()
        error, usual = ((y.to(wide) - x).abs().max().item() / size for y in (a, p))
        bound = max(TOLERANCE[getattr(torch, dtype)], 2 * usual)
        refuse(error, bound, f"{name} of {case} {dtype}")

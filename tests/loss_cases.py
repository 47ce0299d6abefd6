"""Losses to be tested: one a kind, on batches that are the same for every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastht.losses import (
    ClipLoss,
    SigLipLoss,
    SoftLabels,
    SoftTargets,
    backends,
    clip_loss,
    siglip_loss,
    soft_label_loss,
)
from fastht.losses.blocked import pairs
from fastht.losses.registry import resolve
from fastht.ops.registry import BackendUnavailableError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Whether the Triton kernels can run: compiled, or in the interpreter.
CANDIDATES = [
    pytest.param(name, marks=pytest.mark.gpu) if DEVICE == "cuda" else name
    for name, status in backends().items()
    if status.usable and name != "reference"
]


def thin(backend: str, keep: bool) -> None:
    """Leave out what is not to be kept where kernels run in the interpreter, which is slow."""
    if backend == "triton" and DEVICE == "cpu" and not keep:
        pytest.skip("thinned in the interpreter; a GPU runs it")


def skip_unless_taken(backend: str, features: Tensor) -> None:
    """Leave out features that the backend takes none of: Triton's of float64 on a GPU."""
    try:
        resolve(backend, features.device, features.dtype)
    except BackendUnavailableError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Batch:
    """Features of length 1, their scale and bias, keys with repeats, and tags of two kinds."""

    images: Tensor
    texts: Tensor
    scale: Tensor
    bias: Tensor
    keys: Tensor
    tags: Tensor
    similarity: Tensor

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the same numbers in a wider dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return Batch(
            self.images.to(dtype), self.texts.to(dtype), self.scale.to(wide), self.bias.to(wide),
            self.keys, self.tags, self.similarity.to(wide),
        )  # fmt: skip

    def soft(self, missing: str) -> SoftTargets:
        """Return targets from tags; a sample in six has none."""
        return SoftTargets.from_tags(
            self.tags, self.similarity, [0, 0, 0, 1, 1, 2], missing=missing, weights=[1.0, 2.0, 0.5]
        )

    def factors(self) -> SoftTargets:
        """Return targets from factors."""
        p = F.one_hot(self.tags.clamp(min=0), 6).sum(1).to(self.similarity) / 3
        return SoftTargets.from_factors(p @ self.similarity, p)


def make_batch(
    size: int,
    dtype: torch.dtype = torch.float64,
    *,
    width: int = 24,
    scale: float = 20.0,
    alike: float = 0.0,
    seed: int = 0,
) -> Batch:
    """Return a batch; ``alike`` is what texts take of their images, 1 being converged."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(size, width, generator=g, dtype=torch.float64)
    texts = torch.randn(size, width, generator=g, dtype=torch.float64)
    images, texts = F.normalize(images, dim=1), F.normalize(texts + 10 * alike * images, dim=1)
    tags = torch.randint(-1, 6, (size, 3), generator=g)
    tags[::6] = -1
    similarity = torch.rand(6, 6, generator=g, dtype=torch.float64)
    similarity = (similarity + similarity.T) / 2
    keys = torch.randint(-1, max(1, size // 3), (size,), generator=g)
    batch = Batch(
        images, texts, torch.tensor(scale, dtype=torch.float64),
        torch.tensor(-3.0, dtype=torch.float64), keys, tags, similarity,
    ).to(dtype)  # fmt: skip
    return Batch(*(x.to(DEVICE) for x in vars(batch).values()))


Leaves = dict[str, Tensor]
Call = Callable[[Batch, Leaves, str], Tensor]


def _clip(keys: bool = False, directions: str = "both") -> Call:
    def call(batch: Batch, x: Leaves, backend: str) -> Tensor:
        return clip_loss(
            x["images"], x["texts"], x["scale"], keys=batch.keys if keys else None,
            directions=directions, backend=backend,
        )  # fmt: skip

    return call


def _siglip(keys: bool = False) -> Call:
    def call(batch: Batch, x: Leaves, backend: str) -> Tensor:
        return siglip_loss(
            x["images"], x["texts"], x["scale"], x["bias"], keys=batch.keys if keys else None,
            backend=backend,
        )  # fmt: skip

    return call


def _soft(kind: str, keys: bool = False, **options: object) -> Call:
    def call(batch: Batch, x: Leaves, backend: str) -> Tensor:
        targets = batch.factors() if kind == "factors" else batch.soft(kind)
        return soft_label_loss(
            x["images"], x["texts"], targets, SoftLabels(**options),
            keys=batch.keys if keys else None, backend=backend,
        )  # fmt: skip

    return call


def _together(module: type, kind: str, keys: bool) -> Call:
    def call(batch: Batch, x: Leaves, backend: str) -> Tensor:
        loss = module(soft_labels=SoftLabels(kl=0.3, mse=0.9, temperature=0.2), backend=backend)
        return loss(
            x["images"], x["texts"], x["scale"], x["bias"], keys=batch.keys if keys else None,
            soft_targets=batch.soft(kind),
        )  # fmt: skip

    return call


CASES: dict[str, Call] = {
    "clip": _clip(),
    "clip image": _clip(directions="image"),
    "clip text": _clip(directions="text"),
    "clip keys": _clip(keys=True),
    "siglip": _siglip(),
    "siglip keys": _siglip(keys=True),
    "kl image zero": _soft("zero", mse=0.0, directions="image"),
    "kl text ignore": _soft("ignore", mse=0.0, directions="text", temperature=0.5),
    "mse ignore keys": _soft("ignore", keys=True, kl=0.0),
    "soft factors": _soft("factors"),
    "soft zero keys": _soft("zero", keys=True),
    "clip soft ignore": _together(ClipLoss, "ignore", False),
    "clip soft zero keys": _together(ClipLoss, "zero", True),
    "siglip soft ignore keys": _together(SigLipLoss, "ignore", True),
}
LEAVES = ("images", "texts", "scale", "bias")


def evaluate(case: str, batch: Batch, backend: str, upstream: float = 1.0) -> dict[str, Tensor]:
    """Return the loss and the gradients that there are, in float64.

    Skips the test where the backend takes no such features.
    """
    skip_unless_taken(backend, batch.images)
    leaves = {name: getattr(batch, name).detach().clone().requires_grad_() for name in LEAVES}
    loss = CASES[case](batch, leaves, backend)
    (loss * upstream).backward()
    results = {"loss": loss.detach().double()}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            results[f"d {name}"] = leaf.grad.double() / upstream
    return results


def worst_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest error of any result, in parts of its largest value; NaN counts as most.

    What vanishes is measured by 1e-3: a gradient of exactly 0 has no relative error.
    """
    assert found.keys() == expected.keys()
    errors = [
        ((found[n] - x).abs().max() / x.abs().max().clamp(min=1e-3)).item()
        for n, x in expected.items()
    ]
    return max(float("inf") if e != e else e for e in errors)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small batch have many blocks, none of which fits."""
    monkeypatch.setitem(pairs.BLOCKS, "cpu", (16, 24))
    monkeypatch.setitem(pairs.BLOCKS, "cuda", (16, 24))

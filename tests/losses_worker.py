"""What one of two processes of a test of losses does: ``main``.

Each case checks itself, in every rank, against one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import alike_pairs
import pytest
import torch
import torch.distributed as dist
from loss_cases import Batch, make_batch, worst_error
from numerics import Draw, violations
from open_clip import loss as open_clip_loss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastht.losses import (
    ClipLoss,
    SigLipLoss,
    SoftLabels,
    SoftTargets,
    clip_loss,
    siglip_loss,
    soft_label_loss,
)
from fastht.losses.functional import Processes

WORLD = 2
LEAVES = ("images", "texts", "scale", "bias")
BACKENDS = ("blocked", "reference")


def part(batch: Batch, rows: slice) -> Batch:
    """Return some samples of a batch."""
    per_sample = {n: getattr(batch, n)[rows] for n in ("images", "texts", "keys", "tags")}
    return Batch(**vars(batch) | per_sample)


def own(sizes: list[int]) -> slice:
    """Return the rows of this process."""
    start = sum(sizes[: dist.get_rank()])
    return slice(start, start + sizes[dist.get_rank()])


def run(loss: Callable[..., Tensor], batch: Batch, **options: object) -> dict[str, Tensor]:
    """Return loss and gradients."""
    leaves = [getattr(batch, n).clone().requires_grad_() for n in LEAVES]
    value = loss(*leaves, **options)
    value.backward()
    grads = {f"d {n}": x.grad for n, x in zip(LEAVES, leaves, strict=True) if x.grad is not None}
    return {"loss": value.detach()} | grads


def averaged(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average the numbers that every process has, as DDP averages gradients of parameters."""
    for name in ("d scale", "d bias"):
        if name in results:
            dist.all_reduce(results[name])
            results[name] /= WORLD
    return results


def open_clip() -> None:
    """Values and features' gradients are open_clip's in every rank; the scale's on average."""
    batch = make_batch(2 * 17)
    mine = part(batch, own([17, 17]))
    at = {"rank": dist.get_rank(), "world_size": WORLD}
    flags = [(True, True), (False, True), (False, False)]
    pairs = [
        (ClipLoss(local, grad, **at, backend=backend),
         open_clip_loss.ClipLoss(local, grad, **at))
        for local, grad in flags for backend in BACKENDS
    ] + [
        (SigLipLoss(**at, dist_impl=way), open_clip_loss.SigLipLoss(**at, dist_impl=way))
        for way in (None, "gather")
    ]  # fmt: skip
    for ours, theirs in pairs:
        found, expected = averaged(run(ours, mine)), averaged(run(theirs, mine))
        assert worst_error(found, expected) < 1e-10
        spoiled = found | {"d texts": 1.02 * found["d texts"]}
        assert worst_error(spoiled, expected) > 1e-3


def losses(batch: Batch, soft_options: dict[str, object], backend: str = "blocked", **at: object):
    """Name losses, each as it is called with a batch."""
    soft = SoftLabels(**soft_options)

    def factors(b: Batch) -> SoftTargets:
        return b.factors()

    clip = ClipLoss(True, True, **at, backend=backend)
    siglip = SigLipLoss(**at, backend=backend)
    mixed = ClipLoss(True, True, **at, backend=backend, soft_labels=soft)
    mixed_siglip = SigLipLoss(**at, backend=backend, soft_labels=soft)
    mixed_global = ClipLoss(False, True, **at, backend=backend, soft_labels=soft)
    return {
        "clip": lambda b: run(clip, b),
        "clip keys": lambda b: run(clip, b, keys=b.keys),
        "siglip keys": lambda b: run(siglip, b, keys=b.keys),
        "siglip soft tags": lambda b: run(mixed_siglip, b, soft_targets=b.soft("ignore")),
        "soft tags": lambda b: run(mixed, b, soft_targets=b.soft("ignore")),
        "soft factors keys": lambda b: run(mixed, b, soft_targets=factors(b), keys=b.keys),
        "soft global": lambda b: run(mixed_global, b, soft_targets=b.soft("zero")),
    }


def one_process() -> None:
    """Gradients under DDP's averaging, and the mean of losses, are one process's; also uneven."""
    at = {"rank": dist.get_rank(), "world_size": WORLD}
    for sizes in ([13, 13], [5, 20], [1, 8]):
        batch = make_batch(sum(sizes))
        rows = own(sizes)
        for backend in BACKENDS:
            together = losses(batch, {}, backend, **at)
            for name, alone in losses(batch, {}, "reference").items():
                found, expected = together[name](part(batch, rows)), alone(batch)
                expected["d images"] = WORLD * expected["d images"][rows]
                expected["d texts"] = WORLD * expected["d texts"][rows]
                dist.all_reduce(found["loss"])
                found["loss"] /= WORLD
                assert worst_error(averaged(found), expected) < 1e-10, (name, sizes, backend)


def small_divergences() -> None:
    """A small KL term keeps its digits where rows and columns are put together from parts."""
    together = Processes(dist.get_rank(), WORLD)
    for case in ("certain", "apart 1e-4", "captions"):

        def draw(i: int, case: str = case) -> Draw:
            given = alike_pairs.pairs(case, i)
            rows = own([20, len(given[0]) - 20])
            mine = tuple(None if x is None else x[rows] for x in given)
            found = {"loss": alike_pairs.value(case, mine, "blocked", processes=together)["loss"]}
            dist.all_reduce(found["loss"])
            found["loss"] /= WORLD
            plain = alike_pairs.value(case, given, "reference")
            exact = alike_pairs.value(case, alike_pairs.pairs(case, i, torch.float64), "reference")
            return Draw(found, plain, {"loss": exact["loss"]}, given[0], given[0])

        assert violations(draw, 3, ceilings=False) == {}


def local_scope() -> None:
    """With a local scope soft labels are those of each process's own pairs."""
    at = {"rank": dist.get_rank(), "world_size": WORLD}
    batch = make_batch(24)
    mine = part(batch, own([12, 12]))
    found = losses(mine, {"scope": "local"}, **at)["soft tags"](mine)
    hard = losses(mine, {}, **at)["clip"](mine)
    images, texts = (x.clone().requires_grad_() for x in (mine.images, mine.texts))
    soft = soft_label_loss(images, texts, mine.soft("ignore"), backend="reference")
    soft.backward()
    assert worst_error({"": found["loss"]}, {"": hard["loss"] + soft}) < 1e-10
    assert worst_error({"": found["d images"]}, {"": hard["d images"] + images.grad}) < 1e-10
    assert worst_error({"": found["d texts"]}, {"": hard["d texts"] + texts.grad}) < 1e-10


class Towers(nn.Module):
    """Two towers of one layer, their scale and bias, and a loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.images, self.texts = nn.Linear(24, 9).double(), nn.Linear(24, 9).double()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
        self.loss = loss

    def forward(self, batch: Batch) -> Tensor:
        images, texts = (
            nn.functional.normalize(tower(x), dim=1)
            for tower, x in ((self.images, batch.images), (self.texts, batch.texts))
        )
        return self.loss(images, texts, self.scale.exp(), self.bias, keys=batch.keys)


def ddp() -> None:
    """DistributedDataParallel trains both towers as one process does."""
    at = {"rank": dist.get_rank(), "world_size": WORLD}
    batch = make_batch(16)
    mine = part(batch, own([8, 8]))
    for together, alone in (
        (ClipLoss(True, True, **at), ClipLoss()),
        (ClipLoss(False, True, **at), ClipLoss()),
        (SigLipLoss(**at), SigLipLoss()),
    ):
        model, whole = DistributedDataParallel(Towers(together)), Towers(alone)
        model(mine).backward()
        whole(batch).backward()
        for (name, p), q in zip(model.module.named_parameters(), whole.parameters(), strict=True):
            assert worst_error({name: p.grad}, {name: q.grad}) < 1e-10


def upstream() -> None:
    """Each process may weigh its loss: columns count with their owner's weight."""
    at = {"rank": dist.get_rank(), "world_size": WORLD}
    batch = make_batch(2 * 9)
    mine = part(batch, own([9, 9]))
    factor = 1.0 + 2.0 * dist.get_rank()
    for local, grad in [(True, True), (False, True)]:
        ours = ClipLoss(local, grad, **at)
        theirs = open_clip_loss.ClipLoss(local, grad, **at)
        found, expected = (
            averaged(run(lambda *x, f=f: factor * f(*x), mine)) for f in (ours, theirs)
        )
        if not local:
            found.pop("d scale"), expected.pop("d scale")
        assert worst_error(found, expected) < 1e-10


def graph() -> None:
    """One graph holds the exchange, for batches of equal and of different sizes."""
    at = {"rank": dist.get_rank(), "world_size": WORLD}
    for sizes in ([8, 8], [3, 7]):
        batch = make_batch(sum(sizes))
        mine = part(batch, own(sizes))
        for loss in (ClipLoss(True, True, **at), SigLipLoss(**at)):
            torch.compiler.reset()
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
            found, expected = (run(f, mine, keys=mine.keys) for f in (compiled, loss))
            assert worst_error(found, expected) < 1e-12


def errors() -> None:
    """What is wrong in one process is told to all: none waits for another."""
    at = {"rank": dist.get_rank(), "world_size": WORLD}
    first = dist.get_rank() == 0
    batch = make_batch(8)
    texts = batch.texts[:5] if first else batch.texts
    with pytest.raises(ValueError, match=r"\[B, E\]" if first else r"processes \[0\]"):
        ClipLoss(**at)(batch.images, texts, batch.scale)
    images = batch.images[:0] if first else batch.images
    with pytest.raises(ValueError, match="empty batch" if first else r"processes \[0\]"):
        SigLipLoss(**at)(images, images, batch.scale)
    keys = batch.keys if first else None
    with pytest.raises(ValueError, match="some with keys"):
        ClipLoss(**at)(batch.images, batch.texts, batch.scale, keys=keys)
    images = batch.images[:, :5] if first else batch.images
    with pytest.raises(ValueError, match="different width"):
        ClipLoss(**at)(images, images, batch.scale)
    with pytest.raises(ValueError, match="rank and world_size are 0 and 3"):
        ClipLoss(world_size=3)(batch.images, batch.texts, batch.scale)
    alone = clip_loss(batch.images, batch.texts, batch.scale)
    assert worst_error({"": ClipLoss(**at)(batch.images, batch.texts, batch.scale)}, {"": alone})
    assert siglip_loss(batch.images, batch.texts, batch.scale, batch.bias).isfinite()


CASES = {
    f.__name__: f
    for f in (
        open_clip, one_process, small_divergences, local_scope, ddp, upstream, graph, errors
    )
}  # fmt: skip


def main(cases: str, folder: str, rank: str) -> None:
    """Run cases, separated by commas, in one process of two."""
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=WORLD)
    for case in cases.split(","):
        CASES[case]()
        print(f"{case} agrees", flush=True)
    dist.destroy_process_group()

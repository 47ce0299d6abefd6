"""What one process of a distributed test does: ``main``.

Each case checks itself, in every rank, against the same model in one process.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from tiny_towers import randomize
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from vits import VITS, loss

import fastht

WORLD_SIZE = 2
CONFIG = fastht.HTConfig(dropout=0.0)
VIT = VITS["registers"]
_base = VIT.build


def _model(config: fastht.HTConfig = CONFIG, **options: str) -> nn.Module:
    torch.manual_seed(1)  # the same weights in every process
    model = fastht.patch(_base(), config, **options)  # type: ignore[arg-type]
    randomize(fastht.adapter_parameters(model))
    return model.train()


def _images() -> tuple[Tensor, Tensor]:
    """Return the joint batch and this rank's half of it."""
    image = VIT.image(batch=2 * WORLD_SIZE)
    return image, image.chunk(WORLD_SIZE)[dist.get_rank()]


def _joint_gradients(image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the features and adapter gradients of one process with the whole batch."""
    model = _model()
    features = model(image)
    sum(loss(part) for part in features.chunk(WORLD_SIZE)).div(WORLD_SIZE).backward()
    adapters = fastht.adapters(model).items()
    gradients = {f"blocks.{i}.{n}": p.grad for i, a in adapters for n, p in a.named_parameters()}
    return features.detach(), gradients


def _close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def _check_gradients(model: nn.Module, expected: dict[str, Tensor]) -> None:
    for index, adapter in fastht.adapters(model).items():
        for name, parameter in adapter.named_parameters():
            gradient = parameter.grad
            assert gradient is not None, name
            whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            _close(whole, expected[f"blocks.{index}.{name}"])


def ddp() -> None:
    image, half = _images()
    features, gradients = _joint_gradients(image)
    model = DistributedDataParallel(_model())
    out = model(half)
    _close(out.detach(), features.chunk(WORLD_SIZE)[dist.get_rank()])
    loss(out).backward()
    _check_gradients(model, gradients)

    # A model inside DDP is asked like any other ...
    fastht.print_trainable_parameters(model)
    own = fastht.adapter_parameters(model)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in own}
    with torch.no_grad(), fastht.disable_adapter(model):
        base = _base().train()
        assert torch.equal(model(half), base(half))
    # ... steps in step, and is saved as one process would save it.
    torch.optim.SGD(own, lr=0.1).step()
    for name, tensor in fastht.adapter_state_dict(model).items():
        copies = [torch.empty_like(tensor) for _ in range(WORLD_SIZE)]
        dist.all_gather(copies, tensor.contiguous())
        assert torch.equal(copies[0], copies[1]), name
    fastht.unpatch(model)


def ddp_checkpointed() -> None:
    image, half = _images()
    _, gradients = _joint_gradients(image)
    model = _model()
    model.set_grad_checkpointing(True)
    model = DistributedDataParallel(model)
    loss(model(half)).backward()
    _check_gradients(model, gradients)


def _shard(model: nn.Module, **kwargs: object) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, **kwargs)
    return fully_shard(model, **kwargs)


def ddp_recomputed() -> None:
    image, half = _images()
    _, gradients = _joint_gradients(image)
    for recompute in ("mlp", "block"):
        model = DistributedDataParallel(_model(recompute=recompute))
        loss(model(half)).backward()
        _check_gradients(model, gradients)


def fsdp2_recomputed() -> None:
    image, half = _images()
    _, gradients = _joint_gradients(image)
    for recompute in ("mlp", "block"):
        model = _shard(_model(recompute=recompute))
        loss(model(half)).backward()
        _check_gradients(model, gradients)


def fsdp2_checkpointed() -> None:
    image, half = _images()
    _, gradients = _joint_gradients(image)
    model = _model()
    model.set_grad_checkpointing(True)
    _shard(model)
    loss(model(half)).backward()
    _check_gradients(model, gradients)


def fsdp2() -> None:
    image, half = _images()
    features, gradients = _joint_gradients(image)
    whole = fastht.adapter_state_dict(_model())
    model = _shard(_model())
    out = model(half)
    _close(out.detach(), features.chunk(WORLD_SIZE)[dist.get_rank()])
    loss(out).backward()
    _check_gradients(model, gradients)

    # The shards are put together again, in every rank.
    state = fastht.adapter_state_dict(model)
    assert list(state) == list(whole)
    for name, tensor in state.items():
        assert not hasattr(tensor, "full_tensor"), name
        assert torch.equal(tensor, whole[name]), name
    with torch.no_grad(), fastht.disable_adapter(model):
        _close(model(half), _base()(half))
    torch.optim.SGD(fastht.adapter_parameters(model), lr=0.1).step()
    changed = fastht.adapter_state_dict(model)
    for name, tensor in changed.items():
        _close(tensor, whole[name] - 0.1 * gradients[name])
    total = sum(p.numel() for p in _model().parameters())
    assert sum(p.numel() for p in model.parameters()) == total


def fsdp2_mixed_precision() -> None:
    # A bf16 base with float32 adapters: FSDP2 wants one dtype among the trainable parameters alone.
    torch.manual_seed(1)
    model = fastht.patch(_base().bfloat16(), fastht.HTConfig(dropout=0.0, init="paper"))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    _shard(model, mp_policy=policy)
    _, half = _images()
    loss(model(half.bfloat16()).float()).backward()
    for parameter in fastht.adapter_parameters(model):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.full_tensor().isfinite().all()


def wrapped_models_are_refused() -> None:
    towers = [wrap(_base()) for wrap in (DistributedDataParallel, _shard)]
    for model in [*towers, *(nn.Sequential(tower) for tower in towers)]:
        names = [name for name, _ in model.named_modules()]
        with pytest.raises(ValueError, match="patch first, then wrap"):
            fastht.patch(model)
        assert [name for name, _ in model.named_modules()] == names
    # What is patched already stays as it is, and other adapters are to be made before wrapping.
    for wrap in (DistributedDataParallel, _shard):
        model = wrap(_model())
        assert fastht.patch(model, CONFIG) is model
        with pytest.raises(ValueError, match=r"has HT adapters already .*, on a model that is not"):
            fastht.patch(model)


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        ddp,
        ddp_checkpointed,
        ddp_recomputed,
        fsdp2,
        fsdp2_checkpointed,
        fsdp2_recomputed,
        fsdp2_mixed_precision,
        wrapped_models_are_refused,
    )
}


def main(names: str, folder: str, rank: str) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=int(rank), world_size=WORLD_SIZE)
    for name in names.split(","):
        CASES[name]()
        dist.barrier()
    dist.destroy_process_group()

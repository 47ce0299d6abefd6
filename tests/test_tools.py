"""Tools that change a model, after or before patching: right, or one sentence with the remedy."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from tiny_towers import randomize, snapshot
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from vits import VITS, loss, openai_tower

import fastht

VIT = VITS["registers"]
IMAGE = VIT.image()


def _patched(backend: str = "auto", **config: Any) -> nn.Module:
    torch.manual_seed(1)
    model = fastht.patch(VIT.build(), fastht.HTConfig(dropout=0.0, **config), backend=backend)
    randomize(fastht.adapter_parameters(model))
    return model


def _output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IMAGE)


# Quantisation


def test_dynamic_quantisation_leaves_the_adapters_alone() -> None:
    model = _patched()
    exact = _output(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert "quantized" in type(small.blocks[0].attn.qkv).__module__
    difference = (_output(small) - exact).norm() / exact.norm()
    assert 0 < difference < 0.1
    with fastht.disable_adapter(small):
        assert not torch.allclose(_output(small), exact, atol=1e-2)


def test_torchao_quantises_the_base_after_patch() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = _patched()
    exact = _output(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert "torchao" in type(model.blocks[0].attn.qkv.weight).__module__
    assert all(type(p) is nn.Parameter for p in fastht.adapter_parameters(model))
    assert (_output(model) - exact).norm() / exact.norm() < 0.1


class _Foreign:
    """Stands in for what a tool puts in a parameter's place."""


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_replaced_parameter_is_named(backend: str) -> None:
    model = _patched(backend)
    del fastht.adapters(model)[1].down.weight
    fastht.adapters(model)[1].down.weight = _Foreign()
    with pytest.raises(TypeError, match=r"down\.weight.*_Foreign.*quantise the base before"):
        _output(model)


# Pruning and parametrizations


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_pruned_adapter_trains_behind_its_mask(backend: str) -> None:
    model = _patched(backend)
    layer = fastht.adapters(model)[0].down
    prune.random_unstructured(layer, "weight", amount=0.5)
    mask = layer.weight_mask.bool()
    loss(model(IMAGE)).backward()
    assert layer.weight_orig.grad[mask].abs().min() > 0
    assert not layer.weight_orig.grad[~mask].any()
    before = _output(model)
    with torch.no_grad():
        layer.weight_orig.add_(layer.weight_orig.grad)
    assert not torch.allclose(_output(model), before, atol=1e-4)  # what was learned acts
    with torch.no_grad():
        layer.weight_orig[~mask] += 1.0
    after = _output(model)
    prune.remove(layer, "weight")
    torch.testing.assert_close(_output(model), after)


def test_the_older_and_the_newer_norms_of_weights_act() -> None:
    model = _patched()
    before = _output(model)
    adapter = fastht.adapters(model)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(adapter.down)
    torch.testing.assert_close(_output(model), before)
    with torch.no_grad():
        adapter.down.weight_g.mul_(2.0)
    assert not torch.allclose(_output(model), before, atol=1e-4)
    parametrizations.weight_norm(adapter.up)
    with torch.no_grad():
        adapter.up.parametrizations.weight.original0.mul_(2.0)
    assert not torch.allclose(_output(model), before, atol=1e-4)


def test_a_base_pruned_while_patched_gets_its_flags_back() -> None:
    model = _patched()
    prune.random_unstructured(model.blocks[0].attn.qkv, "weight", amount=0.5)
    parametrizations.weight_norm(model.blocks[1].attn.qkv)
    fastht.unpatch(model)
    assert model.blocks[0].attn.qkv.weight_orig.requires_grad
    assert all(p.requires_grad for p in model.blocks[1].attn.qkv.parameters())


def test_a_base_whose_tools_went_while_it_was_patched_gets_its_flags_back() -> None:
    model = VIT.build()
    first, second = (block.attn.qkv for block in model.blocks)
    first.bias.requires_grad_(False)
    prune.random_unstructured(first, "weight", amount=0.5)
    parametrizations.weight_norm(second)
    fastht.patch(model)
    prune.remove(first, "weight")
    parametrize.remove_parametrizations(second, "weight")
    fastht.unpatch(model)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "blocks.0.attn.qkv.bias"
    ]


# accelerate's offloading


def test_adapters_of_an_offloaded_base(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = _patched()
    expected = _output(model)
    fastht.save_adapter(model, tmp_path / "adapter")
    base = VIT.build()
    accelerate.cpu_offload(base, execution_device="cpu")
    assert base.blocks[0].attn.qkv.weight.is_meta
    fastht.load_adapter(base, tmp_path / "adapter")
    assert torch.equal(_output(base), expected)
    assert {p.device.type for p in fastht.adapter_parameters(base)} == {"cpu"}

    plain, whole = copy.deepcopy(model), copy.deepcopy(model)
    accelerate.cpu_offload(plain, execution_device="cpu")
    with pytest.raises(ValueError, match=r"on meta and x on cpu; give.*'HTAdapter'"):
        _output(plain)
    accelerate.cpu_offload(whole, execution_device="cpu", preload_module_classes=["HTAdapter"])
    assert fastht.adapters(whole)[0].up.weight.is_meta
    assert torch.equal(_output(whole), expected)


# The meta device and starting anew


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_a_patched_model_without_memory_starts_anew(init: Any) -> None:
    with torch.device("meta"):
        model = openai_tower.__wrapped__()
    fastht.patch(model, fastht.HTConfig(init=init))
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    torch.manual_seed(3)
    for module in model.modules():  # PyTorch's recipe
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.manual_seed(3)
    fresh = fastht.HTAdapter(32, fastht.HTConfig(init=init))
    for adapter in fastht.adapters(model).values():
        assert all(p.isfinite().all() for p in adapter.parameters())
        assert torch.equal(adapter.gamma, fresh.gamma)
        assert bool(adapter.up.weight.any()) == (init == "paper")
    # And one alone draws what a new one draws.
    adapter = fastht.HTAdapter(32, fastht.HTConfig(init=init))
    torch.manual_seed(3)
    adapter.reset_parameters()
    for ours, theirs in zip(adapter.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)


_FSDP = """
import os, sys, tempfile
sys.path[:] = {path!r}
import torch, fastht
from torch import nn
from torch.distributed.fsdp import fully_shard
from vits import VITS, loss
meeting = "file://" + sys.argv[1]
torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
vit = VITS["registers"]
expected = fastht.patch(vit.build(), fastht.HTConfig(dropout=0.0))
model = fastht.patch(vit.build(), fastht.HTConfig(dropout=0.0))
model.load_state_dict(expected.state_dict())
for module in list(model.modules()):
    if isinstance(module, nn.Linear):
        fully_shard(module)
fully_shard(model)
loss(model(vit.image())).backward()
loss(expected(vit.image())).backward()
for ours, theirs in zip(fastht.adapter_parameters(model), fastht.adapter_parameters(expected)):
    torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-5)
model = fastht.patch(vit.build())
fully_shard(fastht.adapters(model)[0].down)
try:
    model(vit.image())
except TypeError as error:
    assert "apply fully_shard to blocks or whole adapters" in str(error), error
else:
    raise SystemExit("not refused")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_fsdp2_on_every_linear(tmp_path: Path) -> None:
    script = _FSDP.format(path=[str(Path(__file__).parent), *sys.path])
    found = fresh.run(script, str(tmp_path / "rendezvous"))
    assert found.returncode == 0, found.stderr


# Averages of weights


def test_an_average_is_asked_and_unpatched_as_the_model() -> None:
    model = _patched()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert fastht.adapters(average).keys() == fastht.adapters(model).keys()
    torch.testing.assert_close(_output(average), _output(model))
    fastht.unpatch(average)
    assert not any(".ht." in name for name in average.state_dict())
    assert all(p.requires_grad for p in average.module.parameters())
    assert fastht.adapters(model)  # the model itself is as it was


def test_timms_average() -> None:
    utils = pytest.importorskip("timm.utils")
    model = _patched()
    average = utils.ModelEmaV3(model)
    average.update(model)
    fastht.unpatch(average)
    with pytest.raises(fastht.NotPatchedError):
        fastht.adapters(average)


# unpatch: all or nothing


def test_adapters_without_their_hooks_are_told(tmp_path: Path) -> None:
    model = _patched()
    expected = _output(model)
    for module in model.modules():
        module._forward_hooks.clear()
    calls: tuple[Any, ...] = (
        lambda: fastht.disable_adapter(model).__enter__(),
        lambda: fastht.patch(model, fastht.HTConfig(dropout=0.0)),
        lambda: fastht.load_adapter(model, tmp_path),
    )
    fastht.save_adapter(model, tmp_path)  # nothing is lost
    for call in calls:
        with pytest.raises(ValueError, match=r"do not run.*save them, call fastht\.unpatch"):
            call()
    fastht.load_adapter(fastht.unpatch(model), tmp_path)
    assert torch.equal(_output(model), expected)


def test_unpatch_does_not_mind_hooks_and_methods_that_others_took_away() -> None:
    base = snapshot(VIT.build())["tensors"]
    model = VIT.build()
    fastht.patch(model)
    model.blocks[0]._forward_hooks.clear()
    model.patch_embed.proj._forward_hooks.clear()
    fastht.unpatch(model)
    assert snapshot(model)["tensors"].keys() == base.keys()
    assert all(p.requires_grad for p in model.parameters())


# Adapters that do not learn


class _ReadsTheFirstBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = openai_tower()

    def forward(self, image: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = self.tower.transformer.resblocks[0].register_forward_hook(
            lambda _, __, out: kept.append(out)
        )
        self.tower(image)
        handle.remove()
        return kept[0]


def test_adapters_without_a_gradient_are_told_once() -> None:
    image = VITS["openai"].image()
    model = fastht.patch(_ReadsTheFirstBlock()).train()
    copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"blocks \[1\] got no gradient.*\[0\] are reached"):
        loss(model(image)).backward()
    copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(model(image)).backward()
        whole = fastht.patch(openai_tower()).train()
        for _ in range(2):
            loss(whole(image)).backward()

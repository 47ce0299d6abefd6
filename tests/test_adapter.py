"""HTAdapter as a module: what it holds, how it starts, and how it is called."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

from fastht import HTAdapter, HTConfig
from fastht.layers import ReadLayer
from fastht.ops import registry, resolve_backend

GRID = (3, 5)


def tokens(dim=12, prefix=1, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, prefix + GRID[0] * GRID[1], dim, generator=generator)


def shapes(**options):
    adapter = HTAdapter(12, HTConfig(bottleneck_dim=8, **options), grid_size=GRID)
    return {name: tuple(p.shape) for name, p in adapter.named_parameters()}


COMMON = {
    "gamma": (12,),
    "gammax": (12,),
    "norm.weight": (12,),
    "norm.bias": (12,),
    "down.weight": (8, 12),
    "down.bias": (8,),
    "conv3.weight": (8, 1, 3, 3),
    "conv3.bias": (8,),
    "conv5.weight": (8, 1, 5, 5),
    "conv5.bias": (8,),
    "conv7.weight": (8, 1, 7, 7),
    "conv7.bias": (8,),
    "pointwise.weight": (8, 8),
    "pointwise.bias": (8,),
    "up.weight": (12, 8),
    "up.bias": (12,),
}
GATE = {
    "noise_gate.0.weight": (2, 8),
    "noise_gate.0.bias": (2,),
    "noise_gate.2.weight": (3, 2),
    "noise_gate.2.bias": (3,),
}


def test_a_variant_has_its_parameters_and_no_others():
    assert shapes(variant="baseline") == COMMON
    assert shapes(variant="noise_aware") == COMMON | GATE
    assert shapes(variant="freq_enhanced") == COMMON | {"spectral_filter": (8,)}
    assert shapes() == COMMON | GATE | {"spectral_filter": (8,)}
    assert shapes(spectral="full") == COMMON | GATE | {"spectral_filter": (8, 3, 3)}


def test_identity_starts_as_the_base_bitwise_and_learns_from_its_first_step():
    adapter = HTAdapter(12).train()
    x = tokens()
    out = adapter(x, GRID)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert adapter.up.weight.grad.abs().max() > 0


def test_the_papers_initialisation():
    adapter = HTAdapter(64, HTConfig(init="paper", bottleneck_dim=16)).eval()
    assert torch.equal(adapter.gamma, torch.full((64,), 1e-6))
    assert torch.equal(adapter.gammax, torch.ones(64))
    assert torch.equal(adapter.spectral_filter, torch.ones(16))
    for linear, fan_in in ((adapter.down, 64), (adapter.up, 16), (adapter.pointwise, 16)):
        bound = fan_in**-0.5
        assert 0.8 * bound < linear.weight.abs().max() <= bound
    x = tokens(64)
    assert (adapter(x, GRID) - x).abs().max() > 0.01


def test_dropout_works_in_training_alone():
    adapter = HTAdapter(12, HTConfig(init="paper", dropout=0.5))
    x = tokens()
    assert not torch.equal(adapter.train()(x, GRID), adapter(x, GRID))
    assert torch.equal(adapter.eval()(x, GRID), adapter(x, GRID))


def test_another_grid_resamples_a_full_filter():
    adapter = HTAdapter(12, HTConfig(init="paper", spectral="full"), grid_size=(6, 6)).eval()
    plain = HTAdapter(12, HTConfig(init="paper")).eval()
    state = adapter.state_dict()
    plain.load_state_dict(state | {"spectral_filter": torch.ones(64)})
    x = tokens()
    torch.testing.assert_close(adapter(x, GRID), plain(x, GRID), rtol=0, atol=1e-6)
    with torch.no_grad():
        adapter.spectral_filter[:, 0, 0] = 3.0
    assert (adapter(x, GRID) - plain(x, GRID)).abs().max() > 1e-3


def test_copies_use_their_own_weights():
    adapter = HTAdapter(12, HTConfig(init="paper")).eval()
    x = tokens()
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert torch.equal(twin(x, GRID), adapter(x, GRID))
        with torch.no_grad():
            twin.up.bias += 1
        torch.testing.assert_close(twin(x, GRID), adapter(x, GRID) + 1)


def test_a_data_parallel_replica_computes_the_same():
    # As nn.DataParallel does on GPUs: the parameters stand in the replica as plain tensors.
    adapter = HTAdapter(12, HTConfig(init="paper")).eval()
    replica = adapter._replicate_for_data_parallel()
    for name, module in adapter.named_modules():
        if name:
            parent, _, child = name.rpartition(".")
            twin = module._replicate_for_data_parallel()
            owner = replica.get_submodule(parent) if parent else replica
            owner._modules[child] = twin
    for name, parameter in adapter.named_parameters():
        owner, _, key = name.rpartition(".")
        module = replica.get_submodule(owner) if owner else replica
        module._parameters.pop(key, None)
        setattr(module, key, parameter * 1)
    assert not list(replica.parameters())
    x = tokens()
    assert torch.equal(replica(x, GRID), adapter(x, GRID))


def test_it_runs_without_memory_on_the_meta_device():
    adapter = HTAdapter(12, device="meta")
    x = torch.empty(2, 16, 12, device="meta")
    assert adapter(x, GRID).shape == x.shape


def test_its_repr_tells_variant_filter_and_backend():
    text = repr(HTAdapter(12, HTConfig(spectral="full"), grid_size=GRID))
    assert "variant='hybrid'" in text
    assert "spectral='full'" in text
    assert f"backend='auto -> {resolve_backend('auto', 'cpu').name}'" in text
    assert "backend='reference'" in repr(HTAdapter(12, backend="reference"))


def test_its_repr_does_not_fail_where_its_backend_cannot_run(monkeypatch):
    missing = []
    elsewhere = registry.Backend(
        "elsewhere", "", lambda: missing[0] if missing else None, lambda *_: None, None, print
    )
    monkeypatch.setitem(registry._BACKENDS, "elsewhere", elsewhere)
    adapter = HTAdapter(12, backend="elsewhere")
    missing.append("another machine")
    assert "backend='elsewhere -> not usable here'" in repr(adapter)


def test_its_repr_names_the_backend_before_it_is_on_the_device(monkeypatch):
    for_gpus = registry.Backend(
        "for_gpus",
        "",
        lambda: None,
        lambda device, dtype: None if device == "cuda" else "it takes CUDA tensors",
        None,
        print,
    )
    monkeypatch.setitem(registry._BACKENDS, "for_gpus", for_gpus)
    assert "backend='for_gpus'" in repr(HTAdapter(12, backend="for_gpus"))


@pytest.mark.parametrize("missing", [None, "torch sees no CUDA GPU"])
def test_its_repr_on_a_machine_with_a_gpu_and_without(monkeypatch, missing):
    triton = dataclasses.replace(registry._BACKENDS["triton"], missing=lambda: None)
    monkeypatch.setitem(registry._BACKENDS, "triton", triton)
    monkeypatch.setattr(registry, "_interpreting", lambda: False)  # it takes CUDA tensors alone
    adapter = HTAdapter(12, backend="triton")
    triton = dataclasses.replace(triton, missing=lambda: missing)
    monkeypatch.setitem(registry._BACKENDS, "triton", triton)
    shown = "triton -> not usable here" if missing else "triton"
    assert f"backend='{shown}'" in repr(adapter)
    here = resolve_backend("auto", "cpu").name
    assert here != "triton"
    assert f"backend='auto -> {here}'" in repr(HTAdapter(12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"dim": 8, "config": HTConfig(spectral="full")}, "grid_size"),
        ({"dim": 8, "backend": "warp"}, "'warp'"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        HTAdapter(**arguments)


def test_its_children_are_no_layers_that_tools_take_for_called():
    kinds = {type(m) for m in HTAdapter(12).modules()} - {HTAdapter}
    assert kinds == {ReadLayer, nn.ModuleDict}
    assert "(down): ReadLayer(Linear, 64x12)" in repr(HTAdapter(12))
